"""Mirror images and exchanged tilts: what must stay as it was, and what must change."""

import functools

import pytest
import torch
from asserting import assert_close

from equitomo import TiltGeometry
from equitomo.draws import Draws
from equitomo.fourier import filtered, rfftn
from equitomo.geometry import wedge_mask
from equitomo.methods import exchange_tilts, mirror_cubes
from equitomo.methods.augmentation import SECTORS
from equitomo.symmetry import mirrors_of

SYMMETRIC, ASYMMETRIC = TiltGeometry.from_range(-60, 60), TiltGeometry.from_range(-40, 60)
ABOUT_X = TiltGeometry.from_range(-50, 50, "x")


def cubes(batch=4, side=12, **settings):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch, 2, side, side, side, generator=generator, dtype=torch.float64, **settings)


def same_draw(index, n):
    """The draw of one cube, for each of several."""
    return Draws(0, [index] * n)


def kept(u, geometry, index):
    """The part of volumes that stays in its half."""
    y = torch.stack([u, torch.zeros_like(u)], dim=1)
    return exchange_tilts(y, geometry, same_draw(index, len(u)))[:, 0]


@pytest.mark.parametrize("geometry", [SYMMETRIC, ASYMMETRIC], ids=["symmetric", "asymmetric"])
def test_every_mirror_image_that_keeps_the_wedge_is_drawn_and_no_other(geometry):
    y = cubes(1).expand(200, -1, -1, -1, -1)
    found = mirror_cubes(y, geometry, Draws(0, range(200)))
    images = {axes: y[0].flip(axes) for axes in mirrors_of(geometry)}
    seen = [next(axes for axes, image in images.items() if torch.equal(image, cube)) for cube in found]
    assert set(seen) == set(images)
    assert max(seen.count(axes) for axes in images) < 2.5 * 200 / len(images)


def test_without_flips_cubes_are_only_turned():
    y = cubes(1).expand(50, -1, -1, -1, -1)
    turns = [y[0].flip(axes) for axes in ((), (-3, -2), (-3, -1), (-2, -1))]
    for cube in mirror_cubes(y, SYMMETRIC, Draws(0, range(50)), flips=False):
        assert any(torch.equal(cube, turn) for turn in turns)


def test_halves_of_different_tilts_exchange_only_what_both_measured():
    tilts = (TiltGeometry(range(-60, 61, 6)), TiltGeometry(range(-45, 46, 6)))
    masks = torch.stack([wedge_mask((12, 12, 12), own) for own in tilts])
    y = torch.stack(
        [filtered(half, mask, (12, 12, 12)) for half, mask in zip(cubes().unbind(1), masks, strict=True)], 1
    )
    exchanged = exchange_tilts(y, [tilts] * 4, Draws(0, range(4)))
    assert_close(exchanged.sum(1), y.sum(1))
    assert not torch.allclose(exchanged, y, atol=1e-2)
    for half, mask in zip(exchanged.unbind(1), masks, strict=True):
        assert float((rfftn(half) * (1 - mask)).abs().max()) < 1e-6
    # Exchanging all sectors would move what only one half measured into the other one.
    everywhere = exchange_tilts(y, tilts[0], Draws(0, range(4)))
    assert float((rfftn(everywhere[:, 1]) * (1 - masks[1])).abs().max()) > 0.1


def test_halves_of_different_tilts_are_mirrored_as_both_wedges_allow():
    y = cubes(1).expand(50, -1, -1, -1, -1)
    images = [y[0].flip(axes) for axes in mirrors_of(ASYMMETRIC)]
    for tilts in ((SYMMETRIC, ASYMMETRIC), (ASYMMETRIC, SYMMETRIC)):
        found = mirror_cubes(y, [tilts] * 50, Draws(0, range(50)))
        assert all(any(torch.equal(cube, image) for image in images) for cube in found)


def test_tilts_of_dual_axis_halves_that_differ_are_not_exchanged():
    with pytest.raises(ValueError, match="dual-axis tilts that differ"):
        exchange_tilts(cubes(1), [(SYMMETRIC | ABOUT_X, SYMMETRIC)], Draws(0, range(1)))


@pytest.mark.parametrize("change", [mirror_cubes, exchange_tilts])
def test_a_cube_is_changed_by_its_number_and_the_seed_alone(change):
    y, geometries = cubes(6), [SYMMETRIC, ASYMMETRIC, ABOUT_X] * 2
    together = change(y, geometries, Draws(3, range(10, 16)))
    parts = [change(y[k : k + 2], geometries[k : k + 2], Draws(3, range(10 + k, 12 + k))) for k in (0, 2, 4)]
    assert_close(together, torch.cat(parts))
    assert not torch.allclose(together, change(y, geometries, Draws(4, range(10, 16))))


@pytest.mark.parametrize("change", [mirror_cubes, exchange_tilts])
def test_a_generator_can_be_the_source_of_the_draws(change):
    y = cubes(6)
    one, same, other = (change(y, SYMMETRIC, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    torch.manual_seed(5)
    one = change(y, SYMMETRIC)
    torch.manual_seed(5)
    assert torch.equal(one, change(y, SYMMETRIC))


@pytest.mark.parametrize("geometry", [SYMMETRIC, ABOUT_X], ids="yx")
@pytest.mark.parametrize("side", [11, 12])
def test_the_part_that_stays_is_an_orthogonal_projection_that_is_constant_along_the_tilt_axis(side, geometry):
    u, v = cubes(3, side).unbind(1)
    stays = kept(u, geometry, 1)
    assert_close(kept(stays, geometry, 1), stays)
    assert_close((stays * v).sum(), (u * kept(v, geometry, 1)).sum())
    assert 0.2 < stays.norm() / u.norm() < 0.9
    # The planes across the tilt axis do not mix.
    plane = torch.zeros_like(u)
    plane.select(geometry.axes.along, 3).normal_(generator=torch.Generator().manual_seed(1))
    found = kept(plane, geometry, 1)
    found.select(geometry.axes.along, 3).zero_()
    assert found.abs().max() < 1e-12


@pytest.mark.parametrize("geometry", [SYMMETRIC, ABOUT_X], ids="yx")
def test_exchanging_keeps_the_sum_and_what_the_halves_share(geometry):
    y = cubes()
    found = exchange_tilts(y, geometry, Draws(0, range(4)))
    assert_close(found.sum(1), y.sum(1))
    same = y[:, :1].expand(-1, 2, -1, -1, -1)
    assert_close(exchange_tilts(same, geometry, Draws(0, range(4))), same)
    # The power of the two together is kept too, coefficient by coefficient.
    assert_close(rfftn(found).abs().square().sum(1), rfftn(y).abs().square().sum(1))
    assert not torch.allclose(found, y)
    assert not torch.allclose(found, y.flip(1))


def test_a_sector_holds_what_one_direction_measures():
    """A wave across the tilt axis stays as a whole or changes sides as a whole, as other waves of its direction do."""
    side = 16
    z, _, x = torch.meshgrid(*[torch.arange(side, dtype=torch.float64)] * 3, indexing="ij")
    directions = {(0, 1): (0, 3), (1, 1): (2, 2), (5, 1): (5, 1), (-3, 4): (-3, 4), (-1, 2): (-3, 6), (1, 3): (2, 6)}
    stays = {}
    for same, further in directions.items():
        short, long = (torch.cos(2 * torch.pi * (kz * z + kx * x) / side) for kz, kx in (same, further))
        for index in range(20):
            wave, other = (kept(u[None], SYMMETRIC, index)[0] for u in (short, long))
            stays[same, index] = bool(wave.norm() > 1)
            for found, whole in ((wave, short), (other, long)):
                assert (found - (whole if stays[same, index] else 0)).abs().max() < 1e-12
    # Every sector is drawn for itself.
    for same in directions:
        assert 3 <= sum(stays[same, index] for index in range(20)) <= 17
    assert len({tuple(stays[same, index] for index in range(20)) for same in directions}) == len(directions)


def test_noise_stays_independent_between_the_halves_and_as_strong():
    white = cubes(64, side=16)
    noise = white + 0.5 * white.roll(1, -1)
    found = exchange_tilts(noise, SYMMETRIC, Draws(0, range(64)))
    first, second = found[:, 0].flatten(), found[:, 1].flatten()
    chance = 1 / len(first) ** 0.5
    assert abs(torch.corrcoef(torch.stack([first, second]))[0, 1]) < 4 * chance
    assert abs(found.square().mean() / noise.square().mean() - 1) < 1e-10


def covariance_of_noise(side, length=64):
    """That of noise without power in the wedge, cut from something larger, on one plane across the tilt axis."""
    k = torch.fft.fftfreq(length, dtype=torch.float64)
    tilt = torch.rad2deg(torch.atan2(k[:, None], k)).remainder(180)
    correlation = torch.fft.ifft2(((tilt <= 60) | (tilt >= 120)).double()).real
    apart = torch.arange(side)[:, None] - torch.arange(side)
    return correlation[apart[:, None, :, None] % length, apart[None, :, None, :] % length].reshape(side**2, side**2)


@functools.cache
def leak(cut, side=16):
    """The share of one half's noise that the other half tells, by the best linear prediction."""
    plane = torch.eye(cut**2, dtype=torch.float64).reshape(cut**2, cut, 1, cut)
    stays = kept(plane, SYMMETRIC, 3).reshape(cut**2, cut**2).T
    moves, noise = torch.eye(cut**2, dtype=torch.float64) - stays, covariance_of_noise(cut)
    own = stays @ noise @ stays.T + moves @ noise @ moves.T
    other = stays @ noise @ moves.T + moves @ noise @ stays.T
    margin = (cut - side) // 2
    inside = torch.zeros(cut, cut, dtype=torch.bool)
    inside[margin : cut - margin, margin : cut - margin] = True
    own, other = (matrix[inside.flatten()][:, inside.flatten()] for matrix in (own, other))
    # A hundredth of the noise is added: no network sees more, and directions without power would be divided by zero.
    floor = 0.01 * own.diagonal().mean() * torch.eye(len(own), dtype=torch.float64)
    return float(torch.trace(other @ torch.linalg.solve(own + floor, other)) / torch.trace(own))


def test_the_noise_of_cubes_that_were_cut_leaks_into_the_other_half_unless_they_are_cut_with_a_margin():
    assert leak(16) > 0.03
    assert leak(24) < leak(16) / 3
    assert leak(32) < leak(16) / 8


def test_exchanging_needs_two_halves():
    with pytest.raises(ValueError, match=r"between two halves, got cubes of shape \(4, 1, 12, 12, 12\)"):
        exchange_tilts(cubes()[:, :1], SYMMETRIC)


def test_tomograms_of_both_tilt_axes_share_a_batch():
    y = cubes(2)
    both = exchange_tilts(y, [SYMMETRIC, ABOUT_X], same_draw(2, 2))
    for k, geometry in enumerate((SYMMETRIC, ABOUT_X)):
        assert_close(both[k], exchange_tilts(y[k : k + 1], geometry, same_draw(2, 1))[0])


def test_sectors_are_of_a_few_degrees():
    assert 180 / SECTORS == 7.5
