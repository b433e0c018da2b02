"""Image sets as people have them: what must come out of each, and of each when it is damaged."""

import io
import json
import os
import pathlib
import re
import struct
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

import lmdb
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from cmrepro.data import load_dataset, open_images, training_images

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), np.uint8)
GREY = PIXELS[..., :1].repeat(3, axis=3)
DEEP = PIXELS[0, :, :, 0].astype(np.uint16) * 257
RGBA = np.dstack([PIXELS[0], np.full((8, 8), 255, np.uint8)])
Files = dict[str, bytes]
Maker = Callable[[pathlib.Path], pathlib.Path]


def encoded(image: Any, kind: str = "png", mode: str = "", **options: Any) -> bytes:
    file = io.BytesIO()
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    image = image.quantize(256) if mode == "P" else image.convert(mode) if mode else image
    image.save(file, kind, **options)
    return file.getvalue()


def files(name: str = "{}.png", kind: str = "png", start: int = 0, **options: Any) -> Files:
    """PIXELS from `start` on; the others are left out."""
    return {name.format(i): encoded(PIXELS[i], kind, **options) for i in range(start, 6)}


def folder(path: pathlib.Path, content: Files) -> pathlib.Path:
    path.mkdir()
    for name, data in content.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def archive(
    path: pathlib.Path, *contents: Files, compression: int = zipfile.ZIP_DEFLATED
) -> pathlib.Path:
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, data in (pair for content in contents for pair in content.items()):
            file.writestr(zipfile.ZipInfo(name), data)
    return path


def database(path: pathlib.Path, values: Files, **options: Any) -> pathlib.Path:
    with lmdb.open(str(path), map_size=1 << 22, max_dbs=1) as environment:
        main = environment.open_db(**options)
        for key, value in values.items():  # each a transaction: pages of both headers
            with environment.begin(write=True, db=main) as transaction:
                transaction.put(key.encode(), value)
    return path


def arrays(path: pathlib.Path, *values: Any, save: Any = np.savez, **named: Any) -> pathlib.Path:
    with open(path, "wb") as file:  # numpy adds no suffix to an open file
        save(file, *values, **named)
    return path


def linked(path: pathlib.Path, target: str) -> pathlib.Path:
    folder(path.parent / "other", files(start=3))
    folder(path, {f"00000/{i}.png": encoded(PIXELS[i]) for i in (0, 1, 2)})
    os.symlink(path.parent / target if target else path, path / "00001")
    return path


def written(path: pathlib.Path, data: bytes) -> pathlib.Path:
    path.write_bytes(data)
    return path


def row(function: Callable[..., pathlib.Path], *arguments: Any, **options: Any) -> Maker:
    return lambda path: function(path, *arguments, **options)


def cut(make: Maker, file: str = "") -> Maker:
    """Without the last 50 bytes."""

    def maker(path: pathlib.Path) -> pathlib.Path:
        path = make(path)
        os.truncate(path / file, (path / file).stat().st_size - 50)
        return path

    return maker


ORDER = np.asfortranarray(PIXELS)
LARGE = {f"{i}{'x' * 400}": encoded(PIXELS[i], compress_level=0) for i in range(6)}
HIDDEN = {".ipynb_checkpoints/0-checkpoint.png": b"?", "a/._0.png": b"?", "__MACOSX/a/0.png": b"?"}
META = {"length": b"6", "__len__": b"6", "__keys__": b"\x80\x04]."}
CLASSES = {f"{'ab'[i % 2]}/{i}.png": encoded(PIXELS[i]) for i in range(6)}
LABELS = json.dumps({"labels": [[f"{i}.png", i % 2] for i in range(6)], "more": {}}).encode()

# Each gives PIXELS, and no labels.
READ: dict[str, Maker] = {
    "png": row(folder, files()),
    "bmp": row(folder, files("{}.bmp", "bmp")),
    "ppm": row(folder, files("{}.ppm", "ppm")),
    "tga": row(folder, files("{}.tga", "tga")),
    "tiff": row(folder, files("{}.tif", "tiff", compression="tiff_lzw")),
    "webp": row(folder, files("{}.webp", "webp", lossless=True)),
    "gif": row(folder, files("{}.gif", "gif", mode="P")),
    "palette": row(folder, files(mode="P")),
    "opaque": row(folder, files(mode="RGBA")),
    "no suffix": row(folder, files("image {}")),
    "wrong suffix": row(folder, files("{}.png", "bmp")),
    "two formats": row(folder, {"0.tif": encoded(PIXELS[0], "tiff")} | files(start=1)),
    "hidden": row(folder, files("a/{}.png") | HIDDEN),
    "numbered folders": row(folder, files("00{0}000/00{0}000.png")),
    "links to folders": row(linked, "other"),
    "zip": row(archive, files("a/{}.png"), HIDDEN),
    "zip of Windows": row(archive, files("a\\{}.png")),
    "npz": row(arrays, PIXELS),
    "npz, compressed": row(arrays, PIXELS, save=np.savez_compressed),
    "npz in column-major order": row(arrays, ORDER),
    "npy": row(arrays, PIXELS, save=np.save),
    "npy in column-major order": row(arrays, ORDER, save=np.save),
    "lmdb": row(database, files("{:03}") | META),
    "lmdb file": lambda path: database(path, files("{}")) / "data.mdb",
    "large lmdb": row(database, LARGE),
}


@pytest.mark.parametrize("name", READ)
def test_every_lossless_way_gives_the_same_images(name: str, tmp_path: pathlib.Path) -> None:
    """For scoring and training, also under the name of a built-in set."""
    path = READ[name](tmp_path / "synthetic")
    np.testing.assert_array_equal(load_dataset(path).images, PIXELS)
    np.testing.assert_array_equal(training_images(path, 8).take(range(6)), PIXELS)
    assert open_images(path).labels is None


def test_a_path_wins_over_a_name(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder(tmp_path / "set", {"synthetic/0.png": encoded(PIXELS[0])}))
    assert [open_images(x).num_images for x in ("synthetic", ".")] == [1, 1]
    assert open_images(".").name == "set"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert open_images("~/set").name == "set"


def test_what_is_left_out_is_counted(tmp_path: pathlib.Path, capsys: Any) -> None:
    open_images(folder(tmp_path / "set", CLASSES | HIDDEN | {"a/0.txt": b"a cat"}))
    assert "6 images; left out 4 hidden or other files, e.g. .ipynb" in capsys.readouterr().err
    open_images(database(tmp_path / "lmdb", files("{}") | META))
    assert "6 images; left out 3 hidden or other files, e.g. __keys__" in capsys.readouterr().err
    edm = folder(tmp_path / "edm", files("a/{}.png") | {"a/dataset.json": LABELS})
    assert open_images(edm).labels.tolist() == [0, 1] * 3
    assert capsys.readouterr().err == ""


def test_channels_first_is_an_option(tmp_path: pathlib.Path) -> None:
    path = arrays(tmp_path / "x.npy", PIXELS.transpose(0, 3, 1, 2), save=np.save)
    np.testing.assert_array_equal(
        np.concatenate([*open_images(path, channels_first=True).batches(4)]), PIXELS
    )
    for other in (arrays(tmp_path / "y", PIXELS, save=np.save), folder(tmp_path / "z", files())):
        with pytest.raises(ValueError, match=r"leave .*out"):
            open_images(other, channels_first=True)


INK = Image.new("CMYK", (8, 8), (250, 10, 90, 40))


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (encoded(GREY[0, ..., 0]), GREY[0]),
        (encoded(np.dstack([GREY[0, ..., 0], RGBA[..., 3]])), GREY[0]),
        (encoded(PIXELS[0, ..., 0] > 99), 255 * (GREY[0] > 99)),
        # (255 - C) (255 - K) / 255 of the inks
        (encoded(INK, "tiff"), np.full((8, 8, 3), [4, 207, 139])),
    ],
)
def test_other_modes_are_converted(data: bytes, expected: Any, tmp_path: pathlib.Path) -> None:
    path = folder(tmp_path / "set", {"a.img": data})
    for images in (open_images(path), training_images(path, 8)):
        np.testing.assert_array_equal(images.take([0])[0], expected)


def png(*chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of chunks that Pillow does not write."""
    parts = [b"\x89PNG\r\n\x1a\n"]
    for kind, data in chunks:
        parts += [struct.pack(">I", len(data)), kind, data]
        parts.append(struct.pack(">I", zlib.crc32(kind + data)))
    return b"".join(parts)


IHDR = struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0)  # 8x8, 16 bits, RGB
RGB16 = png((b"IHDR", IHDR), (b"IDAT", zlib.compress(bytes(8 * 49))), (b"IEND", b""))
PNG_END = encoded(PIXELS[0])[-12:]
FRAMES = [Image.fromarray(x) for x in PIXELS[1:3]]
FOUR = PIXELS[:4].transpose(0, 3, 1, 2)


def image(data: bytes) -> Maker:
    """A folder whose second image is `data`."""
    return row(folder, files() | {"1.png": data})


def labelled(*change: bytes) -> Maker:
    return row(folder, files() | {"dataset.json": LABELS.replace(*change)})


# The words that a refusal must hold.
REFUSED: dict[str, Maker] = {
    "1.png has transparent pixels": image(encoded(RGBA // 2)),
    "1.png has transparent": image(encoded(PIXELS[0] * 0, transparency=(0, 0, 0))),
    "1.png has channels of more than 8 bits": image(encoded(DEEP)),
    "1.png has channels of more than": image(RGB16),
    "1.png has channels of more": image(b"P6 8 8 4095\n" + bytes(384)),
    "1.png has channels of": image(encoded(DEEP.astype(np.float32), "tiff")),
    "1.png is LAB": image(encoded(PIXELS[0], "tiff", "LAB")),
    "1.png has 3 frames": image(encoded(PIXELS[0], save_all=True, append_images=FRAMES)),
    "has 3 frames": image(encoded(PIXELS[0], "tiff", save_all=True, append_images=FRAMES)),
    r"0.png is \(8, 8\), 1.png is \(4, 8\)": image(encoded(PIXELS[0, :4])),
    "decode 1.png": image(encoded(PIXELS[0])[:60]),
    "decode 1.png .broken PNG file .*checksum": image(encoded(PIXELS[0])[:-13] + b"x" + PNG_END),
    "decode 1.png .no image: it is empty": image(b""),
    "decode 1.png .no image: it starts with b'<html>'": image(b"<html>"),
    "decode a.heic": row(folder, files() | {"a.heic": b"1"}),
    "5.png lies beside": row(folder, CLASSES | {"5.png": b""}),
    "differ by 2 names, e.g. 1.png": labelled(b"1.png", b"7.png"),
    "dataset.json cannot be read": labelled(b" 1]", b" 10000000000000000000000]"),
    "dataset.json cannot be": labelled(LABELS, b'{"a":' + b"[" * 99999),
    "dataset.json cannot be.*labels": labelled(LABELS, b"{}"),
    r"cannot be read: .*int.*float.*\[0\]\[1\]": labelled(b" 0]", b" 0.5]"),
    "both give labels": row(folder, files() | {"dataset.json": LABELS, "a/dataset.json": LABELS}),
    "00001 cannot be read.*No such file": row(linked, "gone"),
    "remove the link": row(linked, ""),
    "no images in .*, e.g. a.txt": row(folder, {"a.txt": b""}),
    "0.png twice": row(archive, files(), files()),
    "zip or .npz that is cut off": cut(row(archive, files())),
    "no images in .*, e.g. sub": row(database, files(), key=b"sub"),
    "shorter than its": cut(row(database, files()), "data.mdb"),
    ".npz that is cut off": cut(row(arrays, PIXELS)),
    r"\d+ bytes of 1152": cut(row(arrays, PIXELS, save=np.save)),
    "starts with b'text'; allowed": row(written, b"text"),
    "single image": row(written, encoded(PIXELS[0])),
    "git lfs pull": row(written, b"version https://git-lfs.g"),
    "holds images, but no arr_0": row(arrays, images=PIXELS),
    r"\(6, 8, 8\), .*repeat grey": row(arrays, PIXELS[..., 0]),
    r"uint8 \(0, 8, 8, 3\)": row(arrays, PIXELS[:0]),
    r"transpose\(0, 2, 3, 1\), or add chan": row(arrays, FOUR),
    "arr_1 is float64": row(arrays, PIXELS, np.zeros(6)),
    r"arr_1 is int64 \(3,\)": row(arrays, PIXELS, np.arange(3)),
    r"below 2\^63": row(arrays, PIXELS, np.full(6, 2**63, np.uint64)),
    "numpy.stack": row(arrays, PIXELS.astype(object), save=np.save),
}


def message_of(path: pathlib.Path, **options: Any) -> str:
    with pytest.raises(ValueError) as caught:
        load_dataset(path, **options)
    message = str(caught.value).replace(str(path.parent), "")
    assert len(message) < 300 and "\n" not in message and " object at 0x" not in message
    return message


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("words", REFUSED)
def test_what_is_refused_and_why(words: str, tmp_path: pathlib.Path) -> None:
    """Alike in scoring and training; only there images of several sizes become one."""
    path = REFUSED[words](tmp_path / "set")
    assert re.search(words, message_of(path))
    if "4, 8" not in words:
        with pytest.raises(ValueError, match=words):
            training_images(path, 8).take([1])


@pytest.mark.parametrize(
    ("x", "expression"),
    [
        (PIXELS / np.float32(127.5) - 1, "(127.5 * x + 127.5).round()"),
        (PIXELS / np.float64(255), "(255 * x).round()"),
        (PIXELS.astype(np.float16), "save x.round()"),
        (PIXELS.astype(np.int64), "save x.round()"),
        (PIXELS.astype(np.uint16) * 257, "(x / 257).round()"),
        (PIXELS > 127, "(255 * x).round()"),
        (FOUR / np.float32(255), "(255 * x).round()"),
        (PIXELS * 1000.0, "(x scaled to 0 to 255).round()"),
    ],
)
def test_the_advice_for_other_arrays(x: Any, expression: str, tmp_path: pathlib.Path) -> None:
    """What it says to save is read; it gives the pixels where they are in that range."""
    path = arrays(tmp_path / "x.npy", x, save=np.save)
    advice = message_of(path)
    assert expression in advice
    if "scaled" not in advice:
        right = eval(advice.partition("save ")[2], {"x": x})
        expected = 255 * x if x.dtype == bool else PIXELS[: len(x)]
        np.testing.assert_array_equal(load_dataset(arrays(path, right)).images, expected)


CUT = st.integers(0, 9) | st.just(1 << 20)
DAMAGE = st.lists(st.tuples(st.integers(), CUT, st.binary(max_size=9)), min_size=1, max_size=9)


def damaged(content: bytes, damage: list[tuple[int, int, bytes]]) -> bytes:
    """Bytes from a position on, counted from either end, replaced by others."""
    result = bytearray(content)
    for position, length, new in damage:
        start = position % (len(result) + 1)
        result[start : start + length] = new
    return bytes(result) or b"?"


@pytest.mark.parametrize("name", ["png", "zip", "npz", "npy"])
@settings(max_examples=60, deadline=None, suppress_health_check=[*HealthCheck])
@given(damage=DAMAGE, length=st.integers(0) | st.none())
def test_damaged_files_give_all_images_or_one_line(
    name: str, damage: list[Any], length: int | None, tmp_path: pathlib.Path
) -> None:
    """Bytes are written over others, or cut out, and the end may be missing."""
    path = tmp_path / name
    if not path.exists():
        READ[name](path)
        path.with_name("whole").write_bytes(damaged_file(path).read_bytes())
    data = damaged(path.with_name("whole").read_bytes(), damage)
    damaged_file(path).write_bytes(data[: None if length is None else length % len(data)])
    try:
        assert load_dataset(path).images.shape == PIXELS.shape
    except ValueError as error:
        assert len(str(error).replace(str(tmp_path), "")) < 300


def damaged_file(path: pathlib.Path) -> pathlib.Path:
    return path / "3.png" if path.name == "png" else path
