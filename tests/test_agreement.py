"""A shift, a mirror or an inverted contrast between two halves is told, and nothing where there is none."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from making import DATA, noisy_halves, real_data

from equitomo import TiltGeometry, read_volume
from equitomo.diagnosis import HalvesAgreement, compare_halves
from equitomo.simulate import simulate_halves


@pytest.fixture(scope="module")
def halves():
    """Halves with a missing wedge, of an odd and two even sides."""
    geometry = TiltGeometry(range(-60, 61, 4))
    made = simulate_halves((33, 36, 40), geometry, snr=0.5, generator=torch.Generator().manual_seed(0))
    return made.first, made.second


@pytest.mark.parametrize("shift", [(0, 2, 0), (0, 0, -3), (4, 0, 0), (3, -2, 4)])
def test_a_shift_is_found_with_its_sign(halves, shift):
    found = compare_halves(halves[0], halves[1].roll(shift, (0, 1, 2)))
    assert (found.shift, found.mirrored) == (shift, "")
    ((message, remedy),) = found.faults
    assert f"shifted against the first by {shift} voxels" in message
    assert "align them" in remedy


@pytest.mark.parametrize("axes", ["z", "y", "x", "zy", "zx", "yx", "zyx"])
def test_a_mirror_is_found_with_its_axes(halves, axes):
    found = compare_halves(halves[0], halves[1].flip(["zyx".index(axis) for axis in axes]))
    assert (found.mirrored, found.shift) == (axes, (0, 0, 0))
    ((message, remedy),) = found.faults
    assert f"mirrored along {', '.join(axes)} " in message
    assert "turn one back" in remedy


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda half: -half, HalvesAgreement(inverted=True)),
        (lambda half: 5 - half.roll(3, 1), HalvesAgreement(shift=(0, 3, 0), inverted=True)),
        (lambda half: -half.flip(0), HalvesAgreement(mirrored="z", inverted=True)),
    ],
)
def test_an_inverted_contrast_is_found_with_what_else_is_wrong(halves, change, found):
    agreement = compare_halves(halves[0], change(halves[1]))
    assert replace(agreement, peak=0.0) == found
    assert agreement.faults[0][0] == "the halves are anticorrelated: the contrast of one is inverted"
    assert len(agreement.faults) == 1 + bool(found.mirrored or any(found.shift))


def test_a_shift_of_one_voxel_is_not_told_by_a_low_peak(halves):
    found = compare_halves(halves[0], halves[1].roll(1, 2))
    assert found.faults == []
    assert found.peak < 24


@pytest.mark.parametrize("shift", [(0, 0, 0), (1, 0, 0), (0, -1, 0), (0, 0, 1), (1, -1, 0)])
def test_a_shift_of_one_voxel_is_told_by_a_high_one(shift):
    first, second = noisy_halves((32, 36, 40), noise=0.5)
    assert compare_halves(first, second.roll(shift, (0, 1, 2))).shift == shift


def test_a_mirror_that_hardly_stands_out_of_the_noise_is_not_told(halves):
    first, second = (half / half.std() for half in (halves[0], halves[1].flip(0)))
    noise = torch.randn(2, *first.shape, generator=torch.Generator().manual_seed(1))
    assert compare_halves(first + noise[0], second + noise[1]).mirrored == "z"
    assert compare_halves(first + 2.5 * noise[0], second + 2.5 * noise[1]).faults == []


def test_good_halves_are_in_place(halves):
    found = compare_halves(*halves)
    assert (found.shift, found.mirrored, found.faults) == ((0, 0, 0), "", [])
    assert found.peak > 15


@pytest.mark.parametrize("shape", [(16, 16, 16), (24, 24, 24), (25, 32, 27)])
# In three of these one orientation stands out by chance.
@pytest.mark.parametrize("seed", [0, 5, 35, 71, 89])
def test_noise_has_neither(shape, seed):
    noise = torch.randn(2, *shape, generator=torch.Generator().manual_seed(seed))
    found = compare_halves(*noise)
    assert found.faults == []


@pytest.mark.parametrize("shape", [(16, 16, 16), (24, 24, 24), (25, 32, 27)])
@pytest.mark.parametrize("seed", range(5))
def test_small_halves_raise_no_false_alarm(shape, seed):
    assert compare_halves(*noisy_halves(shape, seed=seed)).faults == []


def test_a_scale_an_offset_and_a_gradient_change_nothing(halves):
    gradient = torch.linspace(0, 30, 36)[:, None] * halves[0].std()
    moved = [1e-4 * (half + gradient) + 7 for half in (halves[0], halves[1].roll(3, 2))]
    assert compare_halves(*moved).shift == (0, 0, 3)


def test_hot_voxels_neither_hide_a_shift_nor_make_one(halves):
    first, second = (half.clone() for half in halves)
    first[16, 18, 20], second[18, 20, 22] = 1e6, 1e6
    assert compare_halves(first, second).faults == []
    assert compare_halves(first, second.roll(3, 2)).shift == (0, 0, 3)


def test_different_specimens_are_not_shifted():
    for seed in range(5):
        first, second = noisy_halves((32, 32, 32), seed=seed)[0], noisy_halves((32, 32, 32), seed=seed + 100)[1]
        assert compare_halves(first, second).faults == []


@pytest.mark.parametrize("shape", [(23, 40, 40), (32, 32, 32)])
def test_nothing_is_told_of_thin_or_constant_halves(shape):
    assert compare_halves(torch.ones(shape), torch.ones(shape)) == HalvesAgreement()


def test_memory_maps_are_read_as_they_are(halves, tmp_path):
    paths = [tmp_path / f"{name}.npy" for name in "ab"]
    for path, half in zip(paths, (halves[0], halves[1].flip(0)), strict=True):
        np.save(path, half.numpy())
    assert compare_halves(*(np.load(path, mmap_mode="r") for path in paths)).mirrored == "z"


@real_data
@pytest.mark.parametrize("name", ["cryo_tiny_mid", "cryo_dose_mid", "real_mt13pf"])
def test_real_and_realistic_tomograms_raise_no_false_alarm(name):
    first, second = (torch.tensor(read_volume(DATA / name / f"{half}.mrc")[:]).float() for half in ("even", "odd"))
    assert compare_halves(first, second).faults == []
    # One microtubule repeats along its axis and looks much the same in a mirror: nothing is said of it.
    # There a shift of one voxel is not told either.
    for axis in range(3):
        expected = tuple(int(other == axis and name != "real_mt13pf") for other in range(3))
        assert compare_halves(first, second.roll(1, axis)).shift == expected
    assert compare_halves(first, second.flip(0)).mirrored == ("" if name == "real_mt13pf" else "z")
