"""Signals while training: the step in hand is finished first."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


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
