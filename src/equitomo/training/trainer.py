"""The training loop of ICECREAM."""

from __future__ import annotations

import dataclasses
import signal
from collections.abc import Callable, Sequence
from contextlib import closing, nullcontext, suppress
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from equitomo.datasets import TomogramPair, cubes_of
from equitomo.draws import ELEMENTS, draw_integers
from equitomo.models import ScaleEquivariantUNet3D, TwoViewReconstructor
from equitomo.precision import autocast
from equitomo.training.augmentation import augmented
from equitomo.training.checkpoint import Checkpoint, checkpoint_bytes, has_checkpoint, load_checkpoint, save_checkpoint
from equitomo.training.config import TrainingConfig
from equitomo.training.distributed import World, join
from equitomo.training.learner import Learner, network_settings
from equitomo.training.loss_table import ROW_BYTES, append_losses, forget_losses_after
from equitomo.training.memory import MemoryLadder, cubes_at_once
from equitomo.training.resuming import require_same_run
from equitomo.training.skipped import SkippedSteps
from equitomo.training.step import StepLosses, learning_rate, operator_for
from equitomo.training.stopping import StepAbandonedError, abandoned_on, freed_on_failure, stop_signals
from equitomo.transform import CubeRotationGroup

Progress = Callable[[int, dict[str, float]], None]
Preview = Callable[[int, Tensor, Tensor], None]

# Steps in a row without a finite gradient that end a run; a float16 scale needs some to settle.
_PATIENCE, _PATIENCE_FLOAT16 = 3, 20
# Steps after which losses are written, and read from a device that would be waited for.
_WRITE_EVERY = 20


class TrainingInterruptedError(Exception):
    """A signal ended the training after a checkpoint was written."""


class TrainingDivergedError(RuntimeError):
    """Losses or gradients stopped being finite; the last good weights are saved."""


class IcecreamTrainer:
    r"""Train a network on pairs of half tomograms with the losses of ICECREAM.

    .. math:: \mathcal{L} = \mathcal{L}_{\text{data}} + \lambda \mathcal{L}_{\text{equi}}

    Equation (6) of :cite:t:`kishore2026icecream`. The cubes and rotations of step ``k`` depend on the seed
    and ``k`` alone, so a run that is stopped and resumed repeats an unbroken one, to the bit on a CPU. A
    step whose gradient is not finite changes nothing and is counted. A step for which the memory does not suffice is
    repeated with fewer cubes at once, in the end with activation checkpointing, and gives the same up to rounding.

    Started by ``torchrun`` or ``srun``, the processes share each batch and end with the same weights, those of one
    process up to rounding. The first one writes all files and reports.

    Parameters
    ----------
    pairs
        One pair of half tomograms or several, in memory or in files.
    config
        The settings; ``None`` for the paper's.
    out
        The run's folder, for checkpoints and ``losses.csv``; ``None`` writes nothing.
    resume
        Continue from the latest checkpoint in ``out``, if there is one.
    init
        A network whose weights training starts from, of the configured width and levels.
    progress
        Called with the steps done and the latest losses.
    preview
        Called every ``preview_every`` steps with the step, a fixed cube and its reconstruction, both
        ``(z, y, x)`` on the CPU.

    Attributes
    ----------
    step : int
        Steps done.
    world : World
        Number of this process among those that train together.

    Raises
    ------
    FileExistsError
        If ``out`` holds a run already and ``resume`` is not set.
    ValueError
        If cubes do not fit, a resumed run differs in its settings, or the batch has fewer cubes than there are
        processes.

    Examples
    --------
    >>> specimen = torch.randn(16, 16, 16, generator=torch.Generator().manual_seed(0))
    >>> pair = TomogramPair(specimen, specimen + torch.ones(()) * torch.randn(16, 16, 16), (-60.0, 60.0))
    >>> config = TrainingConfig(side=16, batch=1, width=2, levels=2, steps=2, margin=4, device="cpu")
    >>> trainer = IcecreamTrainer(pair, config)
    >>> trainer.train().step
    2
    """

    def __init__(
        self,
        pairs: TomogramPair | Sequence[TomogramPair],
        config: TrainingConfig | None = None,
        *,
        out: str | Path | None = None,
        resume: bool = False,
        init: nn.Module | None = None,
        progress: Progress | None = None,
        preview: Preview | None = None,
    ) -> None:
        self.config = config = TrainingConfig() if config is None else config
        self.world: World = join()
        if config.batch < self.world.size:
            raise ValueError(
                f"batch {config.batch} cannot be split over {self.world.size} processes, each needs a cube: use batch "
                f"{self.world.size} or more, or fewer processes"
            )
        self.out = None if out is None else Path(out)
        if self.out is not None and has_checkpoint(self.out) and not resume:
            raise FileExistsError(f"{self.out} holds a training run already: resume it, or choose another folder")
        self.progress, self.preview = progress, preview
        self.device = self.world.device(config.device)
        self.dataset = cubes_of(
            pairs,
            config.side,
            length=config.steps * config.batch,
            memory=round(config.memory * 2**30) or None,
            exchange_every=config.stretch * config.batch,
            seed=config.seed,
            min_fraction=config.min_specimen,
            mixed_voxel_sizes=config.mixed_voxel_sizes,
        )
        self.physics, self._masks = operator_for(self.dataset.pairs, config, self.device)
        self.group = (
            CubeRotationGroup(flips=config.flips)
            if config.stabilizers
            else CubeRotationGroup.moving(self.physics, config.flips)
        )
        self._learner = Learner(config, self.device, init)
        self._module = StepLosses(TwoViewReconstructor(self._learner.network), self.physics, self.group, config)
        n_own = len(self.world.share(range(config.batch)))
        self._memory = MemoryLadder(self._learner.network, min(cubes_at_once(config, self.device), n_own))
        self.step = 0
        self._skipped = SkippedSteps(_PATIENCE_FLOAT16 if self._learner.scaler.is_enabled() else _PATIENCE)
        # On a CPU nothing is waited for, and a step may take minutes.
        self._read_every = 1 if self.device.type == "cpu" else _WRITE_EVERY
        # The step of the latest checkpoint.
        self._saved = -1
        # Of the latest steps, on the device; and read, but not written.
        self._rows: list[Tensor] = []
        self._unwritten: list[list[float]] = []
        if resume and self.out is not None:
            self._go_on(self.out)
        self._require_same_everywhere()

    def train(self, until: int | None = None) -> IcecreamTrainer:
        """Train to the last step, or to step ``until``, and write a checkpoint there.

        Raises
        ------
        TrainingInterruptedError
            On SIGINT, SIGTERM or SIGUSR1, after the state before the step in hand is saved: resuming repeats the
            step. A second SIGINT stops at once.
        TrainingDivergedError
            If several steps in a row had no finite gradient: with the last of them on a CPU, else when the losses are
            read next.
        LostProcessError
            If another process of the training ended.
        torch.OutOfMemoryError
            If not even one cube at a time with activation checkpointing fits into the memory.
        """
        last = self.config.steps if until is None else min(until, self.config.steps)
        patient = self.world.size > 1
        with (
            stop_signals(patient=patient) as stop,
            closing(self.dataset),
            torch.backends.cudnn.flags(enabled=True, benchmark=True),
        ):
            while self.step < last:
                self._rows.append(self._one_step(stop))
                self.step += 1
                if self.step % self._read_every == 0:
                    self._read_losses()
                if self.step % _WRITE_EVERY == 0:
                    self._write_losses()
                if self._is_due() or self.step == last:
                    self.save()
                self._show()
            # One that came since the last gradient.
            self._stop_if_any(stop)
        return self

    def _stop_if_any(self, stop: Sequence[int]) -> None:
        """End the training where a signal came. One that reached a single process ends all after the same step."""
        if signalled := self.world.largest(stop[0] if stop else 0):
            self._stop(signal.Signals(signalled))

    def _stop(self, number: signal.Signals) -> NoReturn:
        if self.step != self._saved:
            self.save()
        # A process that ends may make torchrun end the one that writes.
        self.world.wait()
        raise TrainingInterruptedError(
            f"stopped by {number.name} after step {self.step} of {self.config.steps}; resume to go on"
        )

    @property
    def skipped(self) -> int:
        """Steps without a finite gradient so far, as last read."""
        return self._skipped.total

    @property
    def network(self) -> ScaleEquivariantUNet3D:
        """A copy of the network for prediction, with the averaged weights if there are any."""
        return self._learner.for_prediction()

    def save(self) -> Path | None:
        """Write a checkpoint now; ``None`` if the run has no folder, or another process writes."""
        self._read_losses()
        self._write_losses()
        if self._folder is None:
            return None
        state = {
            "network": network_settings(self.config),
            "config": self.config.as_dict(),
            "geometries": self.geometries,
            "skipped": self._skipped.total,
            "consecutive": self._skipped.consecutive,
            **self._learner.state(),
        }
        tensors = self._learner.tensors()
        self._saved = self.step
        keep_every = self.config.keep_every
        return save_checkpoint(self._folder / "checkpoints", self.step, tensors, state, keep_every=keep_every)

    @property
    def geometries(self) -> list[dict[str, Any]]:
        """The different tilts, as a checkpoint holds them."""
        different = dict.fromkeys(pair.geometry for pair in self.dataset.pairs)
        return [{**dataclasses.asdict(geometry), "angles": list(geometry.angles)} for geometry in different]

    @property
    def bytes_to_write(self) -> int:
        """About how much a run writes into its folder: checkpoints, one of them unfinished, and losses."""
        one = checkpoint_bytes(self._learner.network, averaged=bool(self.config.averaging))
        kept = self.config.steps // self.config.keep_every if self.config.keep_every else 0
        return (kept + 3) * one + self.config.steps * ROW_BYTES

    @property
    def n_at_once(self) -> int:
        """Cubes of this process that go through the network together."""
        return self._memory.n_at_once

    @property
    def dtype(self) -> torch.dtype:
        """What the network computes in."""
        return self._learner.dtype

    def bytes_kept(self, n_cubes: int) -> int:
        """Bytes that cubes which go through the network at once keep for the backward pass, each storage once."""
        kept: dict[int, int] = {}

        def note(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            self._gradient(range(n_cubes), n_cubes)
        return sum(kept.values())

    @property
    def _folder(self) -> Path | None:
        """The run's folder where this process writes into it."""
        return self.out if self.world.is_first else None

    def _is_due(self) -> bool:
        """Whether a checkpoint is to be written after this step."""
        every = self.config.checkpoint_every, self.config.keep_every
        return any(self.step % steps == 0 for steps in every if steps)

    def _one_step(self, stop: Sequence[int]) -> Tensor:
        """One update; the two losses and whether it was skipped, left on the device."""
        own = self.world.share(range(self.step * self.config.batch, (self.step + 1) * self.config.batch))
        # A GPU's steps take a second, and its backward passes see no signals: they are in a thread of their own.
        hurry = abandoned_on(stop) if self.device.type == "cpu" else nullcontext()
        with suppress(StepAbandonedError), hurry:
            losses = self._memory(lambda n_at_once: self._gradient(own, n_at_once))
        self._stop_if_any(stop)
        # One exchange a step, after whatever each process had to repeat for lack of memory: DistributedDataParallel
        # exchanges during the backward pass, and what failed in the middle of that cannot be repeated. As every cube
        # weighs alike and not every process, the sum is the gradient of the batch, also where shares are uneven.
        self.world.add([losses, *self._learner.gradients])
        bad = self._learner.update(losses.sum(), self.step)
        return torch.cat([losses, bad[None]])

    def _gradient(self, indices: range, n_at_once: int) -> Tensor:
        """Give the parameters the gradient of the batch's mean losses, from ``n_at_once`` cubes at a time; the losses.

        Everything drawn depends on a cube's own index, and every cube has the weight of one in the batch: how they
        are grouped changes the order of the sums only.
        """
        self._learner.network.zero_grad()
        parts = [indices[first : first + n_at_once] for first in range(0, len(indices), n_at_once)]
        with freed_on_failure():
            return torch.stack([self._backward(part) for part in parts]).sum(0)

    def _backward(self, indices: range) -> Tensor:
        """Add the gradient of what some cubes contribute to the mean losses; the contribution."""
        y, sources = self.dataset.batch(indices)
        geometries = [self.dataset.pairs[source].geometry for source in sources]
        y = augmented(y.to(self.device, non_blocking=True), geometries, indices, self.config)
        if self._masks:
            self.physics.update(mask=torch.cat([self._masks[geometry] for geometry in geometries]))
        drawn = draw_integers(self.config.seed, indices, len(self.group.elements), ELEMENTS)
        elements = torch.tensor([self.group.elements[i] for i in drawn])
        with autocast(self._learner.dtype, self.device):
            losses: Tensor = self._module(y, elements).sum(1) / self.config.batch
        self._learner.scaler.scale(losses.sum()).backward()  # type: ignore[no-untyped-call]
        return losses.detach()

    def _read_losses(self) -> None:
        """Fetch the losses since the last time, report them, and stop a run that has diverged."""
        if not self._rows:
            return
        rows = torch.stack(self._rows).cpu().tolist()
        self._rows = []
        self._unwritten += rows
        # The same in all processes, whose gradients and losses were added before that was asked.
        self._skipped.count(bad for _, _, bad in rows)
        if self.world.is_first:
            self._skipped.warn_of_many(self.step)
        self._report(rows[-1])
        if self._skipped.are_too_many:
            self._give_up()

    def _write_losses(self) -> None:
        """Write what was read since the last time."""
        first, rows = self.step - len(self._unwritten), self._unwritten
        self._unwritten = []
        if (folder := self._folder) is None or not rows:
            return
        rates = [learning_rate(self.config, step) for step in range(first, self.step)]
        told = enumerate(zip(rows, rates, strict=True), start=first + 1)
        append_losses(folder, [(step, data, equi, rate, int(bad)) for step, ((data, equi, bad), rate) in told])

    def _report(self, row: Sequence[float]) -> None:
        if self.progress is not None and self.world.is_first:
            data, equivariance, _ = row
            self.progress(self.step, {"data": data, "equivariance": equivariance, "skipped": self.skipped})

    def _give_up(self) -> None:
        in_a_row = self._skipped.longest
        # Saved as a state to go on from: what was skipped has changed nothing.
        self._skipped.forgive()
        saved = self.save()
        self.world.wait()
        raise TrainingDivergedError(
            f"no finite gradient in {in_a_row} steps in a row, up to step {self.step}: lower learning_rate or use "
            "precision float32. These steps changed nothing, the weights are good" + (f": {saved}" if saved else "")
        )

    def _go_on(self, folder: Path) -> None:
        if has_checkpoint(folder):
            self._restore(load_checkpoint(folder))
        if self._folder is not None:
            # Also those of a run that was killed before its first checkpoint.
            forget_losses_after(self._folder, self.step)

    def _restore(self, checkpoint: Checkpoint) -> None:
        require_same_run(checkpoint, self.config, self.geometries)
        self._learner.restore(checkpoint)
        self.step = self._saved = checkpoint.state["step"]
        self._skipped.total, self._skipped.consecutive = checkpoint.state["skipped"], checkpoint.state["consecutive"]

    def _require_same_everywhere(self) -> None:
        """Refuse processes that did not read the same: their gradients would be of different things."""
        if self.world.size == 1:
            return
        tensors = [self.dataset.example, *self._learner.network.state_dict().values()]
        given = (self.step, self._learner.dtype, self.config, self.geometries, self.dataset.n_starts)
        self.world.require_equal(
            b"".join([repr(given).encode(), *(t.detach().cpu().contiguous().numpy().tobytes() for t in tensors)]),
            "the processes of this training do not have the same settings, tomograms, initial weights or checkpoint: "
            "start them alike, and keep inputs and runs where all of them see the same files",
        )

    def _show(self) -> None:
        every = self.config.preview_every
        if self.preview is None or not self.world.is_first or not every or self.step % every:
            return
        cube = self.dataset.example.mean(0)
        with torch.inference_mode(), autocast(self._learner.dtype, self.device):
            seen = self.network(cube[None, None].to(self.device))[0, 0].float()
        self.preview(self.step, cube.cpu(), seen.cpu())
