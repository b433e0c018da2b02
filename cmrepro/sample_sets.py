"""Sample sets on disk: the stages of a sampling as they are made, ADM's .npz, provenance."""

import hashlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmrepro.data.sources import ImageDataset, ImageSource, SampleSet
from cmrepro.files import atomic_path, item_digests, make_folder, short
from cmrepro.records import SampleProvenance
from cmrepro.schema import convert, read_json, to_builtins, to_json


class Stages:
    """Images of each stage (S, N, H, W, 3) in memory, or in a folder that `prepare_folder` made.

    Digests (N, 2, S, 32) are SHA-256 of each image's noise up to each stage, and of its stages; 0
    where not finished. The files are stage1.npy, stage2.npy, …, and digests.npy, which is written
    after the images, so that an interrupted sampling knows its end.
    """

    def __init__(self, shape: tuple[int, ...], folder: Path | None) -> None:
        self.paths = [folder / name for name, _ in _files(shape)] if folder else []
        if folder:
            arrays = [np.load(path, mmap_mode="r") for path in self.paths]
        else:
            arrays = [np.zeros(array, np.uint8) for _, array in _files(shape)]
        *self.images, self._digests = arrays

    def is_finished(self, first: int, last: int) -> bool:
        """True if images first to last - 1 of all stages are in the folder."""
        digests = self._digests[first:last, 1]
        stages = (_digests(stage[first:last]) for stage in self.images)
        return bool(digests.any()) and np.array_equal(digests, np.stack([*stages], 1))

    def write(self, first: int, images: Sequence[NDArray[np.uint8]], noise: bytes) -> None:
        """Store images (B, H, W, 3) of each stage from number `first` on, and noise digests."""
        of_images = np.stack([_digests(batch) for batch in images], 1)  # (B, S, 32)
        of_noise = np.frombuffer(noise, np.uint8).reshape(-1, *of_images.shape[1:])
        digests = np.stack([of_noise[: len(of_images)], of_images], 1)
        for k, batch in enumerate([*images, digests]):
            if not self.paths:
                [*self.images, self._digests][k][first : first + len(batch)] = batch
                continue
            # Not through the map: on shared folders it writes whole pages, also those of others.
            with open(self.paths[k], "r+b") as file:
                file.seek((first - len(self._digests)) * batch[0].nbytes, os.SEEK_END)
                file.write(np.ascontiguousarray(batch).data)

    def checksums(self) -> list[list[str]]:
        """Checksums of the noise up to each stage and of its images, as by `items_sha256`."""
        digests = np.load(self.paths[-1]) if self.paths else self._digests  # also of others
        return [
            [hashlib.sha256(kind.tobytes()).hexdigest() for kind in stage]
            for stage in digests.transpose(2, 1, 0, 3)  # (S, 2, N, 32)
        ]


def _files(shape: tuple[int, ...]) -> list[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the arrays of `Stages`."""
    stages = [(f"stage{k}.npy", shape[1:]) for k in range(1, shape[0] + 1)]
    return [*stages, ("digests.npy", (shape[1], 2, shape[0], 32))]


def prepare_folder(
    folder: Path, run: SampleProvenance, shape: tuple[int, ...], any_batch_size: bool
) -> int:
    """Make the files of `Stages`, or refuse those of another sampling; the batch size."""
    known_path = provenance_path(folder / "stages")
    if known_path.exists():
        known = read_json(SampleProvenance, known_path)
        if any_batch_size:  # that of the first call
            run = run.replace(sampling_batch_size=known.sampling_batch_size)
        there, now = to_builtins(known), to_builtins(run)
        if others := [key for key in now if now[key] != there[key]]:
            found = f"{short(folder, 120)} holds a sampling of another {', '.join(others)}"
            raise ValueError(f"{found}; remove it, or choose another folder")
    else:
        make_folder(folder)
        for name, array in _files(shape):
            np.lib.format.open_memmap(folder / name, "w+", np.uint8, array)  # zeros
        write_provenance(folder / "stages", run)
    assert run.sampling_batch_size
    return run.sampling_batch_size


def _digests(images: NDArray[Any]) -> NDArray[np.uint8]:
    """SHA-256 of each image, (B, 32)."""
    return np.frombuffer(item_digests(images), np.uint8).reshape(-1, 32)


def image_source(name: str, images: NDArray[np.uint8]) -> ImageSource:
    """Source of a stage's images; those of a file are read block by block."""
    if isinstance(images, np.memmap):
        return SampleSet(Path(str(images.filename)), name)
    return ImageDataset(name, images)


def write_sample_set(
    path: Path,
    images: NDArray[np.uint8],
    provenance: SampleProvenance,
    labels: NDArray[np.int64] | None = None,
) -> None:
    """Write images as `arr_0` of an .npz, classes as `arr_1` (ADM's names), provenance beside."""
    with atomic_path(path) as temporary:  # which numpy writes block by block
        np.savez(temporary, *[images] if labels is None else [images, labels])
    write_provenance(path, provenance)


def provenance_path(path: Path) -> Path:
    """Path of the JSON beside a sample set."""
    path = Path(os.path.expanduser(path)).absolute()  # so that the folder "." has a name
    return path.with_name(f"{path.name}.provenance.json")


def write_provenance(path: Path, provenance: SampleProvenance) -> None:
    """Write the JSON beside a sample set."""
    with atomic_path(provenance_path(path)) as temporary:
        temporary.write_text(to_json(provenance), encoding="utf-8")


def read_provenance(path: Path, images: ImageSource) -> SampleProvenance:
    """Provenance beside a sample set; without one, only the set's name."""
    unknown = SampleProvenance(model=short(images.name, 100))
    if not (beside := provenance_path(path)).is_file():
        return unknown
    fields = read_json(object, beside)
    if not (isinstance(fields, dict) and fields.keys() & SampleProvenance.__struct_fields__):
        print(f"{short(beside, 120)} is no provenance of cmrepro's; ignored", file=sys.stderr)
        return unknown
    provenance = convert(SampleProvenance, fields, str(beside))
    if provenance.num_sampled not in (None, images.num_images):
        counts = f"{provenance.num_sampled} images, {path} has {images.num_images}"
        raise ValueError(f"{beside} is the provenance of {counts}; remove it or sample again")
    return provenance
