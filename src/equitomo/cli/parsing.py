"""From the words of a command line to the dataclass of its command."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import inspect
import re
import types
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cache
from importlib.metadata import version
from typing import Any, Literal, NoReturn, Union, get_args, get_origin, get_type_hints

import docstring_parser
from docstring_parser import DocstringStyle
from jsonargparse import ActionYesNo, ArgumentParser, DefaultHelpFormatter

from equitomo.cli.options import COMMANDS, COMMON, Command, Demo
from equitomo.cli.wording import option_of, plain, with_options
from equitomo.run.configuration import read_configuration
from equitomo.run.defaults import CHOICES, training_defaults


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
    parser = _Parser(
        prog="equitomo",
        description="Denoise electron tomograms and fill their missing wedge, learning from two half tomograms.",
        version=version("equitomo"),
        # These are passed on to the commands.
        formatter_class=_Formatter,
        print_config="--print-config",
        allow_abbrev=False,
    )
    if _values_of(arguments, "--steps") and _values_of(arguments, "--minutes"):
        raise ValueError("--steps and --minutes both say how long to train: give one of them")
    # They give the defaults of all other settings.
    chosen = settings_in(arguments, CHOICES)
    # Of the other commands only the names and their meaning are shown.
    parsers = {
        name: _parser_of(name, command, chosen) if name in arguments else _Parser(description=command.__doc__)
        for name, command in COMMANDS.items()
    }
    commands = parser.add_subcommands(required=True, dest="subcommand")
    for name, own in parsers.items():
        commands.add_subcommand(name, own, help=COMMANDS[name].__doc__)
    parsed = parser.parse_args(arguments)
    name, given = parsed["subcommand"], parsed[parsed["subcommand"]]
    try:
        return COMMANDS[name](**{field: _group(kind, given) for field, kind in groups_of(COMMANDS[name])})
    except ValueError as error:
        parsers[name].error(with_options(str(error), names_of(COMMANDS[name])))


def groups_of(command: type[Command]) -> Iterator[tuple[str, type[Any]]]:
    """Yield the groups of a command's options, each with the name of its field."""
    hints = get_type_hints(command)
    return ((field.name, hints[field.name]) for field in dataclasses.fields(command))


def names_of(command: type[Command]) -> set[str]:
    """Return the names of a command's options."""
    return {field.name for _, group in groups_of(command) for field in dataclasses.fields(group)}


def _group(kind: type[Any], parsed: Mapping[str, Any]) -> Any:
    # A position that was left empty is not there: its field has a default.
    return kind(**{field.name: parsed[field.name] for field in dataclasses.fields(kind) if field.name in parsed})


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


def _parser_of(name: str, command: type[Command], chosen: Mapping[str, Any]) -> _Parser:
    parser = _Parser(description=command.__doc__, print_config="--print-config")
    parser._optionals.title = "general"
    parser.add_argument("--config", action="config", help="A YAML file with any of these options.")
    sections = {title: parser.add_argument_group(title) for title in ("arguments", "options")}
    defaults, usage = dict[str, Any](), f"equitomo {name}"
    if "config" in dict(groups_of(command)):
        defaults = training_defaults(chosen, is_demo=command is Demo)
        text = "Training settings to start from: paper, fast or tiny."
        sections["options"].add_argument("--preset", type=str, default=defaults["preset"], help=text)
    for field, owner, kind, text in _options_of(command):
        is_required = field.default is dataclasses.MISSING
        is_position = "position" in field.metadata
        title = "arguments" if is_position else "options"
        if not (is_position or is_required or field.name in COMMON):
            # The class that declares an option gives the section of those that few people use.
            title = f"advanced: {plain(owner.__doc__ or '').partition('.')[0]}"
        if title not in sections:
            sections[title] = parser.add_argument_group(title)
        if is_position:
            usage += f" {field.name.upper()}" if is_required else f" [{field.name.upper()}]"
        elif is_required:
            usage += f" {option_of(field.name)} {field.name.upper()}"
        default = defaults.get(field.name, None if is_required else field.default)
        settings = _settings(field.name, kind, default, is_required, is_position)
        sections[title].add_argument(field.name if is_position else option_of(field.name), help=text, **settings)
    parser.usage = f"{usage} [options]"
    return parser


def _options_of(command: type[Command]) -> Iterator[tuple[Any, type[Any], Any, str]]:
    """Yield the field of each option, with the class that declares it, its type and its description."""
    names = names_of(command)
    for _, group in groups_of(command):
        hints = get_type_hints(group)
        for field in dataclasses.fields(group):
            # The class that declares a field first describes it; its heirs may change the default.
            owner = [base for base in group.__mro__ if field.name in inspect.get_annotations(base)][-1]
            text = _descriptions(owner)[field.name].replace("``", "`")
            yield field, owner, hints[field.name], plain(with_options(text, names))


@cache
def _descriptions(group: type[Any]) -> dict[str, str]:
    """Return the descriptions of fields, by name, from the docstring of the class that declares them."""
    described = docstring_parser.parse(group.__doc__ or "", DocstringStyle.NUMPYDOC).params
    return {name: one.description or "" for one in described for name in one.arg_name.split(", ")}


def settings_in(arguments: Sequence[str], names: Collection[str]) -> dict[str, Any]:
    """Return some settings by name, texts or numbers: from the configuration files and the command line."""
    found: dict[str, Any] = {}
    for path in _values_of(arguments, "--config"):
        try:
            values = read_configuration(path)
        except ValueError as error:
            raise ValueError(f"--config {error}") from error
        found |= {name: values[name] for name in names if isinstance(values.get(name), (str, int, float))}
    return found | {name: given[-1] for name in names if (given := _values_of(arguments, f"--{name}"))}


def _values_of(arguments: Sequence[str], option: str) -> list[str]:
    """Return the values that an option has on the command line, in order."""
    pairs = zip(arguments, [*arguments[1:], ""], strict=False)
    found = ((argument.partition("="), following) for argument, following in pairs)
    # An option may be written with hyphens or underscores.
    same = option.replace("_", "-")
    return [
        value if equals else following for (name, equals, value), following in found if name.replace("_", "-") == same
    ]


def _settings(name: str, kind: Any, default: Any, is_required: bool, is_position: bool) -> dict[str, Any]:
    """Return what the parser has to know of an option or a position."""
    kinds = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
    if is_position:
        # The parser would make an option of a position that may stay empty.
        optional = {} if is_required else {"nargs": "?", "default": argparse.SUPPRESS}
        return {"type": str, "metavar": name.upper(), **optional}
    if bool in kinds:
        return {"action": ActionYesNo(no_prefix="no-"), "default": default}
    choices = ",".join(str(value) for one in kinds if get_origin(one) is Literal for value in get_args(one))
    metavar = {int: "N", float: "X"}.get(kinds[0], f"{{{choices}}}" if choices else name.upper())
    return {"type": kind, "default": default, "required": is_required, "metavar": metavar}


def _normalised(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with hyphens in names, and with ``--tilts -60,60`` and ``--side 32,64,64`` as values."""
    result: list[str] = []
    for word in arguments:
        name, equals, value = word.partition("=")
        word = name.replace("_", "-") + equals + value if word.startswith("--") else word
        if result and result[-1] in ("--tilts", "--second-axis-tilts", "--side") and re.match(r"-?[\d.]", word):
            word = f"{result.pop()}={word}"
        result.append(re.sub(r"^--side=(\d+,[\d, ]+)$", r"--side=[\1]", word))
    return result
