"""Memory that converting takes, in a process of its own, by format."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

# The second round counts: everything is imported and warmed up by the first.
SCRIPT = """
import json, pathlib, re, shutil, sys
import msgpack
import torch
from official_files import ema_tree, packed
from random_weights import randomise
from safetensors.torch import save_file
from cmrepro.checkpoints.convert import convert
from cmrepro.checkpoints.diffusers import WEIGHTS, to_diffusers, unet_config, weights_file
from cmrepro.networks import presets
from cmrepro.networks.adm import ADMConfig, UNet
from cmrepro.networks.ncsnpp import NCSNpp, NCSNppConfig

folder = pathlib.Path(sys.argv[1])
presets.PRESETS.clear()
presets.PRESETS["adm"] = (UNet, ADMConfig(192, (1, 2), 1, (2,), 32))
presets.PRESETS["ncsnpp"] = (NCSNpp, NCSNppConfig(128, (1, 2), 2))
presets.IMAGE_SIZES |= {"adm": 8, "ncsnpp": 8}

network = randomise(presets.build_network("ncsnpp"))
tree = ema_tree(network.state_dict(), network)
with open(folder / "flax", "wb") as file:
    packer = msgpack.Packer(default=packed, use_bin_type=True)
    file.write(packer.pack_map_header(5))
    file.write(packer.pack("step") + packer.pack(1))
    for name in ("params", "params_ema", "mu", "nu"):
        file.write(packer.pack(name))
        file.write(packer.pack(tree))
weights = randomise(presets.build_network("adm")).state_dict()
torch.save(weights, folder / "torch")
(folder / "diffusers").mkdir()
(folder / "diffusers" / "config.json").write_text(json.dumps(unet_config("adm")))
save_file(to_diffusers(weights, presets.PRESETS["adm"][1]), folder / "diffusers" / WEIGHTS)
del network, tree, weights

def status(key):
    text = pathlib.Path("/proc/self/status").read_text()
    return 1024 * int(re.search(rf"{key}:\\s+(\\d+)", text)[1])

def peak(action):  # bytes above what is used before
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again at VmRSS
    before = status("VmRSS")
    action()
    return status("VmHWM") - before

found = {}
for round in range(2):
    for name in ("flax", "torch", "diffusers"):
        source, out, half = (folder / n for n in (name, f"{round} {name}", "half"))
        how = {"parameterization": "edm"}
        found[name] = {
            "converted": peak(lambda: convert(source, out, **how)),
            "halved": peak(lambda: convert(source, half, dtype=torch.float16, **how)),
            "file": weights_file(source).stat().st_size,
            "result": out.stat().st_size,
        }
print(json.dumps(found))
"""


@pytest.mark.slow
@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="needs Linux")
def test_memory_is_bounded_by_the_size_of_the_file(tmp_path: pathlib.Path) -> None:
    tests = pathlib.Path(__file__).resolve().parent
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, tmp_path],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        cwd=tests.parent,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tests), str(tests.parent)])},
    )
    for name, numbers in json.loads(result.stdout).items():
        file, converted = numbers["file"], numbers["result"]
        assert file > 60_000_000, name
        if name == "flax":
            # Arrays as read and as turned into torch's order, whatever else is in the file.
            assert numbers["converted"] < 2.2 * converted and converted < 0.3 * file
            assert numbers["halved"] < converted + 1.2 * file
        else:
            # Pages of the source as they pass; half precision is a copy of half the size.
            assert numbers["converted"] < 1.2 * file, name
            assert numbers["halved"] < 1.7 * file, name
