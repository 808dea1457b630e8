"""The settings of a training run, which are checked before any heavy work begins."""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from equitomo.training.presets import METHODS, PRESETS, SHIPPED, STARTED

Preset = Literal["paper", "fast", "tiny"]
MethodName = Literal["icecream", "fast", "noise2noise", "equivariant_imaging"]
Schedule = Literal["constant", "cosine"]
Optimizer = Literal["adam", "muon"]


@dataclass(frozen=True)
class _Settings:
    """The check that all groups of settings share."""

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(type(self)).items():
            _require_type(name, kind, getattr(self, name))


@dataclass(frozen=True)
class NetworkSettings(_Settings):
    """The size of the network. A network of one's own ignores them.

    Parameters
    ----------
    width
        Feature maps of the network at its finest resolution.
    levels
        Resolutions of the network.
    unshuffle
        Side in voxels of the blocks that become channels before the network; 1 for none. See
        :class:`equitomo.ScaleEquivariantUNet3D`.
    negative_slope
        Slope of the rectifiers for negative values, from 0 (ReLU) to below 1.
    """

    width: int = 64
    levels: int = 4
    unshuffle: int = 1
    negative_slope: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.levels >= 2, "levels", "at least 2", self.levels)
        _require(self.width >= 2 and self.width % 2 == 0, "width", "a positive even number", self.width)
        _require(self.unshuffle >= 1, "unshuffle", "at least 1", self.unshuffle)
        _require(0 <= self.negative_slope < 1, "negative_slope", "at least 0 and below 1", self.negative_slope)

    @property
    def stride(self) -> int:
        """Voxels of which the sides of a cube must be multiples."""
        return self.unshuffle * int(2 ** (self.levels - 1))

    @property
    def maps_per_voxel(self) -> float:
        """Values of the finest maps per voxel of a cube."""
        return self.width / self.unshuffle**3


@dataclass(frozen=True)
class LossSettings(_Settings):
    """The method and the weights of its losses.

    Parameters
    ----------
    method
        ``"icecream"`` is the method of the paper and ``"fast"`` our quicker variant of it. ``"noise2noise"`` compares
        the halves only and fills no wedge; ``"equivariant_imaging"`` needs one volume and no halves. See
        :mod:`equitomo.methods`.
    data_weight
        Weight of the loss on the data, 1 in equation (6). With 0 the loss is not computed.
    equivariance_weight
        Weight of the equivariance loss, lambda in equation (6). With 0 the loss is not computed. It must be 0 for
        ``"noise2noise"``, which has no such loss.
    margin
        Voxels at each face of a cube that the losses leave out. The paper judges the central half.
    padding
        Factor by which cubes are zero-padded before the wedge is emptied; 1 for none.
    flips
        Draw mirror images besides rotations.
    """

    method: MethodName = "icecream"
    data_weight: float = 1.0
    equivariance_weight: float = 2.0
    margin: int = 18
    padding: float = 2.0
    flips: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("data_weight", "equivariance_weight"):
            weight = getattr(self, name)
            _require(math.isfinite(weight) and weight >= 0, name, "zero or more", weight)
        if self.method == "noise2noise" and self.equivariance_weight:
            raise ValueError(
                "`method='noise2noise'` compares the halves only and has no equivariance loss: pass "
                "`equivariance_weight=0` with it, as the presets do, or another `method`"
            )
        _require(self.margin >= 0, "margin", "zero or more", self.margin)
        _require(1 <= self.padding < math.inf, "padding", "at least 1 and finite", self.padding)


@dataclass(frozen=True)
class CubeSettings(_Settings):
    """The cubes that a network is trained on.

    Parameters
    ----------
    side
        Voxels per side of a training cube, a multiple of ``unshuffle * 2 ** (levels - 1)``; three numbers ``(z, y, x)``
        where the sides differ, as for thin specimens.
    fit_cubes
        Where a tomogram is too small for cubes of ``side``, take the largest ones that fit.
    batch
        Cubes in one step, each with both halves. Several processes share them.
    min_specimen
        Share of a cube that must lie inside the specimen mask, where there is one.
    mixed_voxel_sizes
        Accept tomograms whose voxel sizes differ by more than one part in a hundred.
    memory
        GiB of memory that tomograms read from files may take in each process; 0 for no limit. If all together take
        more, they take turns, see :class:`equitomo.SubtomogramPool`.
    exchange_every
        Steps after which one tomogram in memory is exchanged for another, where they take turns.
    normalization
        ``"robust"`` or ``"scale"``; see :class:`equitomo.TomogramPair`.
    contrast
        The contrast in which the network sees a specimen: that of its tomogram ``"given"``; ``"bright"`` inverts one
        that is darker than its background, and the result back; ``"inverted"`` does so with all. ``"auto"`` is
        ``"bright"`` if the training starts from a network that knows bright specimens, and otherwise ``"given"``.
    """

    side: int | tuple[int, int, int] = 72
    fit_cubes: bool = False
    batch: int = 8
    min_specimen: float = 0.3
    mixed_voxel_sizes: bool = False
    memory: float = 0.0
    exchange_every: int = 100
    normalization: Literal["robust", "scale"] = "robust"
    contrast: Literal["auto", "given", "bright", "inverted"] = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("batch", "exchange_every"):
            _require(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
        _require(0 <= self.min_specimen <= 1, "min_specimen", "a share in [0, 1]", self.min_specimen)
        _require(0 <= self.memory < math.inf, "memory", "zero or more GiB and finite", self.memory)

    @property
    def cube_shape(self) -> tuple[int, int, int]:
        """Voxels of a cube along (z, y, x)."""
        return (self.side, self.side, self.side) if isinstance(self.side, int) else self.side


@dataclass(frozen=True)
class OptimiserSettings(_Settings):
    """How the weights are learned.

    Parameters
    ----------
    steps
        Number of steps.
    minutes
        Train for so many minutes in place of ``steps``: the number of steps is chosen from the measured time of a
        step, and corrected on the way. The checks before and the prediction after the training take time besides.
    optimizer
        ``"adam"``, or ``"muon"``, which orthogonalises the momentum of every kernel and learns faster; see the
        benchmarks.
    learning_rate
        The highest step size of the optimiser.
    warmup
        Steps over which the step size rises linearly to ``learning_rate``.
    schedule
        The step size after the warm-up: ``"constant"``, or ``"cosine"`` down to zero at the last step.
    ema_decay
        Decay of the exponential moving average of the weights that predictions use; 0 for none.
    start_share
        The share that the weights of the start keep in the weights of predictions, from 0 to less than 1. ``None``
        chooses it after the last step: the largest one with which the results for the halves, in the measured part of
        Fourier space, are hardly worse than with any other. It counts only where a training starts from given weights
        and has an ``ema_decay``. A blend of the weights before and after a training on little data keeps more of what
        was known before (:cite:t:`wortsman2022robust`).
    restart_steps
        The steps from scratch that follow if the halves show, after the first steps, that the weights of the start do
        not fit the specimen; 0 never begins again. It counts only where a training starts from given weights and has
        an ``ema_decay``. The warm-up is then at least that of the presets from scratch.
    seed
        Seed of the initial weights, the cubes and all other draws.
    """

    steps: int = 50_000
    minutes: float | None = None
    optimizer: Optimizer = "adam"
    learning_rate: float = 1e-4
    warmup: int = 0
    schedule: Schedule = "constant"
    ema_decay: float = 0.0
    start_share: float | None = 0.0
    restart_steps: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.steps >= 1, "steps", "at least 1", self.steps)
        met = self.minutes is None or 0 < self.minutes < math.inf
        _require(met, "minutes", "a positive number", self.minutes)
        _require(self.warmup >= 0, "warmup", "zero or more", self.warmup)
        rate = self.learning_rate
        _require(math.isfinite(rate) and rate > 0, "learning_rate", "a positive number", rate)
        _require(0 <= self.ema_decay < 1, "ema_decay", "in [0, 1)", self.ema_decay)
        met = self.start_share is None or 0 <= self.start_share < 1
        _require(met, "start_share", "in [0, 1)", self.start_share)
        _require(self.restart_steps >= 0, "restart_steps", "zero or more", self.restart_steps)
        _require(0 <= self.seed < 2**64, "seed", "zero or more and below 2**64", self.seed)


@dataclass(frozen=True)
class PredictionSettings(_Settings):
    """How a trained network predicts.

    Parameters
    ----------
    passes
        Passes of the network in predictions of this run: 2 as in equation (7), 1 for :math:`f(y)`.
    average_first
        Average the two halves before the network in predictions, not after it as equation (7) does. The result then
        comes from less noise and half the work, but no longer from two independent halves.
    test_time_mirrors
        Average predictions over mirror images that leave the wedge where it is. The result is better; see
        :class:`equitomo.MirrorAveraged`.
    mirror_images
        How many of them: ``"two"`` takes twice the work of one prediction, and ``"all"`` up to eight times, for a
        result that is hardly better.
    """

    passes: int = 2
    average_first: bool = False
    test_time_mirrors: bool = False
    mirror_images: Literal["two", "all"] = "two"

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.passes >= 1, "passes", "at least 1", self.passes)


@dataclass(frozen=True)
class JudgingSettings(_Settings):
    """How a training is judged while it goes on.

    Parameters
    ----------
    held_out
        Voxels along y and x of a block of the first tomogram that is held out of the training, through its whole depth
        and in a corner that depends on the seed; 0 for none. On it the result for each half is compared with the other
        half, see :class:`equitomo.metrics.CrossHalfError`, and written to ``held_out.csv``.
    judge_every
        Steps between two such comparisons.
    stop_when_stable
        Stop as soon as neither the losses nor the error on the held-out block change any more, see
        :func:`equitomo.training.stability.stable_since`. It needs ``held_out`` and the schedule ``"constant"``.
    """

    held_out: int = 0
    judge_every: int = 100
    stop_when_stable: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.held_out == 0 or self.held_out >= 8, "held_out", "0 or at least 8", self.held_out)
        _require(self.judge_every >= 1, "judge_every", "at least 1", self.judge_every)
        if self.stop_when_stable and not self.held_out:
            raise ValueError(
                "`stop_when_stable` looks at the error on a block that is held out of the training: pass `held_out`, "
                "the side of this block in voxels"
            )


@dataclass(frozen=True)
class RuntimeSettings(_Settings):
    """Settings that change memory, time and files, but the result only by rounding.

    Parameters
    ----------
    micro_batch
        Cubes that go through the network at once; 0 for as many as the device works on well: on a GPU all cubes of a
        step, on a CPU fewer of large ones. Fewer cubes need less memory and give the same gradient up to rounding.
    precision
        Number format of the network: ``"auto"``, ``"float32"``, ``"bfloat16"`` or ``"float16"``. Physics, losses and
        optimiser stay in float32.
    checkpointing
        Compute activations a second time in the backward pass instead of keeping them: less memory, more time.
    compile
        Compile the network with ``torch.compile``. It takes minutes before the first step and is worth a try on a GPU.
    device
        ``"auto"``, or a torch device as ``"cpu"`` or ``"cuda:1"``. With ``"auto"`` and ``"cuda"`` each of several
        processes on a machine takes a GPU of its own.
    checkpoint_every
        Steps between checkpoints, of which the last two are kept.
    keep_every
        Steps between checkpoints that are kept for good besides; 0 for none.
    preview_every
        Steps between pictures of a fixed cube; 0 for none.
    """

    micro_batch: int = 0
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    checkpointing: bool = False
    compile: bool = False
    device: str = "auto"
    checkpoint_every: int = 1000
    keep_every: int = 0
    preview_every: int = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.checkpoint_every >= 1, "checkpoint_every", "at least 1", self.checkpoint_every)
        for name in ("micro_batch", "keep_every", "preview_every"):
            _require(getattr(self, name) >= 0, name, "zero or more", getattr(self, name))


@dataclass(frozen=True)
class TrainingConfig(
    RuntimeSettings,
    JudgingSettings,
    PredictionSettings,
    OptimiserSettings,
    CubeSettings,
    LossSettings,
    NetworkSettings,
):
    """All settings of a training run; the defaults are those of the paper (:cite:t:`kishore2026icecream`).

    The settings are those of the groups that this class inherits from: :class:`NetworkSettings`,
    :class:`LossSettings`, :class:`CubeSettings`, :class:`OptimiserSettings`, :class:`PredictionSettings`,
    :class:`JudgingSettings` and :class:`RuntimeSettings`. A function that needs one group takes an instance of that
    group, which every configuration is.

    Parameters
    ----------
    **settings
        The settings of all groups, by name.

    Raises
    ------
    ValueError
        For a setting out of range. The message names the setting and the values that it may have.

    Examples
    --------
    >>> TrainingConfig.preset("tiny", steps=10).width
    32
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        stride = self.stride
        for side in self.cube_shape:
            if side < stride or side % stride:
                below = max(side // stride * stride, stride)
                blocks = "" if self.unshuffle == 1 else f" and `unshuffle` {self.unshuffle}"
                raise ValueError(
                    f"`side` must be a multiple of {stride} for {self.levels} `levels`{blocks}, got {side}: "
                    f"use {below} or {below + stride}"
                )
        if self.stop_when_stable and self.schedule != "constant":
            raise ValueError(
                f"`stop_when_stable` needs `schedule='constant'`: with {self.schedule!r} the learning rate falls until "
                "the last step, so that every training becomes stable in the end, and one that is stopped before "
                "has not had the low learning rates"
            )
        smallest = min(self.cube_shape)
        _require(2 * self.margin < smallest, "margin", f"less than half of side {smallest}", self.margin)

    @classmethod
    def preset(cls, name: Preset, *, start: str | None = None, **changes: Any) -> TrainingConfig:
        """Return a named configuration, with changes.

        ``"paper"`` is the published configuration, for a GPU. ``"fast"`` is the quickest that we know to reach the
        quality of the reference program, and ``"tiny"`` does the same for a small tomogram on two CPU cores in
        minutes; their values are ours, see the benchmarks. A change of ``method`` also changes the settings of
        prediction to those of the method. Other changes win over both.

        Parameters
        ----------
        name
            ``"paper"``, ``"fast"`` or ``"tiny"``.
        start
            ``"cryo"`` for a training that starts from the network that comes with the package, which needs fewer
            steps. The weights themselves are the ``init`` of :meth:`equitomo.run.Run.create`.
        **changes
            Settings that differ from those of the preset.

        Raises
        ------
        ValueError
            For a preset or a setting that does not exist, or a value out of range.
        """
        if name not in PRESETS:
            raise ValueError(f"preset is one of {', '.join(PRESETS)}, got {name!r}")
        known = [field.name for field in dataclasses.fields(cls)]
        for change in changes:
            if change not in known:
                near = difflib.get_close_matches(change, known, n=1, cutoff=0.0)[0]
                raise ValueError(f"no setting has the name {change!r}; the nearest name is {near!r}")
        if "steps" in changes and changes.get("minutes") is not None:
            raise ValueError("`steps` and `minutes` both say how long to train: give one of them")
        method = changes.get("method", PRESETS[name]["method"])
        started = dict(STARTED.get(name, {})) if start in SHIPPED else {}
        if started and "steps" in changes:
            # What is given is the number of steps in either case.
            started["restart_steps"] = changes["steps"]
        # Cubes that are asked for do not shrink.
        asked = {"fit_cubes": False} if "side" in changes else {}
        # An unknown method is refused by the constructor, as every other value is.
        return cls(**{**PRESETS[name], **started, **METHODS.get(method, {}), **asked, **changes})

    def fitted(self, shapes: Iterable[Sequence[int]]) -> TrainingConfig:
        """Return the configuration for tomograms of these shapes: with smaller cubes where ``fit_cubes`` asks for them.

        Examples
        --------
        >>> [TrainingConfig.preset("fast").fitted([shape]).side for shape in ((64, 64, 64), (36, 300, 300))]
        [48, 32]
        """
        shortest = min((min(shape) for shape in shapes), default=0)
        if not self.fit_cubes or not isinstance(self.side, int) or not self.stride <= shortest < self.side:
            return self
        return dataclasses.replace(self, side=shortest // self.stride * self.stride)

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> TrainingConfig:
        """Return the configuration with the settings that :meth:`as_dict` returned, also after a way through JSON."""
        # JSON has lists only.
        given: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()}
        return cls(**given)

    def as_dict(self) -> dict[str, Any]:
        """Return all settings by name, with values that JSON can hold."""
        settings: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return settings


def _require(met: bool, name: str, rule: str, value: object) -> None:
    if not met:
        raise ValueError(f"`{name}` must be {rule}, got {value}")


def _require_type(name: str, kind: Any, value: object) -> None:
    if get_origin(kind) is Literal:
        _require(value in get_args(kind), name, f"one of {', '.join(get_args(kind))}", repr(value))
    elif kind == float | None:
        met = value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))
        _require(met, name, "a number", repr(value))
    elif get_origin(kind) is UnionType:
        # The side of a cube: a boolean is an integer to Python, but a mistake here.
        lengths = value if isinstance(value, tuple) and len(value) == 3 else (value,)
        met = all(type(length) is int for length in lengths)
        _require(met, name, "a whole number, or three (z, y, x)", repr(value))
    elif kind in (int, float):
        met = isinstance(value, (int, kind)) and not isinstance(value, bool)
        _require(met, name, "a whole number" if kind is int else "a number", repr(value))
    else:
        _require(isinstance(value, kind), name, {bool: "True or False", str: "a text"}[kind], repr(value))
