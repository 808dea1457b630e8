"""Checkpoints that torch.save wrote: the only place of the program where a pickle is opened."""

from __future__ import annotations

import errno
import hashlib
import sys
from pathlib import Path

from equitomo.cli.options import Converted
from equitomo.io import require_place, valid_path
from equitomo.models import ScaleEquivariantUNet3D, load_icecream_checkpoint
from equitomo.training import TrainingConfig
from equitomo.training.checkpoint import is_checkpoint, write_checkpoint


def require_target(options: Converted) -> Path:
    """Refuse a checkpoint folder that cannot be written, or that is something else."""
    out = valid_path(options.out)
    if out.is_symlink() or (out.exists() and not is_checkpoint(out)):
        raise FileExistsError(errno.EEXIST, "is there and is no checkpoint: choose another name", str(out))
    if out.exists() and not options.overwrite:
        raise FileExistsError(errno.EEXIST, "exists already: choose another name, or --overwrite", str(out))
    if not out.exists():
        require_place(out)
    return out


def read(file: str, options: Converted) -> ScaleEquivariantUNet3D:
    """The network of a pickled checkpoint, with its kernels in this package's order of axes."""
    print(
        f"equitomo: {file} is a pickle, a kind of file that can hold a program. Only tensors and plain containers are "
        "read from it, and nothing in it is run",
        file=sys.stderr,
    )
    # Kernels of the reference program see the axes in another order than volumes are read in here. Those of this
    # package have the order already, and "yxz" is how the reader says to leave them as they are.
    network = load_icecream_checkpoint(file, axes="zyx" if options.axes == "yxz" else "yxz")
    weights = network.state_dict()
    n_in, n_out = weights["encoders.0.basic_module.SingleConv1.conv.weight"].shape[1], len(weights["final_conv.weight"])
    if (n_in, n_out) != (1, 1):
        raise ValueError(f"{file} is of a network with {n_in} channels in and {n_out} out; volumes here have one")
    return network


def write(network: ScaleEquivariantUNet3D, file: str, out: Path) -> None:
    """Write the checkpoint, with where it came from."""
    width, levels = network.final_conv.in_channels, len(network.encoders)
    # The paper's cube, where the network can halve it often enough.
    config = TrainingConfig(width=width, levels=levels, side=-(-72 // network.stride) * network.stride)
    state = {
        "step": 0,
        "network": {"width": width, "levels": levels},
        "config": config.as_dict(),
        # A network alone does not know the tilts that it was trained for.
        "geometries": [],
        "converted_from": {"name": Path(file).name, "sha256": hashlib.sha256(Path(file).read_bytes()).hexdigest()},
    }
    write_checkpoint(out, {"weights": dict(network.state_dict())}, state)
    print(f"Wrote {out}: a network of width {width} with {levels} levels, for --init and predict --run")
