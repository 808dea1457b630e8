"""What every test shares: one thread, so that sums are added in one order, a generator, and how long is fuzzed."""

from __future__ import annotations

import os

import pytest
import torch
from crowding import play_device
from hypothesis import HealthCheck, settings

torch.set_num_threads(1)

# FUZZ=20000 tries that many inputs, others each time, where otherwise the same few are tried.
FUZZ = int(os.environ.get("FUZZ", "0"))
settings.register_profile(
    "project",
    max_examples=FUZZ or 300,
    derandomize=not FUZZ,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile("project")


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture
def crowded(monkeypatch):
    """A device with little room, played by the host; the function says how much."""
    return play_device(monkeypatch)
