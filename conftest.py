"""Names that examples in docstrings may use without importing them."""

import os

# OpenMP reads this once, when torch loads it. `torch.set_num_threads` alone does not reach other threads, where sums
# would then be added in an order that depends on the number of cores. Processes that tests start inherit it, too.
os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import pytest
import torch


@pytest.fixture(autouse=True)
def _namespace(doctest_namespace):
    doctest_namespace.update(np=np, torch=torch)
