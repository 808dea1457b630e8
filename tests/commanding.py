"""The commands as tests call them: settings of a quick run, and two halves that a fault is put into."""

import numpy as np
from making import noisy_halves

from equitomo import write_volume
from equitomo.cli import main

TINY = [
    *(
        "--preset",
        "tiny",
        "--side",
        "16",
        "--batch",
        "2",
        "--width",
        "4",
        "--levels",
        "2",
        "--unshuffle",
        "1",
        "--steps",
        "8",
        "--margin",
        "4",
    ),
    *("--optimizer", "adam", "--learning_rate", "0.01", "--warmup", "0", "--ema_decay", "0.5", "--preview_every", "4"),
    *("--device", "cpu", "--precision", "float32", "--passes", "2", "--no-average-first"),
    "--no-test-time-mirrors",
]


def run(*arguments):
    """Return the exit status of the program."""
    try:
        return main([str(argument) for argument in arguments])
    except SystemExit as error:
        return error.code


def files_in(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def write(path, data, voxel_size=10.0):
    return write_volume(path, np.asarray(data, np.float32), voxel_size=voxel_size)


class Case:
    """Two good halves in a folder, into which a test puts a fault."""

    def __init__(self, folder, patch=None):
        self.folder, self.out = folder, folder / "run"
        self.first, self.second = noisy_halves((18, 20, 22))
        self.voxel_sizes = [10.0, 10.0]
        self.paths = [folder / "even.mrc", folder / "odd.mrc"]
        self.tilts, self.settings = "-60,60", []
        self.patch = patch

    def write(self):
        for path, half, size in zip(self.paths, (self.first, self.second), self.voxel_sizes, strict=True):
            if not path.exists():
                write(path, half, size)

    def damage(self, change):
        """Change the bytes of the second file."""
        self.write()
        content = bytearray(self.paths[1].read_bytes())
        self.paths[1].write_bytes(change(content) or content)

    def tilt_file(self, text, name="series.tlt"):
        (self.folder / name).write_text(text)
        self.tilts = str(self.folder / name)

    def mask(self, values):
        path = write(self.folder / "mask.mrc", values)
        self.settings = ["--mask", path]

    def run(self, command="train"):
        self.write()
        return run(command, *self.paths, f"--tilts={self.tilts}", "--out", self.out, *TINY, *self.settings)
