"""A reconstruction without training, by the network that comes with the package."""

from __future__ import annotations

from pathlib import Path

from equitomo.datasets import TomogramPair
from equitomo.run.initial import shipped_network
from equitomo.run.prediction import Plan, predictor_for, require_one_wedge
from equitomo.run.settings import ReconstructionSettings
from equitomo.training import TrainingConfig

PREVIEW_LABEL = "equitomo preview: prior learned on simulations, not trained on this data"


class Preview:
    """The preview of a tomogram, for which all is checked and the disk has room.

    The network that comes with the package was trained on simulated specimens, and not on the data. Training on the
    data gives a better result; a preview takes seconds and needs only one volume. Where there are two halves, their
    mean is reconstructed. The network knows specimens that are brighter than their background, so the intensities of
    others are inverted for it and the result is inverted back, see :meth:`equitomo.TomogramPair.with_contrast`.

    Parameters
    ----------
    pair
        The tomogram.
    out
        The file to write.
    settings
        The tiles, and how the result is written.
    overwrite
        Replace the file if it exists.

    Attributes
    ----------
    plan : Plan
        The prediction, with the tomogram in the contrast that the network knows.

    Raises
    ------
    ValueError, OSError
        As for :class:`~equitomo.run.Plan`, or if the halves have different tilts.
    """

    def __init__(
        self,
        pair: TomogramPair,
        out: str | Path,
        settings: ReconstructionSettings | None = None,
        *,
        overwrite: bool = False,
    ) -> None:
        settings = settings or ReconstructionSettings()
        config = TrainingConfig.preset("fast")
        require_one_wedge(pair, config)
        pair = pair.with_contrast("bright")
        predictor = predictor_for(shipped_network("cryo", [pair]).eval(), pair.geometry, settings, config)
        self.plan = Plan(pair, out, predictor, settings, overwrite=overwrite, label=PREVIEW_LABEL)

    def write(self) -> Path:
        """Write the preview and return its path."""
        return self.plan.write()
