"""Networks, losses and operators of any kind: the engine trains them as it does its own, and resumes to the bit."""

import csv
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import deepinv
import pytest
import torch
from deepinv.loss import EILoss, Loss, R2RLoss
from deepinv.transform import Shift
from foreign import (
    SETTINGS,
    BatchNormalised,
    CTFOperator,
    NoisierLoss,
    UNet,
    foreign_trainer,
    losses,
)
from making import noisy_halves, noisy_pair
from torch import nn

import equitomo
from equitomo import (
    IcecreamTrainer,
    MaskedEquivarianceLoss,
    Noise2NoiseLoss,
    PaddedMissingWedgeOperator,
    TiltGeometry,
    TomogramPair,
    TrainingConfig,
    load_network,
)
from equitomo.draws import Draws
from equitomo.methods import fast, method_of
from equitomo.training import Trainer, TrainingInterruptedError
from equitomo.training.checkpoint import CheckpointError, load_checkpoint
from equitomo.training.fingerprint import describe, differences

FOLDER = Path(__file__).parent


DEEPINV_UNET = partial(deepinv.models.UNet, 1, 1, dim=3, channels_per_scale=[4, 8])


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def assert_equal_runs(one, other):
    """All that two finished runs have written is the same to the bit."""
    a, b = load_checkpoint(one), load_checkpoint(other)
    assert a.state == b.state
    assert a.tensors.keys() == b.tensors.keys()
    assert all(equal(a.tensors[group], b.tensors[group]) for group in a.tensors)
    assert (one / "losses.csv").read_bytes() == (other / "losses.csv").read_bytes()


def rows(folder):
    with (folder / "losses.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def config(**changes):
    return TrainingConfig(**SETTINGS | changes)


@pytest.fixture(scope="module")
def pair():
    return noisy_pair((20, 20, 20))


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken")
    foreign_trainer(folder).train()
    return folder


# Killed and resumed ----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.fault(58)
def test_a_killed_run_of_foreign_parts_is_resumed_to_the_bit(unbroken, tmp_path):
    paths = os.pathsep.join([str(Path(equitomo.__file__).parents[1]), str(FOLDER)])
    command = [sys.executable, str(FOLDER / "foreign.py"), str(tmp_path), "8"]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}, check=False)
    assert done.returncode == -signal.SIGKILL
    assert load_checkpoint(tmp_path).state["step"] == 5
    foreign_trainer(tmp_path, resume=True).train()
    assert_equal_runs(tmp_path, unbroken)


@pytest.mark.parametrize("optimizer", ["adam", "muon"])
@pytest.mark.parametrize("network", [UNet, BatchNormalised, DEEPINV_UNET], ids=["instance", "batch", "deepinv"])
def test_a_run_of_foreign_parts_is_resumed_to_the_bit(tmp_path, network, optimizer):
    train = partial(foreign_trainer, network=network, optimizer=optimizer, steps=4, checkpoint_every=1)
    train(tmp_path / "one").train()
    train(tmp_path / "two").train(until=2)
    train(tmp_path / "two", resume=True).train()
    assert_equal_runs(tmp_path / "one", tmp_path / "two")


def test_a_run_that_lost_its_last_steps_repeats_them_to_the_bit(unbroken, tmp_path):
    foreign_trainer(tmp_path).train(until=8)
    shutil.rmtree(tmp_path / "checkpoints" / "step_00000008")
    resumed = foreign_trainer(tmp_path, resume=True)
    assert resumed.step == 5
    resumed.train()
    assert_equal_runs(tmp_path, unbroken)


@pytest.mark.fault(59)
def test_a_signal_in_the_middle_of_a_step_leaves_buffers_as_before_it(tmp_path):
    trainer = foreign_trainer(tmp_path, network=BatchNormalised)
    draw = trainer.dataset.batch

    def batch(indices):
        # In the second half of the step: the first has changed the running means.
        if trainer.step == 6 and indices.start % 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return draw(indices)

    trainer.dataset.batch = batch
    with pytest.raises(TrainingInterruptedError, match="after step 6"):
        trainer.train()
    foreign_trainer(tmp_path, network=BatchNormalised, resume=True).train()
    foreign_trainer(tmp_path / "unbroken", network=BatchNormalised).train()
    assert_equal_runs(tmp_path, tmp_path / "unbroken")


# Losses ----------------------------------------------------------------------------------------------


def test_losses_have_their_names_in_the_table_and_in_reports(unbroken, tmp_path):
    assert list(rows(unbroken)[0]) == ["step", "n2n", "rotated", "noisier", "learning_rate", "skipped"]
    seen = {}
    foreign_trainer(tmp_path, progress=seen.__setitem__).train(until=2)
    last = rows(tmp_path)[-1]
    assert seen[2] == {name: float(last[name]) for name in ("n2n", "rotated", "noisier")} | {"skipped": 0}


def test_progress_may_be_given_to_a_single_call(tmp_path):
    first, second = {}, {}
    trainer = foreign_trainer(progress=first.__setitem__, steps=2).train(until=1)
    trainer.train(progress=second.__setitem__)
    assert (list(first), list(second)) == ([1], [2])


class Counted(Loss):
    """Counts its calls, and records the numbers that it draws from torch's own generator."""

    def __init__(self, **given) -> None:
        super().__init__()
        for name, value in given.items():
            setattr(self, name, value)
        self._drawn: list[float] = []

    def forward(self, x_net, y, physics, model, **kwargs):
        self._drawn.append(torch.rand(()).item())
        return (model(y, physics) if x_net is None else x_net).square().mean()


def test_a_random_loss_draws_the_same_whatever_other_losses_there_are_and_however_a_run_is_divided():
    seen = []
    for others, stops in (({}, [12]), ({}, [5, 12]), ({"z": NoisierLoss()}, [12])):
        loss = Counted()
        trainer = foreign_trainer(losses={"mine": loss, **others})
        for stop in stops:
            trainer.train(until=stop)
        seen.append(loss._drawn)
    assert seen[0] == seen[1] == seen[2]
    # Two parts a step, of which the first may hold cubes of two geometries.
    assert len(set(seen[0])) == len(seen[0]) >= 24
    other = Counted()
    foreign_trainer(losses={"mine": other}, seed=1).train()
    assert not set(other._drawn) & set(seen[0])


def test_random_losses_leave_torch_s_own_generator_alone():
    trainer, state = foreign_trainer(steps=2), torch.get_rng_state()
    trainer.train()
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1)
    one = foreign_trainer(steps=2).train().network.state_dict()
    torch.manual_seed(2)
    assert equal(dict(one), dict(foreign_trainer(steps=2).train().network.state_dict()))


def test_a_loss_of_deepinv_with_a_generator_of_its_own_is_resumed_to_the_bit(tmp_path):
    def train(name, resume=False):
        # The generator's own seed does not matter.
        shift = Shift(rng=torch.Generator().manual_seed(len(name) + resume))
        shift.flatten_video_input = False
        mine = {"n2n": Noise2NoiseLoss(), "shifted": EILoss(shift)}
        return foreign_trainer(tmp_path / name, losses=mine, resume=resume, steps=4)

    train("one").train()
    train("other").train(until=2)
    train("other", resume=True).train()
    assert_equal_runs(tmp_path / "one", tmp_path / "other")


def test_a_loss_of_deepinv_that_changes_the_model_is_trained(pair):
    """R2RLoss adds noise to what the network sees, and asks the model for it afterwards."""
    noise = deepinv.physics.GaussianNoise(0.5)
    trainer = IcecreamTrainer(pair, config(steps=2), losses={"r2r": R2RLoss(noise_model=noise)})
    before = {name: value.clone() for name, value in trainer.learner.network.state_dict().items()}
    trainer.train()
    assert not any(torch.equal(before[name], value) for name, value in trainer.learner.network.state_dict().items())


@pytest.mark.parametrize(
    ("attributes", "calls", "learning"),
    [
        ({}, 1, 1),
        ({"needs_estimate_gradient": True}, 1, 1),
        ({"weight": 0.0}, 0, 0),
        # This one calls the network itself.
        ({"uses_estimate": False}, 1, 1),
    ],
    ids=str,
)
def test_the_estimate_is_made_where_a_loss_says_that_it_needs_it(pair, attributes, calls, learning):
    """Beside a loss that needs none."""
    idle = Parameterised()
    trainer = IcecreamTrainer(pair, config(batch=1), losses={"mine": Counted(**attributes), "idle": idle})
    grad = []
    trainer.learner.network.register_forward_hook(lambda module, x, out: grad.append(out.requires_grad))
    trainer.train(until=1)
    assert (len(grad), sum(grad)) == (calls, learning)


class Parameterised(Loss):
    """The size of the weights: no call of the network."""

    uses_estimate = needs_estimate_gradient = False

    def forward(self, x_net, y, physics, model, **kwargs):
        return sum(parameter.square().sum() for parameter in model.parameters())


def test_a_loss_may_give_one_value_or_one_per_cube_or_more(pair, tmp_path):
    class Shaped(Loss):
        def __init__(self, shape):
            super().__init__()
            self.reduce = {"one": lambda u: u.mean(), "cubes": lambda u: u.mean((1, 2, 3, 4)), "all": lambda u: u}[
                shape
            ]

        def forward(self, x_net, y, physics, model, **kwargs):
            return self.reduce(x_net.square())

    shaped = {name: Shaped(name) for name in ("one", "cubes", "all")}
    IcecreamTrainer(pair, config(steps=1, batch=3), losses=shaped, out=tmp_path).train()
    (row,) = rows(tmp_path)
    assert float(row["one"]) == pytest.approx(float(row["cubes"])) == pytest.approx(float(row["all"]))


def test_a_loss_of_another_shape_is_refused(pair):
    class Wrong(Loss):
        def forward(self, x_net, y, physics, model, **kwargs):
            return x_net.flatten()[:5]

    with pytest.raises(
        ValueError, match=r"the loss 'mine' has shape \(5,\): it must give one value, or one per sample"
    ):
        IcecreamTrainer(pair, config(), losses={"mine": Wrong()}).train()


@pytest.mark.parametrize("name", ["", "step", "skipped", "a\nb"])
def test_a_name_that_cannot_head_a_column_is_refused(pair, name):
    with pytest.raises(ValueError, match=r"heads a column of losses\.csv and cannot be"):
        IcecreamTrainer(pair, config(), losses={name: Noise2NoiseLoss()})


def test_a_function_is_no_loss(pair):
    with pytest.raises(TypeError, match="the loss 'mine' must be a deepinv loss, got <built-in"):
        IcecreamTrainer(pair, config(), losses={"mine": torch.mean})


# Networks --------------------------------------------------------------------------------------------


def test_a_network_in_place_of_a_function_that_makes_one_is_refused(pair):
    with pytest.raises(TypeError, match=r"pass `network=lambda: \.\.\.`.*as `init`"):
        IcecreamTrainer(pair, config(), network=UNet())


@pytest.mark.parametrize(("channels", "padding"), [(2, 1), (1, 0)])
def test_a_network_that_changes_the_shape_is_refused(pair, channels, padding):
    trainer = IcecreamTrainer(pair, config(), network=lambda: nn.Conv3d(1, channels, 3, padding=padding))
    with pytest.raises((ValueError, RuntimeError), match=r"must keep the shape|Shape mismatch"):
        trainer.train()


def test_the_seed_decides_the_initial_weights_of_any_network(pair):
    torch.manual_seed(1)
    one = IcecreamTrainer(pair, config(), network=UNet).network.state_dict()
    torch.manual_seed(2)
    same, other = (IcecreamTrainer(pair, config(seed=s), network=UNet).network.state_dict() for s in (0, 1))
    assert equal(dict(one), dict(same))
    assert not torch.equal(one["last.weight"], other["last.weight"])


def test_training_starts_from_the_weights_of_a_given_foreign_network(pair):
    donor = UNet()
    trainer = IcecreamTrainer(pair, config(), network=UNet, init=donor)
    assert equal(dict(trainer.network.state_dict()), dict(donor.state_dict()))


def test_a_skipped_step_leaves_buffers_as_they_were(pair):
    trainer = IcecreamTrainer(pair, config(), network=BatchNormalised)
    draw = trainer.dataset.batch
    trainer.dataset.batch = lambda indices: (draw(indices)[0] * (float("nan") if trainer.step == 3 else 1), [0] * 3)
    trainer.train(until=3)
    before = {name: value.clone() for name, value in trainer.learner.network.state_dict().items()}
    averaged = {name: value.clone() for name, value in trainer.learner.ema.items()}
    trainer.train(until=4)
    assert trainer.skipped == 1
    assert equal(before, trainer.learner.network.state_dict())
    assert equal(averaged, trainer.learner.ema)
    trainer.train(until=5)
    assert not any(torch.equal(before[name], value) for name, value in trainer.learner.network.state_dict().items())


def test_the_moving_average_takes_buffers(pair):
    trainer = IcecreamTrainer(pair, config(ema_decay=0.4), network=BatchNormalised)
    name = "layers.1.running_mean"
    expected = trainer.learner.network.get_buffer(name).clone()
    for step in range(4):
        trainer.train(until=step + 1)
        decay = min(0.4, (1 + step) / (10 + step))
        expected.lerp_(trainer.learner.network.get_buffer(name), 1 - decay)
    torch.testing.assert_close(trainer.network.get_buffer(name), expected)
    # Four steps of two parts with two calls each.
    assert trainer.network.get_buffer("layers.1.num_batches_tracked") == 16
    assert not trainer.network.training


@pytest.mark.fault(64)
def test_a_step_that_ran_out_of_memory_changes_buffers_once(pair, caplog):
    trainers = [IcecreamTrainer(pair, config(batch=2, micro_batch=n), network=BatchNormalised) for n in (2, 1)]
    left = [1]

    def fail(gradient):
        if left and trainers[0].step == 2:
            left.pop()
            raise torch.OutOfMemoryError("CUDA out of memory")
        return gradient

    for trainer in trainers:
        trainer.train(until=2)
    trainers[1].learner.network.load_state_dict(trainers[0].learner.network.state_dict())
    trainers[1].learner.restore(FakeCheckpoint.of(trainers[0]))
    next(trainers[0].learner.network.parameters()).register_hook(fail)
    one, other = (trainer.train(until=3).learner.network.state_dict() for trainer in trainers)
    assert "out of memory with 2 cubes at once: retrying with 1 cube at once" in caplog.text
    assert equal(dict(one), dict(other))


class FakeCheckpoint:
    """What a learner restores, from memory."""

    path = "memory"

    @classmethod
    def of(cls, trainer):
        made = cls()
        made.tensors = {
            group: {name: value.clone() for name, value in tensors.items()}
            for group, tensors in trainer.learner.tensors().items()
        }
        made.state = trainer.learner.state()
        return made


@pytest.mark.fault(44, 64)
def test_a_network_that_cannot_checkpoint_activations_has_no_such_rung(pair, caplog):
    trainer = IcecreamTrainer(pair, config(batch=2, micro_batch=2), network=UNet)

    def fail(gradient):
        raise torch.OutOfMemoryError("CUDA out of memory")

    next(trainer.learner.network.parameters()).register_hook(fail)
    with pytest.raises(torch.OutOfMemoryError, match=r"out of memory with 1 cube at once\. One cube is too large"):
        trainer.train()
    assert [record.message for record in caplog.records] == [
        "out of memory with 2 cubes at once: retrying with 1 cube at once"
    ]


def test_tied_weights_are_saved_and_loaded(pair, tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Conv3d(1, 1, 3, padding=1), nn.Conv3d(1, 1, 3, padding=1)
            self.two.weight = self.one.weight

        def forward(self, x):
            return self.two(self.one(x).relu())

    trainer = IcecreamTrainer(pair, config(steps=2), network=Tied, out=tmp_path).train()
    assert equal(dict(load_network(tmp_path, network=Tied).state_dict()), dict(trainer.network.state_dict()))


def test_frozen_parameters_stay(pair):
    def network():
        made = UNet()
        made.fine.requires_grad_(False)
        return made

    trainer = IcecreamTrainer(pair, config(optimizer="muon", steps=2), network=network)
    before = {name: value.clone() for name, value in trainer.learner.network.state_dict().items()}
    after = trainer.train().learner.network.state_dict()
    assert {name for name in before if torch.equal(before[name], after[name])} == {
        name for name in before if name.startswith("fine")
    }


# Checkpoints -----------------------------------------------------------------------------------------


def test_a_foreign_network_is_loaded_with_the_function_that_made_it(unbroken):
    network = load_network(unbroken, network=UNet)
    assert isinstance(network, UNet)
    assert equal(dict(network.state_dict()), load_checkpoint(unbroken).tensors["ema"])
    last = load_network(unbroken, network=UNet, ema=False)
    assert equal(dict(last.state_dict()), load_checkpoint(unbroken).tensors["weights"])


def test_loading_leaves_torch_s_own_generator_alone(unbroken):
    state = torch.get_rng_state()
    load_network(unbroken, network=UNet)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.fault(61)
def test_a_foreign_network_without_its_function_is_refused_and_named(unbroken):
    with pytest.raises(CheckpointError, match=r"holds the weights of a foreign\.UNet, which .*pass `network`"):
        load_network(unbroken)


@pytest.mark.fault(61)
@pytest.mark.parametrize(
    ("network", "message"),
    [
        (BatchNormalised, r"weights of a foreign\.UNet, and `network` makes another network, a foreign\.BatchNormal"),
        (lambda: UNet(8), r"a foreign\.UNet, and `network` makes another.*text was.*Conv3d\(1, 4.*now.*Conv3d\(1, 8"),
    ],
    ids=["another class", "another width"],
)
def test_another_function_than_that_of_the_network_is_refused_with_both(unbroken, network, message):
    with pytest.raises(CheckpointError, match=message):
        load_network(unbroken, network=network)


def test_a_network_of_the_library_in_other_sizes_needs_no_function(pair, tmp_path):
    def network():
        return equitomo.ScaleEquivariantUNet3D(width=6, levels=3)

    trained = IcecreamTrainer(pair, config(steps=1), network=network, out=tmp_path).train()
    assert equal(dict(load_network(tmp_path).state_dict()), dict(trained.network.state_dict()))


class Other(CTFOperator):
    """An operator of another class."""


OTHERS = {
    "network": ({"network": BatchNormalised}, r"network\.class was foreign\.UNet, now foreign\.BatchNormalised"),
    "size of the network": (
        {"network": partial(UNet, 6)},
        r"network\.text was UNet\(.*, now UNet\(|width was 4, now 6",
    ),
    "a loss more": ({"losses": losses() | {"more": NoisierLoss()}}, r"losses\.more is new"),
    "a loss less": ({"losses": {"n2n": Noise2NoiseLoss(margin=2)}}, r"losses\.rotated is no longer there"),
    "another loss": (
        {"losses": losses() | {"noisier": Noise2NoiseLoss()}},
        r"losses\.noisier\.class was foreign\.NoisierLoss, now equitomo\.loss\.noise2noise\.Noise2NoiseLoss",
    ),
    "setting of a loss": ({"losses": losses() | {"noisier": NoisierLoss(0.6)}}, r"noisier\.sigma was 0\.5, now 0\.6"),
    "operator": ({"physics": Other}, r"operators\[0\]\.class was foreign\.CTFOperator, now test_engine\.Other"),
    "setting of the operator": (
        {"physics": partial(CTFOperator, defocus=30.0)},
        r"operators\[0\]\.defocus was 40\.0, now 30\.0",
    ),
    "augmentations": ({"method": "fast"}, r"`method` was icecream, now fast"),
}


@pytest.mark.fault(61)
@pytest.mark.parametrize(("changes", "message"), OTHERS.values(), ids=OTHERS.keys())
def test_resuming_with_other_parts_is_refused_with_both_named(unbroken, changes, message):
    with pytest.raises(CheckpointError, match=message):
        foreign_trainer(unbroken, resume=True, **changes)


@pytest.mark.fault(61)
def test_resuming_with_other_changes_of_the_cubes_is_refused(pair, tmp_path):
    settings = config(method="fast", side=8, margin=1, steps=2)
    method = fast.method(settings, cut_margin=2)
    Trainer(pair, method, settings, out=tmp_path).train(until=1)
    for changes, message in (
        ({"cut_margin": 4}, "cut_margin was 2, now 4"),
        ({"augmentations": ()}, "augmentations was"),
        ({"larger_augmentations": ()}, "larger_augmentations was"),
    ):
        with pytest.raises(CheckpointError, match=message):
            Trainer(pair, replace(method, **changes), settings, out=tmp_path, resume=True)


@pytest.mark.parametrize("part", [UNet(), CTFOperator((8, 8, 8), (-60, 60)), *losses().values()], ids=type)
def test_a_description_is_the_same_each_time_and_with_rounding(part):
    before = describe(part)
    assert not list(differences(before, describe(part)))
    with torch.no_grad():
        for value in (*part.parameters(), *part.buffers()):
            value *= 1 + 1e-6
    assert not list(differences(before, describe(part)))


def test_a_description_sees_values_and_where_they_stand():
    part = CTFOperator((8, 8, 8), (-60, 60))
    before = describe(part)
    part.transfer = part.transfer.flip(0, 1)
    assert any("state.transfer" in difference for difference in differences(before, describe(part)))
    assert not list(differences(describe(UNet(), values=False), describe(UNet(), values=False)))


@pytest.mark.fault(54)
def test_a_run_that_is_replaced_is_removed_when_training_begins(unbroken, tmp_path):
    shutil.copytree(unbroken, tmp_path, dirs_exist_ok=True)
    pairs, settings = noisy_pair((20, 20, 20)), config(steps=2)
    trainer = IcecreamTrainer(pairs, settings, out=tmp_path, overwrite=True)
    assert load_checkpoint(tmp_path).state["step"] == 12
    trainer.train()
    assert [row["step"] for row in rows(tmp_path)] == ["1", "2"]
    assert load_checkpoint(tmp_path).state["step"] == 2
    assert len(list((tmp_path / "checkpoints").iterdir())) == 1


# Operators -------------------------------------------------------------------------------------------


TILTS = [(-60.0, 60.0), (-40.0, 55.0)]


class Masked(CTFOperator):
    """An operator with a mask that can be replaced."""

    def __init__(self, shape, geometry, strength=1.0):
        super().__init__(shape, geometry)
        self.register_buffer("mask", self.transfer.expand(shape[0], shape[1], -1)[None, None].contiguous())
        del self.transfer
        self.strength = strength

    def A(self, x, mask=None, **kwargs):
        self.update_parameters(mask=mask)
        return self.strength * filtered_by(x, self.mask)


class Tilted(Masked):
    """An operator whose strength depends on the geometry too."""

    def __init__(self, shape, geometry):
        super().__init__(shape, geometry, strength=geometry.tilt_range[1] / 60)


def filtered_by(x, mask):
    from equitomo.fourier import filtered

    return filtered(x, mask, x.shape[-3:])


@pytest.mark.parametrize(
    ("physics", "n_operators"),
    [(partial(PaddedMissingWedgeOperator, support="ball"), 1), (CTFOperator, 2), (Masked, 1), (Tilted, 2)],
)
def test_operators_become_one_where_they_differ_in_their_masks_only(tmp_path, physics, n_operators):
    pairs = [noisy_pair((16, 16, 20), seed=k, geometry=tilts) for k, tilts in enumerate(TILTS)]
    mine = {"n2n": Noise2NoiseLoss()}
    trainer = IcecreamTrainer(pairs, config(batch=6, steps=1), losses=mine, physics=physics, out=tmp_path)
    assert len(trainer.objective.terms) == n_operators
    cubes, sources = trainer.dataset.batch(range(6))
    assert set(sources) == {0, 1}
    network, expected = trainer.network, 0.0
    with torch.no_grad():
        for cube, source in zip(cubes, sources, strict=True):
            operator = physics((16, 16, 16), pairs[source].geometry)
            for view in (0, 1):
                residual = operator.A(network(cube[None, [view]])) - cube[None, [1 - view]]
                expected += residual.square().mean().item() / 2 / 6
    trainer.train()
    assert float(rows(tmp_path)[0]["n2n"]) == pytest.approx(expected, rel=1e-4)


def test_tomograms_of_one_geometry_share_one_mask():
    pairs = [noisy_pair((16, 16, 20), seed=seed) for seed in range(2)]
    other = noisy_pair((16, 20, 16), seed=2, geometry=(-40.0, 55.0))
    assert IcecreamTrainer(pairs, config()).objective.masks is None
    assert len(IcecreamTrainer([*pairs, other], config()).objective.masks) == 2


def test_tilt_axes_whose_operators_have_other_grids_train_together(tmp_path):
    """Each cube is measured as it would be alone."""
    pairs = [noisy_pair((16, 16, 20), geometry=TiltGeometry.from_range(-60, 60, tilt_axis=axis)) for axis in "xy"]
    settings = config(method="fast", batch=6)
    trainer = Trainer(pairs, replace(method_of(settings), augmentations=()), settings)
    assert [tuple(part.physics.grid_shape) for part in trainer.objective.terms] == [(32, 32, 16), (32, 16, 32)]
    y, sources = trainer.dataset.batch(range(6))
    assert set(sources) == {0, 1}
    found = trainer.objective(y, [pairs[source].geometries for source in sources], Draws(0, range(6)))
    for number, source in enumerate(sources):
        alone = Trainer(pairs[source], replace(method_of(settings), augmentations=()), settings)
        own = alone.objective(y[[number]], [pairs[source].geometries], Draws(0, [number]))
        torch.testing.assert_close(found[:, [number]], own, rtol=1e-4, atol=1e-6)


def halves_of_different_tilts(**settings):
    return TomogramPair(*noisy_halves((20, 20, 20)), TILTS[0], second_geometry=TILTS[1], **settings)


def test_each_half_is_measured_with_its_own_tilts(tmp_path):
    halves, settings = halves_of_different_tilts(), config(steps=1, batch=2, equivariance_weight=0.0)
    trainer = IcecreamTrainer(halves, settings, out=tmp_path)
    operators = [PaddedMissingWedgeOperator((16, 16, 16), tilts) for tilts in TILTS]
    network, (cubes, _) = trainer.network, trainer.dataset.batch(range(2))
    window, expected = (..., *[slice(2, 14)] * 3), 0.0
    with torch.no_grad():
        for view in (0, 1):
            residual = network(cubes[:, [view]]) - cubes[:, [1 - view]]
            # The residual is masked by what the half that it is compared with has measured.
            expected += operators[1 - view].A(residual)[window].square().mean().item() / 2
    trainer.train()
    assert float(rows(tmp_path)[0]["data"]) == pytest.approx(expected, rel=1e-4)


def test_halves_of_different_tilts_train_beside_others(tmp_path):
    pairs = [noisy_pair((20, 20, 20), seed=3), halves_of_different_tilts()]
    trainer = IcecreamTrainer(pairs, config(steps=2, batch=4), out=tmp_path).train()
    assert trainer.objective.masks.shape[:2] == (2, 2)
    assert len(load_checkpoint(tmp_path).geometries) == 2


def test_fast_trains_on_halves_of_different_tilts(tmp_path):
    settings = config(method="fast", steps=1, batch=4)
    IcecreamTrainer(halves_of_different_tilts(), settings, out=tmp_path).train()
    assert load_checkpoint(tmp_path).geometries == [TiltGeometry.from_range(*tilts) for tilts in TILTS]


@pytest.mark.parametrize(
    ("parts", "settings", "message"),
    [
        ({}, {"method": "equivariant_imaging"}, "takes the mean of the halves, whose tilts differ"),
        ({"physics": CTFOperator}, {}, "an operator of the class CTFOperator cannot take a mask for each"),
    ],
)
def test_halves_of_different_tilts_are_refused_where_one_wedge_is_presumed(parts, settings, message):
    with pytest.raises(ValueError, match=message):
        IcecreamTrainer(halves_of_different_tilts(), config(**settings), **parts)


def test_a_geometry_of_two_axes_is_trained_on(tmp_path):
    both = TiltGeometry.from_range(-60, 60) | TiltGeometry.from_range(-50, 50, "x")
    for method in ("icecream", "fast"):
        folder = tmp_path / method
        IcecreamTrainer(noisy_pair(geometry=both), config(method=method, steps=1), out=folder).train()
        assert load_checkpoint(folder).geometries == [both]


@pytest.mark.parametrize("side", [(8, 16, 16), (16, 8, 16)])
def test_cubes_may_have_unequal_sides(pair, side, tmp_path):
    trainer = IcecreamTrainer(pair, config(side=side, steps=2), out=tmp_path).train()
    assert trainer.dataset.shape == side
    assert all(float(row["equivariance"]) > 0 for row in rows(tmp_path))
    assert IcecreamTrainer(pair, config(side=side, steps=3), out=tmp_path, resume=True).train().step == 3


def test_a_loss_that_masks_itself_gets_the_rotations_of_its_operator(pair):
    """Rotations are drawn from those that move the wedge; from all of them for an operator without a mask."""
    elements = []
    for physics in (None, CTFOperator):
        trainer = IcecreamTrainer(pair, config(), physics=physics)
        (loss,) = [one for one in trainer.objective.terms[0].losses if isinstance(one, MaskedEquivarianceLoss)]
        elements.append(len(loss.transform.elements))
    assert elements == [40, 48]
