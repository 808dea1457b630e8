"""The pictures that a run draws while it trains, as small ones for the page."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from equitomo.report.drawing import PLACES
from equitomo.report.sections import webp_uri

_MOST = 6
_WIDTH = 480
_GAP = 3  # pixels between two sections


def preview_pictures(folder: Path) -> list[tuple[str, str]]:
    """Return captions and pictures of what the network made of a fixed cube: the first, the last and some between.

    They are taken from the files that :func:`~equitomo.report.draw_preview` wrote into the folder; an empty list if
    there are none.
    """
    paths = sorted(folder.glob("step_*.png"))
    chosen = sorted({round(i * (len(paths) - 1) / (_MOST - 1)) for i in range(_MOST)}) if paths else []
    return [_preview(paths[n]) for n in chosen]


def _preview(path: Path) -> tuple[str, str]:
    with Image.open(path) as picture:
        grey = picture.convert("L")
        caption = str(picture.info.get("Title") or path.stem.replace("_", " "))
        places = str(picture.info.get(PLACES, ""))
    caption = re.sub(r"\bstep 0+(?=\d)", "step ", caption)
    parts = [grey.crop(box) for box in _boxes(places, grey.size)] or [grey]
    width = sum(part.width for part in parts) + _GAP * (len(parts) - 1)
    strip, left = Image.new("L", (width, max(part.height for part in parts))), 0
    for part in parts:
        strip.paste(part, (left, 0))
        left += part.width + _GAP
    if width > _WIDTH:
        strip = strip.resize((_WIDTH, round(strip.height * _WIDTH / width)), Image.Resampling.LANCZOS)
    return caption, webp_uri(np.asarray(strip))


def _boxes(places: str, size: Sequence[int]) -> list[tuple[int, int, int, int]]:
    """Return the boxes in pixels that a picture's metadata give as shares of its width and height from below left."""
    width, height = size
    shares = [[float(share) for share in place.split()] for place in places.split(";") if place]
    return [
        (round(left * width), round((1 - top) * height), round(right * width), round((1 - bottom) * height))
        for left, bottom, right, top in shares
    ]
