"""The order of the modules, read from their syntax trees, and what importing them must not drag in."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import equitomo

PACKAGE = Path(equitomo.__file__).parent
# A module imports from modules before it and, within a folder, from its own folder. Modules in one line are of one
# layer and do not know each other, but for those joined by "<", where the later may import the earlier.
LAYERS = (
    ("checks", "draws", "io"),
    ("fourier", "tiling", "volumes", "precision", "resources"),
    ("geometry",),
    ("physics", "transform", "models", "symmetry"),
    ("loss", "datasets", "inference", "metrics", "simulate", "solvers < refinement", "filled", "spots"),
    ("diagnosis", "training < methods < uncertainty < deviation < confidence"),
    ("report",),
    ("run",),
    ("cli < __main__",),
)


def allowed() -> dict[str, set[str]]:
    """For each module of the top level, those it may import."""
    known: dict[str, set[str]] = {}
    below: set[str] = set()
    for layer in LAYERS:
        for chain in layer:
            before: set[str] = set()
            for name in chain.split(" < "):
                known[name] = below | before
                before.add(name)
        below = below | {name for chain in layer for name in chain.split(" < ")}
    return known


def top_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> Iterator[str]:
    """Modules of the package that a file imports: anywhere, also in functions and for type checking only."""
    package = ["equitomo", *path.relative_to(PACKAGE).parent.parts]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) + 1 - node.level]) if node.level else ""
            module = ".".join(filter(None, (base, node.module)))
            names = [f"{module}.{alias.name}" for alias in node.names] if module == "equitomo" else [module]
        else:
            continue
        yield from (name.split(".")[1] for name in names if name.startswith("equitomo."))


FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE or path.name != "__init__.py")


def test_every_module_has_a_layer():
    assert {top_of(path) for path in FILES} <= set(allowed())


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_from_below(path):
    own = top_of(path)
    upward = {name for name in imported(path) if name != own} - allowed()[own]
    assert not upward, f"{own} must not know {sorted(upward)}"


def test_file_formats_know_nothing_of_the_package():
    """Readers and writers can be lifted out as they are."""
    assert all(name == "io" for path in FILES if top_of(path) == "io" for name in imported(path))


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import equitomo.cli", ["cli"]),
        ("from equitomo import report, fourier", ["report", "fourier"]),
        ("from equitomo.training.config import X", ["training"]),
        ("def f():\n    from equitomo.loss import X", ["loss"]),
        ("if TYPE_CHECKING:\n    from equitomo.cli import X", ["cli"]),
        ("from .wedge import X", ["physics"]),
        ("from ..loss import X", ["loss"]),
        ("from .. import report", ["report"]),
        ("import torch", []),
    ],
)
def test_imports_are_found_wherever_they_stand(source, found, tmp_path, monkeypatch):
    folder = tmp_path / "physics"
    folder.mkdir()
    (folder / "a.py").write_text(source)
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", tmp_path)
    assert list(imported(folder / "a.py")) == found


def modules_after(statement: str) -> set[str]:
    code = f"{statement}\nimport sys\nprint('MODULES', *sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.rpartition("MODULES")[2].split())


def test_importing_the_package_imports_no_heavy_library():
    heavy = {"torch", "deepinv", "numpy", "matplotlib", "jsonargparse", "mrcfile", "einops"}
    assert not modules_after("import equitomo; equitomo.__all__; dir(equitomo)") & heavy


def test_using_the_blocks_imports_no_command_line():
    used = "from equitomo import MissingWedgeOperator, IcecreamTrainer, TrainingConfig, TiledPredictor, read_volume"
    assert "jsonargparse" not in modules_after(used)


def test_the_command_line_answers_for_help_without_torch():
    help_text = "import equitomo.cli\ntry:\n    equitomo.cli.main(['--help'])\nexcept SystemExit:\n    pass"
    assert not modules_after(help_text) & {"torch", "deepinv", "matplotlib"}


def test_every_public_name_is_there_and_listed():
    for name in equitomo.__all__:
        assert getattr(equitomo, name) is not None
    assert set(dir(equitomo)) == set(equitomo.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        equitomo.nothing  # noqa: B018
