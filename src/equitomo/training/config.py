"""What a training run is told, checked before anything heavy begins."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

Preset = Literal["paper", "fast", "tiny"]
Schedule = Literal["constant", "cosine"]
Optimizer = Literal["adam", "muon"]
Term = Literal["estimate", "data"]
Stop = Literal["none", "source", "target", "both"]


@dataclass(frozen=True)
class TrainingConfig:
    r"""Settings of a training run; the defaults are those of the paper (:cite:t:`kishore2026icecream`).

    The default of a setting that is added later must do what was done before it: checkpoints that do not know it are
    resumed with that.

    Parameters
    ----------
    side
        Voxels per side of a training cube, a multiple of ``2 ** (levels - 1)``.
    batch
        Cubes in one step, each with both halves; of all processes together, where there are several.
    micro_batch
        Cubes that go through the network at once; 0 for all of a step, of large ones on a CPU for fewer, which costs
        no time there. Fewer need less memory and give the same gradient up to rounding, also where they do not divide
        ``batch``.
    width
        Feature maps of the network at full resolution.
    levels
        Resolutions of the network.
    steps
        Number of steps.
    optimizer
        ``"adam"``, or ``"muon"``, which orthogonalises the momentum of every kernel and learns faster; see the
        benchmarks.
    learning_rate
        The optimiser's step size, at its highest.
    warmup
        Steps over which the step size rises linearly to ``learning_rate``.
    schedule
        What follows: ``"constant"``, or ``"cosine"`` down to zero at the last step.
    averaging
        Decay of the moving average of the weights that predictions use; 0 for none.
    data_weight
        Weight of the Noise2Noise loss, 1 in equation (6); 0 leaves it out.
    equivariance_weight
        Weight of the equivariance loss, lambda in equation (6).
    margin
        Voxels at each face of a cube that the losses do not look at. The paper judges the central half.
    mask_target
        Compare half tomograms within the measured region on both sides, as the reference program does.
    equivariance_source, equivariance_target
        ``"estimate"``, as in equation (5), or ``"data"``; see :class:`equitomo.MaskedEquivarianceLoss`.
    stop_gradient
        Estimates in the equivariance loss without a gradient: ``"none"``, ``"source"``, ``"target"`` or ``"both"``.
    stabilizers
        Draw also the rotations that leave the wedge where it is, which the paper leaves out. With data as source and
        target the loss is Noise2Noise for those.
    padding
        Factor by which cubes are zero-padded before the wedge is emptied; 1 for none.
    support
        ``"ball"`` also drops what lies beyond Nyquist in any direction, ``"box"`` keeps it.
    flips
        Draw mirror images besides rotations.
    mirrored_cubes
        Draw for each cube one of its mirror images that leave the wedge where it is: up to eight times as many cubes,
        whose noise is the harder to learn by heart.
    exchanged_tilts
        Exchange random sectors of tilts between the halves of each cube, which makes other halves of the same kind: a
        network cannot learn their noise by heart; see :func:`equitomo.training.exchange_sectors`.
    min_specimen
        Share of a cube that must lie inside the specimen mask, where there is one.
    mixed_voxel_sizes
        Accept tomograms whose voxel sizes differ by more than one part in a hundred.
    memory
        GiB of memory that tomograms read from files may take in each process; 0 for no limit. If all together take
        more, they take turns, see :class:`equitomo.SubtomogramPool`.
    stretch
        Steps from one exchange of tomograms to the next, where they take turns.
    normalization
        ``"robust"`` or ``"scale"``; see :class:`equitomo.TomogramPair`.
    precision
        Of the network: ``"auto"``, ``"float32"``, ``"bfloat16"`` or ``"float16"``. Physics, losses and
        optimiser stay in float32.
    checkpointing
        Compute what the gradient needs a second time in place of keeping it: less memory, more time.
    compile
        Compile the network with ``torch.compile``: minutes before the first step, to be tried on a GPU.
    device
        ``"auto"``, or a torch device as ``"cpu"`` or ``"cuda:1"``. Of several processes on a machine each takes a GPU
        of its own where ``"auto"`` or ``"cuda"`` leaves it open.
    seed
        Source of the initial weights, the cubes and the rotations.
    checkpoint_every
        Steps between checkpoints, of which the last two are kept.
    keep_every
        Steps between checkpoints that are kept for good besides; 0 for none.
    preview_every
        Steps between pictures of a fixed cube; 0 for none.
    passes
        Passes of the network in predictions of this run: 2 as in equation (7), 1 for :math:`f(y)`.
    average_first
        Average the two halves before the network in predictions, not after it as equation (7) does. The result then
        comes from less noise and half the work, but no longer from two independent halves.
    mirrors
        Average predictions over the mirror images that leave the wedge where it is: better, for eight times the work
        of a prediction; see :class:`equitomo.MirrorAveraged`.

    Raises
    ------
    ValueError
        For a setting out of range, naming it and what would do.

    Examples
    --------
    >>> TrainingConfig.preset("tiny", steps=10).width
    16
    """

    side: int = 72
    batch: int = 8
    micro_batch: int = 0
    width: int = 64
    levels: int = 4
    steps: int = 50_000
    optimizer: Optimizer = "adam"
    learning_rate: float = 1e-4
    warmup: int = 0
    schedule: Schedule = "constant"
    averaging: float = 0.0
    data_weight: float = 1.0
    equivariance_weight: float = 2.0
    margin: int = 18
    mask_target: bool = True
    equivariance_source: Term = "estimate"
    equivariance_target: Term = "estimate"
    stop_gradient: Stop = "none"
    stabilizers: bool = False
    padding: float = 2.0
    support: Literal["ball", "box"] = "ball"
    flips: bool = True
    mirrored_cubes: bool = False
    exchanged_tilts: bool = False
    min_specimen: float = 0.3
    mixed_voxel_sizes: bool = False
    memory: float = 0.0
    stretch: int = 100
    normalization: Literal["robust", "scale"] = "robust"
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    checkpointing: bool = False
    compile: bool = False
    device: str = "auto"
    seed: int = 0
    checkpoint_every: int = 1000
    keep_every: int = 0
    preview_every: int = 1000
    passes: int = 2
    average_first: bool = False
    mirrors: bool = False

    def __post_init__(self) -> None:
        self._check_types()
        self._check_cube()
        for name in ("batch", "steps", "stretch", "checkpoint_every", "passes"):
            _require(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
        for name in ("micro_batch", "warmup", "margin", "keep_every", "preview_every"):
            _require(getattr(self, name) >= 0, name, "zero or more", getattr(self, name))
        _require(0 <= self.seed < 2**64, "seed", "zero or more and below 2**64", self.seed)
        rate = self.learning_rate
        _require(math.isfinite(rate) and rate > 0, "learning_rate", "a positive number", rate)
        for name in ("data_weight", "equivariance_weight"):
            weight = getattr(self, name)
            _require(math.isfinite(weight) and weight >= 0, name, "zero or more", weight)
        _require(0 <= self.averaging < 1, "averaging", "in [0, 1)", self.averaging)
        _require(0 <= self.min_specimen <= 1, "min_specimen", "a share in [0, 1]", self.min_specimen)
        _require(0 <= self.memory < math.inf, "memory", "zero or more GiB and finite", self.memory)
        _require(1 <= self.padding < math.inf, "padding", "at least 1 and finite", self.padding)
        _require(2 * self.margin < self.side, "margin", f"less than half of side {self.side}", self.margin)

    def _check_types(self) -> None:
        for name, kind in get_type_hints(type(self)).items():
            value = getattr(self, name)
            if get_origin(kind) is Literal:
                _require(value in get_args(kind), name, f"one of {', '.join(get_args(kind))}", repr(value))
            elif kind in (int, float):
                # A truth value is an integer to Python, but a mistake here.
                met = isinstance(value, (int, kind)) and not isinstance(value, bool)
                _require(met, name, "a whole number" if kind is int else "a number", repr(value))
            else:
                _require(isinstance(value, kind), name, {bool: "True or False", str: "a text"}[kind], repr(value))

    def _check_cube(self) -> None:
        _require(self.levels >= 2, "levels", "at least 2", self.levels)
        _require(self.width >= 2 and self.width % 2 == 0, "width", "a positive even number", self.width)
        stride = 2 ** (self.levels - 1)
        if self.side < stride or self.side % stride:
            below = max(self.side // stride * stride, stride)
            raise ValueError(
                f"side must be a multiple of {stride} for {self.levels} levels, got {self.side}: use {below} or "
                f"{below + stride}"
            )

    @classmethod
    def preset(cls, name: Preset, **changes: Any) -> TrainingConfig:
        """A named configuration, with changes.

        ``"paper"`` is the published configuration, for a GPU. ``"fast"`` is the quickest we know that passes the
        reference program's quality, ``"tiny"`` the same for a small tomogram on two CPU cores in minutes; their
        values are ours, see the benchmarks.
        """
        if name not in _PRESETS:
            raise ValueError(f"preset is one of {', '.join(_PRESETS)}, got {name!r}")
        return cls(**{**_PRESETS[name], **changes})

    def as_dict(self) -> dict[str, Any]:
        """All settings by name."""
        return dataclasses.asdict(self)


# What learns most per second of those compared in docs/benchmarks.md.
_QUICK: dict[str, Any] = {
    "side": 32,
    "batch": 2,
    "width": 16,
    "optimizer": "muon",
    "learning_rate": 2e-3,
    "warmup": 100,
    "schedule": "cosine",
    "equivariance_source": "data",
    "equivariance_target": "data",
    "stop_gradient": "source",
    "margin": 2,
    "support": "box",
    "passes": 1,
    "mirrored_cubes": True,
    "exchanged_tilts": True,
    "average_first": True,
    "mirrors": True,
}

_PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "fast": _QUICK | {"steps": 2000, "averaging": 0.998},
    "tiny": _QUICK | {"steps": 1000, "averaging": 0.995, "checkpoint_every": 250, "preview_every": 250},
}


def _require(met: bool, name: str, rule: str, value: object) -> None:
    if not met:
        raise ValueError(f"{name} must be {rule}, got {value}")
