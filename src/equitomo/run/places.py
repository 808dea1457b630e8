"""Where results are read from and written to, as plain values: importing this module does not import torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from equitomo.run.settings import POSITION


@dataclass(frozen=True)
class Folder:
    """The folder and its lock.

    Parameters
    ----------
    out
        The folder of the results.
    overwrite
        Replace earlier results in the folder.
    break_lock
        Take a folder that seems to be used by a process which is certainly gone.
    """

    out: str
    overwrite: bool = False
    break_lock: bool = False


@dataclass(frozen=True)
class TrainingFolder(Folder):
    """The folder of the run.

    Parameters
    ----------
    resume
        Continue a run that was stopped.
    init
        What the training starts from: "cryo", the network that comes with the package; a run or a checkpoint; or
        "none" for scratch. Presets fast and tiny start from "cryo" by themselves if it fits their settings.
    """

    resume: bool = False
    init: str | None = None


@dataclass(frozen=True)
class Picture:
    """The picture.

    Parameters
    ----------
    picture
        A PNG file to draw into.
    overwrite
        Replace the picture if it exists.
    """

    picture: str | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.picture is not None and not self.picture.lower().endswith(".png"):
            raise ValueError(f"`picture` must be the name of a .png file, got {self.picture}")


@dataclass(frozen=True)
class SecondNetwork(Picture):
    """The picture, and the training of a second network.

    Parameters
    ----------
    overwrite
        Replace the picture, and what an earlier run left in the folder of the second network, if they exist.
    independent
        The folder of a run that ``reconstruct`` has finished. A second network is then trained on FIRST and SECOND,
        which must not share any noise with what that run was trained on, with the settings of that run and another
        seed, and the results of the two networks are compared.
    out
        The folder for the second network and its result, with ``independent``.
    resume
        Continue the training of the second network.
    init
        What the second network starts from, in place of the weights that the first one started from: "cryo", a run or a
        checkpoint such as that of ``independent``, or "none" for scratch.

    Raises
    ------
    ValueError
        If only one of ``independent`` and ``out`` is given, or a setting of the second network without them.
    """

    independent: str | None = None
    out: str | None = None
    resume: bool = False
    init: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.independent is None) != (self.out is None):
            raise ValueError("`independent` and `out` belong together: the run to compare with, and a new folder")
        if self.independent is None and (self.resume or self.init is not None):
            raise ValueError("`resume` and `init` are about a second network: pass `independent` and `out` too")


@dataclass(frozen=True)
class Plan(Picture):
    """The planned run.

    Parameters
    ----------
    out
        The folder of the planned run, for the room on its disk.
    """

    out: str = "."


@dataclass(frozen=True, kw_only=True)
class Result:
    """The result.

    Parameters
    ----------
    out
        The file to write; a name that ends in .zarr makes an OME-Zarr store.
    overwrite
        Replace the file if it exists.
    """

    out: str
    overwrite: bool = False


@dataclass(frozen=True, kw_only=True)
class Trained(Result):
    """The trained network.

    Parameters
    ----------
    run
        The folder of a run, or one of its checkpoints.
    device
        "auto", a torch device such as "cpu" or "cuda:1", or several such as "cuda:0,cuda:1", which share the tiles of
        one tomogram or the tomograms of a table.
    """

    run: str
    device: str = "auto"


@dataclass(frozen=True)
class Pickle:
    """The checkpoint.

    Parameters
    ----------
    file
        A checkpoint written by torch.save: of the reference program, or of this network; also one of
        DistributedDataParallel or torch.compile.
    out
        The checkpoint to write, a folder that --init and predict --run take.
    axes
        The order of the axes of the volumes that the network was trained on: "yxz" for the reference program,
        "zyx" for this package.
    overwrite
        Replace an existing checkpoint.
    """

    file: str = field(metadata=POSITION)
    out: str
    axes: Literal["yxz", "zyx"] | None = None
    overwrite: bool = False
