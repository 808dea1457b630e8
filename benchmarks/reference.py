"""A reimplementation of the reference program's formulation of a training step, for comparison.

It computes the loss of the method, but in the form of the reference program: with complex transforms of twice the side
and shifts, separate transforms of target and estimate, four network calls, a wedge that is rotated and made symmetric
for each sample, rotations as chains of right-angle turns, and a U-Net in float32 that upsamples and concatenates. It
was written from a description of these steps, and takes the mask of this package.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from equitomo.fourier import full_spectrum
from equitomo.physics import PaddedMissingWedgeOperator

_AXES = (-3, -2, -1)


class ReferenceStep:
    """The loss of one training step for cubes ``(batch, z, y, x)`` of two views."""

    def __init__(self, side: int, geometry: tuple[float, float], generator: torch.Generator) -> None:
        self.side, self.generator = side, generator
        operator = PaddedMissingWedgeOperator((side,) * 3, geometry)
        full = full_spectrum(operator.mask[0, 0], 2 * side)
        # The mask is shifted, and one voxel larger so that it can be rotated about its centre.
        self.wedge = nn.functional.pad(torch.fft.fftshift(full), (0, 1) * 3, mode="constant")
        self.small = torch.fft.fftshift(full[::2, ::2, ::2])
        start, stop = side // 4, side - side // 4
        self.window = torch.zeros(side, side, side)
        self.window[start:stop, start:stop, start:stop] = 1

    def __call__(self, first: Tensor, second: Tensor, network: nn.Module) -> Tensor:
        wedges = self.wedge[:-1, :-1, :-1].expand(len(first), -1, -1, -1)
        first, second = self._project(first, wedges), self._project(second, wedges)
        estimates = [network(view[:, None])[:, 0] for view in (first, second)]
        small = self.small.expand(len(first), -1, -1, -1)
        data = self._masked_error(second, estimates[0], wedges, small)
        data = data + self._masked_error(first, estimates[1], wedges, small)
        turns = torch.randint(4, (len(first), 3), generator=self.generator).tolist()
        turned = [_turned(volume, turns) for volume in (*estimates, first, second)]
        turned_wedges = _symmetric(_turned(self.wedge.expand(len(first), -1, -1, -1), turns)[:, :-1, :-1, :-1])
        again = [network(self._project(volume, wedges)[:, None])[:, 0] for volume in turned[:2]]
        equivariance = self._masked_error(turned[1], again[0], turned_wedges, turned_wedges)
        equivariance = equivariance + self._masked_error(turned[0], again[1], turned_wedges, turned_wedges)
        return data + 2 * equivariance

    def masked_error(self, target: Tensor, estimate: Tensor) -> Tensor:
        """Return the windowed loss alone, with the wedge of the input emptied in both volumes."""
        wedges = self.wedge[:-1, :-1, :-1].expand(len(target), -1, -1, -1)
        return self._masked_error(target, estimate, wedges, wedges)

    def project(self, volumes: Tensor) -> Tensor:
        """Return cubes ``(batch, z, y, x)`` with the wedge of the input emptied."""
        return self._project(volumes, self.wedge[:-1, :-1, :-1].expand(len(volumes), -1, -1, -1))

    def _masked_error(self, target: Tensor, estimate: Tensor, wedges: Tensor, target_wedges: Tensor) -> Tensor:
        one = torch.view_as_real(self._complex_project(target, target_wedges))
        other = torch.view_as_real(self._complex_project(estimate, wedges))
        window = self.window[..., None]
        return nn.functional.mse_loss(one * window, other * window)

    def _project(self, volumes: Tensor, wedges: Tensor) -> Tensor:
        return self._complex_project(volumes, wedges).real

    def _complex_project(self, volumes: Tensor, wedges: Tensor) -> Tensor:
        n, size = volumes.shape[-1], wedges.shape[-1]
        padded = nn.functional.pad(volumes, (0, size - n) * 3)
        spectrum = torch.fft.fftshift(torch.fft.fftn(padded, dim=_AXES), dim=_AXES) * wedges
        return torch.fft.ifftn(torch.fft.ifftshift(spectrum, dim=_AXES), dim=_AXES)[..., :n, :n, :n]


def _turned(volumes: Tensor, turns: list[list[int]]) -> Tensor:
    """Return each sample rotated by its own right angles about the three axes."""
    out = torch.zeros_like(volumes)
    for index, (a, b, c) in enumerate(turns):
        volume = torch.rot90(volumes[index], a, (0, 1))
        volume = torch.rot90(volume, b, (0, 2))
        out[index] = torch.rot90(volume, c, (1, 2))
    return out


def _symmetric(wedges: Tensor) -> Tensor:
    """Return masks that are made even, sample by sample."""
    out = torch.zeros_like(wedges)
    for index, wedge in enumerate(wedges):
        unshifted = torch.fft.ifftshift(wedge)
        mirror = unshifted.flip((0, 1, 2)).roll((1, 1, 1), (0, 1, 2))
        out[index] = torch.fft.fftshift(((unshifted + mirror) / 2 > 0.5).float())
    return out
