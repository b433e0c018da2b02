"""What a plan says: counts against closed forms, durations from measured speeds."""

import json
import math
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tiny import tiny_networks, tiny_recipe
from torch import nn

from cmrepro.cli import main as cli
from cmrepro.consistency.distances import l2
from cmrepro.consistency.parameterization import PreconditionedModel
from cmrepro.networks.presets import build_network
from cmrepro.training.plan import Measured, RandomLPIPS, measure, plan, plan_rows
from cmrepro.training.recipes import load_recipe
from cmrepro.training.step import Training


@pytest.fixture(autouse=True, scope="module")
def networks() -> Iterator[None]:
    with tiny_networks():
        yield


def forward_flop(network: nn.Module) -> int:
    """Multiplications and additions of the layers of a network on one 8x8 image."""
    counted = []

    def count(layer: nn.Conv2d | nn.Linear, _: Any, y: torch.Tensor) -> None:
        counted.append(2 * y.numel() * layer.weight[0].numel())

    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(count)
    network(torch.zeros(1, 3, 8, 8), torch.zeros(1))
    attention = 2 * 2 * 64**2 * 32  # products of 64 pixels with 64 of 32 channels, twice
    return sum(counted) + attention


@pytest.mark.parametrize(
    ("method", "copies", "passes"),
    [
        ("edm", 5, 3),  # weights, their average, gradient and two moments; backward costs two
        ("ct", 6, 4),  # and the target network
        ("cd", 7, 6),  # and the teacher, which Heun's method evaluates twice
    ],
)
def test_memory_and_work_are_those_of_the_networks(method: str, copies: int, passes: int) -> None:
    changes = {"target_ema": 0.5} if method == "cd" else {}
    recipe = tiny_recipe(method, num_gpus=1, **changes)
    teacher = PreconditionedModel(build_network("tiny"), "edm") if method == "cd" else None
    training = Training(recipe, 0, teacher, distance=l2)
    measured = measure(training)
    parameters = list(training.online.parameters())
    count = sum(p.numel() for p in parameters)
    assert measured.num_parameters == count
    # RAdam has a step counter of 4 bytes for each parameter too.
    assert measured.held_bytes == copies * 4 * count + 4 * len(parameters)
    # But for the gradient of the input, which is not needed, and attention's backward pass.
    work = passes * forward_flop(build_network("tiny"))
    assert measured.image_flop == pytest.approx(work, rel=0.02)
    activations = [y.numel() * 4 for y in activations_of(training)]
    assert sum(activations) < measured.image_bytes < 10 * sum(activations)
    assert measured.num_images == 3
    assert measured.images_per_s > 0 < measured.update_s


def activations_of(training: Training) -> list[torch.Tensor]:
    """Inputs of the convolutions, which their backward passes need."""
    inputs: list[torch.Tensor] = []
    for module in training.online.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_pre_hook(lambda _, x: inputs.append(x[0]))
    training.online(torch.zeros(1, 3, 8, 8), 1.0)
    return inputs


def test_durations_follow_from_the_speed() -> None:
    """100 images/s and half a second an update, on one device and on the recipe's eight."""
    recipe = load_recipe("cifar10-ct").replace(distance="l2", network="tiny")
    measured = Measured(
        num_parameters=2_500_000,
        held_bytes=3_000_000_000,
        image_bytes=10_000_000,
        image_flop=39_000_000_000,
        images_per_s=100.0,
        update_s=0.5,
        num_images=16,
    )
    rows = {r["quantity"]: r["value"] for r in plan_rows(Training(recipe, 0), measured)}
    days = 800_000 * (512 / 100 + 0.5) / 86_400
    assert (
        rows["duration on 1 device like this"] == f"{days:.3g} days, {days * 24:,.0f} device hours"
    )
    days = 800_000 * (512 / 8 / 100 + 0.5) / 86_400
    assert rows["duration on 8 devices like this"].startswith(
        f"{days:.3g} days, {days * 8 * 24:,.0f} dev"
    )
    short = Training(recipe.replace(total_steps=100), 0)
    rows |= {f"short: {r['quantity']}": r["value"] for r in plan_rows(short, measured)}
    hours = 100 * (512 / 100 + 0.5) / 3600
    assert rows["short: duration on 1 device like this"] == f"{hours:.3g} hours"
    assert rows["memory of the passes"].startswith("0.64 GB: 64 images at once")
    assert rows["memory a device"].startswith("3.64 GB")
    assert rows["network"] == "tiny, 2.5 million parameters"
    assert rows["work"] == "39 GFLOP an image, 1.6e+19 FLOP in all"
    # 409.6 million images at the datasheet's 156 TFLOP/s
    hours = 39e9 * 512 * 800_000 / 156e12 / 3600
    assert rows["at A100 peak"].startswith(f"{hours:.3g} hours; the paper names A100s")


def test_lpips_is_planned_without_its_weights() -> None:
    distance = RandomLPIPS()
    x = torch.rand(2, 3, 32, 32) * 2 - 1
    assert distance(x, x).abs().max() == 0
    assert (distance(x, x.flip(3)) > 0).all()
    assert sum(p.numel() for p in distance.parameters()) == 14_714_688  # VGG16's convolutions


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_the_plan_of_a_recipe(precision: str) -> None:
    rows = plan(tiny_recipe("cd", num_gpus=3), precision=precision, micro_batch=1)
    values = {row["quantity"]: row["value"] for row in rows}
    assert values["speed"].endswith(f" images/s in {precision}, 1 at once")
    assert values["measured on"].startswith("CPU, ")
    assert set(values) > {"duration on 1 device like this", "duration on 3 devices like this"}


def test_the_command_plans_and_writes_nothing(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["train", "demo-cifar10-ct", "--plan", "--format", "json"]
    arguments += ["--set", "network=tiny,batch_size=4", "--micro-batch", "2"]
    monkeypatch.setattr(sys, "argv", ["cmrepro", *arguments])
    cli.main()
    rows = json.loads(capsys.readouterr().out)
    assert {"quantity": "network", "value": "tiny, 0.2 million parameters"} in rows
    assert not list(tmp_path.iterdir())
    assert math.isfinite(float(rows[-1]["value"].split()[0]))
