"""What examples in docstrings and tests begin with: names that need no import, and the state of torch's generator."""

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


@pytest.fixture(autouse=True)
def _seed():
    # What an example draws without a generator must not depend on what ran before it, nor equal what it draws with one.
    torch.manual_seed(20_261_128)
