"""The documentation knows what the package offers and cites."""

import re
from pathlib import Path

import equitomo

ROOT = Path(__file__).resolve().parents[1]


def test_the_api_page_lists_every_public_name():
    page = (ROOT / "docs" / "api.rst").read_text()
    listed = set(re.findall(r"^   equitomo\.(\w+)$", page, re.MULTILINE))
    assert listed == set(equitomo.__all__) - {"__version__"}


def test_every_citation_has_an_entry_in_the_bibliography():
    entries = set(re.findall(r"@\w+\{(\w+),", (ROOT / "docs" / "references.bib").read_text()))
    sources = [path.read_text() for path in (ROOT / "src").rglob("*.py")]
    cited = {key for source in sources for key in re.findall(r":cite:[tp]:`(\w+)`", source)}
    assert cited
    assert cited <= entries


def test_every_public_name_has_a_docstring_with_an_example_or_an_error_section():
    for name in set(equitomo.__all__) - {"__version__"}:
        text = getattr(equitomo, name).__doc__ or ""
        assert "Parameters\n" in text or "Attributes\n" in text, name
