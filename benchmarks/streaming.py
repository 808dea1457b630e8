"""Measure prediction in bounded memory, compared with the reference program's tiling and at full size.

``python -m benchmarks.streaming compare`` and ``python -m benchmarks.streaming full --folder DIR``. Every run is a
separate process, whose peak resident memory is compared with its memory before the prediction.

The tiling of the reference program was reimplemented from a description. It cuts the volume into cubes of 72 at steps
of 36 and keeps all of them in memory as float16. It applies network, wedge and network to one cube after the other,
with complex transforms of twice the side, and keeps all results in memory too. Finally it writes the central half of
each cube.
"""

from __future__ import annotations

import argparse
import itertools
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.reference import ReferenceStep
from equitomo import ScaleEquivariantUNet3D, TiledPredictor
from equitomo.inference import Footprint
from equitomo.io import creating_volume

_SIDE, _STEP, _TILTS = 72, 36, (-60.0, 60.0)
_MIB = 2**20


def main() -> None:
    """Run the measurement that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("compare", "full", "ours", "reference"))
    parser.add_argument("--shape", default="256,352,352")
    parser.add_argument("--width", type=int, default=2, help="0 for a multiplication in place of a network")
    parser.add_argument("--tile", type=int, default=0, help="0 to choose it from the free memory")
    parser.add_argument("--sample", type=int, default=8, help="cubes on which the reference's time is measured")
    parser.add_argument("--wedge", default="global", choices=("local", "global"))
    parser.add_argument("--folder", default=tempfile.gettempdir())
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.what == "compare":
        settings = [f"--{name}={getattr(given, name)}" for name in ("shape", "tile", "folder", "sample", "width")]
        for what, *wedge in (("reference",), ("ours", "--wedge=global"), ("ours", "--wedge=local")):
            _in_a_process(what, *settings, *wedge)
    elif given.what == "full":
        settings = ("--shape=464,928,928", "--width=0", "--tile=240", f"--wedge={given.wedge}")
        _in_a_process("ours", *settings, f"--folder={given.folder}")
    else:
        _measure(given)


def _in_a_process(what: str, *options: str) -> None:
    subprocess.run([sys.executable, "-m", "benchmarks.streaming", what, *options], check=True)


def _measure(given: argparse.Namespace) -> None:
    z, y, x = map(int, given.shape.split(","))
    network = ScaleEquivariantUNet3D(width=given.width) if given.width else _Convolution()
    network.to(memory_format=torch.channels_last_3d)
    predictor = TiledPredictor(network, _TILTS, tile=given.tile or None, wedge=given.wedge, precision="float32")
    # The first call loads libraries, whose memory must not be counted for the volume.
    predictor(np.zeros((9, 9, 9), np.float32))
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        halves = [_half(Path(folder) / f"{name}.raw", (z, y, x)) for name in ("first", "second")]
        before, start = _peak(), time.process_time()
        if given.what == "ours":
            print(f"stated: {Footprint.of(predictor, (z, y, x))}; tiles of {predictor.tile}", flush=True)
            with creating_volume(Path(folder) / "out.mrc", (z, y, x)) as out:
                predictor(*halves, out=out, scratch=folder)
            seconds = time.process_time() - start
        else:
            seconds = _reference(halves, network, given.sample)
    print(
        f"{given.what}, width {given.width}: {z * y * x / seconds / 1e3:.1f} thousand voxels a second of process time, "
        f"peak {_peak() / _MIB:.0f} MiB, {(_peak() - before) / _MIB:.0f} MiB above the program's",
        flush=True,
    )


def _half(path: Path, shape: tuple[int, int, int]) -> NDArray[np.float32]:
    """Return a memory map with noise in its first sections and zeros, a hole in the file, in the others."""
    generator = np.random.default_rng(0)
    with path.open("wb") as file:
        for _ in range(min(64, shape[0])):
            generator.standard_normal(shape[1:], np.float32).tofile(file)
        file.truncate(4 * shape[0] * shape[1] * shape[2])
    return np.memmap(path, np.float32, "r", shape=shape)


def _reference(halves: list[NDArray[np.float32]], network: nn.Module, sample: int) -> float:
    """Return the process time in seconds; that of the network is extrapolated from ``sample`` cubes of each half."""
    start, beyond = time.process_time(), 0.0
    step = ReferenceStep(_SIDE, _TILTS, torch.Generator().manual_seed(0))
    volumes = [np.array(half) for half in halves]
    total = np.zeros(volumes[0].shape, np.float32)
    for volume in volumes:
        begin = (_SIDE - _STEP) // 2
        counts = [-(-n // _STEP) for n in volume.shape]
        padding = [(begin, count * _STEP + begin - n) for count, n in zip(counts, volume.shape, strict=True)]
        padded = np.pad(volume, padding)
        origins = [tuple(_STEP * k for k in index) for index in itertools.product(*map(range, counts))]
        cubes = np.empty((len(origins), _SIDE, _SIDE, _SIDE), np.float16)
        for cube, (z, y, x) in zip(cubes, origins, strict=True):
            cube[:] = padded[z : z + _SIDE, y : y + _SIDE, x : x + _SIDE]
        results = cubes.copy()
        with torch.inference_mode():
            once = time.process_time()
            for k in range(sample):
                results[k] = _two_passes(torch.from_numpy(cubes[k].astype(np.float32)), network, step).numpy()
            beyond += (time.process_time() - once) / sample * (len(origins) - sample)
        inner = slice(begin, begin + _STEP)
        for result, (z, y, x) in zip(results, origins, strict=True):
            place = total[z : z + _STEP, y : y + _STEP, x : x + _STEP]
            place += result[inner, inner, inner][tuple(map(slice, place.shape))] / 2
    return time.process_time() - start + beyond


def _two_passes(cube: Tensor, network: nn.Module, step: ReferenceStep) -> Tensor:
    once = network(cube[None, None])[:, 0]
    return network(step.project(once)[:, None])[0, 0]


class _Convolution(nn.Module):
    """A stand-in for a network on another device, with hardly any memory of its own."""

    stride = 8

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((1, 1, 1, 1, 1), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight[0]


def _peak() -> int:
    # The peak of this process alone. That of getrusage starts from the peak of the parent process.
    return next(1024 * int(line.split()[1]) for line in Path("/proc/self/status").open() if line.startswith("VmHWM"))


if __name__ == "__main__":
    main()
