"""Images are found by their names, and by their first bytes where the name does not tell."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ssl_dist.store.building.sources import image_names, list_source
from tests.store.sources import built, png, random_images, shard_of

NAMES = [
    "a.jpg",
    "b.jfif",
    "c.jpe",
    "d.dib",
    "e.BMP",
    "f.JPEG",
    "g",
    "h.gif",
    "i.dat",
    "j.jpg_large",
    "k.v2.PNG",
    "l.001",
]
OTHERS = {"m.txt": b"", "n": b"some text", "o.json": b"{}", "p.dat": bytes(99), ".q": b"", "r.tmp": b""}


def encoded(image: np.ndarray, kind: str) -> bytes:
    out = io.BytesIO()
    Image.fromarray(image).save(out, kind)
    return out.getvalue()


def named() -> tuple[dict[str, bytes], np.ndarray]:
    """Return images by name, and other files: those with the suffix of no image hold one nevertheless."""
    pixels = random_images(len(NAMES), 8)
    kinds = {"d.dib": "DIB", "e.BMP": "BMP"}
    files = {name: encoded(image, kinds.get(name, "PNG")) for name, image in zip(NAMES, pixels, strict=True)}
    return files | {name: content or png(pixels[0]) for name, content in OTHERS.items()}, pixels


@pytest.mark.parametrize("kind", ["folder", "tar", "pattern"])
def test_images_of_any_name_are_found_by_their_first_bytes(kind: str, tmp_path: Path) -> None:
    files, pixels = named()
    (tmp_path / "d").mkdir()
    for name, content in files.items():
        (tmp_path / "d" / name).write_bytes(content)
    source = {"folder": tmp_path / "d", "pattern": f"{tmp_path}/d/*", "tar": shard_of(tmp_path / "a.tar", files)}[kind]
    opened = built(source, tmp_path / "s")
    assert [key for key, _, _ in opened.rows()] == NAMES
    assert np.array_equal(opened.gather(np.arange(len(opened))), pixels)


def test_images_without_suffix_alone_are_a_source(tmp_path: Path) -> None:
    (tmp_path / "d" / "class").mkdir(parents=True)
    (tmp_path / "d" / "class" / "0").write_bytes(png(random_images(1, 8)[0]))
    assert built(tmp_path / "d", tmp_path / "s").manifest.rows == 1
    assert built(tmp_path / "d" / "class" / "0", tmp_path / "t").manifest.rows == 1


def test_first_bytes_are_read_only_where_the_name_does_not_tell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, _ = named()
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    opened = []
    real = image_names._read_start
    monkeypatch.setattr(image_names, "_read_start", lambda file: opened.append(file.key) or real(file))
    list_source(tmp_path)
    assert opened == ["g", "i.dat", "j.jpg_large", "l.001", "n", "p.dat"]


def test_a_file_without_suffix_that_cannot_be_opened_is_no_image(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(random_images(1, 8)[0]))
    (tmp_path / "b").symlink_to(tmp_path / "nothing")
    assert list_source(tmp_path).num_images == 1


@pytest.mark.parametrize(
    "suffix", ["tif", "TIFF", "gif", "avif", "heic", "HEIF", "jp2", "j2k", "jxl", "psd", "ico", "svg"]
)
def test_the_name_of_a_format_that_is_not_read_is_enough_to_look(suffix: str) -> None:
    assert image_names.is_image(f"a/b.{suffix}")
