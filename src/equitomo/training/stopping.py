"""Signals while training: the current step is abandoned, and the state before it is saved."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

import torch
from torch import Tensor


class StepAbandonedError(Exception):
    """Raised when a signal arrives while a gradient is computed."""


@contextmanager
def stop_signals(*, patient: bool = False) -> Iterator[list[int]]:
    """Collect SIGINT, SIGTERM and SIGUSR1 in a list, and restore the previous handlers afterwards.

    A second Ctrl-C stops at once unless ``patient``, because processes that torchrun started get each one twice: from
    the terminal and from torchrun, which kills processes that have not ended after half a minute.
    """
    caught: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield caught
        return

    def note(number: int, frame: FrameType | None) -> None:
        caught.append(number)
        if not patient:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    before = {number: signal.signal(number, note) for number in numbers}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def abandoned_on(stop: Sequence[int]) -> Iterator[None]:
    """Raise :class:`StepAbandonedError` in the computation of a gradient soon after a signal was added to ``stop``.

    A step with the paper's settings takes minutes on a CPU, and it changes nothing before its last part, the update of
    the weights. Python handles signals only between two of its own instructions, and a backward pass has none of
    these. The hooks used here run Python code for every tensor that is kept for the backward pass.
    """

    def look(tensor: Tensor) -> Tensor:
        if stop:
            raise StepAbandonedError
        # A tensor that is kept with its own graph would refer to itself and never be freed after an abandoned pass.
        return tensor.detach()

    with torch.autograd.graph.saved_tensors_hooks(look, look):
        yield


@contextmanager
def freed_on_failure() -> Iterator[None]:
    """Free the memory of a backward pass on a CPU that fails in the middle."""
    # torch keeps the remaining tasks in the queue of the thread, with all tensors that they hold, and drops them only
    # when it processes an older task.
    older = torch.zeros((), requires_grad=True).neg()
    try:
        yield
    except BaseException:
        older.backward()  # type: ignore[no-untyped-call]
        raise
