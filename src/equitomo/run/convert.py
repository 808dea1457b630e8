"""Checkpoints that torch.save wrote: the only place of the package where a pickle is opened."""

from __future__ import annotations

import errno
import hashlib
from pathlib import Path
from typing import Literal

from equitomo.io import require_place, valid_path
from equitomo.models import is_reference_checkpoint, load_icecream_checkpoint
from equitomo.training import TrainingConfig
from equitomo.training.checkpoint import is_checkpoint, write_checkpoint


class Conversion:
    """The conversion of a pickled checkpoint into one of this package, which runs and predictions start from.

    Only tensors and plain containers are read from the file, and no code in it is run.

    Parameters
    ----------
    file
        A checkpoint of the reference program, or any that torch.save wrote of this network.
    out
        The checkpoint to write, a folder.
    axes
        The order of the axes of the volumes that the network was trained on: ``"yxz"`` as in the reference program, or
        ``"zyx"`` as in this package. ``None`` is allowed for a checkpoint that the reference program wrote.
    overwrite
        Replace a checkpoint that exists.

    Attributes
    ----------
    network : ScaleEquivariantUNet3D
        The network, with its kernels in this package's order of axes.

    Raises
    ------
    ValueError
        If the file cannot be read safely, is of another network, or ``axes`` are needed.
    OSError
        If the checkpoint cannot be written, or would replace something else.
    """

    def __init__(
        self, file: str | Path, out: str | Path, *, axes: Literal["yxz", "zyx"] | None = None, overwrite: bool = False
    ) -> None:
        self._file, self.out = Path(file), valid_path(out)
        _require_target(self.out, overwrite)
        if axes is None and not is_reference_checkpoint(file):
            raise ValueError(
                f"{file} does not say in which order the axes of its network are, so `axes` must: pass `axes='yxz'` if "
                "it was trained on volumes (y, x, z) as the reference program's are, and its kernels will be turned; "
                "pass `axes='zyx'` if it was trained on volumes (z, y, x) as those of this package and of MRC files are"
            )
        # The reader's argument is the order of the network that it returns: "yxz" leaves the kernels as they are.
        self.network = load_icecream_checkpoint(file, axes="yxz" if axes == "zyx" else "zyx")
        weights = self.network.state_dict()
        n_in = weights["encoders.0.basic_module.SingleConv1.conv.weight"].shape[1]
        n_out = len(weights["final_conv.weight"])
        if (n_in, n_out) != (1, 1):
            raise ValueError(f"{file} is of a network with {n_in} channels in and {n_out} out; volumes here have one")

    def write(self) -> Path:
        """Write the checkpoint with the origin of its weights, and return its path."""
        width, levels, stride = self.network.final_conv.in_channels, len(self.network.encoders), self.network.stride
        # The paper's cube, where the network can halve it often enough.
        config = TrainingConfig(width=width, levels=levels, side=-(-72 // stride) * stride)
        state = {
            "step": 0,
            "network": self.network.settings,
            "config": config.as_dict(),
            # A network alone does not know the tilts that it was trained for.
            "geometries": [],
            "converted_from": {
                "name": self._file.name,
                "sha256": hashlib.sha256(self._file.read_bytes()).hexdigest(),
            },
        }
        write_checkpoint(self.out, {"weights": dict(self.network.state_dict())}, state)
        return self.out


def _require_target(out: Path, overwrite: bool) -> None:
    """Refuse a checkpoint folder that cannot be written, or something else in its place."""
    if out.is_symlink() or (out.exists() and not is_checkpoint(out)):
        raise FileExistsError(errno.EEXIST, "exists and is no checkpoint: choose another name", str(out))
    if out.exists() and not overwrite:
        raise FileExistsError(errno.EEXIST, "exists already: choose another name, or pass `overwrite=True`", str(out))
    if not out.exists():
        require_place(out)
