"""The value that describes a method of training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from deepinv.loss import Loss
from deepinv.physics import Physics
from torch import Tensor, nn

from equitomo.draws import Draws
from equitomo.geometry import Geometry
from equitomo.volumes import Shape

Tilts = tuple[Geometry, ...]
Network = Callable[[], nn.Module]
Operator = Callable[[Shape, Geometry], Physics]
Losses = Callable[[Physics], Mapping[str, Loss]]
Augmentation = Callable[[Tensor, Sequence[Geometry | Tilts], Draws], Tensor]


@dataclass(frozen=True)
class Method:
    r"""The parts of a training method, which :class:`~equitomo.training.Trainer` puts together.

    One step of a method, for cubes :math:`y` of the tomograms,

    .. math:: \sum_k \mathcal{L}_k\bigl(f(y),\; y,\; A,\; f\bigr),

    is the sum of its losses, which share the estimate :math:`f(y)`.

    Parameters
    ----------
    name
        The name of the method.
    network
        A function that makes the network :math:`f`, a module that maps ``(batch, 1, z, y, x)`` to the same shape. It is
        called again whenever a copy of the network is needed, and must make the same modules each time.
    physics
        A function that makes the operator :math:`A` for a shape ``(z, y, x)`` and a geometry.
    losses
        A function that makes the losses for an operator, by name. Each is called as in deepinv, with ``x_net``, ``y``,
        ``physics`` and ``model``, and also with ``draws``; it returns one value per sample, or one for all. The names
        head the columns of ``losses.csv``. A loss whose attribute ``weight`` is zero is not called. If no loss that is
        called has a true ``uses_estimate``, the call of the network that makes ``x_net`` is saved; if none has a true
        ``needs_estimate_gradient``, its gradient is saved. A loss without these attributes counts as true.
    augmentations
        Functions that change cubes before the losses see them, in this order: each takes cubes ``(batch, views, z, y,
        x)``, the geometry of every cube, and the draws to use, and returns cubes of the same shape. If the views of a
        cube have different tilts, its geometry is a tuple with that of each view.
    larger_augmentations
        Functions of the same kind that are called first, on larger cubes, which are cropped afterwards.
    cut_margin
        Voxels by which the larger cubes extend at each face, as far as the volume does.
    n_views
        Number of views of a cube: 2 for both halves, 1 for their mean or for a single volume.

    Examples
    --------
    >>> from dataclasses import replace
    >>> from equitomo import TrainingConfig
    >>> from equitomo.methods import method_of
    >>> method = method_of(TrainingConfig.preset("fast"))
    >>> method.name, replace(method, augmentations=()).augmentations
    ('fast', ())
    """

    name: str
    network: Network
    physics: Operator
    losses: Losses
    augmentations: tuple[Augmentation, ...] = ()
    larger_augmentations: tuple[Augmentation, ...] = ()
    cut_margin: int = 0
    n_views: int = 2

    def __post_init__(self) -> None:
        if self.n_views < 1 or self.cut_margin < 0:
            raise ValueError(
                f"`n_views` must be at least 1 and `cut_margin` zero or more, got {self.n_views} and {self.cut_margin}"
            )
