"""Marks that tie tests to the entries of docs/faults.md: ``pytest --fault 12`` runs the tests of entry 12."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def numbered(cases: Iterable[Any]) -> list[Any]:
    """Mark each case of a parametrised test with the number that it begins with, if it begins with one.

    A case is a name such as "1 truncated", or a tuple of values whose first one is the number.
    """
    return [
        _marked((case,), case.partition(" ")[0]) if isinstance(case, str) else _marked(case, case[0]) for case in cases
    ]


def _marked(values: tuple[Any, ...], number: object) -> Any:
    marks = [pytest.mark.fault(int(number))] if str(number).isdigit() else []
    return pytest.param(*values, marks=marks)
