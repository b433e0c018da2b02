"""Recognise what a path is by its content, find what is wrong with it, and say so in a table."""

from __future__ import annotations

import contextlib
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from cmrepro.checkpoints.diffusers import is_diffusers_folder
from cmrepro.checkpoints.formats import file_format
from cmrepro.checkpoints.io import bundled_checkpoints
from cmrepro.checks.checkpoints import examine_checkpoint
from cmrepro.checks.findings import Examination, Settings, causes
from cmrepro.checks.images import examine_images
from cmrepro.checks.records import examine_record
from cmrepro.checks.statistics import examine_statistics
from cmrepro.data import ImageSource, images_sha256, open_images
from cmrepro.experiments.run import read_origin
from cmrepro.files import DownloadError
from cmrepro.records3 import RunRecord, read_record

ALLOWED = (
    "a sample set (.npz with arr_0, a folder or .zip of images), a checkpoint of this project, "
    "reference statistics (.npz or .pkl with mu and sigma) or a record (.json)"
)


def recognise(what: str) -> str:
    """What a path is by its content: "sample set", "checkpoint", "statistics" or "record".

    Raises:
        FileNotFoundError: Nothing is there.
        ValueError: It is none of these.
    """
    path = Path(what)
    if what in bundled_checkpoints():
        return "checkpoint"
    if not path.exists():
        raise FileNotFoundError(f"nothing at '{what}'; allowed is {ALLOWED}")
    if path.is_dir():
        return "checkpoint" if is_diffusers_folder(path) else "sample set"
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = {Path(name).name for name in archive.namelist()}
        if {"mu.npy", "sigma.npy"} <= names:
            return "statistics"
        return "checkpoint" if "data.pkl" in names else "sample set"
    with open(path, "rb") as file:
        start = file.read(64).lstrip()
    if start.startswith(b"{"):
        return "record"
    if path.suffix == ".pkl":
        return "statistics"
    try:
        file_format(path)
    except ValueError as error:
        raise ValueError(f"{path} is nothing known; allowed is {ALLOWED}") from error
    return "checkpoint"


def examine(whats: Sequence[str], settings: Settings) -> list[Examination]:
    """Examine each path; images serve for a record of theirs, too.

    Where nothing is at a path, or nothing known, or it is broken, its examination has that as
    `error`, and the others go on.

    Raises:
        DownloadError: What they are held against cannot be had.
    """
    examinations = [Examination(what) for what in whats]
    kinds: dict[str, str] = {}
    sets: dict[str, ImageSource] = {}
    for examination in examinations:
        with _noted(examination):
            what = examination.what
            kinds[what] = recognise(what)
            if kinds[what] == "sample set":
                sets[what] = open_images(what)
    for index, examination in enumerate(examinations):
        if examination.error:
            continue
        with _noted(examination):
            what = examination.what
            found = _examined(what, kinds[what], sets, settings)
            found.what = what
            found.findings.sort(key=lambda finding: -finding.likelihood)
            examinations[index] = found
    return examinations


@contextlib.contextmanager
def _noted(examination: Examination) -> Iterator[None]:
    try:
        yield
    except DownloadError:  # which is no fault of what is examined
        raise
    except (ValueError, OSError) as error:
        examination.error = " ".join(str(error).split())


def _examined(
    what: str, kind: str, sets: Mapping[str, ImageSource], settings: Settings
) -> Examination:
    if kind == "sample set":
        return examine_images(sets[what], read_origin(Path(what), sets[what]), settings)
    if kind == "record":
        record = read_record(Path(what))
        return examine_record(record, _images_of(record, sets.values()), settings)
    if kind == "statistics":
        return examine_statistics(what, settings)
    return examine_checkpoint(what, settings)


def _images_of(record: RunRecord, sets: Iterable[ImageSource]) -> ImageSource | None:
    """The sample set whose first images a record is of, if it was given too."""
    for images in sets:
        count = min(record.num_images, images.num_images)
        if images_sha256(images, count) == record.hashes["images"]:
            return images
    return None


def finding_rows(examinations: Sequence[Examination]) -> list[dict[str, object]]:
    """One row a finding, and one for each path without any; none for what was not examined."""
    rows: list[dict[str, object]] = []
    for examination in examinations:
        if examination.error:
            continue
        looked_for = [cause for key, cause in causes().items() if key in examination.checked]
        rows += [
            {
                "what": examination.what,
                "finding": f"{causes()[finding.cause].number} {causes()[finding.cause].words}",
                "likelihood": round(finding.likelihood, 3),
                "measured": finding.measured,
                "clean": finding.clean,
                "effect": finding.effect,
                "do": causes()[finding.cause].advice,
            }
            for finding in examination.findings
        ] or [
            {
                "what": examination.what,
                "finding": "nothing was found",
                "measured": f"looked for {'; '.join(cause.words for cause in looked_for)}",
            }
        ]
    return rows
