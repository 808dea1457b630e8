"""The command line: one program, one configuration."""

from __future__ import annotations

import difflib
import re
import sys
import warnings
from argparse import SUPPRESS
from collections.abc import Sequence
from typing import Any, NoReturn

from jsonargparse import ArgumentParser, Namespace

from equitomo.cli.configuration import preset_of, values_of
from equitomo.cli.options import (
    CheckPlan,
    Converted,
    Correlation,
    Demo,
    Geometry,
    Halves,
    HalvesOrTable,
    OneOrMany,
    Pickle,
    PredictFiles,
    Prediction,
    Reading,
    RunFolder,
    RunGeometry,
    TrainingGeometry,
    TrainingInput,
)
from equitomo.training.config import TrainingConfig

__all__ = ["main"]

# Per command: what it does, its groups of options, and the preset of its training, if it trains.
_COMMANDS: dict[str, tuple[str, tuple[type, ...], str | None]] = {
    "reconstruct": (
        "Train on two half tomograms, reconstruct them and draw pictures: the main job.",
        (Halves, Reading, Geometry, RunFolder, TrainingInput, Prediction, TrainingConfig),
        "paper",
    ),
    "check": (
        "Look at half tomograms and the machine before the long work; status 1 if something must be mended.",
        (HalvesOrTable, Reading, TrainingGeometry, CheckPlan, TrainingConfig),
        "paper",
    ),
    "demo": (
        "Simulate a specimen and its half tomograms, then reconstruct them; minutes on two CPU cores.",
        (Demo, RunFolder, Prediction, TrainingConfig),
        "tiny",
    ),
    "train": (
        "Train a network on two half tomograms, or on those of many specimens.",
        (HalvesOrTable, Reading, TrainingGeometry, RunFolder, TrainingInput, TrainingConfig),
        "paper",
    ),
    "predict": (
        "Reconstruct a tomogram, or those of a table, with a trained network.",
        (OneOrMany, Reading, PredictFiles, RunGeometry, Prediction),
        None,
    ),
    "convert": (
        "Make a checkpoint of one that torch.save wrote (a pickle: only tensors are taken from it, no code is run).",
        (Pickle, Converted),
        None,
    ),
    "fsc": ("Fourier shell correlation of two volumes.", (Halves, Reading, Correlation), None),
}
_POSITIONAL = (Halves, Pickle)
# Positions that may stay empty: jsonargparse would make options of them.
_MAY_BE_EMPTY = {
    OneOrMany: {
        "first": "A tomogram, an MRC file or an OME-Zarr store.",
        "second": "The other half, if there are two; the reconstructions are averaged.",
    },
    HalvesOrTable: {"first": "One half tomogram, an MRC file or an OME-Zarr store.", "second": "The other half."},
}
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

    0 if it worked, 1 if a check found something to mend, a training diverged or a tomogram of a table failed, 2 for
    bad input, 130 if interrupted after saving, 74 if writing failed.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    arguments = _normalised(given)
    try:
        parser = _parser(_preset(arguments))
        parsed = parser.parse_args(arguments)
    except (ValueError, OSError) as error:
        # The parser lets some through, as that of a number with thousands of digits.
        print(f"equitomo: {error}", file=sys.stderr)
        return 2
    command: str = parsed["subcommand"]
    options = _options(parser, command, parsed[command])
    # Only now, with the arguments in order, is it worth waiting for torch.
    from equitomo.cli import checking, commands
    from equitomo.training.distributed import find_world

    if RunFolder not in options and (n_processes := find_world().size) > 1:
        message = f"{command} is the work of one process, but {n_processes} were started: leave out torchrun or srun"
        print(f"equitomo: {message}", file=sys.stderr)
        return 2
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        return checking.run(options) if command == "check" else commands.run(command, options, given)


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
            may_be_empty = _MAY_BE_EMPTY.get(group, {})
            command.add_class_arguments(group, None, as_positional=group in _POSITIONAL, skip=set(may_be_empty))
            for position, meaning in may_be_empty.items():
                command.add_argument(position, nargs="?", default=SUPPRESS, help=meaning)
        if default is not None:
            command.add_argument(
                "--preset", type=str, default=preset or default, help="Training settings to start from."
            )
            command.set_defaults(TrainingConfig.preset(preset or default).as_dict())  # type: ignore[arg-type]
        commands.add_subcommand(name, command, help=purpose)
    return parser


def _options(parser: _Parser, command: str, parsed: Namespace) -> dict[type, Any]:
    """One object for each of the command's groups, every value checked."""
    groups = {}
    for group in _COMMANDS[command][1]:
        try:
            # A position that was left empty is not there: its place in the group has a default.
            given = {name: parsed[name] for name in group.__dataclass_fields__ if name in parsed}  # type: ignore[attr-defined]
            groups[group] = group(**given)
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
    configured, given = preset_of(arguments), values_of(arguments, "--preset")
    found = given[-1] if given else configured
    if found is not None:
        TrainingConfig.preset(found)  # type: ignore[arg-type]
    return found


def _version() -> str:
    from importlib.metadata import version

    return version("equitomo")


def _show_warning(message: Warning | str, category: type[Warning], *args: Any, **kwargs: Any) -> None:
    print(f"equitomo: warning: {message}", file=sys.stderr)
