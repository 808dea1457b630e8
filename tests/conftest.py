"""What every test shares: one thread, so that sums are added in one order, a generator, how long is fuzzed, --fault."""

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


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fault", type=int, metavar="N", help="run the tests of entry N of docs/faults.md only")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    number = config.getoption("--fault")
    if number is None:
        return
    kept: dict[bool, list[pytest.Item]] = {True: [], False: []}
    for item in items:
        kept[any(number in mark.args for mark in item.iter_markers("fault"))].append(item)
    config.hook.pytest_deselected(items=kept[False])
    items[:] = kept[True]


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture
def crowded(monkeypatch):
    """A device with little room, played by the host; the function says how much."""
    return play_device(monkeypatch)
