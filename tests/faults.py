"""What ties a test to the entries of docs/faults.md that it shows: ``pytest --fault 12`` runs those of entry 12."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def numbered(cases: Iterable[Any]) -> list[Any]:
    """Cases of a parametrised test, marked with the number that each begins with, if it begins with one.

    A case is a name, as "1 truncated", or a tuple of values of which the first is the number.
    """
    return [
        _marked((case,), case.partition(" ")[0]) if isinstance(case, str) else _marked(case, case[0]) for case in cases
    ]


def _marked(values: tuple[Any, ...], number: object) -> Any:
    marks = [pytest.mark.fault(int(number))] if str(number).isdigit() else []
    return pytest.param(*values, marks=marks)
