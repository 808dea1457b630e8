"""A training run in a folder, from its tomograms to predictions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Self, TypeVar

from deepinv.loss import Loss
from torch import nn

from equitomo import report
from equitomo.datasets import TomogramPair
from equitomo.inference import Footprint
from equitomo.io import bytes_to_create, read_volume
from equitomo.methods import IcecreamTrainer
from equitomo.run.folder import FINISHED, RunFolder
from equitomo.run.initial import Init, restored_start, start_of
from equitomo.run.network import RunNetwork
from equitomo.run.pictures import StepProgress, TrainingWatch
from equitomo.run.prediction import (
    Plan,
    Progress,
    common_geometry,
    finishes,
    require_one_wedge,
    require_range,
)
from equitomo.run.record import Invocation
from equitomo.run.reporting import RunReport
from equitomo.run.settings import ReconstructionSettings
from equitomo.run.summary import draw_reconstruction
from equitomo.run.tilt_result import TiltTestResult
from equitomo.run.tilt_settings import RECORDED, TiltTestSettings
from equitomo.run.tilt_test import TiltTest
from equitomo.run.training import RunTraining, inputs_of, prepared_record
from equitomo.run.wedge_result import WedgeTestResult
from equitomo.run.wedge_settings import WedgeTestSettings
from equitomo.run.wedge_test import WedgeTest
from equitomo.run.wedge_trainings import WedgeTrainings
from equitomo.training import TrainingConfig
from equitomo.training.checkpoint import has_checkpoint, load_checkpoint
from equitomo.training.method import Operator
from equitomo.volumes import VolumeLike

_RECONSTRUCTION = "reconstruction.mrc"
_WEDGE_TEST, _TILT_TEST = WedgeTestSettings(), TiltTestSettings(series=RECORDED)
_Test = TypeVar("_Test", bound=WedgeTest)
# With the precision of the training.
_OF_TRAINING = ReconstructionSettings()


class Run(RunNetwork):
    """A training run in a folder, which can be resumed and whose network predicts.

    :meth:`create` makes a run of tomograms, or resumes one; :meth:`open` gives the network of a run that exists. While
    the run works, its folder is locked. ``manifest.json`` in it records the inputs with their hashes, the settings, and
    each time that the run was worked on. A run that was stopped or killed and is resumed ends with the weights of an
    unbroken one, to the bit on a CPU.

    Attributes
    ----------
    path : Path
        The folder of the run, or the checkpoint that was opened.
    config : TrainingConfig
        The settings.
    notes : list of str
        What a user should know of how the training begins, as sentences: the network that it starts from, and which
        specimens are inverted.

    Examples
    --------
    >>> specimen = torch.randn(16, 16, 16)
    >>> pair = TomogramPair(*(specimen + torch.randn(2, 16, 16, 16)), (-60.0, 60.0))
    >>> folder = getfixture("tmp_path")
    >>> settings = {"side": 16, "width": 2, "levels": 2, "steps": 2, "batch": 1, "device": "cpu"}
    >>> run = Run.create(folder / "run", pair, TrainingConfig.preset("tiny", **settings))
    >>> run.train().step
    2
    >>> run.predict(pair, folder / "out.mrc").name
    'out.mrc'
    >>> predictor = Run.open(folder / "run").predictor(pair.geometry)
    """

    @classmethod
    def create(
        cls,
        folder: str | Path | RunFolder,
        pairs: TomogramPair | Sequence[TomogramPair],
        config: TrainingConfig | None = None,
        *,
        network: Callable[[], nn.Module] | None = None,
        losses: Mapping[str, Loss] | None = None,
        physics: Operator | None = None,
        init: Init = None,
        resume: bool = False,
        overwrite: bool = False,
        break_lock: bool = False,
        further_inputs: Mapping[str, Path] | None = None,
        invocation: Invocation | None = None,
    ) -> Self:
        """Make a run of tomograms, or resume one.

        Inputs, settings, memory and disk are checked. Nothing is written into the folder before the training.

        Parameters
        ----------
        folder
            The folder, which need not exist.
        pairs
            The tomograms.
        config
            The settings; ``None`` for the paper's.
        network, losses, physics
            A network, losses and an operator of one's own, as for :class:`~equitomo.IcecreamTrainer`.
        init
            What the training starts from: a run, a checkpoint or a network; ``"cryo"`` for the network that comes with
            the package, for which ``TrainingConfig.preset(..., start="cryo")`` has the settings; ``None`` or
            ``"none"`` for weights that are drawn from the seed. Folders of these names are ``"./cryo"`` and
            ``"./none"``.
        resume
            Continue the run in the folder. Its inputs must be the same, though they may lie elsewhere.
        overwrite
            Replace a run in the folder when the training begins.
        break_lock
            Take the folder from a process that seems to use it and is certainly gone.
        further_inputs
            Other files that belong to the run, by role, to be recorded and compared too.
        invocation
            The command that this is part of, for the record.

        Raises
        ------
        ValueError
            If cubes do not fit, an input is among the files that the run writes or is not that of the resumed run,
            settings differ from those of the resumed run, or a step does not fit into the memory.
        OSError
            If another process uses the folder, it holds a run and neither ``resume`` nor ``overwrite`` is given, it
            holds no run to resume, it cannot be written, or its disk has too little room.
        """
        place = folder if isinstance(folder, RunFolder) else RunFolder(folder)
        pairs = (pairs,) if isinstance(pairs, TomogramPair) else tuple(pairs)
        with place.held(resume=resume, overwrite=overwrite, break_lock=break_lock):
            if resume and has_checkpoint(place.path):
                # The weights come from there, and the record describes those that the run began with.
                start = restored_start(place.path, pairs, config or TrainingConfig())
            else:
                start = start_of(init, pairs, config or TrainingConfig(), network=network)
            pairs = start.pairs
            watch = TrainingWatch(place.path / "previews")
            trainer = IcecreamTrainer(
                pairs,
                start.config,
                network=network,
                losses=losses,
                physics=physics,
                out=place.path,
                resume=resume,
                overwrite=overwrite,
                init=start.network,
                preview=watch.preview,
            )
            record = None
            if trainer.world.is_first:
                inputs = inputs_of(pairs) | dict(further_inputs or {})
                record = prepared_record(trainer, place, inputs, start.record, resume=resume)
            training = RunTraining(trainer, place, watch, record, invocation or Invocation(), resume, overwrite)
        geometries = list(dict.fromkeys(pair.geometry for pair in pairs))
        run = cls(place.path, trainer.config, geometries, physics=physics, training=training)
        run.notes = start.notes
        if trainer.config.side != start.config.side:
            sides = f"{trainer.config.side} voxels per side and not {start.config.side}"
            run.notes.append(f"Cubes have {sides}, because no larger ones fit into the smallest tomogram")
        return run

    @classmethod
    def open(
        cls,
        folder: str | Path,
        *,
        network: Callable[[], nn.Module] | None = None,
        physics: Operator | None = None,
    ) -> Self:
        """Open a run to predict with its network.

        Parameters
        ----------
        folder
            The folder of the run, or one of its checkpoints.
        network, physics
            The network and the operator of the run, where they were its own.

        Raises
        ------
        ValueError
            If there is no sound checkpoint, or it is of another network.
        """
        checkpoint = load_checkpoint(Path(folder))
        state = checkpoint.state
        return cls(
            Path(folder),
            checkpoint.config,
            checkpoint.geometries,
            step=state["step"],
            network=checkpoint.network(network),
            hashes={name: state["sha256"][name] for name in ("weights", "ema") if name in state["sha256"]},
            physics=physics,
            make=network,
        )

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Hold the folder and keep the record until the block ends. :meth:`train` does so by itself."""
        if self._training is None:
            yield
        else:
            with self._training.recorded():
                yield

    def train(self, until: int | None = None, *, progress: StepProgress | None = None) -> Self:
        """Train to the last step, or to step ``until``; return the run.

        Parameters
        ----------
        until
            The step to stop after; ``None`` for the last one.
        progress
            Called with the number of steps done and the latest losses by name. ``"change"`` is among them after the
            second picture: the relative change of the cube in it.

        Raises
        ------
        TrainingInterruptedError, TrainingDivergedError, LostProcessError, torch.OutOfMemoryError
            As :meth:`equitomo.IcecreamTrainer.train`.
        OSError
            If another process uses the folder, or the disk is full.
        """
        trainer = self.trainer
        assert self._training is not None
        with self.recorded():
            trainer.train(until, None if progress is None else self._training.watch.with_change(progress))
            if trainer.world.is_first:
                report.draw_losses(self.path / "losses.png", self.path / "losses.csv")
        return self

    def wedge_test(
        self,
        pair: TomogramPair | None = None,
        settings: WedgeTestSettings = _WEDGE_TEST,
        *,
        folder: str | Path | None = None,
        step_progress: StepProgress | None = None,
        progress: Progress | None = None,
    ) -> WedgeTestResult:
        """Estimate how far the filling of the wedge can be believed, by a training on a wedge that was widened.

        The run stays as it is.

        Parameters
        ----------
        pair
            Two half tomograms; ``None`` for the only tomogram of the run.
        settings
            The sectors that are held out, and the length of the training.
        folder
            Where the trainings are kept until the test is done. A test that was interrupted and is called again in the
            same way continues there. With ``None`` nothing is written.
        step_progress, progress
            Called as :meth:`train` and :meth:`predict` do, in every training.

        Raises
        ------
        ValueError, OSError
            As :meth:`equitomo.run.WedgeTest.of`; or if another process uses ``folder``, or the settings name a series,
            which is for :meth:`tilt_test`.
        TrainingInterruptedError
            If a signal stopped it.
        """
        if isinstance(settings, TiltTestSettings) and settings.series is not None:
            raise ValueError("`series` leaves out whole tilts, and not a sector: pass these settings to tilt_test()")
        with self._test(WedgeTest, pair, settings, folder) as test:
            return test.run(step_progress=step_progress, progress=progress)

    def tilt_test(
        self,
        pair: TomogramPair | None = None,
        settings: TiltTestSettings = _TILT_TEST,
        *,
        folder: str | Path | None = None,
        step_progress: StepProgress | None = None,
        progress: Progress | None = None,
    ) -> TiltTestResult:
        """Do the wedge test with whole tilts left out of the series, which are scored against what was measured there.

        The run stays as it is.

        Parameters
        ----------
        pair, folder, step_progress, progress
            As for :meth:`wedge_test`.
        settings
            The series, by default the recorded one of the halves; the tilts that are left out, and the length of the
            training.

        Raises
        ------
        ValueError, OSError
            As :class:`equitomo.run.TiltTest`; or if another process uses ``folder``.
        TrainingInterruptedError
            If a signal stopped it.
        """
        with self._test(TiltTest, pair, settings, folder) as test:
            return test.run(step_progress=step_progress, progress=progress)

    def require_reconstruction(self, settings: ReconstructionSettings = _OF_TRAINING, *, n_volumes: int = 1) -> None:
        """Refuse, before the training, a reconstruction that could not be written after it.

        Parameters
        ----------
        settings
            As for :meth:`reconstruct`.
        n_volumes
            Volumes that will be written into the folder, the reconstruction among them.

        Raises
        ------
        ValueError
            If settings and network do not fit, or the intensities do not fit into 16 bits.
        OSError
            If the disk has too little room.
        """
        pair = self._pair()
        require_range(pair, settings.dtype)
        require_one_wedge(pair, self.config_with(settings))
        predictor = self.predictor(common_geometry(pair), settings, devices=[self.trainer.device])
        n_bytes = n_volumes * bytes_to_create(self.path / _RECONSTRUCTION, pair.shape, settings.dtype)
        n_bytes += Footprint.of(predictor, pair.shape, halves=len(pair.halves)).disk
        # The room for what follows the prediction is counted with the rest.
        following = finishes(pair, self.path / _RECONSTRUCTION, predictor, settings, overwrite=True)
        n_bytes += sum(finish.n_bytes for finish in following)
        assert self._training is not None
        self._training.folder.require_space(self.trainer.bytes_to_write + n_bytes)

    def reconstruct(
        self,
        settings: ReconstructionSettings = _OF_TRAINING,
        *,
        truth: VolumeLike | None = None,
        step_progress: StepProgress | None = None,
        planned: Callable[[Plan], None] = lambda plan: None,
        progress: Progress | None = None,
    ) -> Path:
        """Train to the last step, write the reconstruction and its report into the folder, and return its path.

        Parameters
        ----------
        settings
            How the reconstruction is made.
        truth
            The specimen, if it is known, to be drawn too.
        step_progress
            Called as :meth:`train` does.
        planned
            Called with the plan of the prediction before it begins.
        progress
            Called as :meth:`predict` does.

        Raises
        ------
        ValueError, OSError
            As :meth:`require_reconstruction`, :meth:`train` and :meth:`predict`.
        """
        pair, out = self._pair(), self.path / _RECONSTRUCTION
        if not self.trainer.is_finished:
            self.require_reconstruction(settings)
        with self.recorded():
            if not self.trainer.is_finished:
                self.train(progress=step_progress)
            plan = self.plan(pair, out, settings, overwrite=True, devices=[self.trainer.device])
            planned(plan)
            # What follows from an earlier result does not belong to the new one.
            for name in FINISHED:
                (self.path / name).unlink(missing_ok=True)
            plan.write(progress)
            draw_reconstruction(self.path / "slices.png", pair, read_volume(out), truth)
            RunReport(self.path, pair=pair).write()
        return out

    @contextmanager
    def _test(
        self, kind: type[_Test], pair: TomogramPair | None, settings: WedgeTestSettings, folder: str | Path | None
    ) -> Iterator[_Test]:
        """Hold the folder of the trainings of a test, if there is one, and return the test."""
        trainings = None if folder is None else WedgeTrainings(folder)
        with nullcontext() if trainings is None else trainings.held():
            yield kind.of(self, pair, settings, trainings)

    def _pair(self) -> TomogramPair:
        """Return the only tomogram."""
        if len(self.pairs) > 1:
            raise ValueError(f"the run has {len(self.pairs)} tomograms: reconstruct each with predict()")
        return self.pairs[0]
