"""Transparent pixels are composited onto the ground that the store's manifest names, in every format and source."""

from __future__ import annotations

import io
import json
import logging
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from ssl_dist import store
from ssl_dist.errors import ConfigError
from ssl_dist.store import ImageStore
from ssl_dist.store.decode import decode
from tests.command import Command
from tests.store.hostile.images import chunk, png_of
from tests.store.sources import built, png, random_images, shard_of, write_table

BEFORE = Path(__file__).parent.parent / "before"
RANDOM = np.random.default_rng(0)
SEEN = np.array([[True, False, True], [False, True, True]])  # [H, W]
GREY = np.array([[3, 1, 2], [1, 0, 3]], dtype=np.uint8)  # 1 is the transparent one


def composited(rgba: np.ndarray, ground: tuple[int, int, int]) -> np.ndarray:
    """Return the exact composite, uint8 [H, W, 3], of uint8 [H, W, 4]; a sum over 255 is never half way."""
    alpha = rgba[..., 3:].astype(int)
    return ((2 * (alpha * rgba[..., :3] + (255 - alpha) * np.array(ground)) + 255) // 510).astype(np.uint8)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def png_of_rows(rows: list[bytes], depth: int, colour: int, *chunks: bytes) -> bytes:
    packed = zlib.compress(b"".join(b"\0" + row for row in rows))
    return png_of(3, len(rows), depth, colour, *chunks, chunk(b"IDAT", packed))


def grey_png(depth: int) -> tuple[bytes, np.ndarray]:
    """Return a grey PNG with a transparent level, and its pixels."""
    samples = GREY & 1 if depth == 1 else GREY
    bits = ["".join(f"{sample:0{depth}b}" for sample in row).ljust(-(-3 * depth // 8) * 8, "0") for row in samples]
    rows = [int(row, 2).to_bytes(len(row) // 8, "big") for row in bits]
    content = png_of_rows(rows, depth, 0, chunk(b"tRNS", struct.pack(">H", 1)))
    levels = samples * (255 // (2**depth - 1))
    return content, np.dstack([levels, levels, levels, np.where(samples == 1, 0, 255)]).astype(np.uint8)


def colour_png(depth: int) -> tuple[bytes, np.ndarray]:
    """Return a colour PNG with a transparent colour, and its pixels."""
    pixels = RANDOM.integers(0, 256, (2, 3, 3), dtype=np.uint8)
    pixels[~SEEN] = (7, 0, 250)
    repeat = depth // 8
    key = struct.pack(">3H", *(int.from_bytes(bytes([v]) * repeat, "big") for v in (7, 0, 250)))
    rows = [np.repeat(row, repeat).tobytes() for row in pixels]
    return png_of_rows(rows, depth, 2, chunk(b"tRNS", key)), np.dstack([pixels, 255 * SEEN]).astype(np.uint8)


def palette_png(alpha: bytes, longer: bytes = b"") -> tuple[bytes, np.ndarray]:
    palette = RANDOM.integers(0, 256, (4, 3), dtype=np.uint8)
    rows = [row.tobytes() for row in GREY]
    content = png_of_rows(rows, 8, 3, chunk(b"PLTE", palette.tobytes()), chunk(b"tRNS", alpha + longer))
    return content, np.dstack([palette[GREY], np.frombuffer(alpha.ljust(4, b"\xff"), np.uint8)[GREY]])


def bmp(rgba: np.ndarray) -> bytes:
    """Return a BMP file with an alpha channel; PIL writes none that it reads as such."""
    height, width, _ = rgba.shape
    pixels = rgba[::-1, :, [2, 1, 0, 3]].tobytes()
    masks = struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    info = struct.pack("<IiiHHIIiiII", 108, width, height, 1, 32, 3, len(pixels), 0, 0, 0, 0) + masks + bytes(52)
    return struct.pack("<2sIHHI", b"BM", 14 + 108 + len(pixels), 0, 0, 14 + 108) + info + pixels


RGBA = RANDOM.integers(0, 256, (2, 3, 4), dtype=np.uint8)
LA = np.dstack([RGBA[..., :1]] * 3 + [RGBA[..., 3:]])
FORMATS: dict[str, tuple[bytes, np.ndarray]] = {
    "RGBA": (encoded(Image.fromarray(RGBA), "PNG"), RGBA),
    "RGBA of 16 bits": (png_of_rows([np.repeat(row, 2).tobytes() for row in RGBA], 16, 6), RGBA),
    "grey with alpha": (encoded(Image.fromarray(LA[..., 2:]), "PNG"), LA),
    "grey with alpha of 16 bits": (png_of_rows([np.repeat(row, 2).tobytes() for row in LA[..., 2:]], 16, 4), LA),
    "palette with alpha": palette_png(b"\x00\x60\xff\x80"),
    "palette with one transparent colour": palette_png(b"\xff\x00"),
    "palette with more alpha than colours": palette_png(b"\x00\x60\xff\x80", bytes(300)),
    "grey of 1 bit": grey_png(1),
    "grey of 2 bits": grey_png(2),
    "grey of 4 bits": grey_png(4),
    "grey of 8 bits": grey_png(8),
    "colour": colour_png(8),
    "colour of 16 bits": colour_png(16),
    "WebP": (encoded(Image.fromarray(RGBA), "WEBP", lossless=True, exact=True), RGBA),
    "BMP": (bmp(RGBA), RGBA),
    "DIB": (bmp(RGBA)[14:], RGBA),
}


@pytest.mark.filterwarnings("ignore:Palette images with Transparency")  # pytest replaces decode's own filter
@pytest.mark.parametrize("name", FORMATS)
def test_transparent_pixels_are_composited_exactly(name: str) -> None:
    content, rgba = FORMATS[name]
    for alpha, ground in {"white": (255, 255, 255), "black": (0, 0, 0), "#1080f0": (16, 128, 240)}.items():
        assert np.array_equal(decode(content, None, alpha), composited(rgba, ground)), alpha
    for alpha in ("drop", None):
        assert np.array_equal(decode(content, None, alpha), rgba[..., :3])


@pytest.mark.parametrize("ground", [0, 77, 255])
def test_every_value_and_alpha_is_rounded_to_the_nearest(ground: int) -> None:
    values, alpha = np.meshgrid(np.arange(256, dtype=np.uint8), np.arange(256, dtype=np.uint8))
    rgba = np.dstack([values, values, values, alpha])
    decoded = decode(encoded(Image.fromarray(rgba), "PNG"), None, f"#{ground:02x}{ground:02x}{ground:02x}")
    assert np.array_equal(decoded, composited(rgba, (ground, ground, ground)))


def test_colours_that_cannot_be_seen_do_not_bleed_into_their_neighbours() -> None:
    """Half of the image is transparent with garbage below; a resize of colours apart from alpha would spread it."""
    rgba = np.zeros((64, 64, 4), dtype=np.uint8)
    rgba[:, :32] = (200, 40, 90, 255)
    rgba[:, 32:, :3] = RANDOM.integers(0, 256, (64, 32, 3))
    clean = rgba.copy()
    clean[:, 32:, :3] = 255
    small, expected = (decode(encoded(Image.fromarray(image), "PNG"), 10) for image in (rgba, clean))
    assert np.array_equal(small, expected)
    assert np.array_equal(small, decode(png(composited(rgba, (255, 255, 255))), 10))


def test_a_bmp_whose_alpha_is_unset_is_opaque() -> None:
    rgba = RGBA.copy()
    rgba[..., 3] = 0
    assert np.array_equal(decode(bmp(rgba), None), rgba[..., :3])


def test_an_image_lies_on_its_ground_when_it_has_been_turned() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    content = encoded(Image.fromarray(RGBA), "PNG", exif=exif)
    assert np.array_equal(decode(content, None), np.rot90(composited(RGBA, (255, 255, 255)), 3))


# Stores


def ink() -> bytes:
    """Return a black drawing on a transparent ground, whose colours are all black."""
    rgba = np.zeros((8, 8, 4), dtype=np.uint8)
    rgba[2:5, 3:7, 3] = 255
    return encoded(Image.fromarray(rgba), "PNG")


@pytest.mark.parametrize("kind", ["folder", "tar", "table"])
def test_a_store_says_what_ground_its_images_have(kind: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "0.png").write_bytes(ink())
    shard_of(tmp_path / "tar", {"0.png": ink()})
    if kind == "table":
        write_table(pa.table({"image": pa.array([ink()], pa.binary())}), (tmp_path / kind).with_suffix(".parquet"))
    source = tmp_path / ("table.parquet" if kind == "table" else kind)
    for alpha, recorded in {"white": "white", "#FFFFFF": "white", "drop": "drop", "#00Ff7f": "#00ff7f"}.items():
        opened = built(source, tmp_path / f"{kind}{alpha}", alpha=alpha)
        assert opened.manifest.alpha == recorded
        assert np.array_equal(opened.gather(np.array([0]))[0], decode(ink(), None, recorded))
    assert built(source, tmp_path / "default").manifest.alpha == "white"


@pytest.mark.parametrize("alpha", ["", "whit", "#fff", "#gggggg", "mixed", "white\n"])
def test_a_ground_that_is_no_colour_is_refused(alpha: str, image_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="it is white, black, a colour as #rrggbb, or drop"):
        store.build(image_folder, tmp_path / "s", alpha=alpha)


def test_append_uses_the_ground_of_the_store(tmp_path: Path) -> None:
    for name in ("a", "b"):
        shard_of(tmp_path / f"{name}.tar", {f"{name}.png": ink()})
    for alpha in ("black", "drop", "white"):
        store.build(tmp_path / "a.tar", tmp_path / alpha, workers=1, alpha=alpha)
        assert store.append(tmp_path / "b.tar", tmp_path / alpha, workers=1).alpha == alpha
        first, second = ImageStore(tmp_path / alpha, verify="full").gather(np.arange(2))
        assert np.array_equal(first, second)


def test_an_old_store_drops_alpha_as_it_did(tmp_path: Path) -> None:
    image = np.zeros((16, 16, 4), dtype=np.uint8)
    image[4:8, 3:, :3] = 90
    shard_of(tmp_path / "a.tar", {"0.png": encoded(Image.fromarray(image), "PNG")})
    path = Path(shutil.copytree(BEFORE / "raw", tmp_path / "old"))
    manifest = store.append(tmp_path / "a.tar", path, workers=1)
    assert (manifest.alpha, ImageStore(path).manifest) == (None, manifest)
    assert "alpha" not in json.loads((path / "manifest.json").read_text())
    assert np.array_equal(ImageStore(path).gather(np.array([36]))[0], image[..., :3])


def test_the_command_takes_a_ground_and_info_shows_it(
    command: Command, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shard_of(tmp_path / "a.tar", {"0.png": ink()})
    done = command("store", "build", tmp_path / "a.tar", tmp_path / "s", "--alpha", "black", "--workers", 1)
    assert done.code == 0
    assert "composited onto black" in done.out
    assert "1 image is of one colour: 0.png" in caplog.text
    assert command("store", "info", tmp_path / "s", "--json").json["alpha"] == "black"
    assert "dropped" in command("store", "info", BEFORE / "raw").out
    refused = command("store", "build", tmp_path / "a.tar", tmp_path / "t", "--alpha", "grey")
    assert refused.code == 2
    assert "alpha 'grey'" in refused.err


# Images of one colour


@pytest.mark.parametrize(
    ("flat", "warning"),
    [
        (0, None),
        (1, "1 image is of one colour: 0.png ("),
        (3, "3 images are of one colour: 0.png, 1.png, 2.png ("),
        (5, "5 images are of one colour: 0.png, 1.png, 2.png, ... ("),
    ],
)
def test_images_of_one_colour_are_named_once_and_counted(
    flat: int, warning: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images = random_images(6, 8)
    images[:flat] = (30, 60, 90)
    images[flat] = 0
    images[flat, 7, 7, 2] = 1  # differs in one value
    for name in ("", "b"):
        shard_of(tmp_path / f"a{name}.tar", {f"{name}{number}.png": png(image) for number, image in enumerate(images)})
    for encoding in ("raw", "jpeg"):
        with caplog.at_level(logging.WARNING):
            manifest = store.build(tmp_path / "a.tar", tmp_path / encoding, workers=1, encoding=encoding)
        told = [record.message for record in caplog.records if "of one colour" in record.message]
        assert (len(told), manifest.one_colour) == (1 if warning else 0, flat)
        assert told == [] or told[0].startswith(warning or "")
        caplog.clear()
    appended = store.append(tmp_path / "ab.tar", tmp_path / "raw", workers=1)
    assert appended.one_colour == 2 * flat


# Stores made of stores


def test_a_merged_store_keeps_the_resize_and_the_ground_of_its_parts(image_folder: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        store.build(image_folder / "class0", tmp_path / name, workers=1, size_px=8, alpha="black")
    part = ImageStore(tmp_path / "a").manifest
    merged = store.merge([tmp_path / "a", tmp_path / "b"], tmp_path / "m", workers=1)
    assert (merged.resize, merged.alpha) == (part.resize, "black")
    shard_of(tmp_path / "large.tar", {"0.png": ink(), "1.png": png(random_images(1, 20)[0])})
    appended = store.append(tmp_path / "large.tar", tmp_path / "m", workers=1)
    assert (appended.rows, appended.resize, appended.alpha) == (36, part.resize, "black")
    assert not ImageStore(tmp_path / "m", verify="full").gather(np.array([34])).any()


@pytest.mark.parametrize("how", ["merge", "encoding", "part"])
def test_what_is_made_of_a_resized_store_resizes_what_is_appended(how: str, image_folder: Path, tmp_path: Path) -> None:
    store.build(image_folder, tmp_path / "a", workers=1, size_px=8)
    if how == "merge":
        made = store.merge([tmp_path / "a"], tmp_path / "m", workers=1)
    elif how == "encoding":
        made = store.build(tmp_path / "a", tmp_path / "m", workers=1, encoding="jpeg")
    else:
        made = store.build(tmp_path / "a", tmp_path / "m", workers=1, share=(0, 0.5))
    assert made.resize == ImageStore(tmp_path / "a").manifest.resize
    shard_of(tmp_path / "large.tar", {"new.png": png(random_images(1, 20)[0])})
    assert store.append(tmp_path / "large.tar", tmp_path / "m", workers=1).rows == made.rows + 1


def test_stores_that_were_resized_are_merged_with_those_of_that_size(image_folder: Path, tmp_path: Path) -> None:
    """An image of 16 px that is resized to 16 px is itself, so all are as the resizing leaves them."""
    store.build(image_folder, tmp_path / "own", workers=1)
    resized = store.build(image_folder, tmp_path / "resized", workers=1, size_px=16)
    for order in (["own", "resized"], ["resized", "own"]):
        merged = store.merge([tmp_path / name for name in order], tmp_path / order[0] / "m", workers=1)
        assert merged.resize == resized.resize


@pytest.mark.parametrize(
    ("parts", "alpha"),
    [
        (["white", "white"], "white"),
        (["old", "old"], None),
        (["old", "drop"], None),
        (["drop", "white"], "mixed"),
        (["old", "white"], "mixed"),
        (["#102030", "black"], "mixed"),
    ],
)
def test_a_store_of_parts_with_several_grounds_says_so(
    parts: list[str], alpha: str | None, image_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    paths = []
    for number, ground in enumerate(parts):
        paths.append(BEFORE / "raw" if ground == "old" else tmp_path / str(number))
        if ground != "old":
            store.build(image_folder, paths[-1], workers=1, alpha=ground)
    merged = store.merge(paths, tmp_path / "m", workers=1)
    assert merged.alpha == alpha
    assert ("transparency differs" in caplog.text) == (alpha == "mixed")
    image = np.zeros((16, 16, 4), dtype=np.uint8)
    shard_of(tmp_path / "a.tar", {"0.png": encoded(Image.fromarray(image), "PNG")})
    grown = store.append(tmp_path / "a.tar", tmp_path / "m", workers=1)
    [pixels] = ImageStore(tmp_path / "m").gather(np.array([merged.rows]))
    assert (grown.alpha, pixels.min()) == (alpha, 0 if alpha is None else 255)


def test_a_store_that_is_appended_to_another_keeps_its_own_ground(image_folder: Path, tmp_path: Path) -> None:
    store.build(image_folder, tmp_path / "a", workers=1)
    assert store.append(BEFORE / "raw", tmp_path / "a", workers=1).alpha == "mixed"  # dropped in it, white in a
