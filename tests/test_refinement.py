"""The data-consistent finish: as a function of volumes, and as an option of the commands."""

from __future__ import annotations

import re

import h5py
import mrcfile
import numpy as np
import pytest
import torch
from commanding import TINY, files_in, run

from equitomo import (
    ContrastTransfer,
    TiltGeometry,
    TiltSeriesPhysics,
    deconvolve,
    read_volume,
    refinement,
    write_volume,
)
from equitomo.refinement import MeasuredSeries, ReprojectedHalves, refine
from equitomo.simulate import simulate_particles
from equitomo.solvers import filtered_backprojection, sirt

SHAPE = (24, 20, 26)
GEOMETRY = TiltGeometry(range(-66, 67, 6))


@pytest.fixture(scope="module")
def particles():
    return simulate_particles(SHAPE, n_particles=3, radii=(3, 4), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def blurred(particles):
    """What a network may leave: smooth, and at half of the intensity."""
    return 0.5 * torch.nn.functional.avg_pool3d(particles[None], 5, 1, 2)[0]


def series_of(volume, geometry=GEOMETRY, noise=0.3, seed=0):
    clean = TiltSeriesPhysics(volume.shape, geometry).A(volume[None, None])
    return clean + noise * torch.randn(clean.shape, generator=torch.Generator().manual_seed(seed))


def error(found, truth):
    return float(np.linalg.norm(np.asarray(found) - truth.numpy()) / np.linalg.norm(truth.numpy()))


def test_refinement_brings_a_volume_closer_to_the_truth_and_its_mean_to_that_of_the_truth(particles, blurred):
    measured = MeasuredSeries(series_of(particles, noise=0.1)[0, 0], GEOMETRY)
    found = refine(blurred, measured)
    assert error(found, particles) < 0.6 * error(blurred, particles)
    assert found.mean() == pytest.approx(float(particles.mean()), rel=0.1)


def test_halves_serve_where_there_are_no_projections(particles, blurred):
    physics = TiltSeriesPhysics(SHAPE, GEOMETRY)
    halves = [filtered_backprojection(series_of(particles, seed=seed), physics)[0, 0] for seed in (1, 2)]
    found = refine(blurred, ReprojectedHalves(halves, [GEOMETRY, GEOMETRY]))
    assert error(found, particles) < 0.7 * error(blurred, particles)


def test_halves_of_their_own_tilts_are_compared_at_the_tilts_of_both(particles, blurred):
    even, odd = TiltGeometry(range(-66, 67, 12)), TiltGeometry(range(-60, 61, 12))
    halves = [
        filtered_backprojection(series_of(particles, geometry), TiltSeriesPhysics(SHAPE, geometry))[0, 0]
        for geometry in (even, odd)
    ]
    joined = ReprojectedHalves(halves, [even, odd])
    assert joined.geometry == GEOMETRY
    assert error(refine(blurred, joined), particles) < 0.7 * error(blurred, particles)


def test_a_range_of_tilts_is_projected_every_two_degrees(particles):
    assert ReprojectedHalves([particles], [TiltGeometry.from_range(-60, 60)]).geometry.angles == tuple(
        range(-60, 61, 2)
    )


@pytest.mark.parametrize("axis", ["y", "x"])
def test_planes_are_refined_a_few_at_a_time_with_the_result_of_all_at_once(particles, blurred, monkeypatch, axis):
    geometry = TiltGeometry(GEOMETRY.angles, axis)
    y = series_of(particles, geometry)
    monkeypatch.setattr(refinement, "SLAB_BYTES", 1 << 14)
    seen = []
    found = refine(blurred, MeasuredSeries(y[0, 0], geometry), progress=lambda *pair: seen.append(pair))
    physics, x = TiltSeriesPhysics(SHAPE, geometry), blurred[None, None]
    scale = (physics.A(x) * y).sum() / physics.A(x).square().sum()
    whole = sirt(y, physics, iterations=refinement.ITERATIONS, positive=True, init=scale * x)
    torch.testing.assert_close(torch.from_numpy(found), whole[0, 0], atol=1e-4, rtol=1e-4)
    assert len(seen) > 2
    assert seen[-1] == (y.shape[3],) * 2


def test_without_iterations_a_volume_is_only_scaled_to_the_projections(particles, blurred):
    measured = MeasuredSeries(series_of(particles, noise=0.1)[0, 0], GEOMETRY)
    found = refine(blurred - 0.01, measured, iterations=0)
    assert found.min() == 0
    ratio = found[found > 0.1] / (blurred.numpy() - 0.01)[found > 0.1]
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-5)
    assert 1.5 < ratio[0] < 3


def test_projections_of_the_opposite_contrast_are_refused(particles, blurred):
    with pytest.raises(ValueError, match="opposite sign"):
        refine(blurred, MeasuredSeries(-series_of(particles)[0, 0], GEOMETRY))


# The command line ------------------------------------------------------------------------------------

TILES = ["--tile", "32", "--tile-margin", "0"]


@pytest.fixture(scope="module")
def written(particles, tmp_path_factory):
    """Write halves, their series and the tilts; the images are not in the order of the angles."""
    folder = tmp_path_factory.mktemp("particles")
    physics = TiltSeriesPhysics(SHAPE, GEOMETRY)
    halves = [series_of(particles, seed=seed) for seed in (1, 2)]
    for name, half in zip(("even", "odd"), halves, strict=True):
        volume = filtered_backprojection(half, physics)[0, 0]
        write_volume(folder / f"{name}.hspy", volume.numpy(), voxel_size=33.6)
    order = [*range(11, 23), *range(10, -1, -1)]
    stack = (sum(halves) / 2)[0, 0, order].numpy()
    with mrcfile.new(folder / "series.mrc", stack) as file:
        file.voxel_size = 33.6
    sections = (f"[ZValue = {n}]\nTiltAngle = {GEOMETRY.angles[view]}\n\n" for n, view in enumerate(order))
    (folder / "series.mdoc").write_text("".join(sections))
    return folder


@pytest.fixture(scope="module")
def reconstructed(written, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    halves = [written / "even.hspy", written / "odd.hspy", "--tilts", written / "series.mdoc", "--out", out]
    refined = ["--refine", "sirt", "--positive", "--projections", written / "series.mrc"]
    assert run("reconstruct", *halves, *TINY, *TILES, *refined, "--normalization", "scale") == 0
    return out


def test_the_refined_volume_stands_beside_the_reconstruction_and_says_what_it_is(reconstructed, particles):
    assert {"reconstruction.mrc", "refined.mrc"} <= files_in(reconstructed)
    before, after = (read_volume(reconstructed / name) for name in ("reconstruction.mrc", "refined.mrc"))
    assert after.header.labels[-1] == "equitomo: refined by 5 iterations of SIRT against projections, positive"
    assert "refined" not in " ".join(before.header.labels)
    assert np.min(after.data) >= 0
    assert error(after.data, particles) < 0.5


def test_nanometres_come_in_and_go_out(written, reconstructed, particles):
    out = written / "result.hspy"
    settings = ["--refine", "sirt", "--positive", "--device", "cpu", *TILES]
    given = [written / "even.hspy", written / "odd.hspy"]
    assert run("predict", *given, "--run", reconstructed, "--out", out, *settings) == 0
    for path in (out, written / "result_refined.hspy"):
        assert read_volume(path).voxel_size == pytest.approx((33.6,) * 3)
        with h5py.File(path) as file:
            (signal,) = file["Experiments"].values()
            axes = [signal[f"axis-{n}"].attrs for n in range(3)]
            found = [(axis["name"], axis["units"], axis["scale"]) for axis in axes]
        assert found == [(name, "nm", pytest.approx(3.36)) for name in "zyx"]
    assert error(read_volume(written / "result_refined.hspy").data, particles) < 0.6


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["--positive"], r"`?--positive`? is a setting of a refinement: pass --refine"),
        (["--refine", "sirt", "--refine-iterations=-1"], "must not be negative"),
        (["--refine", "sirt", "--projections", "series.mrc", "--tilts=-66,66"], "list of their tilts"),
        (
            ["--refine", "sirt", "--projections", "short.mrc"],
            "18 pixels along the tilt axis and the tomogram 20 voxels",
        ),
        (["--refine", "sirt", "--projections", "fewer.mrc"], "22 images but 23 tilt angles"),
        (["--refine", "sirt", "--projections", "inverted.mrc"], "inverted.mrc: the projections do not show this"),
    ],
)
def test_a_refinement_that_cannot_be_made_is_refused_before_the_training(written, tmp_path, capsys, settings, message):
    stack = mrcfile.read(written / "series.mrc")
    for name, images in (("series", stack), ("short", stack[:, 1:-1]), ("fewer", stack[1:]), ("inverted", -stack)):
        with mrcfile.new(tmp_path / f"{name}.mrc", images) as file:
            file.voxel_size = 33.6
    settings = [tmp_path / word if word.endswith(".mrc") else word for word in settings]
    tilts = [] if settings[-1] == "--tilts=-66,66" else ["--tilts", written / "series.mdoc"]
    given = [written / "even.hspy", written / "odd.hspy", *tilts, "--out", tmp_path / "run", *TINY, *TILES]
    assert run("reconstruct", *given, *settings) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "run").exists()


def test_a_refinement_replaces_no_input_and_a_new_result_leaves_no_old_refinement(written, reconstructed, capsys):
    given = ["--tilts", written / "series.mdoc", *TINY, *TILES, "--normalization", "scale"]
    halves = [written / "even.hspy", written / "odd.hspy"]
    predict = [
        "predict",
        written / "a_refined.mrc",
        "--run",
        reconstructed,
        "--out",
        written / "a.mrc",
        "--device",
        "cpu",
    ]
    write_volume(written / "a_refined.mrc", read_volume(halves[0]).data, voxel_size=33.6)
    assert run(*predict, *TILES, "--refine", "sirt", "--overwrite") == 2
    assert "a_refined.mrc is one of the inputs" in capsys.readouterr().err
    assert (reconstructed / "refined.mrc").exists()
    assert run("reconstruct", *halves, *given, "--out", reconstructed, "--resume") == 0
    assert not (reconstructed / "refined.mrc").exists()


def test_a_deconvolved_volume_stands_beside_the_prediction_and_says_what_it_is(written, reconstructed):
    out, halves = written / "b.mrc", [written / "even.hspy", written / "odd.hspy"]
    settings = ["--deconvolve", "warp", "--defocus", "30000", "--phase-flipped", "--device", "cpu", *TILES]
    assert run("predict", *halves, "--run", reconstructed, "--out", out, *settings) == 0
    before, after = (read_volume(written / name) for name in ("b.mrc", "b_deconvolved.mrc"))
    assert after.header.labels[-1] == "equitomo: deconvolved as in warp, defocus 30000 A"
    ctf = ContrastTransfer(30000, pixel_size=33.6)
    expected = deconvolve(torch.from_numpy(np.array(before.data)), ctf, convention="warp", phase_flipped=True)
    np.testing.assert_allclose(after.data, expected.numpy(), rtol=0, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("given", [["--deconvolve", "isonet"], ["--defocus", "30000"]])
def test_a_deconvolution_needs_its_defocus(written, reconstructed, capsys, given):
    halves = [written / "even.hspy", written / "odd.hspy"]
    assert run("predict", *halves, "--run", reconstructed, "--out", written / "c.mrc", *given) == 2
    assert re.search("`?--deconvolve`? and `?--defocus`? belong together", capsys.readouterr().err)


def test_tables_are_not_refined(written, reconstructed, tmp_path, capsys):
    (tmp_path / "table.csv").write_text(f"first,second\n{written / 'even.hspy'},{written / 'odd.hspy'}\n")
    table = ["--table", tmp_path / "table.csv", "--run", reconstructed, "--out", tmp_path / "out", "--refine", "sirt"]
    assert run("predict", *table) == 2
    assert "--refine is for one tomogram" in capsys.readouterr().err
