"""The scale-equivariant network, and the reconstructor that applies a network to every view of a measurement."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from deepinv.models import Denoiser, Reconstructor
from deepinv.physics import Physics
from einops import einsum, rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from equitomo.checks import require_volumes


# deepinv carries no types: nn.Module is named so that type checkers know the methods.
class ScaleEquivariantUNet3D(Denoiser, nn.Module):  # type: ignore[misc]
    r"""A 3-D U-Net without biases and without normalisation, so that :math:`f(cx) = c f(x)` for :math:`c > 0`.

    Each level has two 3x3x3 convolutions with a rectifier each. Maximum pooling leads to the next coarser level, and
    nearest upsampling to the encoder's size leads back, so the network accepts volumes of any size. Architecture and
    parameter names are those of the reference program (:cite:t:`kishore2026icecream`), after
    :cite:t:`wolny2020accurate`; leaving out the biases is the idea of :cite:t:`mohan2020robust`.

    With ``unshuffle`` the U-Net works on blocks of voxels: the voxels of a block become channels of one coarse voxel
    before the U-Net, and channels become voxels after it, as in :cite:t:`shi2016real`. This is linear and loses
    nothing, and spares the levels at full resolution, on which a network of the same parameters spends more than half
    of its operations.

    The network is a deepinv :class:`~deepinv.models.Denoiser` that needs no noise level: because it is
    scale-equivariant, it denoises at any contrast. It can be used in :class:`deepinv.models.ArtifactRemoval` and as a
    plug-and-play prior.

    Parameters
    ----------
    in_channels, out_channels
        Number of channels of the input and of the output.
    width
        Number of feature maps at the finest resolution of the U-Net, an even number. It doubles at every coarser level.
        The paper uses 64.
    levels
        Number of resolutions, at least 2. Away from the borders, shifting the input by :attr:`stride`
        (``unshuffle * 2 ** (levels - 1)`` voxels) shifts the output, so tiles must start at multiples of it.
    residual
        If true, the network is :math:`f(x) = x + g(x)`, where :math:`g` is the U-Net. The sum is scale-equivariant
        because both of its terms are. It needs as many output as input channels.
    unshuffle
        Side in voxels of the blocks that become channels; 1, the paper's network, for none. A volume whose sides are no
        multiples of it is continued by its last voxels, and the result is cut. With ``width=32, levels=3, unshuffle=2``
        a training step on a CPU takes 0.45 of the time of one with ``width=16, levels=4``, and trainings of equal time
        are better on average; see the benchmarks.
    fused
        Compute the first convolution of a decoder as a transposed convolution of the coarse maps; see
        :meth:`forward`. Parameters stay the same, and values agree up to rounding.
    checkpointing
        Keep only the maps that pass between levels for the gradient, and recompute the others. Training then takes a
        third of the memory and a third more time.

    Attributes
    ----------
    stride : int
        Period in voxels with which the output commutes with shifts.
    maps_at_once : int
        Number of values per input voxel that a forward pass without gradient holds at its peak.

    Raises
    ------
    ValueError
        If the width is odd, there are fewer than two levels, ``unshuffle`` is not positive, a residual network has
        other output than input channels, or a volume is too small to be pooled.

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
        residual: bool = False,
        unshuffle: int = 1,
        negative_slope: float = 0.0,
        fused: bool = True,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if width < 2 or width % 2 or levels < 2:
            raise ValueError(f"`width` must be even and `levels` at least 2, got width {width} and {levels} levels")
        if unshuffle < 1:
            raise ValueError(f"`unshuffle` must be at least 1, got {unshuffle}")
        if not 0 <= negative_slope < 1:
            raise ValueError(f"`negative_slope` must be at least 0 and less than 1, got {negative_slope}")
        if residual and in_channels != out_channels:
            raise ValueError(
                "a residual network adds its input to its output and needs `in_channels` == `out_channels`, "
                f"got {in_channels} and {out_channels}"
            )
        self._settings: dict[str, Any] = {
            "in_channels": in_channels,
            "out_channels": out_channels,
            "width": width,
            "levels": levels,
            "residual": residual,
            "unshuffle": unshuffle,
            "negative_slope": negative_slope,
        }
        n_voxels = unshuffle**3
        maps = [width * 2**level for level in range(levels)]
        inputs = [in_channels * n_voxels, *maps[:-1]]
        self.encoders = nn.ModuleList(
            _Level(n_in, max(n_out // 2, n_in), n_out, negative_slope) for n_in, n_out in zip(inputs, maps, strict=True)
        )
        self.decoders = nn.ModuleList(
            _Level(coarse + fine, fine, fine, negative_slope)
            for coarse, fine in zip(maps[:0:-1], maps[-2::-1], strict=True)
        )
        self.final_conv = nn.Conv3d(width, out_channels * n_voxels, kernel_size=1, bias=False)
        self.residual = residual
        self.fused = fused
        self.checkpointing = checkpointing
        self.stride = unshuffle * 2 ** (levels - 1)
        # Measured: 4.2 to 5.3 times the width. With blocks copies of the input and of the output count as well.
        self.maps_at_once = 5 * width if unshuffle == 1 else -(-5 * width // n_voxels) + 4

    @property
    def settings(self) -> dict[str, Any]:
        """Return the constructor's arguments that a network needs to take over these weights and compute the same."""
        return dict(self._settings)

    def extra_repr(self) -> str:
        """Return the settings, so that the printed network shows them too."""
        # Runs are recognised by this text, and those from before there were these two settings shall go on.
        absent = {"unshuffle": 1, "negative_slope": 0.0}
        shown = {name: value for name, value in self.settings.items() if absent.get(name) != value}
        return ", ".join(f"{name}={value}" for name, value in shown.items())

    def forward(self, x: Tensor, sigma: float | Tensor | None = None, **kwargs: Any) -> Tensor:
        """Map volumes ``(batch, in_channels, z, y, x)`` to ``(batch, out_channels, z, y, x)``.

        Nearest upsampling by two followed by a 3x3x3 convolution is exactly one transposed convolution of stride two
        with a merged 4x4x4 kernel. The first convolution of a decoder is linear in the encoder's maps and in the
        upsampled maps, so it splits into a convolution of the former and a transposed convolution of the latter. This
        avoids the upsampled tensor and the concatenation, and takes eight products per voxel instead of 27.

        ``sigma``, the noise level that deepinv passes to denoisers, and further keyword arguments are ignored.
        """
        require_volumes(x)
        if min(x.shape[-3:]) < self.stride:
            raise ValueError(
                f"a network of stride {self.stride} needs at least as many voxels along each axis, got "
                f"{tuple(x.shape[-3:])} (z, y, x): pad the volume or lower `levels`"
            )
        maps, skips = self._blocks_of(x), []
        for level, encoder in enumerate(self.encoders):
            maps = self._run(cast(_Level, encoder).descend if level else encoder, maps)
            skips.append(maps)
        for skip, decoder in zip(skips[-2::-1], self.decoders, strict=True):
            maps = self._run(partial(cast(_Level, decoder).join, fused=self.fused), skip, maps)
        correction = self._voxels_of(self.final_conv(maps), x.shape[-3:])
        return x + correction if self.residual else correction

    def _blocks_of(self, x: Tensor) -> Tensor:
        """Return the blocks of a volume, each as one voxel with the voxels of the block as channels."""
        n = self._settings["unshuffle"]
        if n == 1:
            return x
        missing = [-length % n for length in reversed(x.shape[-3:])]
        if any(missing):
            x = F.pad(x, [side for length in missing for side in (0, length)], mode="replicate")
        return rearrange(x, "b c (z p) (y q) (x r) -> b (c p q r) z y x", p=n, q=n, r=n)

    def _voxels_of(self, blocks: Tensor, shape: torch.Size) -> Tensor:
        """Return the volume of blocks, without what lies beyond the shape."""
        n = self._settings["unshuffle"]
        if n == 1:
            return blocks
        x = rearrange(blocks, "b (c p q r) z y x -> b c (z p) (y q) (x r)", p=n, q=n, r=n)
        return x[..., : shape[0], : shape[1], : shape[2]]

    def _run(self, level: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        if not (self.checkpointing and torch.is_grad_enabled()):
            return level(*inputs)
        return checkpoint(level, *inputs, use_reentrant=False, preserve_rng_state=False)


class _Level(nn.Module):
    """Two convolutions at one resolution, under the reference program's names."""

    def __init__(self, n_in: int, n_between: int, n_out: int, negative_slope: float = 0.0) -> None:
        super().__init__()
        self.negative_slope = negative_slope
        self.basic_module = nn.ModuleDict(
            {"SingleConv1": _Convolution(n_in, n_between), "SingleConv2": _Convolution(n_between, n_out)}
        )

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.basic_module.values():
            x = self._rectify(layer(x))
        return x

    def descend(self, x: Tensor) -> Tensor:
        """Apply the level to the pooled maps of the next finer one."""
        return cast(Tensor, self(F.max_pool3d(x, 2)))

    def join(self, skip: Tensor, coarse: Tensor, *, fused: bool) -> Tensor:
        """Apply the level to the encoder's maps and the upsampled coarse maps, concatenated in this order."""
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
        return self._rectify(second(self._rectify(x)))

    def _rectify(self, x: Tensor) -> Tensor:
        return F.leaky_relu_(x, self.negative_slope) if self.negative_slope else x.relu_()


class _Convolution(nn.Module):
    """One convolution, under the reference program's name."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(n_in, n_out, kernel_size=3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.conv(x))


def _upsampling_kernel(weight: Tensor) -> Tensor:
    """Return the transposed kernel ``(in, out, 4, 4, 4)`` that upsamples by two and convolves with ``weight``.

    Along one axis the fine voxels 2j and 2j + 1 see the coarse voxels (j - 1, j, j) and (j, j, j + 1). Their taps
    (a, b, c) therefore merge to (a, b + c) and (a + b, c), and a transposed kernel holds the two interleaved.
    """
    merge = weight.new_tensor([[0, 0, 1], [0, 1, 1], [1, 1, 0], [1, 0, 0]])
    return einsum(weight, merge, merge, merge, "o i a b c, z a, y b, x c -> i o z y x")


class TwoViewReconstructor(Reconstructor):  # type: ignore[misc]
    """Apply a network to every view of a measurement, with all views in one batch.

    A measurement of ``views`` volumes with ``channels`` channels each has the shape
    ``(batch, views * channels, z, y, x)``. The channels of a view are adjacent: first come all channels of view 0,
    then all channels of view 1. With one channel, the default, dimension 1 counts the views.

    Parameters
    ----------
    network
        A network that maps ``(n, channels, z, y, x)`` to ``(n, out_channels, z, y, x)``.
    channels
        Number of channels of a view.

    Raises
    ------
    ValueError
        If the measurement does not consist of whole views, or the network does not return one volume per view.

    Examples
    --------
    >>> model = TwoViewReconstructor(torch.nn.Identity())
    >>> model(torch.ones(3, 2, 8, 8, 8)).shape
    torch.Size([3, 2, 8, 8, 8])
    >>> model = TwoViewReconstructor(torch.nn.Conv3d(3, 1, kernel_size=1), channels=3)
    >>> model(torch.ones(1, 6, 8, 8, 8)).shape  # two views of three channels become two volumes
    torch.Size([1, 2, 8, 8, 8])
    """

    def __init__(self, network: nn.Module, *, channels: int = 1) -> None:
        super().__init__()
        if channels < 1:
            raise ValueError(f"`channels` must be positive, got {channels}")
        self.network = network
        self.channels = channels

    def forward(self, y: Tensor, physics: Physics | None = None, **kwargs: Any) -> Tensor:
        """Reconstruct ``(batch, views * out_channels, z, y, x)`` from every view of ``y``, in the precision of ``y``.

        The physics and further keyword arguments are ignored.
        """
        require_volumes(y, "y")
        if y.shape[1] % self.channels:
            raise ValueError(
                f"`y` must be (batch, views * {self.channels}, z, y, x) for views of {self.channels} channels, "
                f"got shape {tuple(y.shape)}"
            )
        views = rearrange(y, "b (view c) z y x -> (b view) c z y x", c=self.channels)
        x = self.network(views)
        if x.ndim != 5 or len(x) != len(views):
            raise ValueError(
                f"the network must map {tuple(views.shape)} to ({len(views)}, out_channels, z, y, x), "
                f"but it returned the shape {tuple(x.shape)}"
            )
        # Under autocast the network returns sixteen bits, but physics and losses need the precision of the input.
        return cast(Tensor, rearrange(x.to(y.dtype), "(b view) c z y x -> b (view c) z y x", b=len(y)))


@torch.no_grad()
def turn_network(network: ScaleEquivariantUNet3D) -> None:
    """Exchange y and x in all kernels and blocks, so that the network does to a volume what it did to a turned one."""
    n = network.settings["unshuffle"]
    for weight in network.parameters():
        weight.copy_(rearrange(weight, "o i z y x -> o i z x y").clone())
    # The first kernel takes the voxels of a block as channels, and the last one returns them.
    first, last = network.get_parameter("encoders.0.basic_module.SingleConv1.conv.weight"), network.final_conv.weight
    first.copy_(rearrange(first, "o (c p q r) z y x -> o (c p r q) z y x", p=n, q=n, r=n).clone())
    last.copy_(rearrange(last, "(c p q r) i z y x -> (c p r q) i z y x", p=n, q=n, r=n).clone())


def load_icecream_checkpoint(path: str | Path, *, axes: Literal["yxz", "zyx"] = "yxz") -> ScaleEquivariantUNet3D:
    """Return the network from a checkpoint of the reference program, ``model_iteration_*.pt``.

    The file is a pickle. Only tensors and plain containers are read from it, and no code in it is run. Width and levels
    follow from the shapes of the weights. The prefixes that DistributedDataParallel, ``torch.compile`` and
    :class:`TwoViewReconstructor` put before parameter names (``module.``, ``_orig_mod.``, ``network.``) are removed.

    Parameters
    ----------
    path
        The checkpoint.
    axes
        Order of the axes of the volumes that the returned network takes. The kernels in the file are always assumed to
        be in the order (y, x, z), on which the reference program trains. ``"yxz"`` returns them unchanged, and
        ``"zyx"`` permutes them to the order of this package. Use ``"zyx"`` for a checkpoint of the reference program
        and volumes read with :func:`equitomo.read_volume`. A network of the same architecture that you trained on
        volumes (z, y, x) is in that order already: use ``"yxz"`` to load it unchanged.

    Raises
    ------
    ValueError
        If the file holds anything other than tensors and containers, or no weights of this architecture.
    """
    if axes not in ("yxz", "zyx"):
        raise ValueError(f"`axes` must be 'yxz' or 'zyx', got {axes!r}")
    network = _network_from(_find_state(_read_pickle(path), path), path)
    if axes == "zyx":
        with torch.no_grad():
            for weight in network.parameters():
                weight.copy_(rearrange(weight, "o i y x z -> o i z y x").clone())
    return network


def is_reference_checkpoint(path: str | Path) -> bool:
    """Return whether a checkpoint has the keys under which only the reference program stores its losses.

    Raises
    ------
    ValueError
        If the file holds anything other than tensors and containers.
    """
    content = _read_pickle(path)
    return isinstance(content, Mapping) and content.keys() >= _OF_REFERENCE


# Keys that only the reference program writes into its checkpoints.
_OF_REFERENCE = {"model_state_dict", "optimizer_state_dict", "loss_set", "diff_loss_set"}
# The reference program stores means of losses as numpy scalars, whose names differ between numpy 1 and 2.
_NUMPY_SCALARS: list[Any] = [
    (np.float64(0).__reduce__()[0], "numpy._core.multiarray.scalar"),
    (np.float64(0).__reduce__()[0], "numpy.core.multiarray.scalar"),
    np.dtype,
    type(np.dtype("f8")),
]


def _read_pickle(path: str | Path) -> Any:
    with Path(path).open("rb") as file, torch.serialization.safe_globals(_NUMPY_SCALARS):
        try:
            return torch.load(file, map_location="cpu", weights_only=True)
        # torch raises almost any type of error for a damaged file.
        except Exception as error:
            raise ValueError(
                f"{path} cannot be read safely as a checkpoint: it is damaged, or it holds more than tensors and "
                "plain containers, and nothing in it is run"
            ) from error


def _find_state(content: Any, path: str | Path) -> dict[str, Tensor]:
    """Return the state dict, which stands at the top of a checkpoint or one level below."""
    candidates = [content, *content.values()] if isinstance(content, Mapping) else []
    for candidate in candidates:
        if isinstance(candidate, Mapping):
            state = {_without_prefixes(str(key)): value for key, value in candidate.items()}
            if "final_conv.weight" in state:
                return {key: value for key, value in state.items() if isinstance(value, Tensor)}
    raise ValueError(f"{path} holds no weights of the reference program's U-Net (no 'final_conv.weight')")


def _without_prefixes(key: str) -> str:
    # The prefixes come from DistributedDataParallel, torch.compile, TwoViewReconstructor and a module around it.
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
        raise ValueError(f"{path} holds no encoder of the reference program's U-Net")
    out_channels, width = last.shape[:2]
    try:
        # A small file can claim any size, so no memory is allocated before all shapes have been compared.
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
