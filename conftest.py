"""Names that examples in docstrings may use without importing them."""

import numpy as np
import pytest
import torch


@pytest.fixture(autouse=True)
def _namespace(doctest_namespace):
    doctest_namespace.update(np=np, torch=torch)
