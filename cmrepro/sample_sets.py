"""Sample sets on disk: the stages of a sampling as they are made, ADM's .npz, provenance."""

import os
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmrepro.data.sources import CHUNK_IMAGES, ImageDataset, ImageSource, SampleSet
from cmrepro.files import atomic_path, item_digests, make_folder, short
from cmrepro.records import SampleProvenance
from cmrepro.schema import convert, read_json, to_builtins, to_json


class Stages:
    """Images of each stage (S, N, H, W, 3) in memory, or in a folder that `prepare_folder` made.

    The files are stage1.npy, stage2.npy, …, and digests.npy, which is written after the images, so
    that an interrupted sampling knows its end.
    """

    def __init__(self, shape: tuple[int, ...], folder: Path | None) -> None:
        self.paths = [folder / name for name in _names(shape[0])] if folder else []
        self.digests = np.zeros(_digests_shape(shape), np.uint8)
        if folder:
            *self.images, self.digests[:] = (np.load(path, mmap_mode="r") for path in self.paths)
        else:
            self.images = [np.empty(shape[1:], np.uint8) for _ in range(shape[0])]

    def is_finished(self, first: int, last: int) -> bool:
        """True if images first to last - 1 of all stages are in the folder."""
        digests = self.digests[first:last, 1]
        return bool(digests.any()) and all(
            # Mapped anew, since pages that were read count as memory until the map is closed.
            np.array_equal(_digests(np.load(path, mmap_mode="r")[first:last]), digests[:, stage])
            for stage, path in enumerate(self.paths[:-1])
        )

    def write(self, first: int, images: Sequence[NDArray[np.uint8]], noise: bytes) -> None:
        """Store images (B, H, W, 3) of each stage from number `first` on, and noise digests."""
        rows = slice(first, first + len(images[0]))
        digests = self.digests[rows]
        noise_digests = np.frombuffer(noise, np.uint8).reshape(-1, *digests.shape[2:])
        digests[:, 0] = noise_digests[: len(digests)]
        for stage, batch in enumerate(images):
            digests[:, 1, stage] = _digests(batch)
            if not self.paths:
                self.images[stage][rows] = batch
        for path, array in zip(self.paths, [*images, digests], strict=False):
            # Not through the map: on shared folders it writes whole pages, also those of others.
            with open(path, "r+b") as file:
                file.seek((first - len(self.digests)) * array[0].nbytes, os.SEEK_END)
                file.write(array.tobytes())


def _names(num_stages: int) -> list[str]:
    return [*(f"stage{k}.npy" for k in range(1, num_stages + 1)), "digests.npy"]


def _digests_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """SHA-256 of an image's noise up to each stage, and of its stages; 0 where not finished."""
    return shape[1], 2, shape[0], 32


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
        shapes = [shape[1:]] * shape[0] + [_digests_shape(shape)]
        for name, whole in zip(_names(shape[0]), shapes, strict=True):
            np.lib.format.open_memmap(folder / name, "w+", np.uint8, whole)  # zeros
        with atomic_path(known_path) as temporary:
            temporary.write_text(to_json(run), encoding="utf-8")
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
    form = np.lib.format
    header = form.header_data_from_array_1_0(images)
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        with archive.open("arr_0.npy", "w", force_zip64=True) as file:
            form.write_array_header_1_0(file, header | {"fortran_order": False})
            for batch in image_source(path.stem, images).batches(CHUNK_IMAGES):
                file.write(batch.tobytes())
        if labels is not None:
            with archive.open("arr_1.npy", "w") as file:
                form.write_array(file, labels)
    with atomic_path(provenance_path(path)) as temporary:
        temporary.write_text(to_json(provenance), encoding="utf-8")


def provenance_path(path: Path) -> Path:
    """Path of the JSON beside a sample set."""
    path = Path(os.path.expanduser(path)).absolute()  # so that the folder "." has a name
    return path.with_name(f"{path.name}.provenance.json")


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
