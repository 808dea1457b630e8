"""The page: all that is known about a reconstruction, as one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING

from equitomo.diagnosis import Finding
from equitomo.report.figures import Chart, Spectrum
from equitomo.report.sections import Cut

if TYPE_CHECKING:
    from markupsafe import Markup


@dataclass(frozen=True)
class Link:
    """A text that leads to a place in the page, such as ``"z=12&y=40"`` for two sections."""

    text: str
    target: str


@dataclass(frozen=True)
class Table:
    """Rows of text under a head."""

    head: Sequence[str]
    rows: Sequence[Sequence[str | Link]]


@dataclass(frozen=True)
class Chapter:
    """A part of the page: text, then charts, then pictures with their captions, then a table.

    Parameters
    ----------
    name
        The name that a link to it ends in, such as ``"losses"``.
    title
        The heading.
    text
        Paragraphs.
    charts
        Drawings.
    pictures
        Captions, and pictures as data URIs.
    table
        A table, or ``None``.
    """

    name: str
    title: str
    text: Sequence[str] = ()
    charts: Sequence[Chart] = ()
    pictures: Sequence[tuple[str, str]] = ()
    table: Table | None = None


@dataclass(frozen=True)
class FileEntry:
    """A file that belongs to the result, and what it is for."""

    name: str
    size: str
    purpose: str


@dataclass(frozen=True)
class Page:
    """All that is known about a reconstruction.

    Parameters
    ----------
    title, subtitle
        The name of the result, and one line on it.
    warnings
        What a reader must know first.
    cuts
        Sections through the volumes.
    spectra, spectra_text
        Spectra of the volumes, and a paragraph on them.
    chapters
        Further parts, in their order.
    findings
        What the diagnosis of the input found.
    facts
        Names and values of what went in and how, by heading.
    files
        The files of the result.

    Examples
    --------
    >>> page = Page("a <b>", "8 x 8 x 8 voxels", warnings=["look at me"])
    >>> html = page.html()
    >>> html.startswith("<!doctype html>"), "a &lt;b&gt;" in html, "<b>" in html
    (True, True, False)
    """

    title: str
    subtitle: str
    warnings: Sequence[str] = ()
    cuts: Sequence[Cut] = ()
    spectra: Sequence[Spectrum] = ()
    spectra_text: str = ""
    chapters: Sequence[Chapter] = ()
    findings: Sequence[Finding] = ()
    facts: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    files: Sequence[FileEntry] = ()

    def html(self) -> str:
        """Return the page. All texts are escaped, and the page may run no script but its own and load nothing."""
        from jinja2 import Environment, StrictUndefined
        from markupsafe import Markup

        environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
        style, script = _resource("page.css"), _resource("page.js")
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
        environment.filters["marked"] = _marked
        template = environment.from_string(_resource("page.html.jinja"))
        return template.render(page=self, style=Markup(style), script=Markup(script), script_hash=digest, svg=Markup)


def _marked(text: str) -> Markup:
    """Return an escaped text with what stands between backticks set as code."""
    from markupsafe import Markup, escape

    return Markup(re.sub(r"`([^`]*)`", r"<code>\1</code>", str(escape(text))))


@cache
def _resource(name: str) -> str:
    return files("equitomo.report").joinpath(name).read_text(encoding="utf-8")
