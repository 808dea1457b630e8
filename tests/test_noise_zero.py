"""The zeros that a Wiener filter leaves in the noise of two halves, and what diagnose() says about them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from making import DATA, real_data
from torch import Tensor

from equitomo import ContrastTransfer, TiltGeometry, TomogramPair, deconvolve, diagnose, read_volume
from equitomo.diagnosis import find_noise_zero
from equitomo.fourier import frequency_radius, irfftn, rfftn
from equitomo.simulate import simulate_halves


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def made():
    ctf = ContrastTransfer(40000, pixel_size=12.0)
    geometry = TiltGeometry(range(-60, 61, 4))
    halves = simulate_halves(
        (64, 64, 64), geometry, snr=0.5, voxel_size=12.0, ctfs=ctf, phase_flipped=True, generator=seeded()
    )
    return ctf, halves


def warnings_of(pair: TomogramPair, **settings) -> list[str]:
    return [finding.message for finding in diagnose(pair, **settings) if finding.subject == "ctf"]


def pair_of(first: Tensor, second: Tensor) -> TomogramPair:
    return TomogramPair(first, second, (-60.0, 60.0), voxel_size=12.0)


@pytest.mark.parametrize("convention", ["isonet", "warp"])
def test_deconvolved_halves_are_reported_with_the_zero_of_their_noise(made, convention):
    ctf, halves = made
    first, second = (deconvolve(half, ctf, convention=convention) for half in (halves.first, halves.second))
    zero = find_noise_zero(first, second)
    # The first zero of a defocus of 4 µm is at 28.4 Å.
    assert abs(zero - 12 / 28.4) < 0.02
    (message,) = warnings_of(pair_of(first, second))
    assert "seem to have been Wiener-filtered or deconvolved" in message
    assert f"nearly zero at {12 / zero:.1f} Å" in message


def low_pass(volume: Tensor, response) -> Tensor:
    shape = tuple(volume.shape)
    return irfftn(rfftn(volume) * response(frequency_radius(shape, dtype=torch.float32)), shape)


HARMLESS = {
    "flipped": lambda k: torch.ones_like(k),
    "smoothed": lambda k: torch.exp(-((k / 0.15) ** 2)),
    "cut": lambda k: (k < 0.25).float(),
    "softly cut": lambda k: 1 / (1 + torch.exp((k - 0.3) / 0.02)),
    "iterative": lambda k: 1 - (1 - 0.02 / k.clamp_min(0.02)) ** 20,
    "dose-weighted": lambda k: torch.exp(-60 / (2 * (0.245 * (k / 12).clamp_min(1e-3) ** -1.665 + 2.81))),
}


@pytest.mark.parametrize("name", HARMLESS)
def test_other_filters_are_not_taken_for_a_deconvolution(made, name):
    _, halves = made
    first, second = (low_pass(half, HARMLESS[name]) for half in (halves.first, halves.second))
    assert find_noise_zero(first, second) is None
    assert not warnings_of(pair_of(first, second))


def test_halves_without_any_correction_are_not_reported():
    ctf = ContrastTransfer(40000, pixel_size=12.0)
    geometry = TiltGeometry(range(-60, 61, 4))
    halves = simulate_halves((64, 64, 64), geometry, snr=0.5, voxel_size=12.0, ctfs=ctf, generator=seeded(1))
    assert find_noise_zero(halves.first, halves.second) is None


def test_a_recorded_wiener_filter_is_reported_even_if_the_spectrum_does_not_show_it(made):
    _, halves = made
    pair = pair_of(halves.first, halves.second)
    assert [warnings_of(pair, ctf_state=state) for state in ("none", "flipped", "unknown")] == [[], [], []]
    (message,) = warnings_of(pair, ctf_state="wiener")
    assert message.startswith("the halves were Wiener-filtered or deconvolved")


def test_small_volumes_tell_nothing():
    assert find_noise_zero(*torch.randn(2, 31, 64, 64, generator=seeded())) is None


@real_data
@pytest.mark.parametrize("name", ["cryo_tiny_mid", "cryo_dose_mid", "real_mt13pf"])
def test_real_and_realistic_halves_are_not_reported(name):
    first, second = (np.asarray(read_volume(DATA / name / f"{half}.mrc")[:]) for half in ("even", "odd"))
    assert find_noise_zero(first, second) is None
