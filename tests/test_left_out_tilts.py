"""Tilts that are left out of a series: what the rest does not tell of them, and what volumes score there."""

from __future__ import annotations

import math

import pytest
import torch

from equitomo import TiltGeometry, TiltSeries, TiltSeriesPhysics, TomogramPair
from equitomo.datasets.left_out_tilts import leave_out_tilts, pixels_inside, surroundings_of
from equitomo.filled import measured_part
from equitomo.fourier import frequency_radius, irfftn, rfftn
from equitomo.metrics import held_out_tilt_correlation, raw_tilt_correlation, unseen
from equitomo.run import HalvesSettings
from equitomo.run.halves.preparing import Prepared
from equitomo.run.left_out import hold_out_tilts

ANGLES = tuple(range(-60, 61, 4))
# Sections, voxels along the tilt axis, pixels of the detector, and voxels of the specimen across the tilt axis.
Z, Y, X, LONG = 24, 40, 96, 240


def coloured(shape, seed=0):
    """A volume whose spectrum falls with the frequency, as that of a specimen does."""
    noise = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    spectrum = rfftn(noise) * torch.exp(-((5 * frequency_radius(shape)) ** 2))
    volume = irfftn(spectrum, shape)
    return volume / volume.std()


def slab_of(seed=0):
    """A specimen that goes on far beyond the detector, and ends inside the tomogram at its top and bottom."""
    fade = torch.sin(math.pi * (torch.arange(Z) + 0.5) / Z)
    return coloured((Z, Y, LONG), seed) * fade[:, None, None]


def middle(volume, n=X):
    start = (volume.shape[-1] - n) // 2
    return volume[..., start : start + n].contiguous()


def isolated(seed=0):
    """A specimen that ends inside the tomogram."""
    volume = coloured((Z, Y, X), seed)
    volume[..., : X // 3] = volume[..., -X // 3 :] = 0
    return volume


def prepared_of(specimen, *, noise=0.5, angles=(ANGLES, ANGLES), tilt_axis="y", seed=1):
    """Two series of a specimen with independent noise, and the shape of a tomogram as wide as the detector."""
    generator = torch.Generator().manual_seed(seed)
    halves = []
    for own in angles:
        geometry = TiltGeometry(own, tilt_axis)
        given = specimen if tilt_axis == "y" else specimen.mT.contiguous()
        views = TiltSeriesPhysics(given.shape, geometry, detector=X).A(given[None, None])[0, 0]
        views = views + noise * views.std() * torch.randn(views.shape, generator=generator)
        halves.append(TiltSeries(views, own, tilt_axis, pixel_size=10.0))
    shape = (Z, Y, X) if tilt_axis == "y" else (Z, X, Y)
    return Prepared("TS", (halves[0], halves[1]), shape, (0.0, 0.0), "none", [])


def held_out_of(prepared, **given):
    like = TomogramPair(*torch.randn(2, *prepared.shape), (-60.0, 60.0))
    return hold_out_tilts(prepared, HalvesSettings(), like, **given)


@pytest.fixture(scope="module")
def slab():
    """A slab that goes on far beyond the detector, and its held-out tilts."""
    specimen = slab_of()
    return specimen, held_out_of(prepared_of(specimen))


def score(held_out, volume):
    return held_out.scores(held_out.projections(volume)).together.found


def test_the_noise_free_specimen_scores_one_within_its_error(slab):
    specimen, held_out = slab
    found = score(held_out, middle(specimen))
    assert found.error < 0.05
    assert abs(found.estimate - 1) < 2 * found.error + 0.01
    assert found.reliability < 0.95


def test_the_estimate_is_the_true_correlation_within_its_error(slab):
    specimen, held_out = slab
    for seed, size in ((7, 0.5), (8, 1.5)):
        volume = middle(specimen) + size * coloured((Z, Y, X), seed)
        found = score(held_out, volume)
        predicted, truth = (held_out.projections(one) for one in (volume, middle(specimen)))
        views = [[tilt.of(view) for tilt, view in zip(held_out.tilts, own, strict=True)] for own in (predicted, truth)]
        rings = [tilt.region & (_radius(tilt) <= found.limit + 0.02) for tilt in held_out.tilts]
        true = raw_tilt_correlation(*views, rings).raw
        assert found.estimate == pytest.approx(true, abs=2 * found.error + 0.02)


def test_volumes_that_lack_the_sector_have_next_to_nothing_there(slab):
    specimen, held_out = slab
    given = held_out.pair.restore(held_out.pair.volumes.mean(0))
    emptied = torch.from_numpy(measured_part(middle(specimen), (-48.0, 48.0)))
    for volume in (given, emptied):
        found = score(held_out, volume)
        assert found.power < 0.06
        # The share of the amplitude of the truth that is found.
        assert abs(found.estimate) * math.sqrt(found.power) < 0.1


def test_scale_and_offset_of_a_volume_are_its_own(slab):
    specimen, held_out = slab
    volume = middle(specimen) + coloured((Z, Y, X), 7)
    found, scaled = score(held_out, volume), score(held_out, 3 * volume + 50)
    assert scaled.estimate == pytest.approx(found.estimate, abs=1e-3)
    assert scaled.power == pytest.approx(9 * found.power, rel=1e-2)


def test_matter_beside_the_tomogram_would_lower_the_score(slab):
    specimen, held_out = slab
    careless = held_out_of(held_out.prepared, surroundings="empty")
    assert held_out.surroundings == "filled"
    assert score(careless, middle(specimen)).estimate < 0.9 < score(held_out, middle(specimen)).estimate


def test_a_small_tomogram_is_made_as_wide_as_the_images(slab):
    specimen, held_out = slab
    small = held_out_of(held_out.prepared._replace(shape=(Z, Y, 32)))
    assert small.pair.shape == (Z, Y, X)
    assert score(small, middle(specimen)).estimate == pytest.approx(score(held_out, middle(specimen)).estimate)


def test_a_specimen_that_ends_inside_the_tomogram_is_judged_by_all_pixels():
    specimen = isolated()
    held_out = held_out_of(prepared_of(specimen, noise=0.2))
    assert held_out.surroundings == "empty"
    assert {(tilt.start, tilt.stop) for tilt in held_out.tilts} == {(0, X)}
    found = score(held_out, specimen)
    assert found.estimate == pytest.approx(1, abs=2 * found.error + 0.01)


def test_the_tilt_axis_may_be_x():
    specimen = slab_of()
    estimates = []
    for axis in ("y", "x"):
        held_out = held_out_of(prepared_of(specimen, tilt_axis=axis))
        volume = middle(specimen) + coloured((Z, Y, X), 7)
        estimates.append(score(held_out, volume if axis == "y" else volume.mT.contiguous()).estimate)
    assert estimates[0] == pytest.approx(estimates[1], abs=1e-4)


def test_a_tilt_that_was_measured_once_gives_no_estimate():
    specimen = slab_of()
    held_out = held_out_of(prepared_of(specimen, angles=(ANGLES[::2], ANGLES[1::2])))
    assert all((tilt.images.first is None) != (tilt.images.second is None) for tilt in held_out.tilts)
    scores = held_out.scores(held_out.projections(middle(specimen)))
    assert scores.together.found is None
    assert 0.1 < scores.together.raw.raw < 1
    assert math.isnan(scores.together.estimate)


def test_inner_tilts_count_with_all_coefficients_and_the_input_knows_them(slab):
    _, outer = slab
    held_out = held_out_of(outer.prepared, every=5)
    assert held_out.ends is None
    assert [tilt.images.angle for tilt in held_out.tilts] == [*ANGLES[2::5]]
    found = score(held_out, held_out.pair.restore(held_out.pair.volumes.mean(0)))
    assert found.estimate > 0.8


def test_a_tomogram_whose_sides_all_rays_meet_is_refused(slab):
    thick = slab[1].prepared._replace(shape=(X, Y, X))
    with pytest.raises(ValueError, match="make halves of fewer sections, or pass `surroundings='empty'`"):
        held_out_of(thick)


def test_the_halves_and_the_tilts_are_apart():
    prepared = prepared_of(isolated())
    out = leave_out_tilts(prepared.halves, 0.8)
    assert [tilt.angle for tilt in out.tilts] == [-60, -56, -52, 52, 56, 60]
    assert out.kept == tuple(range(-48, 49, 4))
    assert [half.angles for half in out.halves] == [out.kept] * 2
    assert torch.equal(out.tilts[0].first, prepared.halves[0].projections[0])


@pytest.mark.parametrize(("ends", "lost"), [("low", range(-60, -35, 4)), ("high", range(40, 61, 4))])
def test_one_end_may_be_left_out(ends, lost):
    out = leave_out_tilts(prepared_of(isolated()).halves, 0.8, ends)
    assert [tilt.angle for tilt in out.tilts] == [angle for angle in lost if abs(angle) > 36]


def test_so_many_inner_tilts_there_are_not():
    with pytest.raises(ValueError, match="`every` 99 of 31 tilts leaves out 0, expected a number from 2 to 30"):
        leave_out_tilts(prepared_of(isolated()).halves, every=99)


def test_rays_inside_are_about_the_middle_of_the_tomogram():
    assert pixels_inside(100, 60.0, (30, 100)) == (38, 62)
    assert pixels_inside(100, 60.0, (30, 100), offset=5.0) == (43, 67)
    assert pixels_inside(100, -60.0, (30, 100), offset=40.0) == (78, 100)
    assert pixels_inside(100, 60.0, (100, 100)) is None


def test_noise_beside_a_specimen_is_no_matter():
    halves = prepared_of(isolated(), noise=1.0).halves
    assert surroundings_of(halves) == "empty"
    assert surroundings_of(prepared_of(slab_of(), noise=1.0).halves) == "filled"


def test_what_lies_near_a_tilt_that_was_kept_is_not_unseen():
    near, far = (unseen((64, 64), tilt, range(-48, 49, 3), (64, 64)) for tilt in (51.0, 60.0))
    assert not near[0].any()
    assert not far[0].any()
    assert bool((near <= far).all())
    first = int(far.any(0).nonzero()[0])
    reach = 64 * math.sin(math.radians(48)) + 64 * math.cos(math.radians(48))
    assert first - 1 < 64 / (reach * math.sin(math.radians(12))) <= first


def test_views_and_regions_must_belong_together():
    views = list(torch.randn(2, 16, 16))
    region = torch.ones(16, 9, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"a region for each tilt, got 2, 2, 2, 1"):
        held_out_tilt_correlation(views, views, views, [region])
    with pytest.raises(ValueError, match=r"must be \(along, t // 2 \+ 1\), got \(16, 16\)"):
        raw_tilt_correlation(views, views, [torch.ones(16, 16)] * 2)
    with pytest.raises(ValueError, match=r"of one shape, got \[\(8, 16\), \(16, 16\)\]"):
        raw_tilt_correlation(views, [view[:8] for view in views], [region] * 2)


def _radius(tilt):
    n_along, width = tilt.region.shape[0], tilt.stop - tilt.start
    return (torch.fft.fftfreq(n_along)[:, None] ** 2 + torch.fft.rfftfreq(width) ** 2).sqrt()
