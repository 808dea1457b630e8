"""How much memory is free, and what happens when it runs out."""

from __future__ import annotations

import logging
import os
import platform
import subprocess
import sys
import threading

import psutil
import pytest
import torch

from equitomo import resources
from equitomo.resources import Retry, computing_threads, free_memory, is_out_of_memory

OUT_OF_MEMORY = [
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:124] data. DefaultCPUAllocator: can't allocate memory"),
    RuntimeError("not enough memory: you tried to allocate 9 bytes"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
]


def needing(most, error, calls):
    """An attempt that fits with at most so many at once."""

    def attempt(n):
        calls.append(n)
        if n > most:
            raise error
        return f"{n} at once"

    return attempt


def halving(plan=8):
    return Retry(plan, lambda n: n // 2 or None, lambda n: f"{n} at once")


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=str)
def test_an_attempt_is_repeated_with_less_until_it_fits(error, caplog):
    retry, calls = halving(), []
    with caplog.at_level(logging.WARNING):
        assert retry(needing(2, error, calls)) == "2 at once"
    assert calls == [8, 4, 2]
    assert [record.message for record in caplog.records] == [
        "out of memory with 8 at once: retrying with 4 at once",
        "out of memory with 4 at once: retrying with 2 at once",
    ]


def test_what_did_not_fit_is_not_tried_again():
    retry, calls = halving(), []
    retry(needing(2, MemoryError(), calls))
    retry(needing(2, MemoryError(), calls))
    assert calls == [8, 4, 2, 2]
    assert retry.plan == 2


def test_where_nothing_is_smaller_the_error_is_raised():
    retry, calls, error = halving(), [], MemoryError("no room for a single one")
    with pytest.raises(MemoryError) as raised:
        retry(needing(0, error, calls))
    assert raised.value is error
    assert calls == [8, 4, 2, 1]


def test_another_error_is_raised_at_once():
    retry, calls = halving(), []
    with pytest.raises(RuntimeError, match="shapes do not match"):
        retry(needing(0, RuntimeError("shapes do not match"), calls))
    assert calls == [8]
    assert retry.plan == 8


def test_caches_are_emptied_when_the_failed_attempt_is_forgotten(monkeypatch):
    """Within the handler the traceback would keep alive what the attempt had allocated."""
    in_use = []

    class Tensors:
        def __init__(self):
            in_use.append(self)

        def __del__(self):
            freed.append(True)

    freed = []

    def attempt(n):
        held = Tensors()
        in_use.clear()
        if n > 4:
            raise MemoryError
        return held is not None

    when = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: when.append(len(freed)))
    halving()(attempt)
    assert when == [1]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=str)
def test_running_out_of_memory_is_recognised(error):
    assert is_out_of_memory(error)


@pytest.mark.parametrize("error", [RuntimeError("shapes"), ValueError("out of range"), OSError(28, "No space left")])
def test_other_errors_are_not_taken_for_it(error):
    assert not is_out_of_memory(error)


def test_the_host_has_free_memory():
    assert 0 < free_memory("cpu") < psutil.virtual_memory().total


@pytest.mark.parametrize("error", [OSError("no /proc"), psutil.AccessDenied()])
def test_a_host_that_does_not_say_how_much_is_free_gives_none(monkeypatch, error):
    def fail():
        raise error

    monkeypatch.setattr(psutil, "virtual_memory", fail)
    assert free_memory() is None


def test_of_a_gpu_its_own_free_memory_counts(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (5 * device.index, 100))
    assert free_memory("cuda:1") == 5


def test_another_device_does_not_say():
    assert free_memory("meta") is None


def test_threads_compute_with_the_cores_of_the_calling_thread(monkeypatch):
    """Each thread sets the number for itself, since its first kernel may ask no library that knows the number."""
    both, numbers = threading.Barrier(2), []
    monkeypatch.setattr(torch, "set_num_threads", numbers.append)
    with computing_threads(2) as pool:
        for done in [pool.submit(both.wait, 100) for _ in range(2)]:
            done.result()
    assert numbers == [torch.get_num_threads()] * 2


QUOTAS = [
    ({"cpu.max": "150000 100000"}, 1),
    ({"cpu.max": "50000 100000"}, 1),
    ({"cpu.max": "400000 100000"}, 4),
    ({"cpu.max": "max 100000"}, 8),
    ({"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"}, 3),
    ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 8),
    ({"cpu.max": "nonsense"}, 8),
    ({}, 8),
]


@pytest.mark.parametrize(("files", "expected"), QUOTAS)
def test_as_many_cores_are_usable_as_affinity_and_quota_allow(tmp_path, monkeypatch, files, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert resources.usable_cores(tmp_path) == expected


@pytest.mark.parametrize(("variables", "expected"), [({}, 3), ({"OMP_NUM_THREADS": "5"}, 5)])
def test_torch_takes_no_more_threads_than_there_are_usable_cores(monkeypatch, variables, expected):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(resources, "usable_cores", lambda: 3)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(5)
        resources.use_usable_cores()
        assert torch.get_num_threads() == expected
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(("given", "expected"), [(None, "passive"), ("active", "active")])
def test_the_program_lets_waiting_threads_sleep_unless_told_otherwise(given, expected):
    code = "import sys, os; from equitomo.cli import main; assert 'torch' not in sys.modules; main(sys.argv[1:]); "
    code += "assert 'torch' in sys.modules; print(os.environ['OMP_WAIT_POLICY'])"
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    environment |= {} if given is None else {"OMP_WAIT_POLICY": given}
    command = [sys.executable, "-c", code, "fsc", "missing.mrc", "too.mrc"]
    answer = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert answer.stdout.split() == [expected]


ALLOCATING = """
import resource, sys
import psutil, torch
from equitomo.resources import FreedMemoryKept

def pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(16 << 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

torch.set_num_threads(1)
outside = pages()
with FreedMemoryKept():
    with FreedMemoryKept():
        # An aligned array needs a little more than the hole of another one, so the first ones may not fit.
        inner = min(pages() for _ in range(30))
    outer = min(pages() for _ in range(30))
    kept = psutil.Process().memory_info().rss
print(outside, inner, outer, kept - psutil.Process().memory_info().rss)
"""


def allocating(**variables):
    """The pages that the system clears for an array of 64 MiB, and the bytes that the end of the block hands back."""
    names = ("MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")
    environment = {name: value for name, value in os.environ.items() if name not in names} | variables
    command = [sys.executable, "-c", ALLOCATING]
    answer = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return [int(number) for number in answer.stdout.split()]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only the allocator of glibc has these settings")
def test_freed_memory_is_used_again_within_a_block_and_handed_back_at_the_end_of_the_outermost():
    outside, inner, outer, handed_back = allocating()
    assert outside > 10000 and inner < 1000 and outer < 1000 and handed_back > 32 << 20
    outside, inner, outer, _ = allocating(MALLOC_TRIM_THRESHOLD_="131072")
    assert min(inner, outer) > 10000  # the settings of a user stay
