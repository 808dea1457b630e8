"""Find free memory and cores, keep memory between steps, and retry with less when memory runs out."""

from __future__ import annotations

import ctypes
import logging
import math
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar, Generic, TypeVar

import psutil
import torch

_log = logging.getLogger(__name__)

Plan = TypeVar("Plan")
Result = TypeVar("Result")


def free_memory(device: torch.device | str = "cpu") -> int | None:
    """Return the free bytes of a device, on the host those available without swapping, or ``None`` if unknown."""
    device = torch.device(device)
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type != "cpu":
        return None
    try:
        return int(psutil.virtual_memory().available)
    except (OSError, psutil.Error):
        return None


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that a device or the host had no memory left."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    # torch raises a RuntimeError with one of several texts where it cannot allocate memory.
    text = str(error)
    return any(sign in text for sign in ("DefaultCPUAllocator", "not enough memory", "out of memory", "ALLOC_FAILED"))


def usable_cores(groups: str | Path = "/sys/fs/cgroup") -> int:
    """Return how many cores this process may keep busy: those it may run on, within the quota of its control group.

    Containers and batch systems set such quotas. A process with more threads than its quota is stopped for a part of
    every period.

    Parameters
    ----------
    groups
        The folder of the control group.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, int(min(cores, _quota(Path(groups)))))


def use_usable_cores() -> None:
    """Let torch compute with no more threads than there are usable cores, unless OMP_NUM_THREADS gives a number."""
    if "OMP_NUM_THREADS" not in os.environ and torch.get_num_threads() > (cores := usable_cores()):
        torch.set_num_threads(cores)


def computing_threads(n: int) -> ThreadPoolExecutor:
    """Return a pool of ``n`` threads, each of which computes with as many cores as the calling thread.

    A new thread would use all cores, and a sum that is divided among another number of cores is rounded differently.
    """
    return ThreadPoolExecutor(n, initializer=torch.set_num_threads, initargs=(torch.get_num_threads(),))


class FreedMemoryKept:
    """Let the process keep the memory that it frees on the host, for what it allocates next.

    The steps of a training and the tiles of a prediction allocate the same arrays again and again. By default the C
    library of Linux (glibc) takes large arrays from the system and hands them back when they are freed, and the system
    clears every page anew. Without that, a prediction takes two thirds of the time, and a step with cubes of 48 voxels
    nine tenths (docs/benchmarks.md). At the end of the outermost of nested blocks the free memory is handed back.

    Nothing is changed with other C libraries, and none of the settings of a user who has set one of them by the
    variables ``MALLOC_MMAP_MAX_``, ``MALLOC_MMAP_THRESHOLD_`` or ``MALLOC_TRIM_THRESHOLD_``.

    Examples
    --------
    >>> with FreedMemoryKept():
    ...     y = torch.randn(8, 64).sum()
    """

    # The allocator belongs to the process and cannot be asked for its settings, so the open blocks are counted.
    _lock: ClassVar[threading.Lock] = threading.Lock()
    _n_open: ClassVar[int] = 0

    def __enter__(self) -> None:
        with self._lock:
            if FreedMemoryKept._n_open == 0:
                _set_allocator(_KEEPING)
            FreedMemoryKept._n_open += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            FreedMemoryKept._n_open -= 1
            if FreedMemoryKept._n_open == 0 and (libc := _set_allocator(_ADAPTED)):
                libc.malloc_trim(0)


# Parameters of mallopt (malloc.h): the largest number of arrays with a mapping of their own, the size in bytes from
# which an array has one, and the free bytes from which the end of the heap is handed back (-1: never).
_MMAP_MAX, _MMAP_THRESHOLD, _TRIM_THRESHOLD = -4, -3, -1
_KEEPING = {_MMAP_MAX: 0, _TRIM_THRESHOLD: -1}
# What glibc's own adaptation of these values comes to with large arrays.
_ADAPTED = {_MMAP_MAX: 65536, _MMAP_THRESHOLD: 32 << 20, _TRIM_THRESHOLD: 64 << 20}
_VARIABLES = ("MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")


def _set_allocator(values: dict[int, int]) -> ctypes.CDLL | None:
    """Set parameters of glibc's allocator and return the library, or ``None`` if there is another one or it is set."""
    if os.name != "posix" or any(name in os.environ for name in _VARIABLES):
        return None
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt") or not hasattr(libc, "malloc_trim"):
        return None
    for name, value in values.items():
        libc.mallopt(name, value)
    return libc


class Retry(Generic[Plan]):
    """Retry an attempt with smaller plans while memory runs out.

    Later calls begin with the plan that fitted last, so that a plan that did not fit is not tried again.

    Parameters
    ----------
    plan
        The plan of the first attempt, for example the number of cubes at once.
    smaller
        A function that returns a plan that uses less memory than the given one, or ``None`` if there is none.
    describe
        A function that returns the description of a plan for the log.

    Attributes
    ----------
    plan
        The plan that fitted last.

    Examples
    --------
    >>> def attempt(n):
    ...     if n > 2:
    ...         raise MemoryError
    ...     return f"done with {n} at once"
    >>> retry = Retry(8, lambda n: n // 2 or None, lambda n: f"{n} at once")
    >>> retry(attempt), retry.plan
    ('done with 2 at once', 2)
    """

    def __init__(self, plan: Plan, smaller: Callable[[Plan], Plan | None], describe: Callable[[Plan], str]) -> None:
        self.plan = plan
        self._smaller, self._describe = smaller, describe

    def __call__(self, attempt: Callable[[Plan], Result]) -> Result:
        """Return the result of the first attempt that fits; an attempt that fails must not change anything.

        Raises
        ------
        MemoryError, RuntimeError
            The error of the last attempt, if no plan is smaller. Errors of other kinds are raised at once.
        """
        while True:
            try:
                return attempt(self.plan)
            except (MemoryError, RuntimeError) as error:
                smaller = self._smaller(self.plan) if is_out_of_memory(error) else None
                if smaller is None:
                    raise
            _log.warning("out of memory with %s: retrying with %s", self._describe(self.plan), self._describe(smaller))
            self.plan = smaller
            # Inside the handler the error would keep the memory of the failed attempt in use. Without a GPU this does
            # nothing.
            torch.cuda.empty_cache()


def _quota(folder: Path) -> float:
    """Return the cores' worth of time in the quota of a control group, of version 2 or 1; infinity without one."""
    files = [["cpu.max"], ["cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"]]
    for names in files:
        try:
            quota, period = " ".join((folder / name).read_text() for name in names).split()
            return int(quota) / int(period) if int(quota) > 0 else math.inf
        except (OSError, ValueError, ZeroDivisionError):
            # There is no such file, or its quota is "max".
            continue
    return math.inf
