"""Images are found by their names, and by their first bytes where the name does not tell."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ssl_dist.store.building.sources import image_names, list_source
from ssl_dist.store.building.sources.files import fingerprint, local_file
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


@pytest.mark.parametrize("hidden", [".git/0", "__MACOSX/0.jpg_large", ".0", "@eaDir/0.dat"])
def test_first_bytes_of_hidden_files_do_not_count(hidden: str, tmp_path: Path) -> None:
    image = png(random_images(1, 8)[0])
    files = {"a/0": image, "b/1.dat": image, hidden: image}
    for name, content in files.items():
        (tmp_path / "d" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "d" / name).write_bytes(content)
    for source in (tmp_path / "d", shard_of(tmp_path / "a.tar", files)):
        listed = list_source(source)
        assert [member.key for member in listed.members()] == ["a/0", "b/1.dat"]
        assert listed.class_names == ("a", "b")
        assert [reason for _, reason in listed.passed_over] == ["hidden"]


@pytest.mark.parametrize("link", ["b/1", "b/1.dat", "b/1.png"])
@pytest.mark.parametrize("target", ["a/0", "a/0.dat", "a/0.png"])
def test_a_link_in_a_tar_is_an_image_where_its_target_is_one(link: str, target: str, tmp_path: Path) -> None:
    image = png(random_images(1, 8)[0])
    with tarfile.open(tmp_path / "t.tar", "w") as archive:
        info = tarfile.TarInfo(target)
        info.size = len(image)
        archive.addfile(info, io.BytesIO(image))
        info = tarfile.TarInfo(link)
        info.type, info.linkname = tarfile.LNKTYPE, target
        archive.addfile(info)
    listed = list_source(tmp_path / "t.tar")
    assert [(member.key, member.content) for member in listed.members()] == [(target, image), (link, image)]


def test_only_sources_in_which_earlier_versions_found_the_same_keep_their_identity(tmp_path: Path) -> None:
    image = png(random_images(1, 8)[0])
    same = [{"a.png": image, "b.txt": b"text"}, {"a.png": image, "b": b"text", "c.json": b"{}"}]
    other = [{"a.png": image, "b": image}, {"a.png": image, "a.cls": b"1"}, {"a.png": image, "a.seg.png": image}]
    for number, files in enumerate((*same, *other)):
        tar = shard_of(tmp_path / f"{number}.tar", files)
        plain = fingerprint([local_file(str(tar), tar.name)])
        assert (list_source(tar).fingerprint == plain) is (files in same)
