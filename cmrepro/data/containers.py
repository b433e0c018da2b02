"""Image files: their containers (folders, zips, LMDB), labels, and conversion to 8-bit RGB.

A folder and a zip are read whole or refused. Left out are hidden files and folders (".…",
`__MACOSX`, `@eaDir`) and files that are no images: no file with their suffix starts like one. In
an LMDB, these are keys without a digit, as `length`. Links to folders are followed.

Scoring, statistics and training see the same pixels, as they are stored: colour profiles, gamma
and EXIF rotation are not applied. Converted to 8-bit RGB are grey (R = G = B; fewer bits are
scaled to 0-255), palettes (looked up), alpha that is 255 everywhere (dropped), and CMYK by
R = (255 - C) (255 - K) / 255, as the official code reads ImageNet. Refused are transparent
pixels, channels of more than 8 bits, other colour spaces, and files of several frames or pages.
"""

import io
import os
import re
import zipfile
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import IO, Annotated, Any, NamedTuple, TypeVar
from weakref import WeakValueDictionary

import lmdb
import msgspec
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, UnidentifiedImageError

from cmrepro.files import one_line_errors, short

FORMATS = ["PNG", "JPEG", "BMP", "DIB", "WEBP", "TIFF", "GIF", "PPM", "TGA", "QOI"]
READ = ".png .apng .jpg .jpeg .jpe .jfif .bmp .dib .webp .tif .tiff .gif .ppm .pgm .pbm .pnm .tga"
# These are images too, but refused: Pillow reads them not everywhere, or rounds them to 8 bits.
UNREAD = ".avif .heic .heif .jp2 .j2k .jxl .exr .hdr .pfm .psd .ico .svg .dng"
SUFFIXES = frozenset(f"{READ} .qoi {UNREAD}".split())
LMDB_MAGIC = b"\xde\xc0\xef\xbe"  # at byte 16 of a file
IMAGE_START = re.compile(
    rb"\x89PNG|\xff\xd8\xff|BM....\0\0\0\0|RIFF....WEBP|II\*\0|MM\0\*|GIF8|P[1-6]\s|qoif"
    rb"|....ftyp(?:avif|heic|mif1)|\0\0\0\x0cj[PX]|\xff\x0a|v/1\x01|8BPS",
    re.DOTALL,
)
MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK"}
DEEP = re.compile(r"(?!BGR).*;(12|16|32)")  # Pillow's modes of a file; it reads "RGB;16B" as RGB
WNID = re.compile(r"n\d{8}(?=_)")  # ImageNet's class names, e.g. n01440764_10026.JPEG
# EDM's generate.py and dataset_tool.py make a folder for every 1,000 images: 001000, 00001.
NUMBERED = re.compile(r"(^|/)\d{5,}$")

Labels = NDArray[np.int64] | None
T = TypeVar("T")
_databases = WeakValueDictionary[Path, lmdb.Environment]()


class Container(NamedTuple):
    """Image files, read from any thread and after a fork."""

    image_names: list[str]  # sorted
    labels: Labels  # classes (N,)
    open: Callable[[str], IO[bytes]]
    length: Callable[[str], int]  # bytes, without reading the file
    left_out: list[str]  # names of other files


class _EdmLabels(msgspec.Struct):
    """EDM's dataset.json."""

    labels: list[tuple[str, Annotated[int, msgspec.Meta(le=(1 << 63) - 1)]]] | None


def folder_files(path: Path) -> Container:
    """Images below a folder, named by their relative paths."""
    names: list[str] = []
    folders, visited = [""], set[str]()
    while folders:
        folder = folders.pop()
        if (real := os.path.realpath(path / folder)) in visited:
            raise ValueError(f"'{short(folder)}' is a folder of this set again; remove the link")
        visited.add(real)
        with os.scandir(path / folder) as entries:
            for entry in entries:
                if entry.is_dir() and not _is_hidden(entry.name):
                    folders.append(f"{folder}{entry.name}/")
                else:
                    names.append(folder + entry.name)
    return _container(
        names, lambda name: open(path / name, "rb"), lambda name: (path / name).stat().st_size
    )


def zip_files(path: Path) -> Container:
    """Images in a zip, which each process opens: forked ones share an open file's position."""

    @cache
    def archive(process: int) -> zipfile.ZipFile:
        return zipfile.ZipFile(path)

    with one_line_errors(path, "is not a complete zip file", "write it again"):
        infos = archive(os.getpid()).infolist()
    by_name: dict[str, zipfile.ZipInfo] = {}
    for info in infos:
        name = info.filename.replace("\\", "/")  # of Windows
        if name in by_name:
            raise ValueError(f"{short(path, 80)} holds {short(name)} twice; write it again")
        by_name[name] = info
    return _container(
        [name for name, info in by_name.items() if info.file_size or not info.is_dir()],
        lambda name: archive(os.getpid()).open(by_name[name]),
        lambda name: by_name[name].file_size,
    )


def lmdb_files(path: Path) -> Container:
    """Values of an LMDB by their keys, as LSUN is published: each an encoded image."""
    with one_line_errors(path, "is not a whole LMDB", "fetch it again"):
        # A process can open a file only once.
        database = _databases.get(path) or lmdb.open(
            str(path), subdir=False, readonly=True, lock=False
        )
        _databases[path] = database
        needed = (database.info()["last_pgno"] + 1) * database.stat()["psize"]
        if path.stat().st_size < needed:  # a bus error would end the process
            raise ValueError(f"it is shorter than its {needed} bytes")
        with database.begin() as transaction:
            keys = [os.fsdecode(key) for key in transaction.cursor().iternext(values=False)]

    def apply(function: Callable[[Any], T], key: str) -> T:
        """Result of a function of the value of a key, which is not copied."""
        with database.begin(buffers=True) as transaction:
            return function(transaction.get(os.fsencode(key)))

    def is_image(key: str) -> bool:
        named = re.search(r"\d", key) or _suffix(key) in SUFFIXES
        return bool(named or apply(IMAGE_START.match, key))

    names = [key for key in keys if is_image(key)]
    others = sorted({*keys} - {*names})
    return Container(names, None, partial(apply, io.BytesIO), partial(apply, len), others)


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name in ("__MACOSX", "@eaDir")


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _container(
    names: Sequence[str], open_: Callable[[str], IO[bytes]], length: Callable[[str], int]
) -> Container:
    """Images among files, and their labels."""

    def is_image(name: str) -> bool:
        with one_line_errors(name, "cannot be read", "replace it"), open_(name) as file:
            return IMAGE_START.match(file.read(16)) is not None

    left_out: list[str] = []
    by_suffix: defaultdict[str, list[str]] = defaultdict(list)
    for name in names:
        hidden = any(map(_is_hidden, name.split("/")))
        (left_out if hidden else by_suffix[_suffix(name)]).append(name)
    image_names: list[str] = []
    for suffix, group in by_suffix.items():
        # The first 100 only, as there may be a caption of each image.
        images = suffix in SUFFIXES or any(map(is_image, group[:100]))
        (image_names if images else left_out).extend(group)
    image_names.sort()
    edm = [name for name in left_out if re.fullmatch(r"([^./][^/]*/)?dataset\.json", name)]
    if len(edm) > 1:
        raise ValueError(f"{short(edm[0])} and {short(edm[1])} both give labels; remove one")
    if edm:
        left_out.remove(edm[0])
    labels = _edm_labels(image_names, edm[0], open_) if edm else _folder_labels(image_names)
    return Container(image_names, labels, open_, length, sorted(left_out))


def _edm_labels(
    image_names: Sequence[str], path: str, open_: Callable[[str], IO[bytes]]
) -> Labels:
    """Labels by EDM's dataset.json, which names files from its own folder on."""
    allowed = 'allowed is {"labels": [[FILE, CLASS], …]} with integer classes, or {"labels": null}'
    with one_line_errors(path, "cannot be read", allowed), open_(path) as file:
        labels = msgspec.json.decode(file.read(), type=_EdmLabels).labels
    if labels is None:
        return None
    folder = path.removesuffix("dataset.json")
    by_name = {folder + name: label for name, label in labels}
    if odd := sorted(by_name.keys() ^ set(image_names)):
        example = f"{len(odd)} names, e.g. {short(odd[0])}"
        raise ValueError(f"dataset.json and the images differ by {example}; list each image once")
    return np.array([by_name[name] for name in image_names], np.int64)


def _folder_labels(image_names: Sequence[str]) -> Labels:
    """Labels by the sorted class folders, or by ImageNet's classes."""
    classes = [NUMBERED.sub("", name.rpartition("/")[0]) for name in image_names]
    folders = {*classes}
    for folder in sorted(folders):
        above = folder
        while above:
            above = above.rpartition("/")[0]
            if above in folders:
                loose = short(image_names[classes.index(above)])
                fix = "move it into its class's folder, or all images into one"
                raise ValueError(f"{loose} lies beside the folder {short(folder)}; {fix}")
    if len(folders) < 2:
        matches = [WNID.match(name.rpartition("/")[2]) for name in image_names]
        classes = [match.group() for match in matches if match]
    unique, numbers = np.unique(classes, return_inverse=True)
    return numbers if len(numbers) == len(image_names) and len(unique) > 1 else None


def read_image(name: str, files: Container) -> Image.Image:
    """RGB image of a file, by the rules of this module."""
    try:
        data = b""
        with files.open(name) as file:
            data = file.read()
        image: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
        if not (fault := _fault(image)):
            if image.format == "PNG":  # Pillow leaves the checksums out when it reads pixels
                Image.open(io.BytesIO(data), formats=["PNG"]).verify()
            image.load()
            if image.has_transparency_data:
                image = image.convert("RGBA")
                is_opaque = image.getchannel("A").getextrema() == (255, 255)
                fault = "" if is_opaque else "has transparent pixels"
    except Exception as error:  # Pillow, zipfile and zlib each raise their own kinds
        start = f"it starts with {data[:12]!r}" if data else "it is empty"
        reason = f"no image: {start}" if isinstance(error, UnidentifiedImageError) else str(error)
        raise ValueError(f"cannot decode {short(name)} ({short(reason)}); replace it") from error
    if fault:
        allowed = "allowed is 8-bit RGB without transparency"
        raise ValueError(f"{short(name)} {fault}, {allowed}; convert the images beforehand")
    return image if image.mode == "RGB" else image.convert("RGB")


def _fault(image: Image.Image) -> str:
    """Reason why an opened image cannot be read as 8-bit RGB; "" if it can."""
    if (frames := getattr(image, "n_frames", 1)) > 1 and image.format != "MPO":  # has previews
        return f"has {frames} frames"
    for tile in image.tile if isinstance(image, ImageFile.ImageFile) else ():
        raw, *more = tile.args if isinstance(tile.args, tuple) else (tile.args,)
        if DEEP.match(str(raw)) or (tile.codec_name.startswith("ppm") and more and more[0] > 255):
            return "has channels of more than 8 bits"
    return "" if image.mode in MODES else f"is {image.mode}"


def centre_square(image: Image.Image, size: int) -> NDArray[np.uint8]:
    """Central square (size, size, 3) of an RGB image, resized as for ADM and the official code.

    The image is halved with the box filter while its shorter side is at least 2 * size, resized to
    it with the bicubic filter, and cropped (Dhariwal and Nichol 2021; `center_crop_arr` in
    openai/guided-diffusion at 81916c0, MIT licence, which openai/consistency_models uses). LSUN's
    images, whose shorter side is 256, are only cropped.
    """
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    width, height = round(image.width * scale), round(image.height * scale)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    return np.asarray(image.crop((left, top, left + size, top + size)))
