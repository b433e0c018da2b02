"""Training on a tiny network: resuming, signals, averages, a falling loss, refusals."""

import contextlib
import copy
import json
import math
import os
import pathlib
import signal
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny import DATA, SIZE, assert_equal, state_of, tiny_recipe, tiny_train
from torch import Tensor, nn

from cmrepro.checkpoints.io import read_info
from cmrepro.checkpoints.load import load_model
from cmrepro.consistency.continuous import consistency_tangent
from cmrepro.consistency.distances import pseudo_huber
from cmrepro.consistency.parameterization import boundary_scalings
from cmrepro.consistency.schedules import karras_times
from cmrepro.consistency.solvers import ode_slope
from cmrepro.data import open_images, synthetic
from cmrepro.noise import noise
from cmrepro.sampling import sample, sampler_settings, to_uint8
from cmrepro.training.data import Batch, BatchSource
from cmrepro.training.methods import METHODS, middle_time
from cmrepro.training.recipes import load_recipe, recipe_names
from cmrepro.training.step import Training, needs_teacher

pytestmark = pytest.mark.usefixtures("networks")


def losses_of(folder: pathlib.Path) -> list[tuple[int, float]]:
    lines = (folder / "log.jsonl").read_text().splitlines()
    return [(entry["step"], entry["loss"]) for entry in map(json.loads, lines)]


@contextlib.contextmanager
def before_call(owner: Any, name: str, call: int, action: Any) -> Iterator[None]:
    """Do something before the given call (from 0) of a function."""
    original, calls = getattr(owner, name), iter(range(10**6))

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == call:
            action()
        return original(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, wrapped)
        yield


def interrupt() -> None:
    raise KeyboardInterrupt


# CD with a target of its own, and with mu = 0, where the target is the online network.
# The gradients of a training in fp16 are scaled, and a resumed run must continue with the scale.
RUNS = [
    ("edm", {}),
    ("cd", {}),
    ("cd", {"target_ema": 0.0}),
    ("ct", {}),
    ("edm", {"mixed_precision": True}),
    ("pd", {}),
]


@pytest.mark.parametrize(("method", "changes"), RUNS)
def test_an_interrupted_run_resumes_bit_for_bit(
    tmp_path: pathlib.Path, teacher: pathlib.Path, method: str, changes: dict[str, Any]
) -> None:
    recipe = tiny_recipe(method, **changes)
    settings: dict[str, Any] = {"teacher": teacher if method in ("cd", "pd") else None}
    settings |= {"save_every": 4, "log_every": 1}
    whole = tiny_train(recipe, tmp_path / "whole", **settings)
    assert state_of(whole.parent)["step"] == 20
    folder = tmp_path / "interrupted"
    with pytest.raises(KeyboardInterrupt), before_call(Training, "loss", 10, interrupt):
        tiny_train(recipe, folder, **settings)
    assert state_of(folder)["step"] == 8
    tiny_train(recipe, folder, **settings, resume=True)
    assert_equal(state_of(folder), state_of(whole.parent))
    assert_equal(load_file(folder / whole.name), load_file(whole))
    assert losses_of(folder) == losses_of(whole.parent)


@pytest.mark.parametrize(
    ("number", "error", "code"),
    [(signal.SIGINT, KeyboardInterrupt, None), (signal.SIGTERM, SystemExit, 143)],
)
def test_a_signal_ends_the_run_after_its_step(
    tmp_path: pathlib.Path, number: int, error: type[BaseException], code: int | None
) -> None:
    """Ctrl-C and SIGTERM, in the middle of step 5."""
    handler = signal.getsignal(number)

    def send() -> None:
        os.kill(os.getpid(), number)

    with before_call(Training, "loss", 5, send), pytest.raises(error) as caught:
        tiny_train(tiny_recipe("edm"), tmp_path)
    assert getattr(caught.value, "code", None) == code
    assert signal.getsignal(number) == handler
    assert state_of(tmp_path)["step"] == 6
    assert read_info(tmp_path / "demo-cifar10-edm.safetensors").training.total_steps == 6


def test_the_checkpoint_holds_the_average_and_its_provenance(tmp_path: pathlib.Path) -> None:
    recipe = tiny_recipe("ct", two_step_index=4)
    path = tiny_train(recipe, tmp_path, seed=3, name="mine")
    assert path == tmp_path / "mine.safetensors"
    model, state = load_model(path), state_of(tmp_path)
    assert_equal(dict(model.state_dict()), dict(state["ema"]))
    assert not torch.equal(
        state["ema"]["network.out.2.bias"], state["online"]["network.out.2.bias"]
    )
    info, run = model.info, model.info.training
    assert info.recipe == recipe
    assert run is not None
    assert (run.seed, run.total_steps, run.images_seen, run.weights) == (3, 20, 60, "ema")
    assert (run.scale, run.stands_for, run.dataset) == ("demo", "cifar10-ct", "synthetic")
    assert run.dataset_sha256 == DATA.sha256()
    # Point 4 of 11 (Karras et al. 2022, Equation 5).
    time = (80 ** (1 / 7) + 0.4 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    assert info.two_step_time == pytest.approx(time)


def flat(module: nn.Module) -> Tensor:
    return torch.cat([p.detach().double().flatten() for p in module.parameters()])


def test_the_averages_equal_their_closed_forms() -> None:
    """Sums of CT's online weights in float64; 20 float32 updates round by 20 * 2^-24 at most."""
    recipe = tiny_recipe("ct", mu0=0.5, s0=2, s1=9)
    training, source = Training(recipe, 0), BatchSource(DATA, recipe, 0)
    weights = [flat(training.online)]
    for k in range(20):
        training.train_step(source.batch(k))
        weights.append(flat(training.online))
    ema = 0.9**20 * weights[0] + sum(0.1 * 0.9 ** (20 - k) * weights[k] for k in range(1, 21))
    target = weights[0]
    for k in range(20):  # Appendix C: N(k) with K = 20, then mu(k)
        num_scales = math.ceil(math.sqrt(k / 20 * (10**2 - 2**2) + 2**2) - 1) + 1
        mu = math.exp(2 * math.log(0.5) / num_scales)
        target = mu * target + (1 - mu) * weights[k + 1]
    rounding = 20 * 2**-24 * float(torch.stack(weights).abs().max())
    torch.testing.assert_close(flat(training.ema), ema, rtol=0, atol=rounding)
    torch.testing.assert_close(flat(training.target), target, rtol=0, atol=rounding)
    # The weights moved by far more than the tolerance, and the three differ.
    assert (weights[20] - weights[0]).abs().max() > 100 * rounding
    assert (ema - target).abs().max() > 100 * rounding


APPENDIX_B = [
    name for name in recipe_names() if "continuous" in name or name == "cifar10-ct-fixed"
]


@pytest.mark.parametrize("name", APPENDIX_B)
def test_recipes_of_the_appendix_train(teacher: pathlib.Path, name: str) -> None:
    """20 steps; the loss of the first is that of the functions called by hand."""
    changes: dict[str, Any] = {"network": "tiny", "batch_size": 3, "num_gpus": 1, "dropout": 0.0}
    recipe = load_recipe(name).replace(**changes)
    start = load_model(teacher)
    training = Training(recipe, 0, start if needs_teacher(recipe) else None, distance=pseudo_huber)
    source = BatchSource(DATA, recipe, 0)
    batch = source.batch(0)
    x, f = batch.images / 127.5 - 1, copy.deepcopy(training.online)
    if "continuous" in name:
        slope = batch.z
        if "-cd-" in name:
            x_t = x + batch.t[:, None, None, None] * batch.z
            slope = ode_slope(x_t, start(x_t, batch.t), batch.t)
        prediction, tangent = consistency_tangent(
            f, x + batch.t[:, None, None, None] * batch.z, batch.t, slope
        )
        expected = {
            "cd-l1": tangent.abs().mean(),
            "cd-l2": tangent.flatten(1).norm(dim=1).mean(),
            "l2-stopgrad": (prediction * tangent).flatten(1).sum(1).mean(),
            "ct-l2": (prediction * tangent).flatten(1).sum(1).mean(),
        }.get("-".join(name.split("-")[-2:]))
        if expected is not None:
            torch.testing.assert_close(training.loss(batch), expected)
    losses = [training.train_step(source.batch(step)) for step in range(20)]
    assert all(map(math.isfinite, losses))
    moved = [
        (a - b).abs().max()
        for a, b in zip(training.online.parameters(), f.parameters(), strict=True)
    ]
    assert max(moved) > recipe.learning_rate / 100


def test_progressive_distillation_halves_the_steps(
    tmp_path: pathlib.Path, teacher: pathlib.Path
) -> None:
    """Each student is the teacher of the next, and samples by Euler's method in its steps."""
    for steps in (4, 2, 1):
        recipe = tiny_recipe("pd", num_scales=steps, total_steps=2)
        t, s = METHODS["pd"].draw_times(recipe.replace(batch_size=50), 0, torch.Generator())
        grid = karras_times(2 * steps + 1).float()
        assert {*t.tolist()} == {*grid[:-1:2].tolist()} and {*s.tolist()} == {*grid[2::2].tolist()}
        teacher = tiny_train(recipe, tmp_path / str(steps), teacher=teacher)
        torch.testing.assert_close(middle_time(grid[:-1:2], grid[2::2], 7.0), grid[1::2])
        model = load_model(teacher)
        settings = sampler_settings(model.info, steps)
        assert (settings.algorithm, settings.nfe) == ("euler", steps)
        [images] = sample(model, settings, 2, seed=0, image_size=SIZE).stages
        z = noise(0, range(2), (1, 3, SIZE, SIZE))[0]
        x, times = 80 * z, karras_times(steps + 1).float()
        for start, end in pairwise(times):  # Euler's method, step by step
            x = x + (end - start) * (x - model(x, start)) / start
        expected = to_uint8(x.detach(), "round").numpy()
        np.testing.assert_allclose(images, expected.astype(float), atol=1)  # rounds otherwise
    with pytest.raises(ValueError, match="allowed are the 1 that it was trained for"):
        sampler_settings(model.info, 18)


def test_without_a_decay_the_target_is_the_online_network(teacher: pathlib.Path) -> None:
    model = load_model(teacher)
    training = Training(tiny_recipe("cd", target_ema=0.0), 0, model)
    assert training.target is training.online
    assert training.online.parameterization == "boundary"
    assert_equal(flat(training.online), flat(model))  # starts from the teacher's weights


def test_the_loss_of_a_small_training_falls(tmp_path: pathlib.Path) -> None:
    """A fresh network is zero, which has a loss of E[(t^2 m / sd^2 + sd^2) / (t^2 + sd^2)].

    sd is sigma_data and m an image's mean square. Means over some 25 batches of 16 scatter by 1 %
    around it: the first one has learned little, and 0.7 cannot be chance.
    """
    data = synthetic(64, SIZE)
    recipe = tiny_recipe("edm", total_steps=100, batch_size=16, learning_rate=2e-3, dropout=0.0)
    tiny_train(recipe, tmp_path, data, log_every=25)
    losses = [loss for _, loss in losses_of(tmp_path)[1:]]  # without the line of step 1 alone
    t = np.exp(-1.2 + 1.2 * np.random.default_rng(0).standard_normal((10_000, 1)))
    m = np.square(data.images / 127.5 - 1).mean((1, 2, 3))  # (64,)
    untrained = ((t**2 * m / 0.25 + 0.25) / (t**2 + 0.25)).mean()
    assert losses[0] == pytest.approx(untrained, rel=0.1)
    assert losses[-1] < 0.7 * untrained


@pytest.mark.parametrize("method", ["edm", "ct"])
def test_the_parts_of_a_batch_are_the_batch(monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    """A loss is a mean over images: its gradient in parts is that of the whole, up to rounding.

    A batch of 7 goes whole, in parts of 3, 3 and 1 (the devices do not divide it, and each image
    has the same weight), and one by one.
    """
    sizes: list[int] = []
    original = Training.loss

    def counted(training: Training, batch: Batch) -> Tensor:
        sizes.append(len(batch.images))
        return original(training, batch)

    monkeypatch.setattr(Training, "loss", counted)
    gradients, losses = [], []
    for num_gpus, micro_batch in ((1, None), (3, None), (1, 1)):
        recipe = tiny_recipe(method, batch_size=7, dropout=0.0, num_gpus=num_gpus)
        training = Training(recipe, 0, micro_batch=micro_batch)
        losses.append(training.gradients(BatchSource(DATA, recipe, 0).batch(0)).item())
        gradients.append(training.online.network.out[2].weight.grad.clone())
    assert sizes == [7, 3, 3, 1, *[1] * 7]
    for loss, gradient in zip(losses[1:], gradients[1:], strict=True):
        assert loss == pytest.approx(losses[0], rel=1e-5)  # float32 sums in another order
        assert torch.allclose(gradient, gradients[0], rtol=1e-4, atol=1e-7)
    assert gradients[0].abs().max() > 1e-3


def test_images_read_on_demand_are_known_by_their_files(tmp_path: pathlib.Path) -> None:
    (tmp_path / "mine").mkdir()
    for i, image in enumerate(DATA.images):
        Image.fromarray(image).save(tmp_path / "mine" / f"{i}.png")
    source = open_images(tmp_path / "mine")
    path = tiny_train(tiny_recipe("edm", total_steps=1), tmp_path / "out", source)
    run = read_info(path).training
    assert run is not None and run.dataset == "mine"
    assert (run.dataset_sha256, run.dataset_files_sha256) == (None, source.sha256())


def test_the_optimizer_takes_the_rate_of_its_step() -> None:
    recipe = tiny_recipe("edm", total_steps=2, linear_decay_share=1.0, learning_rate=1e-3)
    training, source = Training(recipe, 0), BatchSource(DATA, recipe, 0)
    for rate in (1e-3, 0.5e-3):
        training.train_step(source.batch(training.step))
        assert training.optimizer.param_groups[0]["lr"] == rate


@pytest.mark.parametrize(
    ("method", "changes", "teacher_changes", "message"),
    [
        ("cd", {}, None, "needs a teacher; give --teacher"),
        ("edm", {}, {}, "takes no teacher; leave out --teacher"),
        ("ct", {"initialisation": "teacher"}, None, "needs a teacher"),
        ("cd", {}, {"network": "deep"}, "the teacher is not of network 'tiny'"),
        ("cd", {}, {"method": "ct"}, "no EDM denoiser"),
        ("cd", {}, {"dataset": "cifar10-train"}, "trained on cifar10-train, the recipe is for"),
        ("cd", {"solver": "hein"}, {}, "unknown solver 'hein': did you mean 'heun'?"),
        ("edm", {"network": "patch-unet"}, None, "takes 32 x 32"),
    ],
)
def test_wrong_input_is_refused_before_anything_is_written(
    tmp_path: pathlib.Path, method: str, changes: Any, teacher_changes: Any, message: str
) -> None:
    teacher = None
    if teacher_changes is not None:
        kind = {"method": "edm"} | teacher_changes
        teacher = tiny_train(tiny_recipe(**kind, total_steps=1), tmp_path / "teacher")
    with pytest.raises(ValueError) as caught:
        tiny_train(tiny_recipe(method, **changes), tmp_path / "out", teacher=teacher)
    assert message in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="seed = 4294967296; allowed is 0 to 4294967295"):
        Training(tiny_recipe("edm"), 1 << 32)


def test_the_weighting_of_a_recipe_weighs_each_image() -> None:
    """lambda(t) = 1 / c_out(t)^2 of the boundary condition's c_out."""
    teacher = Training(tiny_recipe("edm"), seed=1).ema
    plain = tiny_recipe("cd", weighting=None, dropout=0.0)
    weighted = plain.replace(weighting="1 / c_out^2")
    training, other = (Training(recipe, 0, teacher) for recipe in (plain, weighted))
    batch = BatchSource(DATA, plain, seed=0).batch(0)
    c_out = boundary_scalings(batch.t)[1]
    losses = [training.loss(part) for part in batch.parts(1)]
    expected = torch.stack(losses) / c_out**2
    torch.testing.assert_close(other.loss(batch), expected.mean())
