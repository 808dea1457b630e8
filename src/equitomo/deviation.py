r"""The standard deviation of a reconstruction, predicted by a network that learned it where the truth is known.

A small network :math:`s` without biases sees the mean of the halves and half their difference, the result
:math:`f` and half the difference :math:`g` between the results of the halves, and the measured parts :math:`A f` and
:math:`A g` of both. For each voxel of the result, of its measured part and of its filled part it returns a length,

.. math:: s_p = \Bigl( \sum_{k} h_{p,k}^2 \Bigr)^{1/2},

of outputs :math:`h` of a U-Net, so that :math:`s_p \ge 0` and :math:`s_p(c\,\cdot) = c\,s_p(\cdot)` for :math:`c > 0`.
It learned from simulated specimens of which the truth :math:`t` was known, by the quantiles of the error
:math:`e_p` of each part (:cite:t:`koenker1978regression`): for the levels :math:`\alpha` of 50, 80, 90 and 95 % and
factors :math:`c_\alpha` that are learned with it,

.. math:: \sum_\alpha \rho_\alpha \bigl( \log |e_p| - \log (c_\alpha s_p) \bigr),
          \qquad \rho_\alpha(r) = \max(\alpha r, (\alpha - 1) r) .

The logarithm does not change which quantile is the best, and lets each voxel count the same, however small its error.
``benchmarks/deviation.py`` is the training and ``benchmarks/calibration.py`` the comparison with the truth.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import cast

import numpy as np
import safetensors.torch
import torch
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor, nn

from equitomo.checks import require_volumes
from equitomo.filled import measured_operator
from equitomo.geometry import Geometry, as_geometry
from equitomo.inference import TiledPredictor
from equitomo.models import ScaleEquivariantUNet3D
from equitomo.precision import autocast, dtype_of
from equitomo.tiling import Tiling, shortest_tile

# What the intervals of each level are called in units of the standard deviation of a normal distribution.
NORMAL: Mapping[float, float] = {0.5: 0.6745, 0.8: 1.2816, 0.9: 1.6449, 0.95: 1.96}
PARTS = ("result", "measured", "wedge")
_N_INPUTS = 6
# Outputs whose length is one deviation: a single one would be near zero wherever it changes its sign.
_N_OUTPUTS = 4
_TILE, _MARGIN = 128, 32


class LearnedDeviation(nn.Module):
    """Predict standard deviations of a result, of its measured part and of its filled part.

    Parameters
    ----------
    width, levels, unshuffle, negative_slope
        Those of its :class:`~equitomo.ScaleEquivariantUNet3D`.

    Examples
    --------
    >>> model = LearnedDeviation(width=4, levels=2)
    >>> model(torch.randn(1, 6, 8, 8, 8)).shape
    torch.Size([1, 3, 8, 8, 8])
    """

    def __init__(self, *, width: int = 12, levels: int = 3, unshuffle: int = 2, negative_slope: float = 0.1) -> None:
        super().__init__()
        self.network = ScaleEquivariantUNet3D(
            _N_INPUTS,
            len(PARTS) * _N_OUTPUTS,
            width=width,
            levels=levels,
            unshuffle=unshuffle,
            negative_slope=negative_slope,
        )
        # Half the widths of the intervals of each part and level, in units of the output.
        self.factors: Tensor
        self.register_buffer("factors", torch.tensor(list(NORMAL.values())).repeat(len(PARTS), 1))

    @property
    def stride(self) -> int:
        """Period in voxels with which the output commutes with shifts."""
        return cast(int, self.network.stride)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(batch, 3, z, y, x)`` of what :func:`deviation_inputs` gives, ``(batch, 6, z, y, x)``."""
        require_volumes(x)
        outputs = rearrange(self.network(x).float(), "b (part n) z y x -> b part n z y x", n=_N_OUTPUTS)
        # The square root has no gradient at zero.
        return cast(Tensor, outputs.square().sum(2).clamp(min=1e-20).sqrt())


@cache
def learned_deviation() -> LearnedDeviation:
    """Return the network that comes with the package, see :doc:`/models`."""
    file = resources.files("equitomo").joinpath("weights", "deviation.safetensors")
    weights = {key: value.float() for key, value in safetensors.torch.load(file.read_bytes()).items()}
    model = LearnedDeviation()
    model.load_state_dict(weights)
    return model.eval().requires_grad_(False)


def deviation_inputs(
    predictor: TiledPredictor,
    first: Tensor,
    second: Tensor,
    geometry: Geometry | tuple[float, float],
    intensities: tuple[float, float] = (0.0, 1.0),
) -> Tensor:
    """Return what a :class:`LearnedDeviation` sees of a prediction, ``(6, z, y, x)``.

    These are the mean of the halves, half their difference, the result, half the difference between the results of the
    halves, and the measured parts of the last two, all on the scale of training. They take three predictions.

    Parameters
    ----------
    predictor
        The predictor.
    first, second
        The halves ``(z, y, x)``.
    geometry
        The tilts, or a pair ``(low, high)`` of degrees about the y axis.
    intensities
        Mean and deviation with which the volumes enter the network.
    """
    mean, scale = intensities
    project = measured_operator(geometry, first.shape).A
    result, one, other = (
        (predictor(*halves, intensities=intensities) - mean) / scale
        for halves in ((first, second), (first,), (second,))
    )
    found = torch.stack((result, (one - other) / 2))
    given = torch.stack(((first + second) / 2 - mean, (first - second) / 2)) / scale
    return torch.cat((given, found, project(found[:, None])[:, 0]))


def deviations(
    model: LearnedDeviation, inputs: Tensor, geometry: Geometry | tuple[float, float], *, tile: int = _TILE
) -> Tensor:
    """Return the standard deviations of the three parts for whole volumes, ``(3, z, y, x)``, in the inputs' unit.

    Parameters
    ----------
    model
        The network, which is used on its device.
    inputs
        What :func:`deviation_inputs` returns.
    geometry
        The tilts, or a pair ``(low, high)`` of degrees about the y axis.
    tile
        The largest side of a tile in voxels, of which 32 at each face are computed and discarded.
    """
    axes = {part.tilt_axis for part in as_geometry(geometry).parts}
    if axes == {"x"}:
        # The network learned from tilts about y.
        about_y = deviations(model, inputs.transpose(-1, -2), (-60.0, 60.0), tile=tile)
        return about_y.transpose(-1, -2).contiguous()
    shape = (inputs.shape[1], inputs.shape[2], inputs.shape[3])
    z, y, x = (shortest_tile(length, tile, _MARGIN, model.stride) for length in shape)
    volumes = [volume.numpy() for volume in inputs.cpu()]
    found: NDArray[np.float32] = np.zeros((len(PARTS), *shape), np.float32)
    device = model.factors.device
    with torch.inference_mode(), autocast(dtype_of("auto", device), device):
        for placement in Tiling(shape, (z, y, x), _MARGIN, model.stride):
            read = torch.from_numpy(np.stack([placement.read(volume) for volume in volumes]))
            made = model(read.to(device)[None])[0].cpu().numpy()
            found[:, *placement.target] += placement.weight * made[:, *placement.core]
    return torch.from_numpy(found)
