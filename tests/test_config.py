"""The settings of a training run, their checks and the presets."""

import dataclasses
import json
import math
import re
import subprocess
import sys

import pytest

from equitomo.training.config import (
    CubeSettings,
    JudgingSettings,
    LossSettings,
    NetworkSettings,
    OptimiserSettings,
    PredictionSettings,
    RuntimeSettings,
    TrainingConfig,
)


@pytest.mark.fault(42, 43)
@pytest.mark.parametrize(
    ("side", "levels", "below", "above"),
    [(42, 4, 40, 48), (43, 4, 40, 48), (49, 4, 48, 56), (7, 4, 8, 16), (0, 4, 8, 16), (-8, 4, 8, 16), (33, 2, 32, 34)],
)
def test_a_side_that_cannot_be_halved_is_refused_with_the_two_nearest_that_can(side, levels, below, above):
    message = (
        rf"`side` must be a multiple of {2 ** (levels - 1)} for {levels} `levels`, got {side}: use {below} or {above}"
    )
    with pytest.raises(ValueError, match=message):
        TrainingConfig(side=side, levels=levels, margin=0)


@pytest.mark.parametrize(("side", "levels"), [(48, 4), (72, 4), (8, 4), (34, 2)])
def test_a_side_that_can_be_halved_is_accepted(side, levels):
    assert TrainingConfig(side=side, levels=levels, margin=1).side == side


def test_the_sides_of_a_cube_are_multiples_of_the_blocks_as_well():
    assert TrainingConfig(side=24, levels=3, unshuffle=3, margin=0).stride == 12
    message = "`side` must be a multiple of 12 for 3 `levels` and `unshuffle` 3, got 20: use 12 or 24"
    with pytest.raises(ValueError, match=message):
        TrainingConfig(side=20, levels=3, unshuffle=3, margin=0)


NAN, INF = math.nan, math.inf
OUT_OF_RANGE = [
    *[pytest.param("batch", value, "at least 1", marks=pytest.mark.fault(48)) for value in (0, -1)],
    ("micro_batch", -1, "zero or more"),
    *[pytest.param("steps", value, "at least 1", marks=pytest.mark.fault(48)) for value in (0, -5)],
    ("checkpoint_every", 0, "at least 1"),
    ("warmup", -1, "zero or more"),
    *[("minutes", value, "a positive number") for value in (0.0, -1.0, NAN, INF)],
    ("margin", -1, "zero or more"),
    ("margin", 36, "less than half of side 72"),
    ("preview_every", -1, "zero or more"),
    ("keep_every", -1, "zero or more"),
    ("seed", -1, "zero or more"),
    ("seed", 2**64, "zero or more and below"),
    ("levels", 1, "at least 2"),
    ("unshuffle", 0, "at least 1"),
    ("negative_slope", -0.1, "at least 0 and below 1"),
    ("width", 0, "a positive even number"),
    ("width", 15, "a positive even number"),
    *[
        pytest.param("learning_rate", value, "a positive number", marks=pytest.mark.fault(49))
        for value in (0.0, -1e-4, NAN, INF)
    ],
    *[("equivariance_weight", value, "zero or more") for value in (-1.0, NAN, INF)],
    *[("ema_decay", value, r"in \[0, 1\)") for value in (-0.1, 1.0, NAN)],
    *[("min_specimen", value, r"a share in \[0, 1\]") for value in (-0.1, 1.1, NAN)],
    *[("padding", value, "at least 1 and finite") for value in (0.5, NAN, INF)],
]


@pytest.mark.parametrize(("name", "value", "rule"), OUT_OF_RANGE)
def test_a_value_out_of_range_is_refused_with_its_name_and_the_rule(name, value, rule):
    with pytest.raises(ValueError, match=rf"^`{name}` must be {rule}.*, got {value}$"):
        TrainingConfig(**{name: value})


@pytest.mark.parametrize("name", ["schedule", "method", "normalization", "precision"])
def test_an_unknown_choice_is_refused_with_all_that_there_are(name):
    with pytest.raises(ValueError, match=rf"^`{name}` must be one of \w+, \w+.*, got 'other'$"):
        TrainingConfig(**{name: "other"})


@pytest.mark.fault(51)
@pytest.mark.parametrize(
    ("name", "value", "kind"),
    [
        ("side", 72.0, r"a whole number, or three \(z, y, x\)"),
        ("side", (32, 32), r"a whole number, or three \(z, y, x\)"),
        ("side", (32, 32, True), r"a whole number, or three \(z, y, x\)"),
        ("batch", 1.5, "a whole number"),
        ("steps", True, "a whole number"),
        ("seed", "7", "a whole number"),
        ("learning_rate", "1e-4", "a number"),
        ("padding", False, "a number"),
        ("flips", "no", "True or False"),
        ("device", 0, "a text"),
    ],
)
def test_a_value_of_another_type_is_refused(name, value, kind):
    with pytest.raises(ValueError, match=rf"^`{name}` must be {kind}, got {re.escape(repr(value))}$"):
        TrainingConfig(**{name: value})


def test_a_whole_number_passes_for_a_real_one():
    assert TrainingConfig(padding=2, equivariance_weight=1).padding == 2


@pytest.mark.fault(91)
def test_a_weight_of_a_loss_that_the_method_does_not_have_is_refused():
    with pytest.raises(ValueError, match="has no equivariance loss: pass `equivariance_weight=0` with it"):
        TrainingConfig.preset("tiny", method="noise2noise", equivariance_weight=2.0)
    with pytest.raises(ValueError, match="has no equivariance loss"):
        TrainingConfig(method="noise2noise")
    assert TrainingConfig.preset("tiny", method="noise2noise").equivariance_weight == 0


def test_the_default_is_the_published_configuration():
    config = TrainingConfig.preset("paper")
    assert config == TrainingConfig()
    published = {"side": 72, "batch": 8, "width": 64, "levels": 4, "steps": 50_000, "learning_rate": 1e-4}
    assert {name: getattr(config, name) for name in published} == published
    assert config.equivariance_weight == 2.0


@pytest.mark.parametrize("name", ["fast", "tiny"])
def test_the_quick_presets_are_smaller_in_every_size(name):
    paper, quick = TrainingConfig.preset("paper"), TrainingConfig.preset(name)
    assert all(getattr(quick, name) < getattr(paper, name) for name in ("side", "batch", "width", "steps"))


def test_a_preset_takes_changes():
    assert TrainingConfig.preset("tiny", steps=7) == dataclasses.replace(TrainingConfig.preset("tiny"), steps=7)


def test_a_change_that_is_no_setting_is_refused_with_the_nearest_name():
    with pytest.raises(ValueError, match="no setting has the name 'learning_rat'; the nearest name is 'learning_rate'"):
        TrainingConfig.preset("fast", learning_rat=1e-3)


@pytest.mark.parametrize(
    ("preset", "changes", "expected"),
    [
        ("paper", {}, ("icecream", 2, False, False)),
        ("tiny", {}, ("fast", 1, True, True)),
        ("fast", {"method": "icecream"}, ("icecream", 2, False, False)),
        ("paper", {"method": "fast"}, ("fast", 1, True, True)),
        ("fast", {"method": "noise2noise"}, ("noise2noise", 1, False, False)),
        ("fast", {"method": "noise2noise", "test_time_mirrors": True, "passes": 2}, ("noise2noise", 2, False, True)),
        ("tiny", {"method": "equivariant_imaging"}, ("equivariant_imaging", 1, True, False)),
    ],
)
def test_a_method_predicts_in_its_own_way_unless_told_otherwise(preset, changes, expected):
    config = TrainingConfig.preset(preset, **changes)
    assert (config.method, config.passes, config.average_first, config.test_time_mirrors) == expected


def test_a_method_keeps_the_size_and_the_optimiser_of_a_preset():
    tiny, other = TrainingConfig.preset("tiny"), TrainingConfig.preset("tiny", method="noise2noise")
    assert all(
        getattr(tiny, field.name) == getattr(other, field.name)
        for group in (NetworkSettings, CubeSettings, OptimiserSettings, RuntimeSettings)
        for field in dataclasses.fields(group)
    )


GROUPS = [
    NetworkSettings,
    LossSettings,
    CubeSettings,
    OptimiserSettings,
    PredictionSettings,
    JudgingSettings,
    RuntimeSettings,
]


def test_every_setting_is_of_one_group_and_documented_there():
    names = [field.name for group in GROUPS for field in dataclasses.fields(group)]
    assert names == [field.name for field in dataclasses.fields(TrainingConfig)]
    assert len(set(names)) == len(names)
    for group in GROUPS:
        assert all(f"\n    {field.name}\n" in group.__doc__ for field in dataclasses.fields(group))


@pytest.mark.parametrize("group", GROUPS)
def test_a_group_checks_its_own_settings(group):
    assert isinstance(TrainingConfig(), group)
    name, value = {
        NetworkSettings: ("width", 3),
        LossSettings: ("padding", 0.5),
        CubeSettings: ("batch", 0),
        OptimiserSettings: ("steps", 0),
        PredictionSettings: ("passes", 0),
        JudgingSettings: ("judge_every", 0),
        RuntimeSettings: ("checkpoint_every", 0),
    }[group]
    with pytest.raises(ValueError, match=f"^`{name}` must be"):
        group(**{name: value})


@pytest.mark.parametrize(("side", "shape"), [(32, (32, 32, 32)), ((16, 32, 40), (16, 32, 40))])
def test_a_cube_may_have_three_sides(side, shape):
    assert TrainingConfig(side=side, margin=7).cube_shape == shape


def test_every_side_of_a_cube_is_checked():
    with pytest.raises(ValueError, match="`side` must be a multiple of 8 for 4 `levels`, got 20"):
        TrainingConfig(side=(16, 20, 16), margin=2)
    with pytest.raises(ValueError, match="`margin` must be less than half of side 16, got 8"):
        TrainingConfig(side=(32, 16, 32), margin=8)


def test_a_training_that_is_to_stop_by_itself_needs_a_measure_and_a_constant_learning_rate():
    assert TrainingConfig(stop_when_stable=True, held_out=32).stop_when_stable
    with pytest.raises(ValueError, match=r"`stop_when_stable` looks at .* pass `held_out`"):
        TrainingConfig(stop_when_stable=True)
    with pytest.raises(ValueError, match="needs `schedule='constant'`: with 'cosine'"):
        TrainingConfig(stop_when_stable=True, held_out=32, schedule="cosine")
    with pytest.raises(ValueError, match="`held_out` must be 0 or at least 8, got 4"):
        TrainingConfig(held_out=4)


def test_an_unknown_preset_is_refused_with_all_that_there_are():
    with pytest.raises(ValueError, match=r"preset is one of paper, .*tiny.*, got 'huge'"):
        TrainingConfig.preset("huge")


def test_a_setting_cannot_be_changed_afterwards():
    with pytest.raises(dataclasses.FrozenInstanceError):
        TrainingConfig().side = 48


@pytest.mark.parametrize("side", [32, (16, 32, 32)])
def test_settings_come_back_from_a_dictionary_and_from_json(side):
    config = TrainingConfig.preset("tiny", seed=3, side=side)
    assert TrainingConfig.from_dict(config.as_dict()) == config
    assert TrainingConfig.from_dict(json.loads(json.dumps(config.as_dict()))) == config


def test_the_configuration_is_had_without_torch():
    code = "import sys; from equitomo.training.config import TrainingConfig; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_steps_and_minutes_together_are_refused():
    with pytest.raises(ValueError, match="`steps` and `minutes` both say how long to train: give one of them"):
        TrainingConfig.preset("tiny", steps=10, minutes=1.0)


@pytest.mark.parametrize("value", ["10", True])
def test_minutes_are_a_number(value):
    with pytest.raises(ValueError, match="`minutes` must be a number"):
        TrainingConfig(minutes=value)


def test_cubes_shrink_to_the_shortest_side_of_all_tomograms_where_a_preset_chose_them():
    fast = TrainingConfig.preset("fast", start="cryo")
    assert fast.fitted([(64, 64, 64), (41, 300, 300)]).side == 40
    assert fast.fitted([(48, 48, 48)]) == fast
    # What is too small for any cube is refused where cubes are cut.
    assert fast.fitted([(7, 300, 300)]) == fast


@pytest.mark.parametrize("start", [None, "cryo"])
def test_cubes_that_were_asked_for_do_not_shrink(start):
    for settings in ({"side": 64}, {"side": 48}, {"side": (32, 64, 64)}):
        config = TrainingConfig.preset("fast", start=start, **settings)
        assert config.fitted([(24, 24, 24)]) == config
    assert TrainingConfig.preset("paper").fitted([(24, 24, 24)]).side == 72
    assert TrainingConfig.preset("fast", start=start, side=64, fit_cubes=True).fitted([(24, 24, 24)]).side == 24
