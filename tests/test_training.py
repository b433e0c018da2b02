"""The training loop on a tiny network: resuming, averages, a falling loss."""

import contextlib
import dataclasses
import json
import math
import os
import pathlib
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny import DATA, SIZE, tiny_networks, tiny_recipe
from torch import Tensor, nn

from cmrepro.checkpoints.io import read_info
from cmrepro.checkpoints.load import load_model
from cmrepro.data import synthetic
from cmrepro.training import step
from cmrepro.training.batches import BatchSource
from cmrepro.training.loop import Rhythm, train
from cmrepro.training.schedules import learning_rate_at
from cmrepro.training.state import state_files
from cmrepro.training.step import Training


@pytest.fixture(autouse=True, scope="module")
def networks() -> Iterator[None]:
    with tiny_networks():
        yield


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return train(tiny_recipe("edm", total_steps=2), DATA, tmp_path_factory.mktemp("teacher"))


def teacher_for(method: str, teacher: pathlib.Path) -> pathlib.Path | None:
    return teacher if method == "cd" else None


@contextlib.contextmanager
def breaking(owner: Any, name: str, call: int, error: type[BaseException]) -> Iterator[None]:
    """Raise `error` at the given call (from 0) of a function, before it does anything."""
    original, calls = getattr(owner, name), iter(range(10**6))

    def broken(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == call:
            raise error
        return original(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, broken)
        yield


def state_of(folder: pathlib.Path) -> dict[str, Any]:
    state = torch.load(state_files(folder)[0], weights_only=True)
    del state["duration_s"]  # alone may differ
    return state


def assert_equal(a: Any, b: Any) -> None:
    """Bit for bit, through dictionaries and lists."""
    if isinstance(a, Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_equal(a[key], b[key])
    elif isinstance(a, list):
        for x, y in zip(a, b, strict=True):
            assert_equal(x, y)
    else:
        assert a == b


# CD with a target of its own; with the demo's mu = 0 the target is the online network.
# The gradients of a training in fp16 are scaled, which a resumed run must go on with.
RUNS = [
    ("edm", {}),
    ("cd", {}),
    ("cd", {"target_ema": 0.5}),
    ("ct", {}),
    ("edm", {"mixed_precision": True}),
]
# In the forward pass, and between the optimizer's step and the average's, where the state is torn.
INTERRUPTS = [(Training, "loss", 10), (step, "ema_update", 13)]


@pytest.mark.parametrize(("method", "changes"), RUNS)
def test_an_interrupted_run_resumes_bit_for_bit(
    tmp_path: pathlib.Path, teacher: pathlib.Path, method: str, changes: dict[str, Any]
) -> None:
    chosen = tiny_recipe(method, **changes)
    settings: dict[str, Any] = {"teacher": teacher_for(method, teacher)}
    settings["rhythm"] = Rhythm(save_every=4, log_every=1)
    whole = train(chosen, DATA, tmp_path / "whole", **settings)
    assert state_of(whole.parent)["step"] == 20
    for owner, name, call in INTERRUPTS:
        folder = tmp_path / name
        with pytest.raises(KeyboardInterrupt), breaking(owner, name, call, KeyboardInterrupt):
            train(chosen, DATA, folder, **settings)
        reached = state_of(folder)["step"]
        assert reached == read_info(folder / whole.name).origin["steps"]
        assert (reached == 10) if name == "loss" else (reached % 4 == 0 < reached)
        train(chosen, DATA, folder, **settings, resume=True)
        assert_equal(state_of(folder), state_of(whole.parent))
        assert_equal(load_file(folder / whole.name), load_file(whole))
        assert losses_of(folder) == losses_of(whole.parent)


@pytest.mark.parametrize(
    ("number", "error", "code"),
    [(signal.SIGINT, KeyboardInterrupt, None), (signal.SIGTERM, SystemExit, 143)],
)
def test_a_signal_ends_the_run_after_its_step(
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
    number: int,
    error: type[BaseException],
    code: int | None,
) -> None:
    """Ctrl-C and SIGTERM, here in the middle of step 5, after which the run goes on."""
    whole = train(tiny_recipe("edm"), DATA, tmp_path / "whole")
    handler = signal.getsignal(number)
    with signalling("loss", {5: number}), pytest.raises(error) as caught:
        train(tiny_recipe("edm"), DATA, tmp_path / "run")
    assert getattr(caught.value, "code", None) == code
    assert signal.getsignal(number) == handler
    assert "stopped at step 6 and saved; go on with --resume" in capsys.readouterr().err
    assert state_of(tmp_path / "run")["step"] == 6
    path = train(tiny_recipe("edm"), DATA, tmp_path / "run", resume=True)
    assert_equal(load_file(path), load_file(whole))


def test_a_second_signal_ends_the_run_at_once(tmp_path: pathlib.Path) -> None:
    """Here between the optimizer's step and the average's, where nothing can be saved."""
    numbers = {5: signal.SIGTERM}
    with signalling("loss", numbers), pytest.MonkeyPatch.context() as patch:
        original = step.ema_update

        def pressed(*args: Any) -> None:
            if not numbers:
                os.kill(os.getpid(), signal.SIGINT)
            original(*args)

        patch.setattr(step, "ema_update", pressed)
        with pytest.raises(KeyboardInterrupt):
            train(tiny_recipe("edm"), DATA, tmp_path, rhythm=Rhythm(save_every=4))
    assert state_of(tmp_path)["step"] == 4


def test_a_run_in_another_thread_leaves_signals_alone(tmp_path: pathlib.Path) -> None:
    with ThreadPoolExecutor() as threads:
        path = threads.submit(train, tiny_recipe("edm", total_steps=1), DATA, tmp_path).result()
    assert path.is_file()


@contextlib.contextmanager
def signalling(name: str, numbers: dict[int, int]) -> Iterator[None]:
    """Send this process signals, by the number of the call (from 0) of a method of the run."""
    original, calls = getattr(Training, name), iter(range(10**6))

    def method(*args: Any) -> Any:
        if number := numbers.pop(next(calls), None):
            os.kill(os.getpid(), number)
        return original(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Training, name, method)
        yield


def losses_of(folder: pathlib.Path) -> list[tuple[int, float]]:
    """Step and loss of each line of a log; the durations differ from run to run."""
    lines = (folder / "log.jsonl").read_text().splitlines()
    return [(entry["step"], entry["loss"]) for entry in map(json.loads, lines)]


def test_the_checkpoint_holds_the_average_and_its_origin(tmp_path: pathlib.Path) -> None:
    path = train(
        tiny_recipe("edm"),
        DATA,
        tmp_path,
        seed=3,
        provenance={"command": "c"},
        rhythm=Rhythm(log_every=5),
    )
    model = load_model(path)
    info = model.info
    state = state_of(tmp_path)
    assert_equal(dict(model.state_dict()), dict(state["ema"]))
    assert not torch.equal(
        state["ema"]["network.out.2.bias"], state["online"]["network.out.2.bias"]
    )
    assert info.recipe == dataclasses.asdict(tiny_recipe("edm"))
    expected = {"seed": 3, "steps": 20, "images_seen": 60, "weights": "ema", "command": "c"}
    assert info.origin.items() >= (expected | {"data_sha256": DATA.sha256()}).items()
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in log] == [5, 10, 15, 20]


def test_the_averages_equal_their_closed_forms() -> None:
    """Sums of CT's online weights in float64; 20 float32 updates round by 20 * 2^-24 at most."""
    chosen = tiny_recipe("ct", mu0=0.5, s0=2, s1=9)
    training = Training(chosen, 0)
    source = BatchSource(DATA, chosen, 0)
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


def flat(module: nn.Module) -> Tensor:
    return torch.cat([p.detach().double().flatten() for p in module.parameters()])


def test_without_a_decay_the_target_is_the_online_network(teacher: pathlib.Path) -> None:
    model = load_model(teacher)
    training = Training(tiny_recipe("cd"), 0, model)
    assert training.target is training.online
    assert training.online.parameterization == "boundary"
    assert_equal(flat(training.online), flat(model))  # starts from the teacher's weights


def test_a_gradient_that_is_not_finite_stops_the_run(tmp_path: pathlib.Path) -> None:
    original = step.edm_loss
    losses = iter([1.0] * 12 + [math.nan])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step, "edm_loss", lambda *args: next(losses) * original(*args))
        message = r"step 12 .*loss nan.*good state: .*state-00000012.pt; try a lower learning_rate"
        with pytest.raises(FloatingPointError, match=message):
            train(tiny_recipe("edm"), DATA, tmp_path, rhythm=Rhythm(save_every=5))
    state = state_of(tmp_path)
    assert state["step"] == 12
    weights = load_file(tmp_path / "demo-cifar10-edm.safetensors")
    assert all(w.isfinite().all() for w in [*weights.values(), *state["online"].values()])


def test_the_loss_of_a_small_training_falls(tmp_path: pathlib.Path) -> None:
    """A fresh network is zero, which has a loss of E[(t^2 m / sd^2 + sd^2) / (t^2 + sd^2)].

    sd is sigma_data and m an image's mean square. Means over 25 batches of 16 scatter by 1 %
    around it: the first one has learned little, and 0.7 cannot be chance.
    """
    data = synthetic(64, SIZE)
    chosen = tiny_recipe("edm", total_steps=100, batch_size=16, learning_rate=2e-3, dropout=0.0)
    train(chosen, data, tmp_path, rhythm=Rhythm(log_every=25))
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    t = np.exp(-1.2 + 1.2 * np.random.default_rng(0).standard_normal((10_000, 1)))
    m = np.square(data.images / 127.5 - 1).mean((1, 2, 3))  # (64,)
    untrained = ((t**2 * m / 0.25 + 0.25) / (t**2 + 0.25)).mean()
    assert log[0]["loss"] == pytest.approx(untrained, rel=0.1)
    assert log[-1]["loss"] < 0.7 * untrained


@pytest.mark.parametrize(
    ("method", "longer"),
    [("edm", {"total_steps": 20}), ("ct", {"total_steps": 20, "schedule_steps": 12})],
)
def test_a_finished_run_can_go_on(
    tmp_path: pathlib.Path, method: str, longer: dict[str, Any]
) -> None:
    whole = train(tiny_recipe(method, **longer), DATA, tmp_path / "whole")
    first = tiny_recipe(method, total_steps=12)
    train(first, DATA, tmp_path / "legs")
    path = train(tiny_recipe(method, **longer), DATA, tmp_path / "legs", resume=True)
    assert_equal(load_file(path), load_file(whole))
    assert load_model(path).info.recipe["total_steps"] == 20


def test_a_run_cannot_go_on_with_another_schedule(tmp_path: pathlib.Path) -> None:
    train(tiny_recipe("ct", total_steps=12), DATA, tmp_path)
    with pytest.raises(ValueError, match="schedule_steps is 12, not 20"):
        train(tiny_recipe("ct", total_steps=20), DATA, tmp_path, resume=True)


def test_learning_rate_falls_with_the_images_and_then_to_zero() -> None:
    recipe = tiny_recipe(
        "edm",
        total_steps=100,
        batch_size=16,
        learning_rate=1e-3,
        inverse_sqrt_after=160,
        linear_decay_share=0.2,
    )
    rates = [learning_rate_at(recipe, step) for step in (0, 10, 40, 80, 90, 100)]
    assert rates == pytest.approx([1e-3, 1e-3, 5e-4, 1e-3 / 8**0.5, 0.5e-3 / 3, 0])


def test_the_optimizer_takes_the_rate_of_its_step() -> None:
    recipe = tiny_recipe("edm", total_steps=2, linear_decay_share=1.0, learning_rate=1e-3)
    training = Training(recipe, 0)
    source = BatchSource(DATA, recipe, 0)
    for rate in (1e-3, 0.5e-3):
        training.train_step(source.batch(training.step))
        assert training.optimizer.param_groups[0]["lr"] == rate
