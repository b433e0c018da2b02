"""What `cmrepro checkpoints inspect` tells of files of every format, foreign ones among them."""

import json
import pathlib
from typing import Any

import msgpack
import pytest
import torch
from diffusers import (
    CMStochasticIterativeScheduler,
    ConsistencyModelPipeline,
    DDPMPipeline,
    DDPMScheduler,
    UNet2DConditionModel,
    UNet2DModel,
)
from official_files import release, use_small_networks, write_flax, write_torch
from safetensors.torch import load_file, save_file

from cmrepro.checkpoints import contents, diffusers_folder
from cmrepro.checkpoints.contents import describe, file_format, here
from cmrepro.checkpoints.convert import convert
from cmrepro.checkpoints.io import (
    CheckpointInfo,
    bundled_checkpoints,
    load_model,
    save_checkpoint,
)
from cmrepro.networks.adm import ADMConfig, UNet
from cmrepro.networks.presets import IMAGE_SIZES, PRESETS, build_network

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


@pytest.fixture(autouse=True)
def presets(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    use_small_networks(monkeypatch, tmp_path / "cache")
    monkeypatch.setitem(PRESETS, "small-imagenet64", (UNet, OURS))
    monkeypatch.setitem(IMAGE_SIZES, "small-imagenet64", 64)


@pytest.mark.parametrize("kind", ["torch", "flax", "safetensors", "foreign"])
def test_inspect_tells_what_is_inside(kind: str, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "x"
    if kind == "torch":
        write_torch(path)
    elif kind == "flax":
        write_flax(path)
    else:
        info = CheckpointInfo("tiny", "edm", 0.5, 0.002, 80.0)
        save_checkpoint(path, build_network("tiny"), info, torch.float16)
        if kind == "foreign":
            save_file(load_file(path), path)
    found = describe(path)
    name = "tiny-flax" if kind == "flax" else "tiny"
    expected = build_network(name).state_dict()
    assert found["format"] == ("safetensors" if kind == "foreign" else kind)
    assert found["network"] == name
    assert found["bytes"] == path.stat().st_size
    assert found["num_parameters"] == sum(tensor.numel() for tensor in expected.values())
    assert len(found["tensors"]) == len(expected)
    assert json.loads(json.dumps(found)) == found
    if kind == "flax":
        assert found["values"] == {"step": 7, "lr": 4e-4}
        numbers = f"{len(expected)} arrays, {found['num_parameters']} numbers"
        assert found["trees"] == {"params": numbers, "params_ema": numbers}
        assert found["tensors"]["Conv_0/kernel"] == "float32 [3, 3, 3, 32]"
    else:
        dtype = "float32" if kind == "torch" else "float16"
        assert found["tensors"]["out.2.weight"] == f"{dtype} [3, 32, 3, 3]"


def test_a_flax_file_is_told_by_more_than_one_byte(tmp_path: pathlib.Path) -> None:
    """Of this step the second byte is "{", where a safetensors file has it too."""
    assert file_format(write_flax(tmp_path / "a", step=0x017B)) == "flax"


def test_a_shape_of_no_numbers_is_refused(tmp_path: pathlib.Path) -> None:
    array = msgpack.ExtType(1, msgpack.packb((("a",), "float32", b"")))
    path = write_flax(tmp_path / "a", params_ema={"Conv_0": {"bias": array}})
    with pytest.raises(ValueError, match="is not a flax checkpoint"):
        describe(path)


def test_an_unknown_network_still_lists(tmp_path: pathlib.Path) -> None:
    torch.save({"a.weight": torch.zeros(2, 3, dtype=torch.bfloat16)}, tmp_path / "a.pt")
    found = describe(tmp_path / "a.pt")
    assert found["network"] is None
    assert found["tensors"] == {"a.weight": "bfloat16 [2, 3]"}


def test_formats_are_told_by_content(tmp_path: pathlib.Path) -> None:
    torch_file = write_torch(tmp_path / "a")
    ours = convert(torch_file, tmp_path / "x.safetensors", parameterization="edm")
    folder = convert(ours, tmp_path / "folder", to="diffusers")
    paths = (torch_file, write_flax(tmp_path / "b"), ours, folder, folder / "unet")
    expected = ["torch", "flax", "safetensors", "diffusers", "diffusers"]
    assert [file_format(path) for path in paths] == expected


@pytest.fixture
def published(tmp_path: pathlib.Path) -> pathlib.Path:
    """A folder that diffusers itself has written, in the structure of the published ones."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = UNet2DModel(**PUBLISHED)
    scheduler = CMStochasticIterativeScheduler(num_train_timesteps=40)
    folder = tmp_path / "published"
    ConsistencyModelPipeline(unet=network, scheduler=scheduler).save_pretrained(folder)
    return folder


def no_weights(*arguments: Any) -> None:
    raise AssertionError("the weights are read")


@pytest.mark.parametrize("part", ["", "unet"])
def test_a_published_folder_is_told_without_its_weights(
    part: str, published: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (contents, diffusers_folder):
        for name in ("read_weights", "folder_weights"):
            monkeypatch.setattr(module, name, no_weights, raising=False)
    found = describe(published / part)
    assert (found["format"], found["network"]) == ("diffusers", "small-imagenet64")
    if part == "":  # the pipeline around the network says more
        assert found["parameterization"] == "boundary"
        assert (found["sigma_min"], found["sigma_max"]) == (0.002, 80.0)
    expected = UNet2DModel.from_pretrained(published, subfolder="unet")
    assert found["num_parameters"] == expected.num_parameters()
    assert found["tensors"]["class_embedding.weight"] == "float32 [1000, 128]"
    assert PUBLISHED.items() <= found["structure"].items()
    assert "differs" not in found
    assert json.loads(json.dumps(found)) == found


def test_a_published_folder_becomes_our_checkpoint(
    published: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    model = load_model(convert(published, tmp_path / "x.safetensors"))
    theirs = UNet2DModel.from_pretrained(published, subfolder="unet").eval()
    generator = torch.Generator().manual_seed(0)
    x, c_noise = torch.randn(2, 3, 16, 16, generator=generator), torch.tensor([-1.5, 1.1])
    labels = torch.tensor([3, 999])
    with torch.no_grad():
        expected = theirs(x, 1000 * c_noise, class_labels=labels).sample
        got = model.network(x, c_noise, labels)
    # The cosines of angles up to 1,100 differ by 1e-4 in the embedding.
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)
    assert expected.std() > 0.1


def test_a_folder_of_another_network_is_told_too(tmp_path: pathlib.Path) -> None:
    """DDPM's form of U-Net, in a pipeline of its own."""
    network = UNet2DModel(
        sample_size=32,
        block_out_channels=(32, 64),
        layers_per_block=2,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )
    DDPMPipeline(unet=network, scheduler=DDPMScheduler()).save_pretrained(tmp_path / "ddpm")
    found = describe(tmp_path / "ddpm")
    assert (found["format"], found["network"]) == ("diffusers", None)
    assert "describes a U-Net that is none of ours: " in found["differs"]
    assert found["structure"]["down_block_types"] == ["DownBlock2D", "AttnDownBlock2D"]
    assert found["num_parameters"] == network.num_parameters()
    assert found["tensors"]["conv_in.weight"] == "float32 [32, 3, 3, 3]"
    assert "parameterization" not in found
    with pytest.raises(ValueError, match="none of ours"):
        convert(tmp_path / "ddpm", tmp_path / "x.safetensors")


def test_a_folder_of_another_kind_is_told_too(tmp_path: pathlib.Path) -> None:
    network = UNet2DConditionModel(
        block_out_channels=(32, 64),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32,
    )
    network.save_pretrained(tmp_path / "text", safe_serialization=False)  # the older weight file
    found = describe(tmp_path / "text")
    assert (found["format"], found["network"]) == ("diffusers", None)
    assert "describes a UNet2DConditionModel; allowed is a UNet2DModel" in found["differs"]
    assert found["num_parameters"] == network.num_parameters()


def test_names_lead_to_what_is_here(monkeypatch: pytest.MonkeyPatch) -> None:
    released = release(monkeypatch)
    assert here(released.name) == released.downloaded
    convert(released.name)
    released.downloaded.unlink()
    assert here(released.name) == released.converted
    released.converted.unlink()
    with pytest.raises(ValueError, match=f"run 'cmrepro checkpoints fetch {released.name}'"):
        here(released.name)
    for name, path in bundled_checkpoints().items():
        assert here(name) == path
    with pytest.raises(ValueError, match="did you mean 'imagenet64-cd-l2'"):
        here("imagenet64-cd-l")
