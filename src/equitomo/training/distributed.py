"""Several processes that train one network, started by torchrun or by Slurm's srun."""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from equitomo.precision import chosen_device

_log = logging.getLogger(__name__)

# The time in which all processes must have been started.
_JOINING = timedelta(minutes=5)
# A process that ends is noticed at once, by its closed connections. This limit is for one that hangs. It must be longer
# than the work of the first process while the others wait, for example the hashes of all inputs.
_WAITING = timedelta(hours=1)


class LostProcessError(RuntimeError):
    """Raised when another process of the training has ended or cannot be reached."""


@dataclass(frozen=True)
class World:
    """The number of this process among those that train together. Exchanges do nothing in a process that is alone.

    Parameters
    ----------
    rank
        Number of this process, from 0. The first one writes all files.
    size
        Number of processes.
    local_rank
        Number of this process on its machine, which decides its GPU.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def is_first(self) -> bool:
        """Whether this process writes the files of the run."""
        return self.rank == 0

    def share(self, indices: range) -> range:
        """Return the part of this process. The parts follow each other, and their lengths differ by one at most."""
        n = len(indices)
        return indices[n * self.rank // self.size : n * (self.rank + 1) // self.size]

    def device(self, name: str) -> torch.device:
        """Return the device of a name; of several GPUs each process on a machine gets its own."""
        device = chosen_device(name)
        if self.size > 1 and device.type == "cuda" and device.index is None:
            # Some systems show all GPUs to every process, others show each process its own as number 0.
            return torch.device("cuda", self.local_rank % torch.cuda.device_count())
        return device

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over all processes, which is the same to the bit in each of them."""
        if self.size == 1:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        with _explained():
            dist.all_reduce(flat)
        for tensor, total in zip(tensors, torch.split(flat, [tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(total.view_as(tensor))

    def largest(self, number: int) -> int:
        """Return the largest of the numbers that the processes give, without waiting for a device."""
        if self.size == 1:
            return number
        found = torch.tensor(number)
        with _explained():
            dist.all_reduce(found, dist.ReduceOp.MAX)
        return int(found)

    def wait(self) -> None:
        """Return when all processes have called this."""
        self.largest(0)

    def require_equal(self, content: bytes, message: str) -> None:
        """Raise an error in every process unless all have the same content."""
        if self.size == 1:
            return
        mine = torch.frombuffer(bytearray(hashlib.sha256(content).digest()), dtype=torch.uint8)
        all_of_them = [torch.empty_like(mine) for _ in range(self.size)]
        with _explained():
            dist.all_gather(all_of_them, mine)
        if any(not torch.equal(mine, other) for other in all_of_them):
            raise ValueError(message)


def find_world(environment: Mapping[str, str] | None = None) -> World:
    """Read the number of this process from the variables of ``torchrun``, or else from those of a Slurm step.

    Examples
    --------
    >>> find_world({"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1"})
    World(rank=3, size=8, local_rank=1)
    >>> find_world({"SLURM_PROCID": "1", "SLURM_NTASKS": "2", "SLURM_LOCALID": "0", "SLURM_STEP_ID": "0"})
    World(rank=1, size=2, local_rank=0)
    >>> find_world({})
    World(rank=0, size=1, local_rank=0)
    """
    environment = os.environ if environment is None else environment
    if {"RANK", "WORLD_SIZE"} <= environment.keys():
        return _world(environment, "RANK", "WORLD_SIZE", "LOCAL_RANK")
    if "SLURM_PROCID" not in environment or environment.get("SLURM_NTASKS", "1") == "1":
        return World()
    if not {"SLURM_STEP_ID", "MASTER_ADDR"} & environment.keys():
        # A batch script sees the number of tasks of its job too, but the other tasks are not started.
        _log.warning("SLURM_NTASKS is %s, but srun did not start this: it works alone", environment["SLURM_NTASKS"])
        return World()
    return _world(environment, "SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID")


def join() -> World:
    """Connect to the other processes that the environment names, unless the caller has done so already."""
    world = find_world()
    if dist.is_available() and dist.is_initialized():
        # The caller has connected, perhaps with numbers of its own.
        rank = dist.get_rank()
        return World(rank, dist.get_world_size(), world.local_rank if world.rank == rank else rank)
    if world.size == 1:
        return world
    # Flags and counts are exchanged between hosts and never wait for a GPU.
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    with _explained():
        if "RANK" in os.environ:
            dist.init_process_group(backend, timeout=_WAITING)
        else:
            host, port = meeting_point(os.environ)
            store = dist.TCPStore(host, port, world.size, world.is_first, _JOINING)  # type: ignore[attr-defined]
            dist.init_process_group(backend, store=store, rank=world.rank, world_size=world.size, timeout=_WAITING)
    return world


def leave() -> None:
    """Disconnect from the other processes: from now on each works alone and may take any time."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def meeting_point(environment: Mapping[str, str]) -> tuple[str, int]:
    """Return the host and port at which the processes of a Slurm step connect: those given, or its first machine.

    Examples
    --------
    >>> meeting_point({"SLURM_JOB_NODELIST": "gpu[07-09,12],login1", "SLURM_JOB_ID": "4711", "SLURM_STEP_ID": "2"})
    ('gpu07', 24713)
    """
    nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST", "")
    # Keep the first number of every range in brackets, then all up to the first comma.
    first = re.sub(r"\[(\w+)[^]]*\]", r"\1", nodes).partition(",")[0]
    host = environment.get("MASTER_ADDR") or first
    if not host:
        raise ValueError("neither MASTER_ADDR nor SLURM_JOB_NODELIST names a host for the processes to meet: set one")
    # Steps of one job, and jobs on one machine, need different ports; these are below the ports that systems assign.
    number = sum(int(environment.get(name, "0")) for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
    return host, int(environment.get("MASTER_PORT", 20_000 + number % 10_000))


def _world(environment: Mapping[str, str], rank: str, size: str, local_rank: str) -> World:
    given = {name: environment.get(name, environment[rank]) for name in (rank, size, local_rank)}
    if not all(value.isdecimal() for value in given.values()) or not int(given[rank]) < int(given[size]):
        said = ", ".join(f"{name}={value}" for name, value in given.items())
        raise ValueError(f"{said} do not number processes from 0: start them with torchrun or srun, or unset these")
    return World(*(int(value) for value in (given[rank], given[size], given[local_rank])))


@contextmanager
def _explained() -> Iterator[None]:
    """Turn torch's error of a failed exchange into one that says what happened."""
    try:
        yield
    except RuntimeError as error:
        raise LostProcessError(
            "another process of this training ended or cannot be reached, so this one ends too; the message of the "
            f"other one says why. The last checkpoint is complete: resume ({str(error).splitlines()[0]})"
        ) from error
