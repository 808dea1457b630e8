"""Settings and fixtures that all tests share."""

from __future__ import annotations

import os

import pytest
import torch
from crowding import play_device
from hypothesis import HealthCheck, settings
from matplotlib.figure import Figure

# With one thread, sums are added in one order, and results do not depend on the number of cores.
torch.set_num_threads(1)

# With FUZZ=20000 the fuzzing tests try that many new inputs; by default they try the same 300 each time.
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
    parser.addoption("--fault", type=int, metavar="N", help="run only the tests of entry N of docs/faults.md")


def pytest_configure(config: pytest.Config) -> None:
    # Slow tests are left out by default (see pyproject.toml), but some faults are shown by slow tests only.
    if config.getoption("--fault") is not None and config.option.markexpr == "not slow":
        config.option.markexpr = ""


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
    """Let the host play a device with little memory; the returned function sets how much it has."""
    return play_device(monkeypatch)


@pytest.fixture(autouse=True)
def quick_pictures(request, monkeypatch):
    """Draw coarse pictures where their content is not tested, because drawing takes much of the time of the tests."""
    if request.module.__name__ == "test_report":
        return
    save = Figure.savefig

    def coarse(figure, file, **settings):
        figure.set_layout_engine("none")
        save(figure, file, **settings | {"dpi": 20})

    monkeypatch.setattr(Figure, "savefig", coarse)
