"""The rotations and mirror images of the cube, acting on volumes without interpolation."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import cache
from typing import Any, Protocol, cast

import torch
from deepinv.transform import Transform
from deepinv.transform.base import TransformParam
from torch import Tensor

from equitomo.checks import Shape, require_volumes
from equitomo.fourier import ROUNDING, full_spectrum, mirrored

_AXES = (-3, -2, -1)
_KEY = "element"


class MaskedOperator(Protocol):
    """An operator with a mask on the half spectrum of a grid, as :meth:`CubeRotationGroup.moving` takes it."""

    mask: Tensor
    grid_shape: Shape
    volume_shape: Shape


class CubeRotationGroup(Transform):  # type: ignore[misc]
    r"""Rotations by right angles about the three axes, and their mirror images.

    The elements :math:`R_g` are the 48 signed permutations of the axes z, y and x; numbers 0 to 23 are the
    rotations, 24 to 47 contain a reflection, 0 is the identity. They permute voxels, so nothing is
    interpolated, :math:`R_g^{-1} = R_g^\top` exactly, and :math:`R_g R_h = R_{gh}` with the product table.
    The parameter ``element`` holds one integer per element, so that deepinv's ``transform``, ``inverse``,
    ``symmetrize`` and ``identity`` work; :meth:`apply` gives each sample of a batch its own element.

    In a chain of deepinv transforms keep this one on the left: the left one decides how volumes are
    treated. The product of two elements is one element, see :meth:`compose`, and needs no chain.

    Parameters
    ----------
    flips
        Whether mirror images are drawn too, unless ``elements`` are given. For chiral specimens a mirror image is
        another specimen, yet the paper and the reference program use all 48 elements, which is the default here.
    n_trans
        The number of different elements that one call draws; it stacks the results along the batch as deepinv does.
    rng
        The generator to draw with; ``None`` makes one, seeded with torch's default.
    elements
        The elements to draw from; ``None`` draws from the whole group. See :meth:`moving`.

    Raises
    ------
    ValueError
        If there are no elements to draw from, or fewer than ``n_trans``, or an axis would change its length.

    Examples
    --------
    >>> group = CubeRotationGroup()
    >>> x = torch.randn(1, 1, 4, 4, 4)
    >>> torch.equal(group.inverse(group.transform(x, element=7), element=7), x)
    True
    """

    def __init__(
        self,
        *,
        flips: bool = True,
        n_trans: int = 1,
        rng: torch.Generator | None = None,
        elements: tuple[int, ...] | None = None,
    ) -> None:
        # deepinv would fold z into the channels: volumes are not videos.
        super().__init__(n_trans=n_trans, rng=rng, flatten_video_input=False)
        chosen = range(48 if flips else 24) if elements is None else elements
        self.elements = tuple(int(g) for g in chosen)
        if not self.elements or not set(self.elements) <= set(range(48)):
            raise ValueError(f"`elements` must be a non-empty selection of 0 to 47, got {self.elements}")
        if not 1 <= n_trans <= len(self.elements):
            raise ValueError(f"`n_trans` must lie between 1 and the {len(self.elements)} elements, got {n_trans}")

    @classmethod
    def moving(
        cls,
        operator: MaskedOperator,
        flips: bool = True,
        *,
        n_trans: int = 1,
        rng: torch.Generator | None = None,
    ) -> CubeRotationGroup:
        """Return the group, drawing only elements that move the operator's mask and keep the volume's shape.

        A network learns nothing about the wedge from an element that maps the wedge onto itself. For a cube and a range
        that is symmetric about zero 40 of the 48 elements are left (20 of the 24 rotations), for other ranges 44.
        Elements that would exchange axes of different length are left out. If the operator has several masks, for
        samples or views, an element is drawn if it moves one of them.

        Parameters
        ----------
        operator
            A missing-wedge operator, of a geometry or of any mask.
        flips
            Whether mirror images are drawn too.
        n_trans, rng
            As for the class.

        Raises
        ------
        ValueError
            If no element is left, as for a mask that keeps everything.

        Examples
        --------
        >>> from equitomo.physics import MissingWedgeOperator
        >>> physics = MissingWedgeOperator((16, 16, 16), (-60.0, 60.0))
        >>> len(CubeRotationGroup.moving(physics).elements)
        40
        """
        # A mask is even, so the point reflection changes nothing: an improper element moves it like its rotation.
        moved = [_moves(g, operator) for g in range(24)]
        reflection = int((cls.matrices() == -torch.eye(3)).all(dim=(1, 2)).nonzero())
        rotations = [g if g < 24 else cls.compose(reflection, g) for g in range(48 if flips else 24)]
        moving = tuple(g for g, r in enumerate(rotations) if moved[r])
        if not moving:
            raise ValueError(
                f"no rotation of {operator.volume_shape} voxels moves the measured region: either nothing is missing "
                "or all lengths differ; equivariance needs a missing wedge and equal lengths across it"
            )
        return cls(flips=flips, n_trans=n_trans, rng=rng, elements=moving)

    @staticmethod
    def matrices() -> Tensor:
        """Return the signed permutation of (z, y, x) of each element, integers of shape (48, 3, 3)."""
        return _table()[0].clone()

    @staticmethod
    def compose(g: int, h: int) -> int:
        """Return the element that acts as ``h`` followed by ``g``."""
        return int(_table()[1][g, h])

    @staticmethod
    def invert(g: int) -> int:
        """Return the inverse element."""
        return int(_table()[2][g])

    def draw(self, n: int, *, generator: torch.Generator | None = None) -> Tensor:
        """Return ``n`` elements drawn uniformly with replacement, int64 of shape (n,) on the CPU."""
        generator = self.rng if generator is None else generator
        drawn = torch.randint(len(self.elements), (n,), generator=generator, device=generator.device)
        return torch.tensor(self.elements)[drawn.cpu()]

    def apply(self, x: Tensor, elements: Tensor, *, inverse: bool = False) -> Tensor:
        """Return a batch with each sample transformed by its own element, or by the inverse of it.

        Parameters
        ----------
        x
            Volumes ``(batch, C, z, y, x)``.
        elements
            One element per sample, integers of shape (batch,).
        inverse
            Apply the inverse elements.
        """
        require_volumes(x)
        if len(elements) != len(x):
            raise ValueError(f"one element per sample is needed: {len(x)} samples, {len(elements)} elements")
        elements = _inverted(elements) if inverse else _checked(elements)
        moved = [_apply(g, sample) for g, sample in zip(elements.tolist(), x, strict=True)]
        return torch.stack(moved)

    def invert_params(self, params: dict[str, Any]) -> dict[str, Any]:
        """Return the parameters of the inverse. They are looked up; deepinv would negate the element."""
        inverted = super().invert_params({k: v for k, v in params.items() if k != _KEY})
        if _KEY in params:
            inverted[_KEY] = _parameter(_inverted(torch.as_tensor(params[_KEY])))
        return cast(dict[str, Any], inverted)

    def _get_params(self, x: Tensor) -> dict[str, Tensor]:
        order = torch.randperm(len(self.elements), generator=self.rng, device=self.rng.device)
        return {_KEY: _parameter(torch.tensor(self.elements)[order[: self.n_trans].cpu()])}

    def _transform(self, x: Tensor, element: Tensor | int | None = None, **params: Any) -> Tensor:
        if element is None:
            return x
        require_volumes(x)
        return torch.cat([_apply(g, x) for g in _checked(torch.as_tensor(element)).reshape(-1).tolist()])


def _parameter(elements: Tensor) -> Tensor:
    return cast(Tensor, TransformParam(elements, neg=_inverted))


def _inverted(elements: Tensor) -> Tensor:
    return _table()[2][_checked(elements)]


def _checked(elements: Tensor) -> Tensor:
    """Return numbers of elements on the CPU, or refuse them: a negative index would silently mean another element."""
    elements = elements.as_subclass(Tensor).cpu()
    if torch.is_floating_point(elements) or bool(((elements < 0) | (elements > 47)).any()):
        raise ValueError(f"`elements` are whole numbers from 0 to 47, got {elements.tolist()}")
    return elements


@cache
def _table() -> tuple[Tensor, Tensor, Tensor]:
    """Return the matrices, products and inverses of the 48 elements, rotations first, the identity at 0."""
    matrices = torch.tensor(sorted(_signed_permutations(), key=_identity_first))
    # Signed permutations are told apart by their action on one vector with different entries.
    codes = matrices @ torch.tensor([1, 10, 100])
    products = torch.einsum("gij,hjk->ghik", matrices, matrices) @ torch.tensor([1, 10, 100])
    product = (products[:, :, None] == codes).all(-1).int().argmax(-1)
    inverse = (product == 0).int().argmax(-1)
    return matrices, product, inverse


def _signed_permutations() -> Iterator[list[list[int]]]:
    for order in itertools.permutations(range(3)):
        for signs in itertools.product((1, -1), repeat=3):
            yield [[signs[row] * (column == order[row]) for column in range(3)] for row in range(3)]


def _identity_first(matrix: list[list[int]]) -> tuple[bool, bool, list[list[int]]]:
    determinant = torch.linalg.det(torch.tensor(matrix, dtype=torch.float64)).item()
    return determinant < 0, matrix != [[1, 0, 0], [0, 1, 0], [0, 0, 1]], matrix


@cache
def _permutation(g: int) -> tuple[Shape, tuple[int, ...]]:
    """Return the axis that each of the last three comes from, and which of them are then reversed."""
    matrix = _table()[0][g]
    order = matrix.abs().argmax(-1).tolist()
    reverse = tuple(axis for axis, row in zip(_AXES, matrix, strict=True) if row.sum() < 0)
    return (order[0] - 3, order[1] - 3, order[2] - 3), reverse


def _apply(g: int, x: Tensor) -> Tensor:
    """Return ``(R_g x)[i] = x[M_g^T i]``, with indices counted from the centre."""
    order, reverse = _permutation(g)
    if not _keeps_shape(g, tuple(x.shape[-3:])):
        raise ValueError(
            f"element {g} of the cube's group exchanges axes of different length in a volume of {tuple(x.shape[-3:])} "
            "voxels (z, y, x): cut cubes, or draw with CubeRotationGroup.moving(operator)"
        )
    return _permuted(x, order).flip(reverse)


def _permuted(x: Tensor, order: Shape) -> Tensor:
    """Return a tensor with its last three axes in another order."""
    return x.permute(*range(x.ndim - 3), *(x.ndim + axis for axis in order))


def _keeps_shape(g: int, shape: tuple[int, ...]) -> bool:
    order, _ = _permutation(g)
    return all(shape[axis] == shape[source] for axis, source in zip(_AXES, order, strict=True))


def _moves(g: int, operator: MaskedOperator) -> bool:
    """Return whether an element keeps the volume's shape and changes the operator's mask."""
    if not _keeps_shape(g, operator.volume_shape):
        return False
    mask = full_spectrum(operator.mask, operator.grid_shape[2])
    # An axis along which the mask is constant may be of any length: give it that of the axes it is exchanged with.
    shape = operator.volume_shape
    lengths = [max(n for n, other in zip(mask.shape[-3:], shape, strict=True) if other == own) for own in shape]
    mask = mask.expand(*mask.shape[:-3], *lengths)
    order, reverse = _permutation(g)
    turned = _permuted(mask, order)
    # In Fourier space a reversed axis keeps k = 0 at index 0; see fourier.mirrored.
    turned = mirrored(turned, reverse) if reverse else turned
    return bool((turned - mask).abs().max() > ROUNDING * mask.abs().max())
