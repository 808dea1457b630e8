"""From the words of a command line to the dataclass of its command."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import re
import types
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import fields
from importlib.metadata import version
from typing import Any, Literal, NoReturn, Union, get_args, get_origin, get_type_hints

import docstring_parser
from jsonargparse import ActionYesNo, ArgumentParser, DefaultHelpFormatter

from equitomo.cli.configuration import settings_in, values_of
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
        own = parser._subcommands_action._name_parser_map[parsed["subcommand"]]
        own.error(with_options(str(error), names_of(command)))


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


def _parser(preset: Mapping[str, Any]) -> _Parser:
    # Settings of the parser are passed on to the commands, whatever those are made with.
    settings = {"formatter_class": _Formatter, "print_config": "--print-config", "allow_abbrev": False}
    parser = _Parser(prog="equitomo", description=_DESCRIPTION, version=version("equitomo"), **settings)
    commands = parser.add_subcommands(required=True, dest="subcommand")
    for name, command in COMMANDS.items():
        commands.add_subcommand(name, _parser_of(name, command, preset), help=command.__doc__)
    return parser


def _parser_of(name: str, command: type[Command], preset: Mapping[str, Any]) -> _Parser:
    parser = _Parser(description=command.__doc__, print_config="--print-config")
    parser._optionals.title = "general"
    parser.add_argument("--config", action="config", help="A YAML file with any of these options.")
    sections = {title: parser.add_argument_group(title) for title in ("arguments", "options")}
    defaults, usage = {}, [f"equitomo {name}"]
    if own := getattr(command, "preset", None):
        defaults = _configured(preset, own).as_dict()
        text = "Training settings to start from: paper, fast or tiny."
        sections["options"].add_argument("--preset", type=str, default=preset.get("preset", own), help=text)
    for field, owner, kind, text in _options_of(command):
        is_required = field.default is dataclasses.MISSING
        if field.name in POSITIONS:
            title = "arguments"
        elif field.name in COMMON or is_required:
            title = "options"
        else:
            # The class that declares an option gives the section of those that few people use.
            title = f"advanced: {plain(owner.__doc__).partition('.')[0]}"
        if title not in sections:
            sections[title] = parser.add_argument_group(title)
        if is_required or field.name in POSITIONS:
            usage.append(_usage(field.name, is_required))
        default = defaults.get(field.name, None if is_required else field.default)
        flag = field.name if field.name in POSITIONS else option_of(field.name)
        sections[title].add_argument(flag, help=text, **_settings(field.name, kind, default, is_required))
    parser.usage = " ".join([*usage, "[options]"])
    return parser


def _options_of(command: type[Command]) -> Iterator[tuple[Any, type[Any], Any, str]]:
    """Yield the field of each option, with the class that declares it, its type and its description."""
    names = names_of(command)
    for _, group in groups_of(command):
        hints, texts = get_type_hints(group), _texts(group, names)
        for field in fields(group):
            owners = (base for base in group.__mro__ if field.name in base.__dict__.get("__annotations__", ()))
            yield field, next(owners), hints[field.name], texts.get(field.name, "")


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
    choices = ",".join(str(value) for one in kinds if get_origin(one) is Literal for value in get_args(one))
    metavar = {int: "N", float: "X"}.get(kinds[0], f"{{{choices}}}" if choices else name.upper())
    return {"type": kind, "default": default, "required": is_required, "metavar": metavar}


def _texts(group: type[Any], names: Collection[str]) -> dict[str, str]:
    """Return the descriptions of a group's fields, from its docstring and those of the classes that it inherits from."""
    return {
        name: plain(with_options((parameter.description or "").replace("``", "`"), names))
        for base in reversed(group.__mro__[:-1])
        for parameter in docstring_parser.parse(base.__doc__ or "").params
        for name in parameter.arg_name.split(", ")
    }


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
            # Three sides, as Z,Y,X.
            sides = previous == "--side" and "," in argument and not argument.startswith("[")
            result.append(f"[{argument}]" if sides else argument)
    return result


def _switch(name: str, value: str) -> str:
    values = {"true": name, "false": f"--no-{name[2:]}"}
    return values.get(value.lower(), f"{name}={value}")


def _preset(arguments: Sequence[str]) -> dict[str, str]:
    """Return the preset and the method that the command line or a configuration names.

    They give the defaults of all other settings.
    """
    found = settings_in(arguments, ("preset", "method"))
    found |= {name: given[-1] for name in ("preset", "method") if (given := values_of(arguments, f"--{name}"))}
    _configured(found, "paper")
    return found


def _configured(given: Mapping[str, str], preset: str) -> TrainingConfig:
    changes = {name: value for name, value in given.items() if name != "preset"}
    return TrainingConfig.preset(given.get("preset", preset), **changes)  # type: ignore[arg-type]
