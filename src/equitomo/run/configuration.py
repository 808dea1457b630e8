"""Configuration files, read with a loader that takes plain values only."""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

# A complete configuration has about 2,000 characters and no nesting.
_MAX_BYTES, _MAX_DEPTH = 1 << 16, 3


def read_configuration(path: str | Path) -> dict[str, Any]:
    """Return the settings in a YAML file by name.

    Raises
    ------
    ValueError
        If it is not a file of plain values, names a key twice or another configuration, or refers to parts of itself,
        as small files do that expand to gigabytes.
    OSError
        If it cannot be read.
    """
    path = Path(path)
    try:
        if path.exists() and not path.is_file():
            raise ValueError("is not a regular file")
        with path.open("rb") as file:
            text = file.read(_MAX_BYTES + 1)
        if len(text) > _MAX_BYTES:
            raise ValueError(f"has more than {_MAX_BYTES} bytes: that is no configuration")
        values = yaml.load(text.decode(), _PlainLoader)
        if isinstance(values, dict) and "config" in values:
            raise ValueError("names another configuration")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a text file: {error}") from error
    # Values that do not fit their tag, such as !!int "", make the library stumble.
    except (yaml.YAMLError, LookupError, AttributeError, TypeError) as error:
        raise ValueError(f"{path} is not a YAML file of plain values: {error}") from error
    except ValueError as error:
        raise ValueError(f"{path} {error}") from error
    return values if isinstance(values, dict) else {}


class _PlainLoader(yaml.SafeLoader):
    """Refuses a configuration that refers to parts of itself, is deeply nested, or names a key twice."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        if getattr(event, "anchor", None):
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
