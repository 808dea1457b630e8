"""The page of a report: its sections and charts, and that nothing in it can be run or loaded that is not its own."""

from __future__ import annotations

import base64
import io
import re

import numpy as np
import pytest
import torch
from browsing import Browser, needs_browser
from making import noisy_halves
from PIL import Image

from equitomo import Finding, TiltGeometry, fourier_shell_correlation
from equitomo.report import (
    Chapter,
    Curve,
    FileEntry,
    Page,
    Shown,
    Table,
    cut_volumes,
    draw_curves,
    draw_loss_curves,
    draw_preview,
    preview_pictures,
    spectra,
)

SHAPE = (24, 20, 28)
GEOMETRY = TiltGeometry([-60, 0, 50])
EVIL = "<script>document.title='broken'</script><img src=x onerror=\"document.title='broken'\">"


def volumes():
    first, second = noisy_halves(SHAPE)
    return [Shown("Before", first, "as measured"), Shown("After", second), Shown("Deviation", second.abs(), grey="own")]


def page(name="specimen"):
    first, second = noisy_halves(SHAPE)
    curve = fourier_shell_correlation(first, second, voxel_size=10.0)
    charts = [
        draw_curves({name: Curve.of(curve)}, title=name, caption=name, voxel_size=10.0),
        draw_loss_curves(range(1, 101), {name: np.linspace(2, 1, 100), "other": np.zeros(100)}),
    ]
    cuts = cut_volumes([Shown(name, first, name), Shown("After", second)], voxel_size=(10.0, 10.0, 10.0))
    picture = cuts[0].panels[0].pictures[0]
    return Page(
        title=name,
        subtitle=name,
        warnings=[name],
        cuts=cuts,
        spectra=spectra({name: first, "After": second}, GEOMETRY),
        chapters=[Chapter("losses", name, [name], charts, [(name, picture)], Table([name], [[name]]))],
        findings=[Finding("warning", name, name, name)],
        facts={name: {name: name}},
        files=[FileEntry(name, name, name)],
    )


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(page().html())
    return path


@pytest.fixture(scope="module")
def browser():
    with Browser() as opened:
        yield opened


def shown(browser):
    """The number of the picture that is seen in each panel of the first cut."""
    script = "[...document.querySelectorAll('[data-cut=z] figure')].map(f => [...f.querySelectorAll('img')]"
    return browser.evaluate(f"{script}.map((p, i) => p.checkVisibility() ? i : -1).filter(i => i >= 0))")


def pixels(uri):
    content = base64.b64decode(uri.removeprefix("data:image/webp;base64,"))
    return np.asarray(Image.open(io.BytesIO(content)).convert("L"), np.float64)


def test_every_text_of_the_page_is_escaped():
    html = page(EVIL).html()
    # The page's own script is the only one.
    assert len(re.findall(r"<script", html)) == 1
    assert "<img src=x" not in html
    assert html.count("&lt;script&gt;") > 15


def test_what_stands_between_backticks_is_set_as_code():
    html = Page("a", "b", warnings=["pass `<b>=True` to go on"]).html()
    assert "<li>pass <code>&lt;b&gt;=True</code> to go on</li>" in html


def test_the_page_names_no_other_file_and_no_place_in_the_network():
    html = re.sub(r'xmlns(:xlink)?="[^"]*"', "", page().html())
    assert "http" not in html.replace("http-equiv", "")
    named = re.findall(r'(?:src|href)="([^"]*)', html)
    assert named
    assert all(name.startswith(("data:", "#")) for name in named)


def test_identifiers_of_the_charts_are_unique():
    found = re.findall(r'\bid="([^"]+)"', page().html())
    assert len(found) == len(set(found))


@needs_browser
def test_the_slider_shows_one_section_in_all_panels_and_is_moved_by_the_keyboard(browser, written):
    browser.open(written)
    assert shown(browser) == [[12], [12]]
    browser.evaluate("document.querySelector('#slider-z').focus()")
    for _ in range(3):
        browser.press("ArrowRight")
    assert shown(browser) == [[15], [15]]
    assert (
        browser.evaluate("document.querySelector('[data-cut=z] output').textContent") == "section 15 of 24, z = 150 Å"
    )
    browser.press("Home")
    assert shown(browser) == [[0], [0]]
    assert browser.evaluate("location.hash") == "#z=0&y=10"


@needs_browser
def test_a_link_leads_to_a_section(browser, written):
    browser.open(written, "#z=7&y=3")
    assert shown(browser) == [[7], [7]]
    assert browser.evaluate("document.querySelector('[data-cut=y] output').textContent") == "section 3 of 20, y = 30 Å"


@needs_browser
def test_a_page_with_scripts_in_its_texts_runs_none_of_them_and_loads_nothing(browser, tmp_path):
    (tmp_path / "report.html").write_text(page(EVIL).html())
    browser.open(tmp_path / "report.html")
    assert browser.evaluate("document.title") == EVIL
    requests = [event["params"]["request"]["url"] for event in browser.events if event.get("method") == SENT]
    assert {url.partition(":")[0] for url in requests} <= {"file", "data", "about"}
    assert [
        event for event in browser.events if event.get("method") in ("Log.entryAdded", "Runtime.exceptionThrown")
    ] == []


SENT = "Network.requestWillBeSent"


@needs_browser
def test_a_script_that_is_not_the_page_s_own_is_not_run(browser, tmp_path):
    html = page().html().replace("</body>", "<script>document.title = 'broken'</script></body>")
    (tmp_path / "report.html").write_text(html)
    browser.open(tmp_path / "report.html")
    assert browser.evaluate("document.title") == "specimen"


@needs_browser
@pytest.mark.parametrize("width", [400, 1280, 2560])
def test_the_page_fits_the_window_in_its_width(browser, written, width):
    browser.open(written, width=width)
    assert browser.evaluate("document.documentElement.scrollWidth") <= width


@needs_browser
def test_page_and_charts_follow_light_and_dark(browser, written):
    script = "getComputedStyle(document.querySelector('.charts svg text')).fill"
    found = []
    for dark in (False, True):
        browser.open(written, dark=dark)
        found.append((browser.evaluate("getComputedStyle(document.body).backgroundColor"), browser.evaluate(script)))
    assert found[0][0] != found[1][0]
    assert found[0][1] != found[1][1]


def test_small_volumes_are_shown_section_by_section():
    z, y = cut_volumes(volumes(), voxel_size=(10.0, 10.0, 20.0))
    assert (z.axis, list(z.numbers), z.heights[3]) == ("z", list(range(24)), "30 Å")
    assert (y.axis, y.n_sections, len(y.numbers)) == ("y", 20, 20)
    assert [panel.name for panel in z.panels] == ["Before", "After", "Deviation"]
    # Voxels twice as long along x make pictures that are wider.
    assert z.aspect == pytest.approx(2 * 28 / 20)
    assert pixels(z.panels[0].pictures[0]).shape == (20, 56)


def test_sections_across_a_tilt_axis_along_x_are_those_of_x():
    assert [cut.axis for cut in cut_volumes(volumes(), along=2)] == ["z", "x"]


def test_a_section_shows_the_voxels_of_its_place():
    volume = torch.zeros(SHAPE)
    volume[5] = 1
    z, y = cut_volumes([Shown("one", volume)])
    bright = [pixels(picture).mean() for picture in z.panels[0].pictures]
    assert int(np.argmax(bright)) == 5
    # In the other cut the same plane is the sixth row from above.
    assert int(np.argmax(pixels(y.panels[0].pictures[4]).mean(1))) == 5


def test_volumes_share_a_grey_scale():
    ramp = torch.linspace(-1, 1, 28).expand(SHAPE)
    z, _ = cut_volumes([Shown("ramp", ramp), Shown("half of it", ramp / 2), Shown("same", ramp + 0.0)])
    one, half, same = (pixels(panel.pictures[0]) for panel in z.panels)
    assert np.array_equal(one, same)
    # The narrower of the two spans black to white, so that the wider one is clipped.
    assert half.min() < 6
    assert half.max() > 249
    assert one[:, 21:].min() > 245


class Counted:
    """A large volume of noise that is made where it is read, and counts how often."""

    dtype = np.dtype(np.float32)

    def __init__(self, shape):
        self.shape, self.reads = shape, 0
        self.plane = np.random.default_rng(0).standard_normal(shape[1:], np.float32)

    def __getitem__(self, index):
        raise AssertionError("read out of order")

    def slabs(self, n_bytes=1 << 22):
        for z in range(self.shape[0]):
            self.reads += 1
            yield (slice(z, z + 1), slice(0, self.shape[1]), slice(0, self.shape[2])), np.roll(self.plane, z)[None]


def total(cuts):
    return sum(len(picture) for cut in cuts for panel in cut.panels for picture in panel.pictures)


def test_pictures_of_many_sections_fit_into_the_room_that_they_may_take():
    volume = Counted((90, 80, 100))
    cuts = cut_volumes([Shown("one", volume), Shown("other", volume)], n_bytes=100_000)
    assert 50_000 < total(cuts) <= 100_000
    assert volume.reads == 2 * 90
    assert min(len(cut.numbers) for cut in cuts) > 3


@pytest.mark.slow
def test_four_volumes_of_the_largest_size_make_a_page_of_less_than_5_megabytes():
    shown = [Shown(name, Counted((464, 928, 928))) for name in ("before", "after", "filled", "deviation")]
    cuts = cut_volumes(shown, voxel_size=(7.84, 7.84, 7.84))
    # White noise is the hardest to compress.
    assert len(Page("large", "464 × 928 × 928 voxels", cuts=cuts).html()) < 4_500_000
    assert [cut.n_sections for cut in cuts] == [464, 928]
    assert min(len(cut.numbers) for cut in cuts) >= 7


def test_volumes_of_several_shapes_are_refused():
    with pytest.raises(ValueError, match="must have one shape"):
        cut_volumes([Shown("one", torch.zeros(4, 4, 4)), Shown("other", torch.zeros(4, 4, 5))])


@pytest.mark.parametrize("value", [0.0, float("nan")])
def test_a_constant_volume_and_one_of_nothing_are_drawn(value):
    cuts = cut_volumes([Shown("one", torch.full(SHAPE, value)), Shown("other", torch.full(SHAPE, value), grey="own")])
    assert len(cuts[0].panels) == 2


def test_the_outline_encloses_the_sectors_that_no_tilt_measures():
    (spectrum,) = spectra({"one": noisy_halves(SHAPE)[0]}, TiltGeometry([-45, 60]))
    corners = [[float(n) for n in point.split(",")] for point in re.findall(r"-?[\d.]+,-?[\d.]+", spectrum.outline)]
    # From 60 degrees over the beam axis to -45, which is 135; then the same through the centre.
    expected = [[0, 0], [0.5 / 3**0.5, 0.5], [-0.5, 0.5], [0, 0], [-0.5 / 3**0.5, -0.5], [0.5, -0.5]]
    assert np.allclose(corners, expected, atol=1e-3)


def test_a_dual_axis_geometry_has_a_spectrum_for_each_axis():
    geometry = GEOMETRY | TiltGeometry([-50, 50], "x")
    assert [one.across for one in spectra({"one": noisy_halves(SHAPE)[0]}, geometry)] == ["x", "y"]


def test_losses_that_are_zero_or_not_finite_are_drawn_without_a_warning():
    losses = {"data": [1.0, float("nan"), 0.5], "none": [0.0, 0.0, 0.0], "negative": [-1.0, 1.0, 2.0]}
    svg = draw_loss_curves([1, 2, 3], losses).svg
    assert ">data<" in svg
    assert ">none<" not in svg


# The pictures of a training ---------------------------------------------------------------------------


def test_previews_are_cut_to_what_the_network_made(tmp_path):
    cube, output = torch.zeros(8, 8, 8), torch.zeros(8, 8, 8)
    output[:, :, 4:] = 1
    draw_preview(tmp_path / "step_0000030.png", cube, output, "step 30, changed by 4.2%")
    ((caption, picture),) = preview_pictures(tmp_path)
    assert caption == "step 30, changed by 4.2%"
    values = pixels(picture)
    # Three sections side by side, of which the last one, across x, has a single value: nothing is white between them.
    left, middle = values[:, : len(values) - 4], values[:, len(values) + 4 : 2 * len(values)]
    for section in (left, middle):
        assert section[2:-2, 4:20].max() < 30
        assert section[2:-2, -20:-6].min() > 225


def test_the_first_the_last_and_some_previews_between_are_shown(tmp_path):
    for step in range(10, 130, 10):
        draw_preview(tmp_path / f"step_{step:07d}.png", *noisy_halves((8, 8, 8)), f"step {step}")
    captions = [caption for caption, _ in preview_pictures(tmp_path)]
    assert (captions[0], captions[-1], len(captions)) == ("step 10", "step 120", 6)
    assert preview_pictures(tmp_path / "nothing") == []


def test_a_preview_of_an_earlier_version_is_shown_whole(tmp_path):
    Image.new("L", (60, 40), 128).save(tmp_path / "step_0000100.png")
    ((caption, picture),) = preview_pictures(tmp_path)
    assert caption == "step 100"
    assert pixels(picture).shape == (40, 60)
