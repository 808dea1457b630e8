"""The command line: one program, one configuration."""

from __future__ import annotations

import difflib
import re
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from jsonargparse import ArgumentParser, Namespace

from equitomo.cli.options import (
    CheckPlan,
    Correlation,
    Demo,
    Geometry,
    Halves,
    OneOrTwo,
    PredictFiles,
    Prediction,
    RunFolder,
    RunGeometry,
    TrainingInput,
)
from equitomo.training.config import TrainingConfig

__all__ = ["main"]

# Per command: what it does, its groups of options, and the preset of its training, if it trains.
_COMMANDS: dict[str, tuple[str, tuple[type, ...], str | None]] = {
    "reconstruct": (
        "Train on two half tomograms, reconstruct them and draw pictures: the main job.",
        (Halves, Geometry, RunFolder, TrainingInput, Prediction, TrainingConfig),
        "paper",
    ),
    "check": (
        "Look at two half tomograms and the machine before the long work; status 1 if something must be mended.",
        (Halves, Geometry, CheckPlan, TrainingConfig),
        "paper",
    ),
    "demo": (
        "Simulate a specimen and its half tomograms, then reconstruct them; minutes on two CPU cores.",
        (Demo, RunFolder, Prediction, TrainingConfig),
        "tiny",
    ),
    "train": (
        "Train a network on two half tomograms.",
        (Halves, Geometry, RunFolder, TrainingInput, TrainingConfig),
        "paper",
    ),
    "predict": (
        "Reconstruct a tomogram with a trained network.",
        (OneOrTwo, PredictFiles, RunGeometry, Prediction),
        None,
    ),
    "fsc": ("Fourier shell correlation of two volumes.", (Halves, Correlation), None),
}
_POSITIONAL = (Halves, OneOrTwo)
# Options that are switched on by their name alone.
_SWITCHES = {
    f"--{name}"
    for _, groups, _ in _COMMANDS.values()
    for group in groups
    for name, field in group.__dataclass_fields__.items()  # type: ignore[attr-defined]
    if field.type in ("bool", "bool | None")
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status.

    0 if it worked, 1 if a check found something to mend or a training diverged, 2 for bad input, 130 if interrupted
    after saving, 74 if a disk is full.
    """
    arguments = _normalised(sys.argv[1:] if arguments is None else arguments)
    parser = _parser(_preset(arguments))
    parsed = parser.parse_args(arguments)
    command: str = parsed["subcommand"]
    options = _options(parser, command, parsed[command])
    # Only now, with the arguments in order, is it worth waiting for torch.
    from equitomo.cli import checking, commands

    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        return checking.run(options) if command == "check" else commands.run(command, options)


class _Parser(ArgumentParser):  # type: ignore[misc]
    """Names the nearest option where one is unknown."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        text = str(message)
        unknown = re.search(r"(?:does not accept option|[Uu]nrecognized arguments:|Key) '?(?:--)?([\w.]+)'?", text)
        parser = getattr(ex, "subcommand_parser", None) or self
        known = [action.dest for action in parser._actions]
        if unknown and (near := difflib.get_close_matches(unknown.group(1), known, 1)):
            text += f"; did you mean {near[0]!r}?"
        super().error(text, ex)
        raise SystemExit(2)


def _parser(preset: str | None) -> _Parser:
    parser = _Parser(
        prog="equitomo",
        description="Denoise electron tomograms and fill their missing wedge, learning from two half tomograms.",
        version=_version(),
        # Passed on to the commands, whatever they are made with.
        allow_abbrev=False,
    )
    commands = parser.add_subcommands(required=True, dest="subcommand")
    for name, (purpose, groups, default) in _COMMANDS.items():
        command = _Parser(description=purpose)
        command.add_argument("--config", action="config", help="A YAML file with any of these options.")
        for group in groups:
            skipped = {"second"} if group is OneOrTwo else set[str]()
            command.add_class_arguments(group, None, as_positional=group in _POSITIONAL, skip=skipped)
            if group is OneOrTwo:
                # jsonargparse would make an option of a position that may stay empty.
                command.add_argument("second", nargs="?", help="The other half; the reconstructions are averaged.")
        if default is not None:
            command.add_argument("--preset", default=preset or default, help="Training settings to start from.")
            command.set_defaults(TrainingConfig.preset(preset or default).as_dict())  # type: ignore[arg-type]
        commands.add_subcommand(name, command, help=purpose)
    return parser


def _options(parser: _Parser, command: str, parsed: Namespace) -> dict[type, Any]:
    """One object for each of the command's groups, every value checked."""
    groups = {}
    for group in _COMMANDS[command][1]:
        try:
            groups[group] = group(**{name: parsed[name] for name in group.__dataclass_fields__})  # type: ignore[attr-defined]
        except ValueError as error:
            parser.error(str(error))
    return groups


def _normalised(arguments: Sequence[str]) -> list[str]:
    """Let ``--tilts -60,60`` pass for a value, ``--learning-rate`` for ``--learning_rate``, ``--resume`` for true."""
    result: list[str] = []
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=False):
        if result and result[-1] == "--tilts" and re.match(r"-[\d.]", argument):
            result[-1] = f"--tilts={argument}"
        elif argument.startswith("--"):
            name, equals, value = argument.partition("=")
            name = name[:2] + name[2:].replace("-", "_")
            alone = name in _SWITCHES and not equals and following.lower() not in ("true", "false", "null")
            result.append(f"{name}=true" if alone else name + equals + value)
        else:
            result.append(argument)
    return result


def _preset(arguments: Sequence[str]) -> str | None:
    """The preset named on the command line or in the configuration: it sets the defaults of all the rest."""
    found = _value(arguments, "--preset")
    path = _value(arguments, "--config")
    if found is None and path is not None and Path(path).is_file():
        match = re.search(r"^preset:\s*['\"]?(\w+)", Path(path).read_text(errors="replace"), re.MULTILINE)
        found = match.group(1) if match else None
    if found is not None:
        try:
            TrainingConfig.preset(found)  # type: ignore[arg-type]
        except ValueError as error:
            print(f"equitomo: {error}", file=sys.stderr)
            raise SystemExit(2) from None
    return found


def _value(arguments: Sequence[str], option: str) -> str | None:
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=False):
        if argument == option:
            return following
        if argument.startswith(f"{option}="):
            return argument.partition("=")[2]
    return None


def _version() -> str:
    from importlib.metadata import version

    return version("equitomo")


def _show_warning(message: Warning | str, category: type[Warning], *args: Any, **kwargs: Any) -> None:
    print(f"equitomo: warning: {message}", file=sys.stderr)
