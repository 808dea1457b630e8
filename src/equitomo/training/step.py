"""The losses of one training step, for any network, losses and operators."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from deepinv.loss import Loss
from deepinv.physics import Physics
from torch import Tensor, nn

from equitomo.draws import Draws, draw_integers
from equitomo.models import TwoViewReconstructor
from equitomo.physics import MissingWedgeOperator, PaddedMissingWedgeOperator
from equitomo.training.fingerprint import describe
from equitomo.training.loss_table import NOT_LOSSES
from equitomo.training.method import Method, Tilts
from equitomo.volumes import Shape

# Streams of draws from here on belong to the call of the network and to the losses, in this order.
_STREAMS = 1 << 16


class Objective(nn.Module):
    """The losses of cubes, whose tomograms may have different geometries.

    Operators that differ in their masks only are replaced by one operator, which then holds a mask per cube. Otherwise
    the cubes of a batch are grouped by geometry, and each group has an operator and losses of its own. The attribute
    ``terms`` holds one :class:`Terms`, or one for each element of ``tilts``, the distinct tilts of the tomograms.
    """

    masks: Tensor | None

    def __init__(
        self, network: nn.Module, method: Method, shape: Shape, tilts: Sequence[Tilts], device: torch.device
    ) -> None:
        super().__init__()
        operators = [_operator(method, shape, views, device) for views in tilts]
        shared = len(operators) > 1 and _differ_in_masks_only(operators, shape)
        self.register_buffer("masks", _joined(operators, dim=0) if shared else None, persistent=False)
        if self.masks is not None:
            operators = operators[:1]
            # Losses that depend on the operator, for example on the rotations that move its wedge, see all masks.
            operators[0].update(mask=self.masks)
        self.terms = [Terms(network, physics, method.losses(physics)) for physics in operators]
        # A list alone would hide the modules from torch.
        self.parts = nn.ModuleList(self.terms)
        self.names = self.terms[0].names
        self._numbers = {views: number for number, views in enumerate(tilts)}

    def forward(self, y: Tensor, tilts: Sequence[Tilts], draws: Draws) -> Tensor:
        """Return the losses ``(losses, cubes)`` of cubes ``(cubes, views, z, y, x)``."""
        numbers = [self._numbers[views] for views in tilts]
        if len(self.terms) == 1:
            if self.masks is not None:
                self.terms[0].physics.update(mask=self.masks[numbers])
            return cast(Tensor, self.terms[0](y, draws))
        columns: dict[int, Tensor] = {}
        for number in dict.fromkeys(numbers):
            own = [position for position, other in enumerate(numbers) if other == number]
            losses = self.terms[number](y[own], Draws(draws.seed, [draws.indices[position] for position in own]))
            columns |= zip(own, losses.unbind(1), strict=True)
        return torch.stack([columns[position] for position in range(len(numbers))], dim=1)


class Terms(nn.Module):
    """The losses of cubes that share an operator, in one forward pass.

    Random numbers depend on the seed, on the index of the first cube and on the loss: before the network is called for
    the estimate, and before each loss, torch's global generator and every generator that a loss, the operator or the
    model holds are seeded. The global generator is put back afterwards.
    """

    def __init__(self, network: nn.Module, physics: Physics, losses: Mapping[str, Loss]) -> None:
        super().__init__()
        self.names = _checked(losses)
        self.physics = physics
        self.losses = nn.ModuleList(losses.values())
        self.model: nn.Module = TwoViewReconstructor(network)
        for loss in losses.values():
            self.model = loss.adapt_model(self.model)
        # A model that a loss has adapted stores what the loss needs only on request, as deepinv's trainer does.
        keeps = "update_parameters" in inspect.signature(self.model.forward).parameters
        self._options = {"update_parameters": True} if keeps else {}
        self._generators = [
            value for part in self.modules() for value in vars(part).values() if isinstance(value, torch.Generator)
        ]

    def forward(self, y: Tensor, draws: Draws) -> Tensor:
        """Return the losses ``(losses, cubes)``."""
        active = [loss for loss in self.losses if _has_weight(loss)]
        # The estimate is computed only if a loss uses it, and with a graph only if a loss needs its gradient.
        estimated = any(getattr(loss, "uses_estimate", True) for loss in active)
        learned = any(getattr(loss, "needs_estimate_gradient", True) for loss in active)
        with forked_generators(y.device):
            x_net = None
            if estimated:
                self._seed(draws, 0, y.device)
                with torch.set_grad_enabled(torch.is_grad_enabled() and learned):
                    x_net = self.model(y, self.physics, **self._options)
                if x_net.shape != y.shape:
                    raise ValueError(
                        f"the network maps cubes of shape {tuple(y.shape)} to {tuple(x_net.shape)}: it must keep the "
                        "shape (batch, 1, z, y, x)"
                    )
            rows = []
            for number, (name, loss) in enumerate(zip(self.names, self.losses, strict=True), start=1):
                if not _has_weight(loss):
                    rows.append(y.new_zeros(len(y)))
                    continue
                self._seed(draws, number, y.device)
                value = loss(x=None, x_net=x_net, y=y, physics=self.physics, model=self.model, draws=draws)
                rows.append(_per_sample(value, len(y), name))
        return torch.stack(rows)

    def _seed(self, draws: Draws, number: int, device: torch.device) -> None:
        (seed,) = draw_integers(draws.seed, draws.indices[:1], 2**63, _STREAMS + number)
        seed_generators(seed, device)
        for offset, generator in enumerate(self._generators, start=1):
            generator.manual_seed((seed + offset) % 2**63)


def fingerprint_of(method: Method, network: nn.Module, objective: Objective) -> dict[str, Any]:
    """Return the description of a method by which a resumed run is recognised, before training changes anything."""
    terms = objective.terms
    return {
        "network": describe(network, values=False),
        "losses": {name: describe(loss) for name, loss in zip(terms[0].names, terms[0].losses, strict=True)},
        "operators": [describe(part.physics) for part in terms],
        "augmentations": [describe(augmentation) for augmentation in method.augmentations],
        "larger_augmentations": [describe(augmentation) for augmentation in method.larger_augmentations],
        "cut_margin": method.cut_margin,
        "n_views": method.n_views,
    }


@contextmanager
def forked_generators(device: torch.device) -> Iterator[None]:
    """Restore torch's global generators of the host and of a device afterwards."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


def seed_generators(seed: int, device: torch.device) -> None:
    """Seed torch's global generators of the host and of a device, and of no other device."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)


def _checked(losses: Mapping[str, Loss]) -> tuple[str, ...]:
    for name, loss in losses.items():
        if not isinstance(loss, nn.Module):
            raise TypeError(f"the loss {name!r} must be a deepinv loss, got {loss!r}")
        if not name.isprintable() or not name or name in NOT_LOSSES:
            raise ValueError(f"the name of a loss heads a column of losses.csv and cannot be {name!r}")
    if not any(map(_has_weight, losses.values())):
        raise ValueError("there is nothing to learn from: at least one loss with a weight other than zero is needed")
    return tuple(losses)


def _has_weight(loss: nn.Module) -> bool:
    weight = getattr(loss, "weight", 1.0)
    return not isinstance(weight, (int, float)) or weight != 0


def _per_sample(value: Tensor, n: int, name: str) -> Tensor:
    """Return one value per sample of a loss that gives one per sample, or the mean over all."""
    if value.numel() == 1:
        return value.reshape(1).expand(n)
    if len(value) != n:
        raise ValueError(f"the loss {name!r} has shape {tuple(value.shape)}: it must give one value, or one per sample")
    return value if value.ndim == 1 else value.flatten(1).mean(1)


def _operator(method: Method, shape: Shape, views: Tilts, device: torch.device) -> Physics:
    """Return the operator of a tomogram, with a mask per view where the tilts of the views differ."""
    operators = [method.physics(shape, geometry).to(device) for geometry in dict.fromkeys(views)]
    if len(operators) == 1:
        return operators[0]
    if not _differ_in_masks_only(operators, shape):
        raise ValueError(
            f"the tilts of the halves differ, and an operator of the class {type(operators[0]).__name__} cannot take a "
            "mask for each: give masks of one shape, or the tilts of the whole series for both halves"
        )
    of_each = dict(zip(dict.fromkeys(views), operators, strict=True))
    operators[0].update(mask=_joined([of_each[geometry] for geometry in views], dim=1))
    return operators[0]


def _joined(operators: Sequence[Physics], dim: int) -> Tensor:
    """Return the masks of several operators as one, for samples (0) or for views (1)."""
    n_views = max(operator.mask.shape[1] for operator in operators)
    return torch.cat([operator.mask.expand(-1, n_views, -1, -1, -1) for operator in operators], dim)


def _differ_in_masks_only(operators: Sequence[Physics], shape: Shape) -> bool:
    """Return whether the first operator becomes each of the others when it is given the other's mask."""
    first, *others = operators
    masks = [dict(operator.named_buffers()).get("mask") for operator in operators]
    if any(type(operator) is not type(first) for operator in others):
        return False
    if any(mask is None or mask.ndim != 5 or mask.shape[2:] != first.mask.shape[2:] for mask in masks):
        return False
    if type(first) in (MissingWedgeOperator, PaddedMissingWedgeOperator):
        return True
    # An operator of another class may depend on the geometry by more than its mask.
    n_views = max(operator.mask.shape[1] for operator in operators)
    probe = torch.randn(1, n_views, *shape, generator=torch.Generator().manual_seed(0)).to(first.mask.device)
    found = []
    for operator, mask in zip(others, masks[1:], strict=True):
        first.update(mask=mask)
        found.append(torch.equal(first.A(probe), operator.A(probe)))
    first.update(mask=masks[0])
    return all(found)
