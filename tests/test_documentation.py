"""The documentation lists what the package offers and cites."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

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


def faults_shown(source: str) -> set[int]:
    """Return the entries of docs/faults.md that a file's tests are marked with, directly or by a table of cases."""
    module = ast.parse(source).body
    tables = {ast.unparse(node.targets[0]): node.value for node in module if isinstance(node, ast.Assign)}
    tests = [node for node in module if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")]
    nodes = [node for test in tests for decorator in test.decorator_list for node in ast.walk(decorator)]
    nodes += [
        node for name in nodes if isinstance(name, ast.Name) for node in ast.walk(tables.get(name.id, ast.Pass()))
    ]
    found = set()
    for call in (node for node in nodes if isinstance(node, ast.Call)):
        if ast.unparse(call.func) == "pytest.mark.fault":
            found |= {ast.literal_eval(argument) for argument in call.args}
        elif ast.unparse(call.func) == "numbered":
            found |= set(numbers_of(tables.get(ast.unparse(call.args[0]), call.args[0])))
    return found


def numbers_of(table: ast.expr) -> Iterator[int]:
    """Yield the numbers that the cases of a table begin with."""
    for case in table.keys if isinstance(table, ast.Dict) else table.elts:
        first = ast.literal_eval(case.elts[0] if isinstance(case, ast.Tuple) else case)
        number = str(first).partition(" ")[0]
        if number.isdigit():
            yield int(number)


def test_every_numbered_fault_is_shown_by_a_test_and_no_other_is_claimed():
    page = (ROOT / "docs" / "faults.md").read_text()
    listed = [int(number) for number in re.findall(r"^\| (\d+) \|", page, re.MULTILINE)]
    shown = set().union(*(faults_shown(path.read_text()) for path in (ROOT / "tests").glob("test_*.py")))
    assert listed == list(range(1, len(listed) + 1))
    assert set(listed) - shown == set()
    assert shown - set(listed) == set()


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("@pytest.mark.fault(3, 4)\ndef test_it(): pass", {3, 4}),
        ("@pytest.mark.fault(3)\ndef helper(): pass", set()),
        ("def test_it(): pytest.mark.fault(3)", set()),
        ("@pytest.mark.parametrize('a', [pytest.param(1, marks=pytest.mark.fault(5))])\ndef test_it(a): pass", {5}),
        (
            "T = [pytest.param(1, marks=pytest.mark.fault(5))]\n@pytest.mark.parametrize('a', T)\ndef test_it(a): pass",
            {5},
        ),
        ("T = {'6 six': 1, 'none': 2}\n@pytest.mark.parametrize('a', numbered(T))\ndef test_it(a): pass", {6}),
        ("T = {'6 six': 1, 'none': 2}\n@pytest.mark.parametrize('a', T)\ndef test_it(a): pass", set()),
        ("T = [(7, f()), (8, g())]\n@pytest.mark.parametrize('a', numbered(T))\ndef test_it(a): pass", {7, 8}),
        ("@pytest.mark.parametrize('a', numbered(['9 nine', 'none']))\ndef test_it(a): pass", {9}),
    ],
)
def test_marks_of_faults_are_found_where_they_stand(source, found):
    assert faults_shown(source) == found
