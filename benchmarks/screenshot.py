"""Take the picture of a report for the documentation: ``python -m benchmarks.screenshot REPORT OUT.webp [HEIGHT]``.

REPORT is the ``report.html`` of a run. Its first HEIGHT pixels (1,690 by default) are seen in a window of 1,200 pixels,
in light on the left and in dark on the right of a diagonal. Chromium must be installed.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from PIL import Image, ImageDraw

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from browsing import Browser

WIDTH = 1200


def main(report: Path, out: Path, height: int) -> None:
    """Write the picture."""
    pictures = []
    with tempfile.TemporaryDirectory() as folder, Browser() as browser:
        for dark in (False, True):
            browser.open(report, width=WIDTH, height=height, dark=dark)
            with Image.open(browser.screenshot(Path(folder) / "seen.png")) as seen:
                pictures.append(seen.convert("RGB"))
    light, night = pictures
    right = Image.new("L", light.size)
    ImageDraw.Draw(right).polygon([(WIDTH * 0.72, 0), (WIDTH, 0), (WIDTH, height), (WIDTH * 0.28, height)], fill=255)
    Image.composite(night, light, right).save(out, "WEBP", quality=72, method=6)
    print(f"Drew {out}, {out.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 1690)
