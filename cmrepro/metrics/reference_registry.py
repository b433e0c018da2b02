"""The reference statistics that have names: bundled, or of references.toml to fetch or build."""

from __future__ import annotations

import functools
import tomllib
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from cmrepro.files import RECORDED, cache_folder, download
from cmrepro.metrics.protocols import load_extractor_settings
from cmrepro.metrics.reference_files import ReferenceMetadata, read_statistics
from cmrepro.schema import unknown


@dataclass(frozen=True)
class RegisteredReference:
    """Reference statistics of references.toml.

    Attributes:
        name: Its key there.
        format: "ttur" (.npz of mu and sigma), "adm" (with spatial statistics and images),
            "pickle" (EDM2's), or "own" for those that have to be built.
        dataset: Name of the data set.
        split: Its part.
        extractor: Name of the extractor.
        source: Who made them.
        num_images: Number of images behind them, where a document states it.
        url: Address; None for those that have to be built.
        bytes_approx: Size of the download, roughly.
        licence: SPDX name of the publisher's licence.
        protocol: Name of the protocol to build them for; None for downloads.
    """

    name: str
    format: str
    dataset: str
    split: str
    extractor: str
    source: str
    num_images: int | None = None
    url: str | None = None
    bytes_approx: int | None = None
    licence: str | None = None
    protocol: str | None = None

    @property
    def path(self) -> Path:
        """Where the file lies once it is there."""
        suffix = ".pkl" if self.format == "pickle" else ".npz"
        return cache_folder() / "references" / f"{self.name}{suffix}"

    @property
    def metadata(self) -> ReferenceMetadata:
        """What is documented about the file."""
        extractor = load_extractor_settings(self.extractor)
        return ReferenceMetadata(
            dataset=self.dataset,
            split=self.split,
            num_images=self.num_images,
            extractor=extractor.name,
            image_size=extractor.image_size,
            resize=extractor.resize,
        )


@functools.cache
def registered_references() -> dict[str, RegisteredReference]:
    """The reference statistics of references.toml by name, in its order."""
    text = resources.files(__package__).joinpath("references.toml").read_text(encoding="utf-8")
    entries: dict[str, dict[str, Any]] = tomllib.loads(text)["references"]
    return {name: RegisteredReference(name=name, **entry) for name, entry in entries.items()}


def bundled_references() -> dict[str, Path]:
    """The reference statistics that come with the package: name -> path, sorted."""
    folder = Path(str(resources.files(__package__).joinpath("bundled")))
    return {path.stem: path for path in sorted(folder.glob("*.npz"))}


def fetch_reference(name: str) -> Path:
    """The file of reference statistics by name, downloaded where it is not in the cache yet.

    A file put there by hand is used. An interrupted download goes on where it stopped.

    Raises:
        ValueError: Unknown name; statistics that have to be built (says how); address unreachable
            (says where to put the file), no space, or a file with another checksum than the one
            first recorded.
    """
    bundled, registered = bundled_references(), registered_references()
    if name in bundled:
        return bundled[name]
    if name not in registered:
        raise ValueError(unknown("reference", name, bundled | registered))
    entry = registered[name]
    if entry.url is not None:
        return download(entry.url, entry.path, RECORDED)
    if not entry.path.is_file():
        raise ValueError(
            f"nobody publishes reference {name}; build it with `cmrepro references build "
            f"{entry.dataset}-{entry.split} --protocol {entry.protocol} --dataset "
            f"{entry.dataset} --split {entry.split} --out {entry.path}`"
        )
    return entry.path


def reference_rows() -> list[dict[str, object]]:
    """One row a name: what the statistics are of, and where they are."""
    bundled = {name: read_statistics(path).metadata for name, path in bundled_references().items()}
    rows: list[dict[str, object]] = [
        {
            "name": name,
            "data": metadata.name,
            "images": metadata.num_images,
            "extractor": metadata.extractor,
            "where": "bundled",
            "source": f"built for protocol {metadata.protocol} v{metadata.protocol_version}",
        }
        for name, metadata in bundled.items()
    ]
    for entry in registered_references().values():
        absent = "to be built" if entry.url is None else "to be fetched"
        rows.append(
            {
                "name": entry.name,
                "data": entry.metadata.name,
                "images": entry.num_images,
                "extractor": entry.extractor,
                "where": "cached" if entry.path.is_file() else absent,
                "source": entry.source,
            }
        )
    return rows
