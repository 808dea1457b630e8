"""Small simulated data that several test modules share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

from equitomo import TomogramPair

# Real and simulated tomograms are not in the repository but beside it, or where EQUITOMO_DATA points to.
DATA = Path(os.environ.get("EQUITOMO_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
NO_DATA = f"no data in {DATA}: set EQUITOMO_DATA"
real_data = pytest.mark.skipif(not DATA.is_dir(), reason=NO_DATA)


def noisy_halves(
    shape: tuple[int, int, int] = (16, 16, 16), *, seed: int = 0, noise: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Return two halves of a specimen of blocks, with independent Gaussian noise."""
    generator = torch.Generator().manual_seed(seed)
    blocks = torch.randn([-(-n // 4) for n in shape], generator=generator)
    specimen = blocks.repeat_interleave(4, 0).repeat_interleave(4, 1).repeat_interleave(4, 2)
    specimen = specimen[: shape[0], : shape[1], : shape[2]]
    first, second = specimen + noise * torch.randn(2, *shape, generator=generator)
    return first, second


def noisy_pair(shape: tuple[int, int, int] = (16, 16, 16), *, seed: int = 0, **settings) -> TomogramPair:
    """Return the halves as a pair, tilted from -60 to 60 degrees unless a geometry is given."""
    return TomogramPair(*noisy_halves(shape, seed=seed), settings.pop("geometry", (-60.0, 60.0)), **settings)
