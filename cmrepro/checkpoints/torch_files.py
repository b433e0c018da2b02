"""State dicts of the official PyTorch files, read without running anything that is in them."""

import zipfile
from pathlib import Path

import torch
from torch import Tensor

PICKLE_ADVICE = (
    "a Python pickle runs whatever code it names when it is opened, so it is not opened; NVIDIA's "
    "EDM models come in this form alone: use the paper's own teachers instead (cmrepro "
    "checkpoints convert edm-cifar10 or edm-imagenet64), or save the weights as a state dict "
    "(torch.save) where you trust the file"
)


def read_torch_file(path: Path) -> dict[str, Tensor]:
    """The tensors of a state dict that `torch.save` wrote.

    The file is mapped, not read: a tensor takes memory when it is used.

    Args:
        path: A zip archive, as `torch.save` writes since version 1.6.

    Raises:
        ValueError: Cut off, of another format, or more than names and tensors. Nothing is run.
    """
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # a crafted file can make the unpickler raise anything
        if not zipfile.is_zipfile(path):
            raise ValueError(
                f"{path} is cut off, or was written before torch 1.6; copy or download it again"
            ) from error
        raise ValueError(
            f"{path} is damaged, or holds more than tensors ({type(error).__name__}), and nothing "
            "in it was run; download it again, or save its state dict alone where you trust it"
        ) from error
    if not isinstance(weights, dict) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in weights.items()
    ):
        raise ValueError(
            f"{path} holds {type(weights).__name__} with other things than named tensors; allowed "
            "is a state dict, e.g. what torch.save(network.state_dict(), FILE) writes"
        )
    return dict(weights)
