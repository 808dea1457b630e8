"""The network of the method, and the reconstructor that runs it on two views."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F  # noqa: N812
from deepinv.models import Reconstructor
from deepinv.physics import Physics
from einops import einsum, rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from equitomo.checks import require_volumes


class ScaleEquivariantUNet3D(nn.Module):
    r"""A 3-D U-Net without biases and without normalisation, so that :math:`f(cx) = c f(x)` for :math:`c > 0`.

    Each level is two 3x3x3 convolutions with a ReLU each; levels are joined by maximum pooling and nearest
    upsampling to the encoder's size, so volumes of any size pass. Architecture and parameter names are those
    of the reference program (:cite:t:`kishore2026icecream`), after :cite:t:`wolny2020accurate`; the idea of
    dropping the biases is :cite:t:`mohan2020robust`.

    Parameters
    ----------
    in_channels, out_channels
        Channels of the input and of the output.
    width
        Feature maps at full resolution, doubled at every level; an even number. 64 is the paper's.
    levels
        Resolutions, at least 2. Inside a larger volume the output repeats with :attr:`stride`
        ``2 ** (levels - 1)``: tiles must start on multiples of it.
    fused
        Compute a decoder's first convolution of the upsampled maps as one transposed convolution, see
        :meth:`forward`. The parameters and, up to rounding, the values are the same.
    checkpointing
        Keep only what passes between levels for the gradient, and compute the rest a second time: a third of the
        memory, a third more time.

    Raises
    ------
    ValueError
        For an odd width, fewer than two levels, or a volume too small to be pooled.

    Examples
    --------
    >>> network = ScaleEquivariantUNet3D(width=4, levels=3)
    >>> network(torch.randn(1, 1, 17, 16, 15)).shape
    torch.Size([1, 1, 17, 16, 15])
    """

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 1,
        *,
        width: int = 64,
        levels: int = 4,
        fused: bool = True,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if width < 2 or width % 2 or levels < 2:
            raise ValueError(f"width must be even and levels at least 2, got width {width} and {levels} levels")
        maps = [width * 2**level for level in range(levels)]
        inputs = [in_channels, *maps[:-1]]
        self.encoders = nn.ModuleList(
            _Level(n_in, max(n_out // 2, n_in), n_out) for n_in, n_out in zip(inputs, maps, strict=True)
        )
        self.decoders = nn.ModuleList(
            _Level(coarse + fine, fine, fine) for coarse, fine in zip(maps[:0:-1], maps[-2::-1], strict=True)
        )
        self.final_conv = nn.Conv3d(width, out_channels, kernel_size=1, bias=False)
        self.fused = fused
        self.checkpointing = checkpointing
        self.stride = 2 ** (levels - 1)
        # Values per voxel that a forward pass without gradient holds at its peak: measured, 4.2 to 5.3 times the width.
        self.maps_at_once = 5 * width

    def forward(self, x: Tensor) -> Tensor:
        """Volumes ``(batch, in_channels, z, y, x)`` to ``(batch, out_channels, z, y, x)``.

        Nearest upsampling by two followed by a 3x3x3 convolution is exactly one transposed convolution of
        stride two with a merged 4x4x4 kernel. A decoder's first convolution is linear in the encoder's maps
        and the upsampled ones, so it splits into a convolution of the first and a transposed one of the
        second: no upsampled tensor, no concatenation, eight products per voxel in place of 27.
        """
        require_volumes(x)
        if min(x.shape[-3:]) < self.stride:
            raise ValueError(
                f"a network of stride {self.stride} needs at least as many voxels along each axis, got "
                f"{tuple(x.shape[-3:])} (z, y, x): pad the volume or use fewer levels"
            )
        skips: list[Tensor] = []
        for level, encoder in enumerate(self.encoders):
            x = self._run(cast(_Level, encoder).descend if level else encoder, x)
            skips.append(x)
        for skip, decoder in zip(skips[-2::-1], self.decoders, strict=True):
            x = self._run(partial(cast(_Level, decoder).join, fused=self.fused), skip, x)
        return cast(Tensor, self.final_conv(x))

    def _run(self, level: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        if not (self.checkpointing and torch.is_grad_enabled()):
            return level(*inputs)
        return checkpoint(level, *inputs, use_reentrant=False, preserve_rng_state=False)


class _Level(nn.Module):
    """Two convolutions at one resolution, under the reference program's names."""

    def __init__(self, n_in: int, n_between: int, n_out: int) -> None:
        super().__init__()
        self.basic_module = nn.ModuleDict(
            {"SingleConv1": _Convolution(n_in, n_between), "SingleConv2": _Convolution(n_between, n_out)}
        )

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.basic_module.values():
            x = layer(x).relu_()
        return x

    def descend(self, x: Tensor) -> Tensor:
        """The level on maps of the finer one."""
        return cast(Tensor, self(F.max_pool3d(x, 2)))

    def join(self, skip: Tensor, coarse: Tensor, *, fused: bool) -> Tensor:
        """The level on the encoder's maps and the upsampled coarser ones, in this order."""
        first, second = self.basic_module.values()
        doubled = all(fine == 2 * half for fine, half in zip(skip.shape[-3:], coarse.shape[-3:], strict=True))
        if fused and doubled:
            weight = cast(_Convolution, first).conv.weight
            own, upsampled = weight[:, : skip.shape[1]], weight[:, skip.shape[1] :]
            x = F.conv3d(skip, own, padding=1)
            x.add_(F.conv_transpose3d(coarse, _upsampling_kernel(upsampled), stride=2, padding=1))
        else:
            coarse = F.interpolate(coarse, size=skip.shape[-3:], mode="nearest")
            x = first(torch.cat((skip, coarse), dim=1))
        return cast(Tensor, second(x.relu_()).relu_())


class _Convolution(nn.Module):
    """One convolution, under the reference program's name."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(n_in, n_out, kernel_size=3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.conv(x))


def _upsampling_kernel(weight: Tensor) -> Tensor:
    """The transposed kernel ``(in, out, 4, 4, 4)`` of upsampling by two, then convolving with ``weight``.

    Along one axis the fine voxels 2j and 2j + 1 see the coarse ones (j - 1, j, j) and (j, j, j + 1), so the
    taps (a, b, c) merge to (a, b + c) and (a + b, c); a transposed kernel holds them interleaved.
    """
    merge = weight.new_tensor([[0, 0, 1], [0, 1, 1], [1, 1, 0], [1, 0, 0]])
    return einsum(weight, merge, merge, merge, "o i a b c, z a, y b, x c -> i o z y x")


class TwoViewReconstructor(Reconstructor):  # type: ignore[misc]
    """Run a one-channel network on each view of a measurement, all views in one batch.

    Parameters
    ----------
    network
        Maps ``(batch, 1, z, y, x)`` to the same shape.

    Examples
    --------
    >>> model = TwoViewReconstructor(torch.nn.Identity())
    >>> model(torch.ones(3, 2, 8, 8, 8)).shape
    torch.Size([3, 2, 8, 8, 8])
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, y: Tensor, physics: Physics | None = None, **kwargs: Any) -> Tensor:
        """Reconstruct every view of ``y``, ``(batch, views, z, y, x)``, in the precision of ``y``."""
        require_volumes(y, "y")
        folded = rearrange(y, "b view z y x -> (b view) 1 z y x")
        # Under autocast the network answers in sixteen bits; physics and losses want the input's precision.
        x = self.network(folded).to(y.dtype)
        return cast(Tensor, rearrange(x, "(b view) 1 z y x -> b view z y x", view=y.shape[1]))


def load_icecream_checkpoint(path: str | Path, *, axes: Literal["yxz", "zyx"] = "yxz") -> ScaleEquivariantUNet3D:
    """The network of a checkpoint of the reference program, ``model_iteration_*.pt``.

    The file is a pickle; only tensors and plain containers are read from it, no code is run. Width and
    levels are read from the weights, and the prefixes that DistributedDataParallel, ``torch.compile`` and
    :class:`TwoViewReconstructor` leave (``module.``, ``_orig_mod.``, ``network.``) are dropped.

    Parameters
    ----------
    path
        The checkpoint.
    axes
        Order of the axes of the volumes that the returned network takes. The reference program trains on
        ``"yxz"``, and its weights are returned unchanged. ``"zyx"`` turns the kernels to the order of this
        package: use it for volumes read with :func:`equitomo.read_volume`.

    Raises
    ------
    ValueError
        If the file holds other things than tensors and containers, or no state of this network.
    """
    if axes not in ("yxz", "zyx"):
        raise ValueError(f"axes is 'yxz' or 'zyx', got {axes!r}")
    with Path(path).open("rb") as file:
        try:
            content = torch.load(file, map_location="cpu", weights_only=True)
        # A damaged file makes torch raise almost anything.
        except Exception as error:
            raise ValueError(
                f"{path} is no checkpoint that can be read safely: it is damaged, or it holds more than tensors and "
                "plain containers, and nothing in it is run"
            ) from error
    network = _network_from(_find_state(content, path), path)
    if axes == "zyx":
        with torch.no_grad():
            for weight in network.parameters():
                weight.copy_(rearrange(weight, "o i y x z -> o i z y x").clone())
    return network


def _find_state(content: Any, path: str | Path) -> dict[str, Tensor]:
    """The state dict, at the top of a checkpoint or one level down."""
    candidates = [content, *content.values()] if isinstance(content, Mapping) else []
    for candidate in candidates:
        if isinstance(candidate, Mapping):
            state = {_bare(str(key)): value for key, value in candidate.items()}
            if "final_conv.weight" in state:
                return {key: value for key, value in state.items() if isinstance(value, Tensor)}
    raise ValueError(f"{path} holds no state of a U-Net of the reference program (no 'final_conv.weight')")


def _bare(key: str) -> str:
    # DistributedDataParallel, torch.compile, TwoViewReconstructor and a module around that one.
    while key.startswith(("module.", "_orig_mod.", "network.", "model.")):
        key = key.partition(".")[2]
    return key


def _network_from(state: dict[str, Tensor], path: str | Path) -> ScaleEquivariantUNet3D:
    biased = [key for key in state if key.endswith("bias")]
    if biased:
        raise ValueError(f"{path} was trained with biases ({biased[0]}, ...): that network is not scale-equivariant")
    first = state.get("encoders.0.basic_module.SingleConv1.conv.weight")
    levels = sum(key.endswith("SingleConv2.conv.weight") and key.startswith("encoders.") for key in state)
    last = state["final_conv.weight"]
    if first is None or first.ndim != 5 or last.ndim != 5 or levels < 2:
        raise ValueError(f"{path} holds no encoder of a U-Net of the reference program")
    out_channels, width = last.shape[:2]
    try:
        # Without memory as yet: a small file can name any size.
        with torch.device("meta"):
            network = ScaleEquivariantUNet3D(first.shape[1], out_channels, width=width, levels=levels)
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"{path} does not fit a U-Net of width {width} with {levels} levels: {error}") from error
    expected, found = ({key: value.shape for key, value in d.items()} for d in (network.state_dict(), state))
    differing = sorted(key for key in expected.keys() | found.keys() if expected.get(key) != found.get(key))
    if differing:
        raise ValueError(
            f"{path} does not fit a U-Net of width {width} with {levels} levels: {', '.join(differing[:3])}"
        )
    network.to_empty(device="cpu")
    network.load_state_dict(state)
    return network
