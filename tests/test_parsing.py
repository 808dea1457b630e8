"""Words of the command line: its help for a terminal, and errors of the library with options for arguments."""

import dataclasses
import re

import pytest
from commanding import run

from equitomo.cli.options import COMMANDS, COMMON
from equitomo.cli.parsing import groups_of, names_of, parse
from equitomo.cli.wording import plain, with_options

TRAINING = [name for name, command in COMMANDS.items() if "config" in dict(groups_of(command))]
NAMES = ["side", "overwrite", "nan", "tilts", "flips", "out", "min_specimen", "memory"]


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("lower `min_specimen`", "lower --min-specimen"),
        ("pass `overwrite=True`", "pass --overwrite"),
        ("pass `flips=False`", "pass --no-flips"),
        ("pass `nan='mean'` or `nan=\"refuse\"`", "pass --nan mean or --nan refuse"),
        ("use `tilts='-60,40'`", "use --tilts=-60,40"),
        ("pass `side=32`", "pass --side 32"),
        ("choose another `folder`", "choose another --out"),
        ("pass `network`, a function", "pass `network`, a function"),
        ("it becomes one with `equitomo convert`", "it becomes one with `equitomo convert`"),
        ("/data/`odd`/tilts.mrc has no `tilts`", "/data/`odd`/tilts.mrc has no --tilts"),
        ("memory and side", "memory and side"),
    ],
)
def test_arguments_in_backticks_become_options_of_the_command(message, expected):
    assert with_options(message, NAMES) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('``"auto"``, or a path', '"auto", or a path'),
        ("see :class:`~equitomo.TomogramPair`", "see TomogramPair"),
        ("see :class:`equitomo.TomogramPair`", "see equitomo.TomogramPair"),
        (":math:`f(y)` and $x$", "f(y) and x"),
        ("the paper's (:cite:t:`kishore2026icecream`).", "the paper's."),
        ("two\n    lines", "two lines"),
    ],
)
def test_docstrings_are_plain_text_in_the_terminal(text, expected):
    assert plain(text) == expected


def help_of(command, capsys, *arguments):
    assert run(command, *arguments, "--help") == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_made_for_a_terminal(command, capsys):
    text = help_of(command, capsys)
    assert not re.search(r":\w+:`|``|\$|\{true,false\}|type: |Literal|null|\d_\d", text)
    assert not re.search(r"--\w+_", text)
    assert all(len(line) <= 80 for line in text.splitlines() if not line.startswith("advanced: "))


@pytest.mark.parametrize("command", TRAINING)
def test_settings_that_few_people_use_stand_apart(command, capsys):
    common, *advanced = help_of(command, capsys).partition("\nadvanced: ")
    assert {"--preset", "--steps", "--method", "--out", "--device"} <= set(re.findall(r"--[\w-]+", common))
    assert len(re.findall(r"^  --", common, re.MULTILINE)) <= 16
    rest = "".join(advanced)
    assert all(f"  {name}" in rest for name in ("--learning-rate X", "--side N", "--flips, --no-flips"))


@pytest.mark.parametrize("command", COMMANDS.values())
def test_every_option_has_one_name_and_a_description(command):
    names = [field.name for _, group in groups_of(command) for field in dataclasses.fields(group)]
    assert len(names) == len(set(names))
    assert names_of(command) == set(names)


def test_help_shows_the_defaults_of_the_preset_and_the_method(capsys):
    assert re.search(r"--learning-rate X +[^-]*\(default:\s+0\.002\)", help_of("train", capsys, "--preset", "fast"))
    assert re.search(r"--passes N +[^-]*\(default: 1\)", help_of("train", capsys, "--method", "noise2noise"))
    assert re.search(r"--passes N +[^-]*\(default: 2\)", help_of("train", capsys))


@pytest.mark.parametrize("command", TRAINING)
def test_every_training_takes_a_method(command):
    given = {"demo": [], "check": ["a", "b", "--tilts", "-60,60"]}.get(command, ["a", "b", "--tilts", "-60,60"])
    given += [] if command == "check" else ["--out", "run"]
    config = parse([command, *given, "--method", "noise2noise", "--preset", "paper"]).config
    assert (config.method, config.passes, config.steps) == ("noise2noise", 1, 50_000)


GIVEN = ["train", "a.mrc", "b.mrc", "--out", "run"]


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        (["--side", "48,56,56"], "side", (48, 56, 56)),
        (["--side=48,56,56"], "side", (48, 56, 56)),
        (["--side", "48"], "side", 48),
        (["--no_flips"], "flips", False),
        (["--learning_rate=1e-3"], "learning_rate", 1e-3),
    ],
)
def test_values_are_those_of_the_configuration(words, name, value):
    assert getattr(parse([*GIVEN, *words]).config, name) == value


@pytest.mark.parametrize("words", [["--tilts", "-60,60"], ["--tilts=-60,60"]])
def test_tilts_may_begin_with_a_minus(words):
    assert parse([*GIVEN, *words]).files.tilts == "-60,60"


def test_an_option_is_no_value_of_the_one_before(capsys):
    assert run(*GIVEN, "--tilts", "--resume") == 2
    assert "--tilts: expected one argument" in capsys.readouterr().err


def test_a_method_in_a_configuration_file_gives_its_defaults(tmp_path):
    (tmp_path / "c.yaml").write_text("method: noise2noise\nsteps: 7\n")
    config = parse([*GIVEN, "--config", str(tmp_path / "c.yaml")]).config
    assert (config.passes, config.steps) == (1, 7)


@pytest.mark.fault(91)
def test_the_weight_of_a_loss_that_the_method_does_not_have_is_refused(capsys):
    assert run(*GIVEN, "--tilts=-60,60", "--method", "noise2noise", "--equivariance-weight", "2") == 2
    error = capsys.readouterr().err
    assert "--method noise2noise compares the halves only and has no equivariance loss" in error
    assert "pass --equivariance-weight 0 with it" in error


def test_common_options_are_options():
    assert set().union(*map(names_of, COMMANDS.values())) >= COMMON


def test_steps_and_minutes_together_are_refused():
    with pytest.raises(ValueError, match="--steps and --minutes both say how long to train: give one of them"):
        parse(["train", "a.mrc", "b.mrc", "--tilts=-60,60", "--out", "run", "--steps", "5", "--minutes=10"])


def test_minutes_take_the_place_of_the_preset_s_steps():
    parsed = parse(["train", "a.mrc", "b.mrc", "--tilts=-60,60", "--out", "run", "--preset", "tiny", "--minutes=10"])
    assert parsed.config.minutes == 10
