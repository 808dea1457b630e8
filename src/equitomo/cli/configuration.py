"""Configuration files, looked at before the parser builds anything from them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml

# A complete configuration has about 2,000 characters and no nesting.
_MAX_BYTES = 1 << 16
_MAX_DEPTH = 3


def values_of(arguments: Sequence[str], option: str) -> list[str]:
    """What an option was given on the command line, in order."""
    pairs = zip(arguments, [*arguments[1:], ""], strict=False)
    found = ((argument.partition("="), following) for argument, following in pairs)
    return [value if equals else following for (name, equals, value), following in found if name == option]


def preset_of(arguments: Sequence[str]) -> str | None:
    """The preset that the configurations name, the last one if there are several.

    Raises
    ------
    ValueError
        If a configuration is no regular file or too large, is no YAML, is nested deeper than any configuration is,
        refers to parts of itself, as the small files do that unfold to gigabytes, names a key twice, or another file.
    OSError
        If it cannot be read.
    """
    preset = None
    for source in values_of(arguments, "--config"):
        name, text = _read(source)
        try:
            _require_plain(name, yaml.parse(text, Loader=yaml.SafeLoader))
            content = yaml.safe_load(text)
        # Values with a tag that they do not fit, as !!int "", make the library stumble.
        except (yaml.YAMLError, LookupError, AttributeError, TypeError) as error:
            raise ValueError(f"{name} is not a YAML file of plain values: {error}") from error
        found = content.get("preset") if isinstance(content, dict) else None
        preset = found if isinstance(found, str) else preset
    return preset


def _read(source: str) -> tuple[str, str]:
    """What messages call a configuration, and its text."""
    path = Path(source)
    try:
        there = path.exists()
    except OSError:  # longer than a name can be
        there = False
    if not there and (":" in source or "\n" in source):
        # The parser takes the configuration itself in place of the name of a file.
        return "--config", source
    if there and not path.is_file():
        raise ValueError(f"--config {source} is not a regular file")
    with path.open("rb") as file:
        content = file.read(_MAX_BYTES + 1)
    if len(content) > _MAX_BYTES:
        raise ValueError(f"--config {source} has more than {_MAX_BYTES} bytes: that is no configuration")
    try:
        return f"--config {source}", content.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"--config {source} is not a text file: {error}") from error


def _require_plain(name: str, events: Iterator[yaml.Event]) -> None:
    depth, keys, is_key = 0, {"config"}, True
    for event in events:
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise ValueError(f"{name} uses YAML anchors or aliases (& and *): write the values out")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > _MAX_DEPTH:
                raise ValueError(f"{name} is nested more than {_MAX_DEPTH} deep: that is no configuration")
            continue
        if isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth == 1:
            # Keys and values take turns; a collection counts when it ends.
            if is_key and isinstance(event, yaml.ScalarEvent):
                if event.value in keys:
                    twice = "another configuration" if event.value == "config" else f"{event.value!r} twice"
                    raise ValueError(f"{name} names {twice}")
                keys.add(event.value)
            is_key = not is_key
