"""The weights that a training begins with: drawn from the seed, those of another run, or those of the package."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from torch import nn

from equitomo.datasets import Contrast, TomogramPair
from equitomo.models import ScaleEquivariantUNet3D, turn_network
from equitomo.run.record import NOT_RECORDED
from equitomo.training import TrainingConfig, load_network
from equitomo.training.checkpoint import load_checkpoint, shipped_hash
from equitomo.training.presets import SHIPPED, misfit

# Stands for weights that are drawn from the seed.
SCRATCH = "none"
Init = str | Path | nn.Module | None


@dataclass(frozen=True)
class Start:
    """How a training begins.

    Parameters
    ----------
    config
        The settings, in which the contrast is chosen.
    pairs
        The tomograms in that contrast.
    network
        The network whose weights training starts from; ``None`` for weights that are drawn from the seed.
    record
        What the record of the run says of the weights.
    """

    config: TrainingConfig
    pairs: tuple[TomogramPair, ...]
    network: nn.Module | None
    record: Any

    @property
    def notes(self) -> list[str]:
        """What a user should know of it, as sentences."""
        notes = []
        if isinstance(self.record, dict) and "network" in self.record:
            name = self.record["network"]
            notes.append(
                f"Training starts from the network {name} that comes with the package; `init='{SCRATCH}'` starts from "
                "scratch"
            )
            if Path(name).exists():
                notes.append(f"`init='./{name}'` would start from what is in the folder {name}")
        dark = [pair for pair in self.pairs if pair.is_inverted]
        if not dark:
            return notes
        inverted = "inverted for the network, and its results are inverted back"
        if self.config.contrast != "bright":
            return [*notes, f"The intensities are {inverted}"]
        which = f"{len(dark)} of {len(self.pairs)} specimens are" if len(self.pairs) > 1 else "The specimen is"
        notes.append(f"{which} darker than the background: intensities are {inverted}")
        return notes


def start_of(
    init: Init,
    pairs: Sequence[TomogramPair],
    config: TrainingConfig,
    *,
    network: Callable[[], nn.Module] | None = None,
) -> Start:
    """Return how a training begins with ``init``, as described for :meth:`equitomo.run.Run.create`.

    ``network`` makes the network, where that is one of the user's own.
    """
    knows_bright, initial, record = False, None, cast(Any, None)
    if init in SHIPPED:
        name, knows_bright = str(init), True
        if reason := misfit(name, config.as_dict()):
            raise ValueError(
                f"`init={name!r}`: {reason}. Use its sizes, which are those of the presets fast and tiny, or start "
                f"from scratch with `init='{SCRATCH}'`"
            )
        initial, record = shipped_network(name, pairs), {"network": name, "sha256": shipped_hash(name)}
    elif isinstance(init, nn.Module):
        initial, record = init, NOT_RECORDED
    elif init is not None and init != SCRATCH:
        if Path(init).is_file():
            raise ValueError(
                f"`init` {init} is a file, not a run or a checkpoint folder. A file that torch.save wrote becomes "
                "a checkpoint with `equitomo convert`"
            )
        checkpoint = load_checkpoint(Path(init))
        state = checkpoint.state
        record = {"path": str(checkpoint.path.absolute()), "step": state["step"]}
        record["sha256"] = state["sha256"][checkpoint.group()]
        if "converted_from" in state:
            record["converted_from"] = state["converted_from"]
        initial, knows_bright = checkpoint.network(network), checkpoint.config.contrast == "bright"
    if config.contrast == "auto" and knows_bright:
        config = replace(config, contrast="bright")
    return Start(config, in_contrast(pairs, config), initial, record)


def restored_start(folder: Path, pairs: Sequence[TomogramPair], config: TrainingConfig) -> Start:
    """Return how a training goes on from a checkpoint of its own: nothing else is read, and each contrast is kept."""
    state = load_checkpoint(folder).state
    before = state["config"].get("contrast", "auto")
    if config.contrast == "auto":
        config = replace(config, contrast=before)
    inverted = state.get("inverted", ())
    if config.contrast != "bright" or before != "bright" or len(inverted) != len(pairs):
        return Start(config, in_contrast(pairs, config), None, NOT_RECORDED)
    kept: list[Contrast] = ["inverted" if one else "given" for one in inverted]
    return Start(config, tuple(map(TomogramPair.with_contrast, pairs, kept)), None, NOT_RECORDED)


def in_contrast(pairs: Sequence[TomogramPair], config: TrainingConfig) -> tuple[TomogramPair, ...]:
    """Return tomograms in the contrast that a network of these settings sees; with ``"auto"`` as they are."""
    contrast = config.contrast
    return tuple(pairs) if contrast == "auto" else tuple(pair.with_contrast(contrast) for pair in pairs)


def shipped_network(name: str, pairs: Sequence[TomogramPair]) -> nn.Module:
    """Return a network that comes with the package, for the tilt axis of tomograms.

    It learned from tilts about y. Where all tilts are about x, it is turned, so that it does to such a
    tomogram what it does to the same one turned to y.
    """
    network = load_network(name)
    axes = {part.tilt_axis for pair in pairs for geometry in pair.geometries for part in geometry.parts}
    if axes == {"x"}:
        turn_network(cast(ScaleEquivariantUNet3D, network))
    return network
