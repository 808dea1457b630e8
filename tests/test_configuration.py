"""Configuration files: whatever is in one, it is used or refused, soon and with the reason."""

import json

import pytest
from commanding import run
from hypothesis import given, settings
from hypothesis import strategies as st

from equitomo.cli.parsing import settings_in

SEED = """\
first: even.mrc
second: odd.mrc
tilts: -60,60
tilt_axis: y
out: run
resume: false
mask: null
steps: 1000
learning_rate: 1e-3
schedule: cosine
precision: "auto"
preset: tiny
"""
KEYS = [line.partition(":")[0] for line in SEED.splitlines()]
PIECES = st.one_of(
    st.text(max_size=6),
    st.sampled_from(
        ["&a ", "*a", "[", "]", "{", "}", "!!python/name:os.system ", "!!int ", "<<: ", "---\n", "\t", "? "]
    ),
    st.sampled_from([": ", "- ", "|\n", "> ", "'", '"', "%YAML 1.2\n", "#", "\n", "null", "1e999", "9" * 30, ".nan"]),
)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=5,
)
CONTENTS = st.one_of(
    st.binary(max_size=200),
    st.lists(st.tuples(st.integers(0, len(SEED)), PIECES), max_size=5),
    st.dictionaries(st.one_of(st.sampled_from(KEYS), st.text(max_size=8)), VALUES, max_size=4),
)


def written(tmp_path, content):
    """Write a configuration: bytes, a good one with pieces inserted, or values of any kind for its keys."""
    if isinstance(content, list):
        text = SEED
        for place, piece in content:
            text = text[:place] + piece + text[place + 1 :]
        content = text.encode("utf-8", "replace")
    elif isinstance(content, dict):
        content = json.dumps(content).encode()
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    return path


def preset_of(arguments):
    return settings_in(arguments, ["preset"]).get("preset")


@pytest.mark.fault(52)
@given(CONTENTS)
def test_any_configuration_is_looked_through_or_refused(tmp_path, content):
    path = written(tmp_path, content)
    try:
        found = preset_of(["--config", str(path)])
    except ValueError:
        return
    assert found is None or isinstance(found, str)


# The parser takes a tenth of a second to build: a twentieth of what else is tried.
@settings(max_examples=max(settings.default.max_examples // 20, 15))
@given(CONTENTS)
def test_any_configuration_is_taken_or_refused_by_the_program(tmp_path, capsys, content):
    path = written(tmp_path, content)
    arguments = ["train", "--config", str(path), "a.mrc", "b.mrc", "--tilts=-60,60", "--out=run", "--print_config"]
    status = run(*arguments)
    captured = capsys.readouterr()
    assert status in (0, 2, None)
    assert status != 2 or "error: " in captured.err or captured.err.startswith("equitomo: ")


@pytest.mark.parametrize(
    "spelling", ["preset: tiny", '"preset": tiny', "{preset: tiny}", '{"preset": "tiny"}', "preset: 'tiny'"]
)
def test_the_preset_is_found_however_it_is_written(tmp_path, spelling):
    assert preset_of(["--config", str(written(tmp_path, f"{spelling}\n".encode()))]) == "tiny"


def test_the_last_of_several_configurations_names_the_preset(tmp_path):
    (tmp_path / "other.yaml").write_text("preset: paper\n")
    path = written(tmp_path, b"preset: tiny")
    assert preset_of(["--config", str(path), "--steps", "3", f"--config={tmp_path / 'other.yaml'}"]) == "paper"


@pytest.mark.fault(52)
def test_small_files_that_unfold_to_gigabytes_are_refused(tmp_path):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 10)]
    with pytest.raises(ValueError, match=r"config\.yaml uses YAML anchors or aliases"):
        preset_of(["--config", str(written(tmp_path, "\n".join(lines).encode()))])


@pytest.mark.fault(52)
def test_an_endless_file_is_refused():
    with pytest.raises(ValueError, match="/dev/zero is not a regular file"):
        preset_of(["--config", "/dev/zero"])


def test_a_name_longer_than_any_file_s_is_refused():
    with pytest.raises(OSError, match="too long"):
        preset_of(["--config", "a" * 5000])


@pytest.mark.fault(52)
@pytest.mark.parametrize("value", ['!!int ""', "!!bool maybe", "!!timestamp soon"])
def test_a_value_that_its_tag_does_not_fit_is_refused_with_the_file(tmp_path, value):
    path = tmp_path / "c.yaml"
    path.write_text(f"steps: {value}\n")
    with pytest.raises(ValueError, match=r"c\.yaml is not a YAML file of plain values"):
        preset_of(["--config", str(path)])
