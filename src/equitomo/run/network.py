"""The network of a run, and its predictions."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Self

import torch
from torch import nn

from equitomo.datasets import TomogramPair, read_geometry
from equitomo.geometry import Geometry, TiltAxis, TiltUnion, as_geometry
from equitomo.inference import TiledPredictor
from equitomo.methods import IcecreamTrainer, method_of
from equitomo.run.initial import in_contrast
from equitomo.run.prediction import (
    Plan,
    Progress,
    chosen_devices,
    common_geometry,
    predictor_for,
    require_one_wedge,
)
from equitomo.run.settings import Prediction, ReconstructionSettings, TomogramFiles
from equitomo.run.training import RunTraining
from equitomo.training import TrainingConfig
from equitomo.training.checkpoint import load_checkpoint
from equitomo.training.method import Method, Operator

Devices = str | Sequence[str | torch.device]
_PREDICTION = Prediction()


class RunNetwork:
    """The network of a run, which trains or was opened, with all that predictions take from the run.

    Users get it as :class:`equitomo.Run`, which describes the attributes.
    """

    def __init__(
        self,
        path: Path,
        config: TrainingConfig,
        geometries: Sequence[Geometry],
        *,
        step: int = 0,
        network: nn.Module | None = None,
        hashes: Mapping[str, str] | None = None,
        physics: Operator | None = None,
        training: RunTraining | None = None,
        make: Callable[[], nn.Module] | None = None,
    ) -> None:
        self.path, self.config = path, config
        self._geometries, self._step, self._network, self._training = geometries, step, network, training
        self._physics, self._make = physics, make
        self.weight_hashes = dict(hashes or {})
        self.notes: list[str] = []

    @property
    def step(self) -> int:
        """Steps done."""
        return self._step if self._training is None else self._training.trainer.step

    @property
    def trainer(self) -> IcecreamTrainer:
        """The trainer.

        Raises
        ------
        RuntimeError
            If the run was opened without its tomograms.
        """
        if self._training is None:
            raise RuntimeError(
                f"{self.path} was opened without its tomograms, which training needs: "
                "Run.create(folder, pairs, config, resume=True) continues it"
            )
        return self._training.trainer

    @property
    def is_opened(self) -> bool:
        """Whether the run was merely opened, without its tomograms."""
        return self._training is None

    @property
    def pairs(self) -> Sequence[TomogramPair]:
        """The tomograms of a run that was not merely opened."""
        return self.trainer.dataset.pairs

    @property
    def method(self) -> Method:
        """The method that the run was trained by."""
        if self._training is not None:
            return self.trainer.method
        method = method_of(self.config)
        return replace(method, network=self._make or method.network, physics=self._physics or method.physics)

    @property
    def physics(self) -> Operator | None:
        """The operator of a run that has its own, ``None`` for that of the geometry."""
        return self._physics

    @property
    def network(self) -> nn.Module:
        """The network that predicts, with the exponential moving average of the weights if the run keeps one."""
        network = self.trainer.network if self._network is None else self._network
        return network.to(memory_format=torch.channels_last_3d)

    def geometry(
        self,
        tilts: str | Path | Geometry | None = None,
        tilt_axis: TiltAxis | None = None,
        second_axis_tilts: str | Path | None = None,
    ) -> Geometry:
        """Return the tilts of a tomogram to predict, by default those of the run.

        Parameters
        ----------
        tilts
            A file, ``"LOW,HIGH"`` in degrees or a geometry; ``None`` for those of the run.
        tilt_axis
            ``None`` for that of the run.
        second_axis_tilts
            The tilts about the other axis of a dual-axis series.

        Raises
        ------
        ValueError
            If the run has no tilts or several ones, and none are given.
        """
        if tilts is not None:
            axes = {part.tilt_axis for geometry in self._geometries for part in geometry.parts}
            return read_geometry(tilts, tilt_axis or (axes.pop() if len(axes) == 1 else "y"), second_axis_tilts)
        if second_axis_tilts is not None:
            raise ValueError("`second_axis_tilts` are the second of two series: pass the `tilts` of the first one too")
        if not self._geometries:
            raise ValueError("the checkpoint was converted and knows no tilts: pass `tilts`")
        if len(self._geometries) > 1:
            raise ValueError("the run was trained on several tilt ranges: pass the `tilts` of this tomogram")
        geometry = self._geometries[0]
        if tilt_axis is None:
            return geometry
        if isinstance(geometry, TiltUnion):
            raise ValueError("the run was tilted about two axes: pass the `tilts` of this tomogram with its axis")
        return replace(geometry, tilt_axis=tilt_axis)

    def read_pair(self, files: TomogramFiles) -> TomogramPair:
        """Return a tomogram to predict, with the normalisation, the contrast and by default the tilts of the run.

        No more than the headers are read now, and the middle of the halves if the network knows bright specimens.

        Raises
        ------
        ValueError, OSError
            As :meth:`geometry` and :meth:`equitomo.TomogramPair.read`.
        """
        geometry = self.geometry(files.tilts, files.tilt_axis, files.second_axis_tilts)
        second = files.second_tilts and self.geometry(files.second_tilts, files.tilt_axis, files.second_axis_tilts)
        pair = TomogramPair.read(
            files.first,
            files.second,
            tilts=geometry,
            second_tilts=second,
            normalization=self.config.normalization,
            nan=files.nan,
            permissive=files.permissive,
            is_tomogram=files.is_tomogram,
            lazy=True,
        )
        return self.in_contrast(pair)

    def in_contrast(self, pair: TomogramPair) -> TomogramPair:
        """Return a tomogram in the contrast that the network knows; see :meth:`equitomo.TomogramPair.with_contrast`."""
        if self._training is not None and any(pair is one for one in self.pairs):
            return pair
        return in_contrast([pair], self.config)[0]

    def predictor(
        self,
        geometry: Geometry | tuple[float, float] | None = None,
        settings: ReconstructionSettings = _PREDICTION,
        *,
        devices: Devices | None = "auto",
        pair: TomogramPair | None = None,
    ) -> TiledPredictor:
        """Return the predictor that ``equitomo predict`` uses.

        Parameters
        ----------
        geometry
            The tilts of the tomogram; ``None`` for those of the run.
        settings
            :class:`~equitomo.run.ReconstructionSettings`, or a :class:`~equitomo.run.Prediction` that also replaces
            settings of the run.
        devices
            Devices of one kind, or their names with commas between them; ``None`` for that of the network.
        pair
            The tomogram on which the margin is measured if ``tile_margin`` is ``"auto"``.

        Raises
        ------
        ValueError
            If the settings and the network do not fit, or a device cannot be used.
        """
        chosen = None if devices is None else chosen_devices(devices)
        geometry = self.geometry() if geometry is None else as_geometry(geometry)
        config, share = self.config_with(settings), settings.changes().get("start_share")
        network = (self if share is None else self.with_share(share)).network
        network = network if chosen is None else network.to(chosen[0])
        return predictor_for(network, geometry, settings, config, physics=self._physics, devices=chosen, pair=pair)

    def config_with(self, settings: ReconstructionSettings) -> TrainingConfig:
        """Return the settings of the run with those that a prediction replaces."""
        return replace(self.config, **settings.changes())

    def with_share(self, share: float) -> Self:
        """Return the run with another share of the weights that its training started from in those that predict.

        Raises
        ------
        ValueError
            If it did not start from given weights, or keeps no average of the weights.
        """
        copied = copy.copy(self)
        if self._training is None:
            copied._network = load_checkpoint(self.path).network(self._make, share=share)
        elif self.trainer.learner.start:
            copied._network = self.trainer.learner.with_share(share)
        else:
            raise ValueError(f"{self.path} did not start from given weights, of which `start_share` could be a share")
        return copied

    def copied_to(self, device: torch.device) -> Self:
        """Return the run with a copy of its network on a device, to predict there while others work elsewhere."""
        copied = copy.copy(self)
        copied._network = copy.deepcopy(self.network).to(device)
        return copied

    def plan(
        self,
        pair: TomogramPair,
        out: str | Path,
        settings: ReconstructionSettings = _PREDICTION,
        *,
        overwrite: bool = False,
        devices: Devices | None = "auto",
    ) -> Plan:
        """Check the prediction of a tomogram before the work, and return it to be carried out.

        Parameters
        ----------
        pair
            Two halves, or a pair with one volume.
        out
            The file to write; a name that ends in ``.zarr`` makes an OME-Zarr store.
        overwrite
            Replace the file if it exists.
        settings, devices
            As for :meth:`predictor`.

        Raises
        ------
        ValueError, OSError
            As :class:`equitomo.run.Plan` and :meth:`predictor`.
        """
        require_one_wedge(pair, self.config_with(settings))
        pair = self.in_contrast(pair)
        predictor = self.predictor(common_geometry(pair), settings, devices=devices, pair=pair)
        return Plan(pair, out, predictor, settings, overwrite=overwrite, label=self._label)

    def predict(
        self,
        pair: TomogramPair,
        out: str | Path,
        settings: ReconstructionSettings = _PREDICTION,
        *,
        overwrite: bool = False,
        devices: Devices | None = "auto",
        progress: Progress | None = None,
    ) -> Path:
        """Reconstruct a tomogram into a file as :meth:`plan` describes, and return its path.

        ``progress`` is called with the number of tiles done and their total.
        """
        return self.plan(pair, out, settings, overwrite=overwrite, devices=devices).write(progress)

    @property
    def _label(self) -> str:
        """What the header of a prediction says: that the wedge was filled, and by what."""
        what = "denoised" if self.config.method == "noise2noise" else "wedge filled"
        return f"equitomo: {what} by a network, {self.config.method}, {self.step} steps"
