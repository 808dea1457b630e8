"""The training loop, for any method."""

from __future__ import annotations

import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing, nullcontext, suppress
from dataclasses import asdict
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, NoReturn, Self

import torch
from torch import Tensor, nn

from equitomo.datasets import TomogramPair, cubes_of
from equitomo.precision import autocast
from equitomo.resources import FreedMemoryKept
from equitomo.training.budget import Budget, learning_rate
from equitomo.training.checkpoint import (
    Checkpoint,
    checkpoint_bytes,
    drop_old_checkpoints,
    has_checkpoint,
    load_checkpoint,
    network_settings,
    save_checkpoint,
)
from equitomo.training.config import TrainingConfig
from equitomo.training.cubes import seen_tilts
from equitomo.training.distributed import World, join
from equitomo.training.gradient import BatchGradient
from equitomo.training.judging import JUDGED_AT, HeldOutJudge, Restart, StartJudge, does_not_fit
from equitomo.training.learner import Learner
from equitomo.training.loss_record import LossRecord
from equitomo.training.loss_table import LossTable
from equitomo.training.memory import MemoryPlan, cubes_at_once
from equitomo.training.method import Method
from equitomo.training.resuming import require_same_run
from equitomo.training.skipped import SkippedSteps
from equitomo.training.step import Objective, fingerprint_of
from equitomo.training.stopping import StepAbandonedError, abandoned_on, stop_signals

Progress = Callable[[int, dict[str, float]], None]
Preview = Callable[[int, Tensor, Tensor], None]

# So many steps in a row without a finite gradient end a run. The loss scale of float16 needs some steps to settle.
_PATIENCE, _PATIENCE_FLOAT16 = 3, 20
# Steps between writing losses, and between reading them from a device that would have to be waited for.
_WRITE_EVERY = 20


class TrainingInterruptedError(Exception):
    """Raised when a signal ended the training, after a checkpoint was written."""


class TrainingDivergedError(RuntimeError):
    """Raised when losses or gradients are no longer finite, after the last good weights were saved."""


class Trainer:
    r"""Train a network by a method on the cubes of one or several tomograms.

    The cubes and random numbers of step ``k`` depend on the seed and ``k`` alone, so a run that is stopped and resumed
    ends like an uninterrupted one, bit-identical on a CPU. A step with a non-finite gradient is skipped and counted. A
    step that runs out of memory is repeated with fewer cubes at once, and finally with activation checkpointing if the
    network has it; the result is the same up to rounding.

    Processes that ``torchrun`` or ``srun`` started share each batch and end with the same weights, which are those of a
    single process up to rounding. The first process writes all files and reports.

    Losses and operators must not carry anything from one step to the next, because only the state of the network is
    saved. Random losses repeat their numbers in a resumed run if they draw them from ``draws``, which every loss gets,
    from torch's global generator, or from a ``torch.Generator`` among the attributes of the loss or the operator. The
    generators are seeded before each call, from the seed of the run, the index of the first cube of the call and the
    number of the loss. Other sources, such as those of Python and numpy, are not seeded. The numbers of generators
    depend on how many cubes go through the network at once; those of ``draws.integers`` do not.

    Parameters
    ----------
    pairs
        One pair of half tomograms or several, in memory or in files.
    method
        The network, the operator, the losses and the augmentations.
    config
        The settings; ``None`` for the paper's. Settings that only methods use, such as ``width``, have no effect here.
    out
        The run's folder, for checkpoints and ``losses.csv``; ``None`` writes nothing.
    resume
        Continue from the latest checkpoint in ``out``, if there is one.
    overwrite
        Replace the run that ``out`` holds. It is removed when training begins.
    init
        A network whose weights training starts from; its parameters must have the names and shapes of the method's.
    progress
        Called with the steps done and the latest losses by name.
    preview
        Called every ``preview_every`` steps with the step, a fixed cube and its reconstruction, both
        ``(z, y, x)`` on the CPU.
    clock
        A function that returns seconds, by which a training of so many ``minutes`` is timed.

    Attributes
    ----------
    step : int
        Steps done.
    budget : Budget
        The number of steps, and how the learning rate changes over them.
    restart : Restart or None
        How the training began again from scratch, if the weights of the start did not fit.
    world : World
        Number of this process among those that train together.
    dataset : SubtomogramDataset or SubtomogramPool
        The cubes.
    batches : BatchGradient
        The gradient of the cubes of a step, within the memory.
    fingerprint : dict
        Class, settings and state of the method's parts, by which a resumed run is recognised.

    Raises
    ------
    FileExistsError
        If ``out`` holds a run already and neither ``resume`` nor ``overwrite`` is set.
    ValueError
        If cubes do not fit into a tomogram, a resumed run differs in its settings, network, losses or operators, or the
        batch has fewer cubes than there are processes.

    Examples
    --------
    >>> from equitomo.methods import method_of
    >>> specimen = torch.randn(16, 16, 16, generator=torch.Generator().manual_seed(0))
    >>> pair = TomogramPair(specimen, specimen + torch.randn(16, 16, 16), (-60.0, 60.0))
    >>> config = TrainingConfig(side=16, batch=1, width=2, levels=2, steps=2, margin=4, device="cpu")
    >>> Trainer(pair, method_of(config), config).train().step
    2
    """

    def __init__(
        self,
        pairs: TomogramPair | Sequence[TomogramPair],
        method: Method,
        config: TrainingConfig | None = None,
        *,
        out: str | Path | None = None,
        resume: bool = False,
        overwrite: bool = False,
        init: nn.Module | None = None,
        progress: Progress | None = None,
        preview: Preview | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.config = config = TrainingConfig() if config is None else config
        self.method = method
        self.world: World = join()
        if config.batch < self.world.size:
            raise ValueError(
                f"`batch` {config.batch} cannot be split over {self.world.size} processes, which need a cube each: use "
                f"`batch` {self.world.size} or more, or fewer processes"
            )
        self.out = None if out is None else Path(out)
        if self.out is not None and has_checkpoint(self.out) and not (resume or overwrite):
            raise FileExistsError(
                f"{self.out} holds a training run already: pass `resume=True` or `overwrite=True`, or choose another "
                "folder"
            )
        self._replaces = overwrite and not resume
        self._progress, self.preview = progress, preview
        self.device = self.world.device(config.device)
        self.dataset = cubes_of(
            pairs,
            config.side,
            # How many cubes a training of so many minutes takes is not known before.
            length=max(config.steps, config.restart_steps) * config.batch if config.minutes is None else sys.maxsize,
            memory=round(config.memory * 2**30) or None,
            exchange_every=config.exchange_every * config.batch,
            seed=config.seed,
            min_fraction=config.min_specimen,
            mixed_voxel_sizes=config.mixed_voxel_sizes,
            held_out=config.held_out,
            reach=method.cut_margin,
        )
        # The tilts of each tomogram: those of both halves, or of the one volume that the method sees.
        self._tilts = [seen_tilts(pair, method) for pair in self.dataset.pairs]
        self.learner = Learner(method.network, config, self.device, init)
        different = list(dict.fromkeys(self._tilts))
        self.objective = Objective(self.learner.network, method, config.cube_shape, different, self.device)
        self.fingerprint = fingerprint_of(method, self.learner.network, self.objective)
        n_own = len(self.world.share(range(config.batch)))
        plan = MemoryPlan(min(cubes_at_once(config, self.device), n_own), config.checkpointing)
        self.batches = BatchGradient(
            self.dataset, self._tilts, method, self.learner, self.objective, config, self.device, plan
        )
        self.step = 0
        self.restart: Restart | None = None
        self.budget = Budget(config, clock, self.world.largest)
        self._skipped = SkippedSteps(_PATIENCE_FLOAT16 if self.learner.scaler.is_enabled() else _PATIENCE)
        self._read_every = read_every(self.device)
        # The step of the latest checkpoint.
        self._saved = -1
        table = None if self._folder is None else LossTable(self._folder, self.objective.names)
        self._losses = LossRecord(self.objective.names, table, self._skipped)
        # Whether nothing changed any more when that was last looked at, and the training is to stop then.
        self._is_stable = False
        if config.stop_when_stable and self.out is None:
            raise ValueError("`stop_when_stable` looks at what a training has recorded: pass `out`, a folder")
        if resume and self.out is not None:
            self._resume(self.out)
        self._require_same_everywhere()

    def train(self, until: int | None = None, progress: Progress | None = None) -> Self:
        """Train to the last step, or to step ``until``, and write a checkpoint there.

        Parameters
        ----------
        until
            The step after which to stop; ``None`` for the last one.
        progress
            Replaces the ``progress`` of the constructor.

        Raises
        ------
        TrainingInterruptedError
            On SIGINT, SIGTERM or SIGUSR1, after the state before the current step was saved. A resumed run repeats
            this step. A second SIGINT stops at once.
        TrainingDivergedError
            If several steps in a row had no finite gradient. On a GPU this is noticed when losses are read next.
        LostProcessError
            If another process of the training ended.
        torch.OutOfMemoryError
            If not even one cube at a time with activation checkpointing fits into the memory.
        """
        self._progress = self._progress if progress is None else progress
        self._replace()
        self.budget.start()
        with (
            stop_signals(patient=self.world.size > 1) as stop,
            closing(self.dataset),
            FreedMemoryKept(),
            torch.backends.cudnn.flags(enabled=True, benchmark=True),
        ):
            while not self._is_over(until):
                self._one_step(stop)
                self.step += 1
                if self.step % self._read_every == 0:
                    self._read_losses()
                if self.step % _WRITE_EVERY == 0:
                    self._losses.write(self.step)
                if self._is_judged_now():
                    self._judge_now()
                if self.step == JUDGED_AT and self._may_restart and self._has_time_to_restart:
                    self._judge_start()
                if self.is_finished:
                    self._choose_share()
                if self._is_due() or self._is_over(until):
                    self.save()
                self._show()
            # A signal may have arrived after the last gradient was computed.
            self._stop_if_any(stop)
        return self

    @property
    def steps(self) -> int | None:
        """The number of steps; ``None`` while a training of so many minutes has not chosen it."""
        return self.budget.plan.steps

    @property
    def is_finished(self) -> bool:
        """Whether the last step is done, or the training stopped because nothing changed any more."""
        return self._is_stable or (self.steps is not None and self.step >= self.steps)

    @property
    def skipped(self) -> int:
        """Steps without a finite gradient so far, as last read."""
        return self._skipped.total

    @property
    def network(self) -> nn.Module:
        """A copy of the network for prediction, with the averaged weights if there are any."""
        return self.learner.for_prediction()

    def save(self) -> Path | None:
        """Write a checkpoint now; return its path, or ``None`` if the run has no folder or another process writes."""
        self._read_losses()
        self._losses.write(self.step)
        if self._folder is None:
            return None
        state = {
            "network": network_settings(self.learner.network),
            "fingerprint": self.fingerprint,
            "config": self.config.as_dict(),
            "geometries": self.geometries,
            "inverted": self.inverted,
            "skipped": self._skipped.total,
            "consecutive": self._skipped.consecutive,
            **self.learner.state(),
            **self.budget.state(),
            **({"restart": asdict(self.restart)} if self.restart else {}),
        }
        tensors = self.learner.tensors()
        self._saved = self.step
        keep_every = self.config.keep_every
        return save_checkpoint(self._folder / "checkpoints", self.step, tensors, state, keep_every=keep_every)

    @property
    def geometries(self) -> list[dict[str, Any]]:
        """The distinct geometries of all views, in the form that a checkpoint holds."""
        return [geometry.as_dict() for geometry in dict.fromkeys(chain.from_iterable(self._tilts))]

    @property
    def inverted(self) -> list[bool]:
        """For each tomogram whether the network sees its contrast inverted."""
        return [pair.is_inverted for pair in self.dataset.pairs]

    @property
    def bytes_to_write(self) -> int:
        """About how many bytes a run writes into its folder: losses and checkpoints, one of them unfinished."""
        one = checkpoint_bytes(self.learner.network, n_kept=bool(self.config.ema_decay) + bool(self.learner.start))
        # Where the number is not known yet, that of the preset is as good a guess as any.
        steps = self.config.steps if self.steps is None else self.steps
        if self._may_restart:
            steps = max(steps, JUDGED_AT + self.config.restart_steps)
        kept = steps // self.config.keep_every if self.config.keep_every else 0
        return (kept + 3) * one + steps * LossTable.row_bytes(len(self.objective.names))

    @property
    def plan(self) -> MemoryPlan:
        """How many cubes of this process go through the network at once, and whether activations are recomputed."""
        return self.batches.plan

    @property
    def dtype(self) -> torch.dtype:
        """The number format in which the network computes."""
        return self.learner.dtype

    def gradient(self, indices: range, n_at_once: int) -> Tensor:
        """Compute the gradient of the batch's mean losses, ``n_at_once`` cubes at a time, and return the losses."""
        return self.batches.gradient(indices, n_at_once)

    def bytes_kept(self, n_cubes: int) -> int:
        """Return the bytes that ``n_cubes`` cubes at once keep for the backward pass, counting each storage once."""
        return self.batches.bytes_kept(n_cubes)

    @property
    def _folder(self) -> Path | None:
        """The run's folder if this process writes into it, otherwise ``None``."""
        return self.out if self.world.is_first else None

    @cached_property
    def judge(self) -> HeldOutJudge | None:
        """What measures the error on the held-out block, if there is one and this process writes into a folder."""
        if self._folder is None or self.dataset.held_out is None:
            return None
        return HeldOutJudge(
            self.dataset.held_out, self.dataset.pairs[0].geometries, self._folder, tuple(self.objective.names)
        )

    @property
    def _may_restart(self) -> bool:
        """Whether the weights of the start are given up if they do not fit."""
        return bool(self.config.restart_steps and self.learner.start)

    @property
    def _has_time_to_restart(self) -> bool:
        """Whether a training of so many minutes has at least three quarters of its steps left."""
        return not self.budget.is_timed or self.steps is None or self.steps >= 4 * self.step

    def _judge_start(self) -> None:
        """Begin again from scratch if the weights of the start do not fit the halves."""
        gained = 0.0
        if self.world.is_first:
            gained = StartJudge(self.dataset.pairs, self.config.precision).gained(self.learner.with_share)
        # All processes decide by the same number.
        gained = self.world.largest(round(1e6 * gained)) / 1e6
        if does_not_fit(gained):
            self._read_losses()
            self.restart = Restart(self.step, gained)
            self.learner.begin_again()
            self.budget.begin_again(self.step)

    def _choose_share(self) -> None:
        """Choose the share of the starting weights in predictions, if it is left to the halves."""
        if self.config.start_share is None and self.learner.start and self.world.is_first:
            judge = StartJudge(self.dataset.pairs, self.config.precision)
            self.learner.start_share = judge.share(self.learner.with_share)

    def _is_judged_now(self) -> bool:
        return self.out is not None and bool(self.config.held_out) and self.step % self.config.judge_every == 0

    def _judge_now(self) -> None:
        """Record the error on the held-out block, and find whether to stop."""
        self._read_losses()
        self._losses.write(self.step)
        if self.judge is not None:
            self.judge.record(self.step, self.network, self.config.precision)
        self._look_whether_stable()

    def _look_whether_stable(self) -> None:
        """Find whether the training is to stop, from what is in its tables: a resumed run finds the same."""
        if self.config.stop_when_stable:
            found = self.judge is not None and self.judge.is_stable()
            self._is_stable = bool(self.world.largest(int(found)))

    def _replace(self) -> None:
        """Remove the run that this one overwrites."""
        if self._replaces and self._folder is not None and self.step == 0:
            shutil.rmtree(self._folder / "checkpoints", ignore_errors=True)
            for name in ("losses.csv", "held_out.csv"):
                (self._folder / name).unlink(missing_ok=True)
        self._replaces = False

    def _stop_if_any(self, stop: Sequence[int]) -> None:
        """End the training if a signal arrived. A signal to a single process ends all processes after the same step."""
        if signalled := self.world.largest(stop[0] if stop else 0):
            self._stop(signal.Signals(signalled))

    def _stop(self, number: signal.Signals) -> NoReturn:
        if self.step != self._saved:
            # The step may have been left in the middle.
            self.learner.rewind_buffers()
            self.save()
        # If a process ends, torchrun may kill the one that still writes.
        self.world.wait()
        raise TrainingInterruptedError(
            f"stopped by {number.name} after step {self.step}{self._of_all}; resume to continue"
        )

    @property
    def _of_all(self) -> str:
        return "" if self.steps is None else f" of {self.steps}"

    def _is_over(self, until: int | None) -> bool:
        """Return whether the last step is done, or the step ``until`` which to stop."""
        return self.is_finished or (until is not None and self.step >= until)

    def _is_due(self) -> bool:
        """Return whether a checkpoint is to be written after this step."""
        every = self.config.checkpoint_every, self.config.keep_every
        return any(self.step % steps == 0 for steps in every if steps)

    def _one_step(self, stop: Sequence[int]) -> None:
        """Do one update, and record its losses and whether it was skipped."""
        # A training that began again has the cubes of one from scratch.
        step = self.step - self.budget.plan.begun
        own = self.world.share(range(step * self.config.batch, (step + 1) * self.config.batch))
        # Steps on a GPU take a second, and their backward passes run in another thread, which sees no signals.
        hurry = abandoned_on(stop) if self.device.type == "cpu" else nullcontext()
        with suppress(StepAbandonedError), hurry:
            losses = self.batches.fitting(own)
        self._stop_if_any(stop)
        # There is one exchange in a step, after each process has repeated what ran out of memory. torch's
        # DistributedDataParallel exchanges during the backward pass, which could then not be repeated. Every cube has
        # the same weight, so the sum is the gradient of the batch even if the processes have unequal shares.
        statistics = self.learner.running_statistics
        self.world.add([losses, *self.learner.gradients, *statistics])
        if self.world.size > 1:
            for mean in statistics:
                mean /= self.world.size
        rate = learning_rate(self.config, self.step, self.budget.plan)
        bad = self.learner.update(losses.sum(), step, rate)
        self._losses.add(losses, bad, rate)

    def _read_losses(self) -> None:
        """Fetch the losses of the latest steps, report them, and stop a run that has diverged."""
        if not (losses := self._losses.read()):
            return
        # All steps so far are done, also on a device that was not waited for.
        self.budget.look(self.step)
        # The counts of skipped steps are the same in all processes, whose gradients and losses were added before.
        if self.world.is_first:
            self._skipped.warn_of_many(self.step)
            if self._progress is not None:
                self._progress(self.step, {**losses, "skipped": self.skipped})
        if self._skipped.are_too_many:
            self._give_up()

    def _give_up(self) -> NoReturn:
        in_a_row = self._skipped.longest
        # The run can be resumed from this state, because skipped steps have changed nothing.
        self._skipped.reset_patience()
        saved = self.save()
        self.world.wait()
        raise TrainingDivergedError(
            f"no finite gradient in {in_a_row} steps in a row, up to step {self.step}: lower `learning_rate` or pass "
            "`precision='float32'`. These steps changed nothing, so the weights are good"
            + (f": {saved}" if saved else "")
        )

    def _resume(self, folder: Path) -> None:
        if has_checkpoint(folder):
            self._restore(load_checkpoint(folder))
            if self._folder is not None:
                # A run that was killed may have left too many. Those newer than the restored one are damaged: they are
                # not dropped here, and do not count among the kept ones.
                drop_old_checkpoints(self._folder / "checkpoints", self.step, keep_every=self.config.keep_every)
        # A run that was killed before its first checkpoint has left losses too.
        self._losses.forget_after(self.step)
        if self.judge is not None:
            self.judge.table.forget_after(self.step)
        if self.step and self._is_judged_now():
            self._look_whether_stable()

    def _restore(self, checkpoint: Checkpoint) -> None:
        require_same_run(checkpoint, self.config, self.geometries, self.fingerprint)
        self.learner.restore(checkpoint)
        if "restart" in checkpoint.state:
            self.restart = Restart(**checkpoint.state["restart"])
            self.budget.begin_again(self.restart.step)
        self.budget.restore(checkpoint.state, checkpoint.state["config"].get("minutes"))
        self.step = self._saved = checkpoint.state["step"]
        self._skipped.total, self._skipped.consecutive = checkpoint.state["skipped"], checkpoint.state["consecutive"]

    def _require_same_everywhere(self) -> None:
        """Refuse processes that did not read the same inputs, whose gradients must not be added."""
        if self.world.size == 1:
            return
        tensors = [self.dataset.example, *self.learner.network.state_dict().values()]
        # Only those entries of the fingerprint are compared that do not depend on how a processor rounds.
        parts = [self.fingerprint["network"], *self.fingerprint["losses"].values(), *self.fingerprint["operators"]]
        texts = [(part["class"], part["text"]) for part in parts]
        given = (self.step, self.learner.dtype, self.config, self.geometries, self.dataset.n_starts, texts)
        self.world.require_equal(
            b"".join([repr(given).encode(), *(t.detach().cpu().contiguous().numpy().tobytes() for t in tensors)]),
            "the processes of this training do not have the same settings, tomograms, method, initial weights or "
            "checkpoint: start them alike, and keep inputs and runs where all of them see the same files",
        )

    def _show(self) -> None:
        every = self.config.preview_every
        if self.preview is None or not self.world.is_first or not every or self.step % every:
            return
        cube = self.dataset.example.mean(0)
        with torch.inference_mode(), autocast(self.learner.dtype, self.device):
            seen = self.network(cube[None, None].to(self.device))[0, 0].float()
        self.preview(self.step, cube.cpu(), seen.cpu())


def read_every(device: torch.device) -> int:
    """Return the number of steps between reading losses; a CPU need not be waited for, and its steps take minutes."""
    return 1 if device.type == "cpu" else _WRITE_EVERY
