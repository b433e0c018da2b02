"""Reference statistics by name (references.toml) or file, and built from real images."""

import functools
import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from cmrepro.data import ImageSource
from cmrepro.distributed import broadcast
from cmrepro.files import RECORDED, cache_folder, download
from cmrepro.metrics.accumulate import Accumulator, accumulate
from cmrepro.metrics.protocols import load_extractor_settings
from cmrepro.metrics.reference_files import ReferenceStatistics, read_statistics
from cmrepro.schema import Positive, convert, lookup, read_toml, to_builtins
from cmrepro.settings import Protocol, ReferenceMetadata


class RegisteredReference(ReferenceMetadata, frozen=True, kw_only=True):
    """Metadata that is documented about a file, from references.toml."""

    name: str  # its key there
    source: str  # publisher
    url: str | None = None  # address; None for statistics that have to be built
    bytes_approx: Positive | None = None  # size of the download
    licence: str | None = None  # SPDX name
    default_of: str | None = None  # protocol that has it for models of its data set

    @property
    def path(self) -> Path:
        """Place in the cache."""
        suffix = Path(self.url).suffix if self.url else ".npz"
        return cache_folder() / "references" / f"{self.name}{suffix}"


@functools.cache
def registered_references() -> dict[str, RegisteredReference]:
    """The entries of references.toml by name."""
    path = Path(__file__).with_name("references.toml")
    registered = {}
    for name, table in read_toml(dict[str, dict[str, Any]], path)["references"].items():
        extractor = load_extractor_settings(table["extractor"])
        settings = {"image_size": extractor.image_size, "resize": extractor.resize}
        registered[name] = convert(RegisteredReference, {"name": name} | table | settings, name)
    return registered


def known_references() -> dict[str, RegisteredReference | Path]:
    """All references by name, those that come with the package by their paths."""
    bundled = sorted(Path(__file__).parent.glob("bundled/*.npz"))
    return {**{path.stem: path for path in bundled}, **registered_references()}


def fetch_reference(name: str) -> Path:
    """The file of reference statistics by name, downloaded if it is not in the cache."""
    kind, listed_by = "reference (no such file either)", "cmrepro references list"
    entry = lookup(kind, name, known_references(), listed_by)
    if isinstance(entry, Path):
        return entry
    if entry.url:
        return download(entry.url, entry.path, RECORDED, read_statistics)
    if not entry.path.is_file():
        source = f"{entry.dataset_split} --protocol {entry.protocol} --dataset {entry.dataset}"
        command = f"cmrepro references build {source} --split {entry.split} --out {entry.path}"
        raise ValueError(f"nobody publishes reference {name}; build it with `{command}`")
    return entry.path


def default_reference(protocol: Protocol, dataset: str | None) -> str:
    """Name of a protocol's reference statistics for models trained on a data set."""
    of_protocol = (r for r in registered_references().values() if r.default_of == protocol.name)
    names = {entry.dataset_split: entry.name for entry in of_protocol}
    return names.get(dataset, protocol.reference)


def load_reference(
    protocol: Protocol, name: str | Path | None = None, dataset: str | None = None
) -> ReferenceStatistics:
    """The reference statistics of a file or name, which must serve the protocol.

    By default those of the protocol for models trained on `dataset`, and of no other data. A file
    that exists is read, also where its name is that of a known reference; a protocol of the
    package means the known one.
    """
    stated, name = name is not None, str(name or default_reference(protocol, dataset))
    is_file = (stated or name not in known_references()) and Path(name).exists()
    reference = read_statistics(Path(name) if is_file else fetch_reference(name))
    if not is_file and (entry := registered_references().get(name)):
        metadata = to_builtins(reference.metadata)
        for key, value in metadata.items():
            documented = getattr(entry, key)
            if None not in (documented, value) and documented != value:
                got = f"{reference.path} has {key} {value!r}, {name} has {documented!r}"
                raise ValueError(f"{got}; delete the file and build or fetch it again")
            metadata[key] = documented if value is None else value
        reference.metadata = ReferenceMetadata(**metadata)
    reference.require_protocol(protocol, None if stated else dataset)
    return reference


def reference_rows() -> list[dict[str, object]]:
    """One row a name."""
    rows: list[dict[str, object]] = []
    for name, entry in known_references().items():
        if isinstance(entry, Path):
            data: ReferenceMetadata = read_statistics(entry).metadata
            where, source = "bundled", f"built for {data.protocol} v{data.protocol_version}"
        else:
            absent = "to be fetched" if entry.url else "to be built"
            data, source = entry, entry.source
            where = "cached" if entry.path.is_file() else absent
        row: dict[str, object] = {"name": name, "data": data.dataset_split}
        row |= {"images": data.num_images, "extractor": data.extractor}
        rows.append(row | {"where": where, "source": source})
    return rows


def build_reference(
    images: ImageSource,
    protocol: Protocol,
    *,
    dataset: str,
    split: str,
    device: str = "cpu",
    progress: bool = False,
) -> ReferenceStatistics:
    """Reference statistics of real images, read once, in memory that does not grow with N.

    `split` is "train", "test" or "all"; the protocol chooses the M images of stored features.
    """
    count, stored, extractor = images.num_images, protocol.stored_features, protocol.extractor
    selected = np.zeros(count, np.bool_)
    if stored:
        if count < stored.num_images:
            need = f"protocol {protocol.name!r} stores features of {stored.num_images}"
            raise ValueError(f"got {count} images, {need}; give the whole data set")
        order = np.random.RandomState(stored.seed).permutation(count)
        selected[order[: stored.num_images]] = True
    accumulator = Accumulator(extractor, selected)
    digest = hashlib.sha256()
    update = lambda batch: digest.update(batch.tobytes())  # noqa: E731
    if not accumulate(images, [accumulator], update, device=device, progress=progress):
        return broadcast(None)
    # As exact as in the file, so that writing and reading it does not change a score.
    features = accumulator.features.astype(np.float16).astype(np.float32) if stored else None
    metadata = ReferenceMetadata(
        dataset=dataset,
        split=split,
        num_images=count,
        images_sha256=digest.hexdigest(),
        features_seed=stored.seed if stored else None,
        protocol=protocol.name,
        protocol_version=protocol.version,
        extractor=extractor.name,
        image_size=extractor.image_size,
        resize=extractor.resize,
    )
    built = ReferenceStatistics(*accumulator.moments.mean_and_covariance(), features, metadata)
    if accumulator.spatial:
        built.spatial_mu, built.spatial_sigma = accumulator.spatial.mean_and_covariance()
    return broadcast(built)
