"""Configuration files, read with a loader that takes plain values only."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Sequence
from pathlib import Path
from typing import Any

import yaml

# A complete configuration has about 2,000 characters and no nesting.
_MAX_BYTES = 1 << 16
_MAX_DEPTH = 3


class _PlainLoader(yaml.SafeLoader):
    """Refuses a configuration that refers to parts of itself, is deeply nested, or names a key twice."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent) or getattr(self.peek_event(), "anchor", None):
            raise ValueError("uses YAML anchors or aliases (& and *): write the values out")
        self.depth += 1
        if self.depth > _MAX_DEPTH + 1:
            raise ValueError(f"is nested more than {_MAX_DEPTH} deep: that is no configuration")
        node: yaml.Node | None = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        names = [key.value for key, _ in node.value]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"names {twice[0]!r} twice")
        return super().construct_mapping(node, deep)


def values_of(arguments: Sequence[str], option: str) -> list[str]:
    """Return the values that an option has on the command line, in order."""
    pairs = zip(arguments, [*arguments[1:], ""], strict=False)
    found = ((argument.partition("="), following) for argument, following in pairs)
    return [value if equals else following for (name, equals, value), following in found if name == option]


def settings_in(arguments: Sequence[str], names: Collection[str]) -> dict[str, str]:
    """Return some settings of the configurations by name, as the last one has them, as far as they are texts.

    Raises
    ------
    ValueError
        If a configuration is not a regular file or too large, is not YAML, is nested deeper than any configuration is,
        refers to parts of itself (as small files do that expand to gigabytes), names a key twice, or another file.
    OSError
        If it cannot be read.
    """
    found = {}
    for source in values_of(arguments, "--config"):
        label, text = _read(source)
        try:
            content = yaml.load(text, _PlainLoader)
        # Values that do not fit their tag, such as !!int "", make the library stumble.
        except (yaml.YAMLError, LookupError, AttributeError, TypeError) as error:
            raise ValueError(f"{label} is not a YAML file of plain values: {error}") from error
        except ValueError as error:
            raise ValueError(f"{label} {error}") from error
        values = content if isinstance(content, dict) else {}
        if "config" in values:
            raise ValueError(f"{label} names another configuration")
        found |= {name: values[name] for name in names if isinstance(values.get(name), str)}
    return found


def _read(source: str) -> tuple[str, str]:
    """Return what messages call a configuration, and its text."""
    path = Path(source)
    try:
        exists = path.exists()
    except OSError:  # longer than a name can be
        exists = False
    if not exists and (":" in source or "\n" in source):
        # The parser takes the configuration itself in place of the name of a file.
        return "--config", source
    if exists and not path.is_file():
        raise ValueError(f"--config {source} is not a regular file")
    with path.open("rb") as file:
        content = file.read(_MAX_BYTES + 1)
    if len(content) > _MAX_BYTES:
        raise ValueError(f"--config {source} has more than {_MAX_BYTES} bytes: that is no configuration")
    try:
        return f"--config {source}", content.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"--config {source} is not a text file: {error}") from error
