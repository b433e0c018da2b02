"""diffusers folders: diffusers itself runs what we write, and we read back what we wrote."""

import errno
import json
import pathlib
import shutil
from typing import Any

import golden
import pytest
import torch
from diffusers import CMStochasticIterativeScheduler, ConsistencyModelPipeline, UNet2DModel
from random_weights import randomise
from safetensors.torch import load_file, save_file

from cmrepro.checkpoints import diffusers
from cmrepro.checkpoints.convert import convert
from cmrepro.checkpoints.diffusers import (
    OLD_WEIGHTS,
    WEIGHTS,
    to_diffusers,
    two_step_point,
    unet_config,
)
from cmrepro.checkpoints.io import read_info, save_checkpoint
from cmrepro.checkpoints.load import load_model
from cmrepro.checkpoints.registry import released_checkpoints
from cmrepro.consistency.samplers import multistep_stages
from cmrepro.consistency.schedules import karras_times
from cmrepro.networks.adm import ADMConfig, UNet
from cmrepro.networks.presets import IMAGE_SIZES, PRESETS, build_network
from cmrepro.records import CheckpointInfo
from cmrepro.settings import Selection

SIZE = 16
TIME = karras_times(40)[22].item()
# Both released forms of the residual block, with and without classes, attention at the first, a
# middle and the last level, several heads, levels that widen, two blocks a level.
CONFIGS = {
    "cond": golden.ADM["cond"],
    "uncond": golden.ADM["uncond"],
    "deep": ADMConfig(32, (1, 2, 2), 2, (2,), 16, use_scale_shift_norm=True),
}
INFO = CheckpointInfo(
    network="cond",
    parameterization="boundary",
    sigma_data=0.5,
    sigma_min=0.002,
    sigma_max=80.0,
    two_step_time=TIME,
    selection=Selection(rule="least fid of 2 candidates", seeds=(1000,)),
)
CASES = pytest.mark.parametrize("case", CONFIGS)


@pytest.fixture(autouse=True)
def presets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, config in CONFIGS.items():
        monkeypatch.setitem(PRESETS, name, (UNet, config))
        monkeypatch.setitem(IMAGE_SIZES, name, SIZE)


def checkpoint(folder: pathlib.Path, case: str, **changes: Any) -> pathlib.Path:
    path = folder / f"{case}.safetensors"
    save_checkpoint(path, randomise(build_network(case)), INFO.replace(network=case, **changes))
    return path


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    """A diffusers folder of "cond"."""
    return convert(checkpoint(tmp_path, "cond"), tmp_path / "folder", to="diffusers")


@CASES
def test_diffusers_gives_the_same_network_and_images(tmp_path: pathlib.Path, case: str) -> None:
    """Network at three times, and the pipeline's images of one and two steps."""
    source = checkpoint(tmp_path, case)
    model = load_model(source)
    folder = convert(source, tmp_path / "folder", to="diffusers")
    unet = UNet2DModel.from_pretrained(folder, subfolder="unet").eval()
    pipe = ConsistencyModelPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    z = torch.randn(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    z2 = torch.randn(z.shape, generator=torch.Generator().manual_seed(7))
    labels = torch.arange(3) if CONFIGS[case].num_classes else None
    c_noise = torch.tensor([-1.5, 0.0, 1.1])
    with torch.no_grad():
        ours = model.network(z, c_noise, labels)
        got = unet(z, 1000 * c_noise, class_labels=labels).sample
    # Float32 sums in another order differ by 1e-6, the cosines in the embedding by 1e-4.
    assert golden.relative_error(got, ours) < 1e-4
    assert ours.std() > 0.1
    assert two_step_point(model.info) == (22, 40)
    for steps, how in ((1, {"num_inference_steps": 1}), (2, {"timesteps": [22, 0]})):
        images = pipe(
            batch_size=3,
            class_labels=None if labels is None else labels.tolist(),
            generator=torch.Generator().manual_seed(7),
            latents=z.clone(),
            output_type="np",
            **({"num_inference_steps": None} | how),
        ).images
        with torch.no_grad():
            *_, x = multistep_stages(
                lambda x_t, t: model(x_t, t, labels),
                [80.0, TIME][:steps],
                torch.stack([z, z2])[:steps],
            )
        expected = (x / 2 + 0.5).permute(0, 2, 3, 1)
        # As above, of images in [0, 1].
        torch.testing.assert_close(torch.from_numpy(images), expected, rtol=0, atol=1e-4)
        assert ((expected > 0) & (expected < 1)).float().mean() > 0.5  # not all clipped


@CASES
@pytest.mark.parametrize("old", [False, True], ids=["safetensors", "older weight file"])
def test_reading_back_gives_the_same_bits(tmp_path: pathlib.Path, case: str, old: bool) -> None:
    source = checkpoint(tmp_path, case)
    folder = convert(source, tmp_path / "folder", to="diffusers")
    weights = folder / "unet" / WEIGHTS
    if old:
        torch.save(load_file(weights), folder / "unet" / OLD_WEIGHTS)
        weights.unlink()
    back = convert(folder, tmp_path / "back.safetensors")
    before, after = load_file(source), load_file(back)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert old or read_info(back) == read_info(source)


@pytest.mark.parametrize("name", ["adm-imagenet64", "adm-lsun256"])
def test_names_and_shapes_of_the_full_size_networks(name: str) -> None:
    with torch.device("meta"):
        theirs = UNet2DModel(**{k: v for k, v in unet_config(name).items() if k[0] != "_"})
        ours = build_network(name)
    config = PRESETS[name][1]
    assert isinstance(config, ADMConfig)
    got = {k: tuple(v.shape) for k, v in to_diffusers(ours.state_dict(), config).items()}
    assert got == {k: tuple(v.shape) for k, v in theirs.state_dict().items()}


def test_a_teacher_is_not_offered_to_the_pipeline(tmp_path: pathlib.Path) -> None:
    source = checkpoint(tmp_path, "cond", parameterization="edm", two_step_time=None)
    folder = convert(source, tmp_path / "folder", to="diffusers")
    assert sorted(p.name for p in folder.iterdir()) == ["README.md", "unet"]
    assert load_model(folder).parameterization == "edm"


PUBLISHED_TIMES = {e.two_step_time for e in released_checkpoints().values()} - {None}


@pytest.mark.parametrize("time", [*sorted(PUBLISHED_TIMES), 0.003, 0.1, 0.8, 2.5, 79.0])
def test_times_lie_on_a_grid(time: float) -> None:
    index, num_scales = two_step_point(INFO.replace(two_step_time=time))
    assert index is not None
    # Published: the same ramp, whose seventh power rounds a little. Any other: the best fraction
    # of denominator <= 1,000, 1e-6 of the ramp, times at most 7 x 3.6 in ln t.
    tolerance = 1e-12 if time in PUBLISHED_TIMES else 3e-5
    assert karras_times(num_scales)[index].item() == pytest.approx(time, rel=tolerance)


# The structure of the published folders (openai/diffusers-cd_imagenet64_l2 and the like), as the
# conversion script of diffusers gives it, with fewer channels and blocks.
PUBLISHED: dict[str, Any] = {
    "sample_size": 64,
    "in_channels": 3,
    "out_channels": 3,
    "layers_per_block": 1,
    "num_class_embeds": 1000,
    "block_out_channels": [32, 64, 96, 128],
    "attention_head_dim": 16,
    "down_block_types": ["ResnetDownsampleBlock2D", *["AttnDownBlock2D"] * 3],
    "up_block_types": [*["AttnUpBlock2D"] * 3, "ResnetUpsampleBlock2D"],
    "resnet_time_scale_shift": "scale_shift",
    "attn_norm_num_groups": 32,
    "upsample_type": "resnet",
    "downsample_type": "resnet",
}
OURS = ADMConfig(32, (1, 2, 3, 4), 1, (2, 4, 8), 16, num_classes=1000)


def test_a_folder_written_by_diffusers_is_loaded(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PRESETS, "small-imagenet64", (UNet, OURS))
    monkeypatch.setitem(IMAGE_SIZES, "small-imagenet64", 64)
    network = UNet2DModel(**PUBLISHED)
    scheduler = CMStochasticIterativeScheduler(num_train_timesteps=40)
    ConsistencyModelPipeline(unet=network, scheduler=scheduler).save_pretrained(tmp_path / "a")
    config = json.loads((tmp_path / "a/unet/config.json").read_text())
    del config["attn_norm_num_groups"]  # as in the older ones
    (tmp_path / "a/unet/config.json").write_text(json.dumps(config))
    model = load_model(tmp_path / "a")
    info = model.info
    assert (info.network, info.parameterization) == ("small-imagenet64", "boundary")
    assert (info.sigma_min, info.sigma_max, info.two_step_time) == (0.002, 80.0, None)
    assert info.converted and info.converted.format == "diffusers"
    generator = torch.Generator().manual_seed(0)
    x, c_noise = torch.randn(2, 3, 16, 16, generator=generator), torch.tensor([-1.5, 1.1])
    labels = torch.tensor([3, 999])
    with torch.no_grad():
        expected = network.eval()(x, 1000 * c_noise, class_labels=labels).sample
        got = model.network(x, c_noise, labels)
    # The cosines of angles up to 1,100 differ by 1e-4 in the embedding.
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)
    assert expected.std() > 0.1


def test_the_network_alone_needs_its_parameterization(
    folder: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    alone = tmp_path / "alone"
    shutil.move(folder / "unet", alone)
    save_file(load_file(alone / WEIGHTS), alone / WEIGHTS, {"format": "pt"})
    with pytest.raises(ValueError, match="give --parameterization boundary or edm"):
        convert(alone, tmp_path / "x.safetensors")
    convert(alone, tmp_path / "x.safetensors", parameterization="edm")
    assert load_model(tmp_path / "x.safetensors").parameterization == "edm"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"_class_name": "UNet2DConditionModel"}, "_class_name is UNet2DConditionModel"),
        ({"upsample_type": "conv"}, "none of ours: upsample_type is conv, 'cond' has resnet"),
        ({"layers_per_block": 7}, "layers_per_block is 7"),
        ({"norm_eps": 1e-6}, "norm_eps is 1e-06"),
        ({"sample_size": 64}, "sample_size is 64"),
    ],
)
def test_other_networks_are_refused(
    folder: pathlib.Path, tmp_path: pathlib.Path, changes: dict[str, Any], message: str
) -> None:
    config = folder / "unet" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | changes))
    with pytest.raises(ValueError, match=message) as caught:
        convert(folder, tmp_path / "x.safetensors")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "x.safetensors").exists()


def test_parameters_that_do_not_fit_are_named(folder: pathlib.Path) -> None:
    path = folder / "unet" / WEIGHTS
    weights = load_file(path)
    norm = "mid_block.attentions.0.group_norm.weight"  # what the first published folders lacked
    del weights[norm]
    save_file(weights, path, {"format": "pt"})
    with pytest.raises(ValueError, match=f"it lacks parameter {norm}"):
        load_model(folder)


def test_broken_folders(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    out = tmp_path / "x.safetensors"
    weights, config = folder / "unet" / WEIGHTS, folder / "unet" / "config.json"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1])
    with pytest.raises(ValueError, match="is not a whole safetensors file"):
        convert(folder, out)
    weights.unlink()
    with pytest.raises(ValueError, match=f"has a config.json but no {WEIGHTS}"):
        convert(folder, out)
    config.write_text("{")
    with pytest.raises(ValueError, match=r"config\.json cannot be read"):
        convert(folder, out)
    config.unlink()
    with pytest.raises(ValueError, match="is no diffusers folder"):
        convert(folder, out)


def test_what_diffusers_has_not_is_refused(tmp_path: pathlib.Path) -> None:
    source = checkpoint(tmp_path, "demo")
    with pytest.raises(ValueError, match="'demo' is none of diffusers'; allowed are adm"):
        convert(source, tmp_path / "folder", to="diffusers")
    assert list(tmp_path.iterdir()) == [source]


def test_a_folder_with_content_is_kept(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    with pytest.raises(ValueError, match="exists and is not an empty folder"):
        convert(tmp_path / "cond.safetensors", folder, to="diffusers")
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before


def test_a_full_disk_leaves_nothing(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = checkpoint(tmp_path, "cond")

    def full(weights: Any, path: pathlib.Path, metadata: Any) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(diffusers, "save_file", full)
    with pytest.raises(ValueError, match=r"cannot write .*No space left"):
        convert(source, tmp_path / "folder", to="diffusers")
    assert list(tmp_path.iterdir()) == [source]
