"""Files of a checkpoint's weights: a file, the shards of an index, or those of a folder."""

import re
from pathlib import Path
from typing import Any

from cmrepro.files import first_bytes
from cmrepro.schema import read_json

WEIGHTS = "diffusion_pytorch_model"
SHARD = re.compile(r"-\d{5}-of-\d{5}\.")
# Safetensors before pickles, one file before shards, and before variants the plain name.
PLAIN = ["safetensors", "safetensors.index.json", "bin", "bin.index.json"]
SUFFIXES = [*PLAIN, "*.safetensors", "safetensors.index.*.json", "*.bin", "bin.index.*.json"]
WEIGHTS_FILE = re.compile(r"^checkpoint_\d+$|\.(safetensors|pt|pth|ckpt|bin|msgpack|index.json)$")
ORBAX = {"_METADATA", "_CHECKPOINT_METADATA", "manifest.ocdbt"}


def weights_files(path: Path) -> list[Path]:
    """The file itself, or the shards of an index (.json); of a folder, those of its U-Net."""
    if path.is_dir():
        path = _weights_in(unet_folder(path))
    if not first_bytes(path).startswith(b"{"):
        return [path]
    index = read_json(dict[str, Any], path).get("weight_map")
    if not index or not isinstance(index, dict):
        raise ValueError(f"{path} is JSON, but no index of weights; give a file of weights")
    shards = [path.parent / Path(name).name for name in sorted({str(x) for x in index.values()})]
    if missing := [shard.name for shard in shards if not shard.is_file()]:
        raise ValueError(f"{path} lacks {missing[0]}; download it to the same folder")
    return shards


def pipeline_folder(path: Path) -> Path:
    """The folder itself, or the snapshot in a folder of Hugging Face's cache."""
    if not (path / "snapshots").is_dir():
        return path
    main = path / "refs" / "main"
    found = sorted(folder.name for folder in (path / "snapshots").iterdir())
    name = main.read_text().strip() if main.is_file() else found[0] if len(found) == 1 else ""
    if name not in found:
        raise ValueError(f"{path} has the snapshots {_some(found)}; give the folder of one")
    return path / "snapshots" / name


def unet_folder(path: Path) -> Path:
    """Folder of the U-Net of a diffusers folder; names what other folders hold."""
    path = pipeline_folder(path)
    folder = path / "unet" if (path / "unet").is_dir() else path
    if (folder / "config.json").is_file():
        return folder
    files = [p.name for p in folder.iterdir() if p.is_file() and not SHARD.search(p.name)]
    if weights := [name for name in files if WEIGHTS_FILE.search(name)]:
        raise ValueError(f"{folder} is no diffusers folder; give a file in it: {_some(weights)}")
    if any(p.name in ORBAX for p in [*folder.glob("*"), *folder.glob("*/*")]):
        advice = "save its EMA parameters as msgpack with flax.serialization.to_bytes"
        raise ValueError(f"{folder} holds an orbax checkpoint, which is not read; {advice}")
    raise ValueError(f"{folder} has no config.json; give a file or a diffusers folder")


def _weights_in(folder: Path) -> Path:
    """Weights in a folder by diffusers' names; a variant (fp16) where there are no others."""
    for suffix in SUFFIXES:
        found = [f.name for f in folder.glob(f"{WEIGHTS}.{suffix}") if not SHARD.search(f.name)]
        if len(found) > 1:
            raise ValueError(f"{folder} has several variants; give a file: {_some(found)}")
        if found:
            return folder / found[0]
    raise ValueError(f"{folder} has no {WEIGHTS}.safetensors; download the folder again")


def _some(names: list[str]) -> str:
    """The last three of a list of names, numbers in their order."""
    ordered = sorted(names, key=lambda name: [int(n) for n in re.findall(r"\d+", name)])
    return ", ".join(ordered[-3:]) or "none"
