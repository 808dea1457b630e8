"""Mirror images and exchanged tilts: what must stay as it was, and what must change."""

import pytest
import torch
from asserting import assert_close
from equitomo.training.augmentation import SECTORS, augmented, exchange_sectors
from equitomo.training.augmentation import _kept as kept
from making import noisy_halves

from equitomo import IcecreamTrainer, TiltGeometry, TomogramPair, TrainingConfig
from equitomo.fourier import is_even, rfftn
from equitomo.symmetry import mirrors_of

ALL = (1 << SECTORS) - 1
SYMMETRIC, ASYMMETRIC = TiltGeometry.from_range(-60, 60), TiltGeometry.from_range(-40, 60)
EXAMPLE = 0b101100111000101101001011, 391


def cubes(batch=4, side=12, **settings):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch, 2, side, side, side, generator=generator, dtype=torch.float64, **settings)


def test_paper_s_cubes_stay_as_they_are():
    y = cubes()
    assert augmented(y, [SYMMETRIC] * 4, range(4), TrainingConfig()) is y


@pytest.mark.parametrize("geometry", [SYMMETRIC, ASYMMETRIC], ids=["symmetric", "asymmetric"])
def test_every_mirror_image_that_keeps_the_wedge_is_drawn_and_no_other(geometry):
    y, config = cubes(1).expand(200, -1, -1, -1, -1), TrainingConfig(mirrored_cubes=True)
    found = augmented(y, [geometry] * 200, range(200), config)
    images = {axes: y[0].flip(axes) for axes in mirrors_of(geometry)}
    seen = [next(axes for axes, image in images.items() if torch.equal(image, cube)) for cube in found]
    assert set(seen) == set(images)
    assert max(seen.count(axes) for axes in images) < 2.5 * 200 / len(images)


def test_without_flips_cubes_are_only_turned():
    y, config = cubes(1).expand(50, -1, -1, -1, -1), TrainingConfig(mirrored_cubes=True, flips=False)
    turns = [y[0].flip(axes) for axes in ((), (-3, -2), (-3, -1), (-2, -1))]
    for cube in augmented(y, [SYMMETRIC] * 50, range(50), config):
        assert any(torch.equal(cube, turn) for turn in turns)


def test_a_cube_is_changed_by_its_number_and_the_seed_alone():
    y, config = cubes(6), TrainingConfig(mirrored_cubes=True, exchanged_tilts=True, seed=3)
    geometries = [SYMMETRIC, ASYMMETRIC, TiltGeometry.from_range(-50, 50, "x")] * 2
    together = augmented(y, geometries, range(10, 16), config)
    parts = [augmented(y[k : k + 2], geometries[k : k + 2], range(10 + k, 12 + k), config) for k in (0, 2, 4)]
    assert_close(together, torch.cat(parts))
    other = augmented(y, geometries, range(10, 16), TrainingConfig(mirrored_cubes=True, exchanged_tilts=True, seed=4))
    assert not torch.allclose(together, other)


@pytest.mark.parametrize("axis", ["y", "x"])
@pytest.mark.parametrize("side", [11, 12])
def test_what_stays_is_an_even_projection_that_is_constant_along_the_tilt_axis(side, axis):
    bits, offset = EXAMPLE
    mask = kept((side,) * 3, axis, offset / 1024, bits, torch.device("cpu"))
    assert is_even(mask.expand(side, side, side // 2 + 1), side)
    assert set(mask.unique().tolist()) == {0.0, 1.0}
    assert mask.shape[-2 if axis == "y" else -1] == 1


@pytest.mark.parametrize("axis", ["y", "x"])
def test_exchanging_keeps_the_sum_and_what_the_halves_share(axis):
    y = cubes()
    bits, offset = EXAMPLE
    found = exchange_sectors(y, [axis] * 4, [offset] * 4, [bits] * 4)
    assert_close(found.sum(1), y.sum(1))
    same = y[:, :1].expand(-1, 2, -1, -1, -1)
    assert_close(exchange_sectors(same, [axis] * 4, [offset] * 4, [bits] * 4), same)
    # The power of the two together is kept too, coefficient by coefficient.
    assert_close(rfftn(found).abs().square().sum(1), rfftn(y).abs().square().sum(1))
    assert not torch.allclose(found, y)
    assert not torch.allclose(found, y.flip(1))


def test_all_sectors_stay_or_all_change_sides():
    y = cubes(2, side=11)
    assert_close(exchange_sectors(y, ["y"] * 2, [0, 7], [ALL, ALL]), y)
    assert_close(exchange_sectors(y, ["y"] * 2, [0, 7], [0, 0]), y.flip(1))
    bits, offset = EXAMPLE
    one, other = (exchange_sectors(y, ["y"] * 2, [offset] * 2, [b] * 2) for b in (bits, ALL ^ bits))
    assert_close(one, other.flip(1))


def test_a_sector_holds_what_one_direction_measures():
    """A wave across the tilt axis goes as a whole to the side that its direction's bit says."""
    side = 16
    z, _, x = torch.meshgrid(*[torch.arange(side, dtype=torch.float64)] * 3, indexing="ij")
    for kz, kx in ((0, 3), (2, 2), (5, 1), (-3, 4)):
        wave = torch.cos(2 * torch.pi * (kz * z + kx * x) / side)
        y = torch.stack([wave, torch.zeros_like(wave)])[None]
        turns = torch.atan2(torch.tensor(float(kz)), torch.tensor(float(kx))) / torch.pi % 1.0
        own = 1 << int(turns * SECTORS)
        assert_close(exchange_sectors(y, ["y"], [0], [own]), y)
        assert_close(exchange_sectors(y, ["y"], [0], [ALL ^ own]), y.flip(1))


def test_noise_stays_independent_between_the_halves_and_as_strong():
    # Coloured as a reconstruction's is, by a filter of the direction's distance.
    white = cubes(64, side=16)
    bits, offset = EXAMPLE
    noise = white + 0.5 * white.roll(1, -1)
    found = exchange_sectors(noise, ["y"] * 64, [offset] * 64, [bits] * 64)
    first, second = found[:, 0].flatten(), found[:, 1].flatten()
    chance = 1 / len(first) ** 0.5
    assert abs(torch.corrcoef(torch.stack([first, second]))[0, 1]) < 4 * chance
    assert abs(found.square().mean() / noise.square().mean() - 1) < 1e-10


def test_tomograms_of_both_tilt_axes_share_a_batch():
    y = cubes(2)
    bits, offset = EXAMPLE
    both = exchange_sectors(y, ["y", "x"], [offset] * 2, [bits] * 2)
    for k, axis in enumerate("yx"):
        assert_close(both[k], exchange_sectors(y[k : k + 1], [axis], [offset], [bits])[0])


@pytest.mark.parametrize("setting", ["mirrored_cubes", "exchanged_tilts"])
def test_training_sees_the_changed_cubes(setting):
    pair = TomogramPair(*noisy_halves(), (-60.0, 60.0))
    settings = {"side": 16, "batch": 2, "width": 2, "levels": 2, "steps": 3, "margin": 2, "precision": "float32"}
    plain, changed = (
        IcecreamTrainer(pair, TrainingConfig(**settings, device="cpu", **more)).train().network.state_dict()
        for more in ({}, {setting: True})
    )
    assert any(not torch.equal(plain[name], changed[name]) for name in plain)
