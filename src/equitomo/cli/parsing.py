"""From the words of a command line to the dataclass of its command."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import re
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from importlib.metadata import version
from typing import Any, Literal, NoReturn, Union, get_args, get_origin, get_type_hints

import docstring_parser
from jsonargparse import ActionYesNo, ArgumentParser, DefaultHelpFormatter

from equitomo.cli.configuration import preset_of, values_of
from equitomo.cli.options import COMMANDS, COMMON, POSITIONS, Command
from equitomo.cli.wording import option_of, plain, with_options
from equitomo.training.config import TrainingConfig

_DESCRIPTION = "Denoise electron tomograms and fill their missing wedge, learning from two half tomograms."


def parse(arguments: Sequence[str]) -> Command:
    """Return the command that the arguments name, with every value checked.

    Raises
    ------
    SystemExit
        After the help text, with status 0; or after the reason why the arguments make no sense, with status 2.
    ValueError, OSError
        If a configuration file cannot be used.
    """
    arguments = _normalised(arguments)
    parser = _parser(_preset(arguments))
    parsed = parser.parse_args(arguments)
    command = COMMANDS[parsed["subcommand"]]
    try:
        return command(**{name: _group(kind, parsed[parsed["subcommand"]]) for name, kind in groups_of(command)})
    except ValueError as error:
        parser.error(with_options(str(error), names_of(command)))


def groups_of(command: type[Command]) -> Iterator[tuple[str, type[Any]]]:
    """Yield the groups of a command's options, each with the name of its field."""
    hints = get_type_hints(command)
    for field in fields(command):
        yield field.name, hints[field.name]


def names_of(command: type[Command]) -> set[str]:
    """Return the names of a command's options."""
    return {field.name for _, group in groups_of(command) for field in fields(group)}


def _group(kind: type[Any], parsed: Mapping[str, Any]) -> Any:
    # A position that was left empty is not there: its field has a default.
    return kind(**{field.name: parsed[field.name] for field in fields(kind) if field.name in parsed})


class _Formatter(DefaultHelpFormatter):  # type: ignore[misc]
    """Shows defaults where they say something, and no types of Python."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text, default = action.help or "", action.default
        if default in (None, False, argparse.SUPPRESS) or not action.option_strings or action.nargs == 0:
            return text + (" (default: on)" if default is True else "")
        return f"{text} (default: {default})"


class _Parser(ArgumentParser):  # type: ignore[misc]
    """Names the nearest option where one is unknown."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        text = str(message)
        unknown = re.search(r"(?:does not accept option|[Uu]nrecognized arguments:|Key) '?(?:--)?([\w.-]+)'?", text)
        parser = getattr(ex, "subcommand_parser", None) or self
        known = [action.dest for action in parser._actions]
        if unknown and (near := difflib.get_close_matches(unknown[1].replace("-", "_"), known, 1)):
            text += f"; did you mean {near[0]!r}?"
        super().error(text, ex)
        raise SystemExit(2)


def _parser(preset: str | None) -> _Parser:
    # Settings of the parser are passed on to the commands, whatever those are made with.
    parser = _Parser(prog="equitomo", description=_DESCRIPTION, version=version("equitomo"), allow_abbrev=False)
    commands = parser.add_subcommands(required=True, dest="subcommand")
    for name, command in COMMANDS.items():
        commands.add_subcommand(name, _parser_of(name, command, preset), help=command.__doc__)
    return parser


def _parser_of(name: str, command: type[Command], preset: str | None) -> _Parser:
    parser = _Parser(description=command.__doc__, formatter_class=_Formatter, print_config="--print-config")
    parser._optionals.title = "general"
    parser.add_argument("--config", action="config", help="A YAML file with any of these options.")
    sections = {"": parser.add_argument_group("options")}
    defaults = {}
    if default := getattr(command, "preset", None):
        defaults = TrainingConfig.preset(preset or default).as_dict()  # type: ignore[arg-type]
        text = "Training settings to start from: paper, fast or tiny."
        sections[""].add_argument("--preset", type=str, default=preset or default, help=text)
    usage = [f"equitomo {name}"]
    for _, group in groups_of(command):
        hints, texts = get_type_hints(group), _texts(group)
        for field in fields(group):
            # The class that declares an option gives the section of those that few people use.
            owner = next(base for base in reversed(group.__mro__) if field.name in base.__dict__.get("__annotations__", ()))
            title = "" if field.name in (*COMMON, *POSITIONS) else f"advanced: {plain(owner.__doc__.splitlines()[0])}"
            if title not in sections:
                sections[title] = parser.add_argument_group(title.rstrip("."))
            is_required = field.default is dataclasses.MISSING
            default = defaults.get(field.name, None if is_required else field.default)
            if is_required or field.name in POSITIONS:
                usage.append(_usage(field.name, is_required))
            settings = {"help": texts.get(field.name, ""), **_settings(field.name, hints[field.name], default, is_required)}
            position = field.name in POSITIONS
            sections[title].add_argument(field.name if position else option_of(field.name), **settings)
    parser.usage = " ".join([*usage, "[options]"])
    return parser


def _usage(name: str, is_required: bool) -> str:
    if name in POSITIONS:
        return name.upper() if is_required else f"[{name.upper()}]"
    return f"{option_of(name)} {name.upper()}"


def _settings(name: str, kind: Any, default: Any, is_required: bool) -> dict[str, Any]:
    """Return what the parser has to know of an option or a position."""
    kinds = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
    if bool in kinds:
        return {"action": ActionYesNo(no_prefix="no-"), "default": default}
    if name in POSITIONS:
        # Of a position that may stay empty the parser would make an option.
        return {"type": str, "metavar": name.upper()} | ({} if is_required else {"nargs": "?", "default": argparse.SUPPRESS})
    settings = {"type": kind, "default": default, "required": is_required}
    if not any(get_origin(one) is Literal for one in kinds):
        settings["metavar"] = {int: "N", float: "X"}.get(kinds[0], name.upper())
    return settings


def _texts(group: type[Any]) -> dict[str, str]:
    """Return the descriptions of a group's fields, from its docstring and those that it inherits from."""
    found = {}
    for base in reversed(group.__mro__[:-1]):
        for parameter in docstring_parser.parse(base.__doc__ or "").params:
            found |= dict.fromkeys(parameter.arg_name.split(", "), plain(parameter.description or ""))
    return found


# Options that are switched on by their name alone.
_SWITCHES = {
    field.name
    for command in COMMANDS.values()
    for _, group in groups_of(command)
    for field in fields(group)
    if field.type in ("bool", "bool | None")
}


def _normalised(arguments: Sequence[str]) -> list[str]:
    """Accept underscores in names of options, ``--tilts -60,60`` as a value, and switches that are given a value."""
    result: list[str] = []
    for argument in arguments:
        name, equals, value = argument.partition("=")
        previous = result[-1] if result else ""
        if previous == "--tilts" and re.match(r"-[\d.]", argument):
            result[-1] = f"--tilts={argument}"
        elif argument.lower() in ("true", "false") and previous[2:].replace("-", "_") in _SWITCHES:
            result[-1] = _switch(previous, argument)
        elif argument.startswith("--"):
            name = name[:2] + name[2:].replace("_", "-")
            is_switch = equals and name[2:].replace("-", "_") in _SWITCHES
            result.append(_switch(name, value) if is_switch else name + equals + value)
        else:
            result.append(argument)
    return result


def _switch(name: str, value: str) -> str:
    values = {"true": name, "false": f"--no-{name[2:]}"}
    return values.get(value.lower(), f"{name}={value}")


def _preset(arguments: Sequence[str]) -> str | None:
    """Return the preset that the command line or a configuration names: it gives the defaults of all other settings."""
    configured, given = preset_of(arguments), values_of(arguments, "--preset")
    found = given[-1] if given else configured
    if found is not None:
        TrainingConfig.preset(found)  # type: ignore[arg-type]
    return found
