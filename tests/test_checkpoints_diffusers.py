"""diffusers folders: diffusers itself writes them, and gives the same networks and images."""

import json
import pathlib
from typing import Any

import golden
import pytest
import torch
from diffusers import CMStochasticIterativeScheduler, ConsistencyModelPipeline, UNet2DModel
from official_files import weights_of

from cmrepro.checkpoints.convert import convert
from cmrepro.checkpoints.diffusers import to_diffusers, unet_config
from cmrepro.checkpoints.io import shapes
from cmrepro.checkpoints.load import load_model
from cmrepro.consistency.samplers import multistep_stages
from cmrepro.consistency.schedules import karras_times
from cmrepro.networks.adm import ADMConfig, UNet
from cmrepro.networks.presets import IMAGE_SIZES, PRESETS, build_network

SIZE = 16
SIGMA_MAX = 70.0  # not the default, so that it has to be read
TIME = karras_times(40, 0.002, SIGMA_MAX)[22].item()
# Both released forms of the residual block, with and without classes, attention at the first, a
# middle and the last level, several heads, levels that widen, two blocks a level.
CONFIGS = {
    "cond": golden.ADM["cond"],
    "uncond": golden.ADM["uncond"],
    "deep": ADMConfig(32, (1, 2, 2), 2, (2,), 16, use_scale_shift_norm=True),
}
# ImageNet-64 in the conversion script of diffusers that made the published folders
# (openai/diffusers-cd_imagenet64_l2 and the like).
PUBLISHED: dict[str, Any] = {
    "sample_size": 64,
    "in_channels": 3,
    "out_channels": 3,
    "layers_per_block": 3,
    "num_class_embeds": 1000,
    "block_out_channels": [192, 384, 576, 768],
    "attention_head_dim": 64,
    "down_block_types": ["ResnetDownsampleBlock2D", *["AttnDownBlock2D"] * 3],
    "up_block_types": [*["AttnUpBlock2D"] * 3, "ResnetUpsampleBlock2D"],
    "resnet_time_scale_shift": "scale_shift",
    "attn_norm_num_groups": 32,
    "upsample_type": "resnet",
    "downsample_type": "resnet",
}


@pytest.fixture(autouse=True)
def presets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, config in CONFIGS.items():
        monkeypatch.setitem(PRESETS, name, (UNet, config))
        monkeypatch.setitem(IMAGE_SIZES, name, SIZE)


def pipeline(case: str) -> ConsistencyModelPipeline:
    """diffusers' pipeline with the weights of our network."""
    unet = UNet2DModel.from_config(unet_config(case)).eval()
    unet.load_state_dict(to_diffusers(weights_of(case), CONFIGS[case]))
    scheduler = CMStochasticIterativeScheduler(num_train_timesteps=40, sigma_max=SIGMA_MAX)
    pipe = ConsistencyModelPipeline(unet=unet, scheduler=scheduler)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("safe", [True, False], ids=["safetensors", "older weight file"])
@pytest.mark.parametrize("case", CONFIGS)
def test_a_folder_gives_the_same_weights_and_images(
    tmp_path: pathlib.Path, case: str, safe: bool
) -> None:
    """Weights bit for bit, the network at three times, images of one and two steps."""
    pipe = pipeline(case)
    pipe.save_pretrained(tmp_path / "folder", safe_serialization=safe)
    model = load_model(tmp_path / "folder")
    loaded = model.network.state_dict()
    assert all(torch.equal(loaded[key], tensor) for key, tensor in weights_of(case).items())
    assert (model.info.network, model.info.parameterization) == (case, "boundary")
    assert (model.info.sigma_min, model.info.sigma_max) == (0.002, SIGMA_MAX)
    z = torch.randn(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    z2 = torch.randn(z.shape, generator=torch.Generator().manual_seed(7))
    labels = torch.arange(3) if CONFIGS[case].num_classes else None
    c_noise = torch.tensor([-1.5, 0.0, 1.1])
    with torch.no_grad():
        ours = model.network(z, c_noise, labels)
        got = pipe.unet(z, 1000 * c_noise, class_labels=labels).sample
    # Float32 sums in another order differ by 1e-6, the cosines in the embedding by 1e-4.
    assert golden.relative_error(got, ours) < 1e-4
    assert ours.std() > 0.1
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
                [SIGMA_MAX, TIME][:steps],
                torch.stack([z, z2])[:steps],
            )
        expected = (x / 2 + 0.5).permute(0, 2, 3, 1)
        # As above, of images in [0, 1].
        torch.testing.assert_close(torch.from_numpy(images), expected, rtol=0, atol=1e-4)
        assert ((expected > 0) & (expected < 1)).float().mean() > 0.5  # not all clipped


@pytest.mark.parametrize("name", ["adm-imagenet64", "adm-lsun256"])
def test_names_and_shapes_of_the_full_size_networks(name: str) -> None:
    with torch.device("meta"):
        theirs = UNet2DModel(**{k: v for k, v in unet_config(name).items() if k[0] != "_"})
        ours = build_network(name)
    config = PRESETS[name][1]
    assert isinstance(config, ADMConfig)
    assert shapes(to_diffusers(ours.state_dict(), config)) == shapes(theirs.state_dict())
    assert name != "adm-imagenet64" or unet_config(name).items() >= PUBLISHED.items()


def test_a_network_alone_as_in_the_older_folders(tmp_path: pathlib.Path) -> None:
    """Their configurations lack a key; nothing but a pipeline states the parameterization."""
    pipeline("cond").unet.save_pretrained(tmp_path)
    config, out = tmp_path / "config.json", tmp_path / "x.safetensors"
    content = json.loads(config.read_text())
    del content["attn_norm_num_groups"]
    config.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="give --parameterization boundary"):
        convert(tmp_path, out)
    info = load_model(convert(tmp_path, out, parameterization="edm")).info
    assert (info.network, info.parameterization) == ("cond", "edm")
    assert info.converted and info.converted.format == "diffusers"
