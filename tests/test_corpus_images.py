"""Image sets as people have them: what must come out of each, and of each when it is damaged."""

import io
import json
import os
import pathlib
import re
import shutil
import stat
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


def encoded(pixels: Any, kind: str = "png", mode: str = "", **options: Any) -> bytes:
    file, image = io.BytesIO(), pixels
    if isinstance(pixels, np.ndarray):
        image = Image.fromarray(pixels)
    image = image.quantize(256) if mode == "P" else image.convert(mode) if mode else image
    image.save(file, kind, **options)
    return file.getvalue()


def files(kind: str = "png", pixels: np.ndarray = PIXELS, name: str = "", **options: Any) -> Files:
    name = name or f"{{}}.{kind}"
    return {name.format(i): encoded(x, kind, **options) for i, x in enumerate(pixels)}


def folder(path: pathlib.Path, content: Files) -> pathlib.Path:
    path.mkdir(parents=True)
    for name, data in content.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def archive(path: pathlib.Path, *contents: Files, mode: int = 0) -> pathlib.Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in (pair for content in contents for pair in content.items()):
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            file.writestr(info, data)
    return path


def database(path: pathlib.Path, values: Files, **options: Any) -> pathlib.Path:
    with lmdb.open(str(path), map_size=1 << 22, max_dbs=1) as environment:
        main = environment.open_db(**options)
        for key, value in values.items():  # each its own transaction: pages of both kinds move
            with environment.begin(write=True, db=main) as transaction:
                transaction.put(key.encode(), value)
    return path


def arrays(path: pathlib.Path, *values: Any, save: Any = np.savez, **named: Any) -> pathlib.Path:
    with open(path, "wb") as file:  # numpy adds no suffix to an open file
        save(file, *values, **named)
    return path


def linked(path: pathlib.Path, target: str, *, kind: str = "more") -> pathlib.Path:
    folder(path.parent / "other", {f"{i}.png": encoded(PIXELS[i]) for i in (3, 4, 5)})
    folder(path / "first", {f"{i}.png": encoded(PIXELS[i]) for i in (0, 1, 2)})
    os.symlink(path.parent / target if target else path, path / kind)
    return path


Maker = Callable[[pathlib.Path], pathlib.Path]
TIFF = {"compression": "tiff_lzw"}
HIDDEN = {".ipynb_checkpoints/0-checkpoint.png": b"?", "a/._0.png": b"?", "__MACOSX/a/0.png": b"?"}
META = {"length": b"6", "__len__": b"6", "__keys__": b"\x80\x04]."}
CLASSES = {f"{'ab'[i % 2]}/{i}.png": encoded(PIXELS[i]) for i in range(6)}
LABELS = json.dumps({"labels": [[f"{i}.png", i % 2] for i in range(6)], "more": {}}).encode()

# Each gives PIXELS, and no labels.
READ: dict[str, Maker] = {
    **{
        kind: lambda path, kind=kind, options=options: folder(path, files(kind, **options))
        for kind, options in {
            **{"png": {}, "bmp": {}, "ppm": {}, "tga": {}, "tiff": TIFF},
            **{"webp": {"lossless": True}, "gif": {"mode": "P"}},
        }.items()
    },
    "palette": lambda path: folder(path, files(mode="P")),
    "opaque": lambda path: folder(path, files(mode="RGBA")),
    "no suffix": lambda path: folder(path, files(name="image {}")),
    "wrong suffix": lambda path: folder(path, files("bmp", name="{}.png")),
    "two formats": lambda path: folder(
        path, files(pixels=PIXELS[:3]) | dict([*files("tiff", **TIFF).items()][3:])
    ),
    "hidden": lambda path: folder(path, files(name="a/{}.png") | HIDDEN),
    "numbered folders": lambda path: folder(path, files(name="00{0}000/00{0}000.png")),
    "link to a folder": lambda path: linked(path, "other"),
    "zip": lambda path: archive(path, files(name="a/{}.png"), HIDDEN),
    "zip of Windows": lambda path: archive(path, files(name="a\\{}.png")),
    "npz": lambda path: arrays(path, PIXELS),
    "npz, compressed": lambda path: arrays(path, PIXELS, save=np.savez_compressed),
    "npz in column-major order": lambda path: arrays(path, np.asfortranarray(PIXELS)),
    "npy": lambda path: arrays(path, PIXELS, save=np.save),
    "npy in column-major order": lambda path: arrays(
        path, np.asfortranarray(PIXELS), save=np.save
    ),
    "lmdb": lambda path: database(path, files(name="{:03}") | META),
    "lmdb file": lambda path: database(path, files(name="{}")) / "data.mdb",
    "large lmdb": lambda path: database(
        path, {f"{i}{'x' * 400}": files(name="{}", compress_level=0)[str(i)] for i in range(6)}
    ),
}


@pytest.mark.parametrize("name", READ)
def test_every_lossless_way_gives_the_same_images(name: str, tmp_path: pathlib.Path) -> None:
    """For scoring and training, also under the name of a built-in set."""
    path = READ[name](tmp_path / "synthetic")
    np.testing.assert_array_equal(load_dataset(path).images, PIXELS)
    np.testing.assert_array_equal(training_images(path, 8).take(range(6)), PIXELS)
    if name != "link to a folder":
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
    open_images(database(tmp_path / "lmdb", files(name="{}") | META))
    assert "6 images; left out 3 hidden or other files, e.g. __keys__" in capsys.readouterr().err
    open_images(folder(tmp_path / "edm", files() | {"dataset.json": LABELS}))
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
FRAMES = [Image.fromarray(x) for x in PIXELS[1:3]]
FOUR = PIXELS[:4].transpose(0, 3, 1, 2)


def image(data: bytes) -> Maker:
    """A set whose second image is `data`."""
    return lambda path: folder(path, files() | {"1.png": data})


# What must be refused, and the words that its message must hold.
REFUSED: dict[str, tuple[Maker, str]] = {
    "transparent": (image(encoded(RGBA // 2)), "1.png has transparent pixels"),
    "transparent colour": (image(encoded(PIXELS[0] * 0, transparency=(0, 0, 0))), "transparent"),
    "grey of 16 bits": (image(encoded(DEEP)), "1.png has channels of more than 8 bits"),
    "RGB of 16 bits": (image(RGB16), "1.png has channels of more than 8 bits"),
    "PPM of 12 bits": (image(b"P6 8 8 4095\n" + bytes(384)), "more than 8 bits"),
    "float": (image(encoded(DEEP.astype(np.float32), "tiff")), "more than 8 bits|is F"),
    "LAB": (image(encoded(PIXELS[0], "tiff", "LAB")), "1.png is LAB"),
    "animated": (image(encoded(PIXELS[0], save_all=True, append_images=FRAMES)), "3 frames"),
    "pages": (image(encoded(PIXELS[0], "tiff", save_all=True, append_images=FRAMES)), "3 frames"),
    "other size": (image(encoded(PIXELS[0, :4])), r"0.png is \(8, 8\), 1.png is \(4, 8\)"),
    "cut": (image(encoded(PIXELS[0])[:60]), "decode 1.png"),
    "empty": (image(b""), "decode 1.png .no image: it is empty"),
    "web page": (image(b"<html>"), "decode 1.png .no image: it starts with b'<html>'"),
    "checksum": (image(encoded(PIXELS[0])[:-20] + b"x" + encoded(PIXELS[0])[-19:]), "1.png"),
    "unread format": (lambda path: folder(path, files() | {"a.heic": b"1"}), "decode a.heic"),
    "loose image": (lambda path: folder(path, CLASSES | {"5.png": b""}), "5.png lies beside"),
    "two labels": (
        lambda path: folder(path, files() | {"dataset.json": LABELS.replace(b"1.png", b"0.png")}),
        "gives 0.png two labels",
    ),
    "missing labels": (
        lambda path: folder(path, files() | {"7.png": b"", "dataset.json": LABELS}),
        "differ by 1 names, e.g. 7.png",
    ),
    "label beyond 64 bits": (
        lambda path: folder(path, files() | {"dataset.json": LABELS.replace(b" 1]", b" 1%020d]")}),
        "dataset.json cannot be read",
    ),
    "deep json": (
        lambda path: folder(path, files() | {"dataset.json": b'{"a":' + b"[" * 99999}),
        "dataset.json cannot be read",
    ),
    "link to nowhere": (lambda path: linked(path, "gone"), "more is a link that leads nowhere"),
    "link to itself": (lambda path: linked(path, ""), "remove the link"),
    "no images": (lambda path: folder(path, {"a.txt": b""}), "no images in .*, e.g. a.txt"),
    "name twice": (lambda path: archive(path, files(), files()), "0.png twice"),
    "link in a zip": (
        lambda path: archive(path, files(), mode=stat.S_IFLNK),
        "0.png as a link",
    ),
    "cut zip": (lambda path: cut(archive(path, files())), "zip or .npz that is cut off"),
    "several values a key": (
        lambda path: database(path, files(), key=b"sub", dupsort=True),
        "databases by name",
    ),
    "cut lmdb": (lambda path: cut(database(path, files()) / "data.mdb").parent, "shorter than"),
    "cut npz": (lambda path: cut(arrays(path, PIXELS)), "cut off"),
    "cut npy": (lambda path: cut(arrays(path, PIXELS, save=np.save)), r"\d+ bytes of 1152"),
    "tar": (lambda path: packed(path), "archive; unpack it"),
    "one image": (lambda path: written(path, encoded(PIXELS[0])), "single image"),
    "git-lfs": (lambda path: written(path, b"version https://git-lfs.g"), "git lfs pull"),
    "no key": (lambda path: arrays(path, images=PIXELS), "holds images, but no arr_0"),
    "grey": (lambda path: arrays(path, PIXELS[..., 0]), r"\(6, 8, 8\), .*repeat grey"),
    "no values": (lambda path: arrays(path, PIXELS[:0]), r"uint8 \(0, 8, 8, 3\)"),
    "channels first": (lambda path: arrays(path, FOUR), r"transpose\(0, 2, 3, 1\), or add chan"),
    "float labels": (lambda path: arrays(path, PIXELS, np.zeros(6)), "arr_1 is float64"),
    "few labels": (lambda path: arrays(path, PIXELS, np.arange(3)), r"arr_1 is int64 \(3,\)"),
    "large labels": (
        lambda path: arrays(path, PIXELS, np.full(6, 2**63, np.uint64)),
        r"below 2\^63",
    ),
    "objects": (lambda path: arrays(path, PIXELS.astype(object), save=np.save), "numpy.stack"),
}


def cut(path: pathlib.Path) -> pathlib.Path:
    os.truncate(path, path.stat().st_size - 50)
    return path


def written(path: pathlib.Path, data: bytes) -> pathlib.Path:
    path.write_bytes(data)
    return path


def packed(path: pathlib.Path) -> pathlib.Path:
    shutil.make_archive(str(path), "tar", folder(path, files()))
    return path.with_suffix(".tar")


def message_of(path: pathlib.Path, **options: Any) -> str:
    with pytest.raises(ValueError) as caught:
        load_dataset(path, **options)
    message = str(caught.value).replace(str(path.parent), "")
    assert len(message) < 300
    assert "\n" not in message
    assert " object at 0x" not in message
    return message


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_and_why(name: str, tmp_path: pathlib.Path) -> None:
    make, words = REFUSED[name]
    path = make(tmp_path / "set")
    assert re.search(words, message_of(path))
    if name != "other size":
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


FORMATS = ["png", "zip", "npz", "npy", "lmdb"]
DAMAGE = st.lists(st.tuples(st.integers(0), st.binary(max_size=9), st.integers(0, 9)), min_size=1)


@pytest.mark.parametrize("name", FORMATS)
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(damage=DAMAGE, length=st.integers(0) | st.none())
def test_damaged_files_give_all_images_or_one_line(
    name: str, damage: list[Any], length: int | None, tmp_path: pathlib.Path
) -> None:
    """Bytes are written over others, or cut out, and the end may be missing."""
    path = tmp_path / name
    if not path.exists():
        READ[name](path)
        path.with_name("whole").write_bytes(damaged_file(path).read_bytes())
    data = bytearray(path.with_name("whole").read_bytes())
    for position, values, removed in damage:
        start = position % len(data)
        data[start : start + removed] = values
        data = data or bytearray(1)
    damaged_file(path).write_bytes(data[: None if length is None else length % len(data)])
    try:
        assert load_dataset(path).images.shape == PIXELS.shape
    except ValueError as error:
        assert len(str(error).replace(str(tmp_path), "")) < 300


def damaged_file(path: pathlib.Path) -> pathlib.Path:
    return path / {"png": "3.png", "lmdb": "data.mdb"}.get(path.name, "")
