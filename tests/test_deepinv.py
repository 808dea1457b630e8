"""The checks that deepinv holds its own operators, transforms and losses to, run on ours; and the blocks put together.

The functions come from the tests inside the installed package, with the part exchanged that makes the object to test.
What cannot hold, and why:

* ``test_operator_multiscale_wrapper``: the multi-scale wrapper is two-dimensional; deepinv skips operators with "3d" in
  their name, as ours have here.
* ``test_transforms`` with four-dimensional images: the group turns volumes. Its time axis is our z.
* ``test_batch_size``, ``test_rotate_90``, ``test_shift_time`` and the like make their own transforms; what they claim
  is claimed of ours in ``test_transform.py``.
* ``test_stacked_loss`` and ``test_loss_scheduler`` make their own losses; ours in a scheduler are tested below.
* ``test_no_reference_metrics`` demands that noise makes an image worse; but a wedge that noise has filled holds more
  energy, as it should.
* The pseudo-inverse of the padded operator passes deepinv's check, which allows 5 %, but is ill-posed: see below.
"""

from __future__ import annotations

import importlib
import itertools
import sys
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType, SimpleNamespace

import deepinv
import numpy as np
import pytest
import torch
from asserting import assert_close, dense, normal
from deepinv.loss.scheduler import InterleavedLossScheduler
from deepinv.transform import Shift
from making import noisy_pair
from torch.linalg import matrix_norm

from equitomo import (
    CubeRotationGroup,
    MaskedEquivarianceLoss,
    MissingWedgeOperator,
    Noise2NoiseLoss,
    PaddedMissingWedgeOperator,
    ScaleEquivariantUNet3D,
    SubtomogramDataset,
    TiltGeometry,
    TiltRangeGenerator,
    TiltSeriesPhysics,
    TwoViewReconstructor,
    read_volume,
    wedge_mask,
    write_volume,
)
from equitomo.filled import measured_part
from equitomo.fourier import frequencies
from equitomo.metrics import FourierCorrelation, FSCResolution, MeanFSC

CPU, SLOW = torch.device("cpu"), pytest.mark.slow
SIZE = (2, 6, 7, 8)


def contrast(shape):
    """A mask with both signs inside a wedge, as defocus makes it."""
    kz, ky, kx = frequencies(shape)
    return wedge_mask(shape, (-60.0, 40.0)) * torch.cos(12 * (kz**2 + ky**2 + kx**2))


OPERATORS = {
    "wedge 3d": lambda size: MissingWedgeOperator(size, (-60, 40)),
    "wedge 3d about x, box": lambda size: MissingWedgeOperator(
        size, TiltGeometry.from_range(-50, 20, "x"), support="box"
    ),
    "wedge 3d, weighted union": lambda size: MissingWedgeOperator(
        size, TiltGeometry([-60, 0, 40], weights=[0.5, 1, 0.7]) | TiltGeometry.from_range(-50, 20, "x")
    ),
    "wedge 3d, signed": lambda size: MissingWedgeOperator(size, mask=contrast),
    "padded 3d, signed": lambda size: PaddedMissingWedgeOperator(size, mask=contrast),
    "series 3d": lambda size: TiltSeriesPhysics(size, TiltGeometry(range(-60, 41, 10)), detector=13),
    "series 3d about x, shifted": lambda size: TiltSeriesPhysics(
        size, TiltGeometry(range(-60, 41, 10), "x"), tilt_axis_offset=0.7
    ),
    "padded 3d": lambda size: PaddedMissingWedgeOperator(size, (-60, 40)),
    "padded 3d about x, box": lambda size: PaddedMissingWedgeOperator(
        size, TiltGeometry.from_range(-50, 20, "x"), support="box"
    ),
}
TRANSFORMS = {
    "cube": lambda rng: CubeRotationGroup(rng=rng),
    "moving": lambda rng: CubeRotationGroup.moving(MissingWedgeOperator((8, 8, 8), (-60, 40)), rng=rng),
    "cube*shift": lambda rng: CubeRotationGroup(rng=rng) * Shift(rng=rng),
    "cube3*shift3": lambda rng: CubeRotationGroup(n_trans=3, rng=rng) * Shift(n_trans=3, rng=rng),
    "cube+shift": lambda rng: CubeRotationGroup(rng=rng) + Shift(rng=rng),
    "cube|shift": lambda rng: CubeRotationGroup(rng=rng) | Shift(rng=rng),
}
PHYSICS_CHECKS = {
    "test_operators_adjointness": {"rng"},
    "test_operators_norm": {"rng", "verbose"},
    "test_pseudo_inverse": {"rng", "implicit_backward_solver"},
    "test_decomposable": {"rng"},
    "test_concatenation": set(),
    "test_operators_differentiability": set(),
    "test_physics_state_dict": set(),
    "test_clone": set(),
    "test_device_consistency": None,
    "test_adjoint_autograd": set(),
    "test_operator_cropper": {"rng"},
}


@pytest.fixture
def their_physics_tests(monkeypatch, tmp_path) -> ModuleType:
    """deepinv's tests of operators, made to find ours."""
    theirs = importlib.import_module("deepinv.tests.test_physics")

    def find_operator(name, device, imsize=None, get_physics_param=False):
        size = SIZE if imsize is None else imsize
        physics = OPERATORS[name](size)
        # Padding takes something from a mask that reaches one at zero frequency only.
        norm = (
            1.0
            if name != "padded 3d, signed" and not name.startswith("series")
            else float(matrix_norm(dense(OPERATORS[name](size).double().A, size[1:]), 2))
        )
        found = physics, size, norm**2, torch.float32
        return (*found, [] if name.startswith("series") else ["mask"]) if get_physics_param else found

    monkeypatch.setattr(theirs, "find_operator", find_operator)
    monkeypatch.setattr(theirs, "OPERATORS", list(OPERATORS))
    # One of them writes into the working directory.
    monkeypatch.chdir(tmp_path)
    return theirs


# A composition of deepinv's warns that it solves by iteration.
@pytest.mark.filterwarnings("ignore:At least one input physics is a DecomposablePhysics")
@pytest.mark.parametrize("name", OPERATORS)
# A clone is made with its dead references collected, which takes seconds.
@pytest.mark.parametrize("check", [pytest.param(c, marks=SLOW) if c == "test_clone" else c for c in PHYSICS_CHECKS])
def test_operators_pass_the_checks_of_deepinv(check, name, their_physics_tests):
    torch.manual_seed(0)
    needs = PHYSICS_CHECKS[check]
    if needs is None:
        their_physics_tests.test_device_consistency(name)
        return
    choices = {
        "rng": [torch.Generator().manual_seed(0)],
        "verbose": [False],
        "implicit_backward_solver": [True, False],
    }
    for values in itertools.product(*(choices[need] for need in sorted(needs))):
        arguments = dict(zip(sorted(needs), values, strict=True))
        getattr(their_physics_tests, check)(name=name, device=CPU, **arguments)


def test_the_multiscale_wrapper_of_deepinv_is_for_images(their_physics_tests):
    with pytest.raises(pytest.skip.Exception, match="matches an exception"):
        their_physics_tests.test_operator_multiscale_wrapper("padded 3d", CPU, None)


def test_the_checks_of_deepinv_would_notice_a_wrong_adjoint(their_physics_tests, monkeypatch):
    monkeypatch.setattr(PaddedMissingWedgeOperator, "A_adjoint", lambda self, y, **kwargs: 0.9 * y)
    with pytest.raises(AssertionError):
        their_physics_tests.test_operators_adjointness("padded 3d", CPU, torch.Generator().manual_seed(0))


def test_the_pseudo_inverse_of_the_padded_operator_is_ill_posed():
    """A+ A A+ = A+ fails by far for what deepinv computes, while the proximal step is right: hence the advice."""
    physics = PaddedMissingWedgeOperator((6, 6, 6), (-60, 60))
    y = normal(1, 1, 6, 6, 6, dtype=torch.float32)
    x = physics.A_dagger(y)
    again = physics.A_dagger(physics.A(x))
    assert (again - x).norm() > 0.01 * x.norm()
    assert x.norm() > 5 * y.norm()


@pytest.fixture
def their_transform_tests(monkeypatch) -> ModuleType:
    """deepinv's tests of transforms, made to choose ours."""
    theirs = importlib.import_module("deepinv.tests.test_transform")
    monkeypatch.setattr(theirs, "choose_transform", lambda name, device, rng: TRANSFORMS[name](rng))
    return theirs


@pytest.mark.parametrize("name", TRANSFORMS)
def test_transforms_pass_the_shape_check_of_deepinv(name, their_transform_tests):
    image = normal(1, 3, 8, 8, 8, dtype=torch.float32)
    their_transform_tests.test_transforms(name, image, add_time_dim=False, device=CPU, rng=torch.Generator())


@pytest.mark.parametrize("name", TRANSFORMS)
def test_transforms_pass_the_identity_check_of_deepinv(name, their_transform_tests):
    # deepinv looks for a square of 30 at an offset in the last two axes.
    pattern = torch.zeros(1, 1, 48, 48, 48)
    pattern[..., 5:35, 3:33] = 1
    their_transform_tests.test_transform_identity(
        name, pattern, (5, 3), add_time_dim=False, device=CPU, rng=torch.Generator()
    )


@pytest.fixture
def their_loss_tests(monkeypatch) -> ModuleType:
    """deepinv's tests of losses, which import their neighbours by bare names."""
    monkeypatch.syspath_prepend(str(Path(deepinv.__file__).parent / "tests"))
    neighbour = ModuleType("conftest")
    neighbour.non_blocking_plots = None
    monkeypatch.setitem(sys.modules, "conftest", neighbour)
    theirs = importlib.import_module("deepinv.tests.test_loss")
    monkeypatch.delitem(sys.modules, "dummy", raising=False)
    return theirs


@pytest.fixture
def their_generator_tests(monkeypatch, request) -> ModuleType:
    """deepinv's tests of generators, made to find ours; settings of torch that importing them changes are restored."""
    request.config.addinivalue_line("markers", "indirect: used by deepinv's tests of generators")
    monkeypatch.setattr(torch, "use_deterministic_algorithms", lambda *args: None)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", torch.backends.cudnn.deterministic)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    theirs = importlib.import_module("deepinv.tests.test_generators")

    def find_generator(name, size, device, dtype, psf_size=None, rng=None):
        # Their functions know the parameters of each of their generators by its name.
        (key,) = {"SigmaGenerator": ["sigma"], "GaussianBlurGenerator": ["filter"]}.get(name, ["mask"])

        class Named(TiltRangeGenerator):
            def step(self, *args, **kwargs):
                return {key: super().step(*args, **kwargs)["mask"]}

        physics = GENERATED[name](MissingWedgeOperator)((16, 15, 18))
        return Named(physics, device=device, dtype=dtype, rng=rng), size, [key]

    monkeypatch.setattr(theirs, "find_generator", find_generator)
    return theirs


GENERATED = {
    "SigmaGenerator": lambda kind: lambda size: kind(size, (-60, 60)),
    "GaussianBlurGenerator": lambda kind: (
        lambda size: kind(size, TiltGeometry.from_range(-60, 60) | TiltGeometry.from_range(-60, 60, "x"))
    ),
}
each_rng = pytest.mark.parametrize("seed", [None, 0])


@each_rng
@pytest.mark.parametrize("name", GENERATED)
@pytest.mark.parametrize("check", ["test_generation_newparams", "test_generation_seed", "test_average"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_generator_passes_the_checks_of_deepinv(check, name, seed, dtype, their_generator_tests):
    rng = None if seed is None else torch.Generator().manual_seed(seed)
    getattr(their_generator_tests, check)(name=name, device=CPU, dtype=dtype, rng=rng)


@each_rng
def test_the_generator_passes_the_shape_check_of_deepinv(seed, their_generator_tests):
    rng = None if seed is None else torch.Generator().manual_seed(seed)
    their_generator_tests.test_shape("SigmaGenerator", (5, 5), CPU, torch.float32, rng)


@each_rng
@pytest.mark.parametrize("together", [True, False])
def test_a_mixture_of_generators_passes_the_check_of_deepinv(together, seed, their_generator_tests):
    rng = None if seed is None else torch.Generator().manual_seed(seed)
    names = ["SigmaGenerator", "SigmaGenerator"]
    check = their_generator_tests.test_generator_mixture
    with pytest.warns(UserWarning, match="same keys and shapes") if together else nullcontext():
        check(names, (5, 5), torch.float32, together, CPU, rng)


class Circles(torch.utils.data.Dataset):
    """deepinv's made-up images, stacked to volumes, and their measurements."""

    def __init__(self, samples: int, physics: MissingWedgeOperator, theirs: ModuleType, seed: int) -> None:
        self.x = theirs.DummyCircles(samples=samples, imsize=physics.volume_shape, seed=seed).x[:, None]
        self.y = physics.A(self.x)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"x": self.x[index], "y": self.y[index]}


@pytest.mark.filterwarnings("ignore:non_blocking_transfers=True can only be used when device is cuda")
@pytest.mark.parametrize("masked", [True, False])
def test_training_with_the_equivariance_loss_passes_the_check_of_deepinv(
    masked, their_loss_tests, monkeypatch, tmp_path
):
    torch.manual_seed(0)
    physics, rng = MissingWedgeOperator((8, 8, 8), (-60, 40)), torch.Generator().manual_seed(0)
    loss = MaskedEquivarianceLoss(CubeRotationGroup.moving(physics, rng=rng), masked=masked)
    monkeypatch.setattr(their_loss_tests, "choose_loss", lambda *args, **kwargs: [deepinv.loss.MCLoss(), loss])
    data = Circles(50, physics, their_loss_tests, 1), Circles(10, physics, their_loss_tests, 2)
    their_loss_tests.test_losses(None, "ours", tmp_path, data, physics, (8, 8, 8), CPU, rng)


METRICS = {
    "mean FSC": MeanFSC,
    "resolution": FSCResolution,
    "correlation": FourierCorrelation,
    "correlation in the wedge": lambda **settings: FourierCorrelation((-60, 40), region="wedge", **settings),
}


# A resolution is not differentiable and refuses to be a loss.
USES = [(name, is_loss) for name in METRICS for is_loss in (False, True) if (name, is_loss) != ("resolution", True)]


@pytest.mark.parametrize("name, train_loss", USES)
@pytest.mark.parametrize("channels", [1, 2, 3])
def test_metrics_pass_the_check_of_deepinv(name, channels, train_loss, monkeypatch):
    theirs = importlib.import_module("deepinv.tests.test_metric")
    monkeypatch.setattr(theirs, "choose_full_reference_metric", lambda name, device, **kwargs: METRICS[name](**kwargs))
    image, rng = normal(1, 3, 8, 9, 10, dtype=torch.float32), torch.Generator().manual_seed(1)
    # Two channels are real and imaginary part to it, three are volumes compared together.
    theirs.test_full_reference_metrics(name, train_loss, None, rng, CPU, channels, image, 1, 0)


# Its viewer


def test_the_parts_of_a_result_are_layers_of_the_viewer_of_deepinv(tmp_path, monkeypatch):
    """napari itself needs a display: a stand-in takes the layers that it would show."""
    layers = []
    viewer = SimpleNamespace(grid=SimpleNamespace(), reset_view=lambda: None)
    viewer.add_image = lambda data, name: layers.append(data)
    napari = ModuleType("napari")
    napari.Viewer = lambda ndisplay, show: viewer
    napari.run = lambda: None
    monkeypatch.setitem(sys.modules, "napari", napari)
    result = normal(12, 15, 18, dtype=torch.float32).numpy()
    measured = measured_part(result, (-60.0, 60.0))
    parts = {"measured": measured, "filled": result - measured}
    paths = [write_volume(tmp_path / f"{name}.mrc", part, voxel_size=10.0) for name, part in parts.items()]
    volumes = [torch.from_numpy(np.array(read_volume(path)[:])) for path in paths]
    deepinv.utils.plot_napari(*(volume[None, None] for volume in volumes), rescale_mode="clip", vmin=-2, vmax=2)
    for layer, part in zip(layers, parts.values(), strict=True):
        assert layer.shape == (12, 15, 18)
        np.testing.assert_allclose(4 * layer - 2, part.clip(-2, 2), atol=1e-5)


# The blocks put together


def blocks(seed: int = 0) -> SimpleNamespace:
    torch.manual_seed(seed)
    physics = PaddedMissingWedgeOperator((12, 12, 12), (-60, 60))
    model = TwoViewReconstructor(ScaleEquivariantUNet3D(width=4, levels=2))
    group = CubeRotationGroup.moving(physics, rng=torch.Generator().manual_seed(0))
    return SimpleNamespace(
        physics=physics,
        model=model,
        losses=[Noise2NoiseLoss(), MaskedEquivarianceLoss(group)],
        optimizer=torch.optim.Adam(model.parameters(), lr=3e-3),
        loader=torch.utils.data.DataLoader(SubtomogramDataset(noisy_pair((20, 24, 22)), 12, length=120), batch_size=4),
    )


def test_the_blocks_train_in_a_loop_of_ones_own():
    b, history = blocks(), []
    for batch in b.loader:
        y = batch["y"]
        x_net = b.model(y, b.physics)
        loss = sum(term(x_net=x_net, y=y, physics=b.physics, model=b.model).mean() for term in b.losses)
        b.optimizer.zero_grad()
        loss.backward()
        b.optimizer.step()
        history.append(float(loss.detach()))
    # Each batch has other cubes and other noise: eight of them even that out.
    assert sum(history[-8:]) < 0.95 * sum(history[:8])


def test_the_blocks_train_in_the_trainer_of_deepinv():
    b = blocks()
    trainer = deepinv.Trainer(
        model=b.model,
        physics=b.physics,
        optimizer=b.optimizer,
        train_dataloader=b.loader,
        losses=b.losses,
        metrics=None,
        compute_train_metrics=False,
        epochs=3,
        device="cpu",
        save_path=None,
        show_progress_bar=False,
        verbose=False,
        non_blocking_transfers=False,
    )
    trainer.train()
    # The network starts near zero, where nothing is inequivariant: one loss rises a little while the sum falls.
    total = [sum(losses) for losses in zip(*trainer.loss_history.values(), strict=True)]
    assert total[2] < total[1] < total[0]
    assert total[2] < 0.95 * total[0]


def test_the_losses_take_turns_in_a_scheduler_of_deepinv():
    b = blocks()
    y = next(iter(b.loader))["y"]
    scheduler = InterleavedLossScheduler(*b.losses)
    arguments = {"x": None, "y": y, "physics": b.physics, "model": b.model}
    with torch.no_grad():
        x_net = b.model(y, b.physics)
        values = [scheduler(x_net=x_net, **arguments, epoch=0) for _ in range(2)]
        assert_close(values[0], b.losses[0](x_net=x_net, **arguments), 1e-6)
    assert [value.shape for value in values] == [(4,)] * 2
    assert not torch.allclose(values[0], values[1])
