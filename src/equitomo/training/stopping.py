"""Signals while training: the step in hand is left, the state before it is saved."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

import torch
from torch import Tensor


class StepAbandonedError(Exception):
    """A signal came while a gradient was computed."""


@contextmanager
def stop_signals(*, patient: bool = False) -> Iterator[list[int]]:
    """A list that SIGINT, SIGTERM and SIGUSR1 are put into; the handlers are given back afterwards.

    A second Ctrl-C stops at once, unless ``patient``: to processes that torchrun started it comes twice, from the
    terminal and from torchrun, which kills after half a minute what has not ended by then.
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
    """Leave the computation of a gradient soon after a signal was put into ``stop``.

    A step with the paper's settings takes minutes on a CPU, and nothing has changed before its last part, the
    optimiser's. Python looks at signals only between two of its own instructions, of which a backward pass has none:
    here it has one for every tensor that is kept for it.

    Raises
    ------
    StepAbandonedError
        At the next such tensor after a signal.
    """

    def look(tensor: Tensor) -> Tensor:
        if stop:
            raise StepAbandonedError
        # A result that is kept with its own graph would hold itself, and stay for good when the pass is left.
        return tensor.detach()

    with torch.autograd.graph.saved_tensors_hooks(look, look):
        yield


@contextmanager
def freed_on_failure() -> Iterator[None]:
    """Free what a backward pass on a CPU leaves where it fails in the middle.

    torch keeps the tasks that are left in the queue of the thread, with all tensors that they hold, and drops them only
    when it looks for something older.
    """
    older = torch.zeros((), requires_grad=True).neg()
    try:
        yield
    except BaseException:
        older.backward()  # type: ignore[no-untyped-call]
        raise
