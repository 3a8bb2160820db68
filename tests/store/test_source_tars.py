"""Stores built from tars and WebDataset shards hold their images and labels; damaged tars give one clear error."""

from __future__ import annotations

import bz2
import gzip
import lzma
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from ssl_dist.errors import SourceError
from ssl_dist.store.building.sources import list_source
from ssl_dist.store.building.sources.tars import read_members
from tests.store.hostile.archives import extension, header, record, records_in_records, sparse_map_without_end, tar_of
from tests.store.sources import assert_holds, built, png, random_images, shard_of


def test_webdataset_shards_by_braces(tmp_path: Path) -> None:
    images, labels = random_images(6, 16), [4, 0, 2, 2, 1, 3]
    for shard in range(3):
        samples = {}
        for number in (2 * shard, 2 * shard + 1):  # a class may stand before or after its image
            parts = {f"{number:04d}.cls": f"{labels[number]}\n".encode(), f"{number:04d}.seg.png": png(images[number])}
            samples |= dict(reversed(parts.items()) if shard == 1 else parts.items())
            samples[f"{number:04d}.json"] = b"{}"
        shard_of(tmp_path / f"a-{shard:03d}.tar", samples)
    opened = built(f"{tmp_path}/a-{{000..002}}.tar", tmp_path / "s")
    assert_holds(opened, images, labels)
    assert opened.class_names == tuple("01234")
    assert opened.manifest.skipped == 0
    assert_holds(built(f"{tmp_path}/a-{{002,000}}.tar", tmp_path / "t"), images[[4, 5, 0, 1]], [1, 3, 4, 0])
    with pytest.raises(SourceError, match=r"a-003\.tar: no such file \(of .*a-\{000\.\.003\}\.tar\)"):
        list_source(f"{tmp_path}/a-{{000..003}}.tar")
    shard_of(tmp_path / "bad.tar", {"0.png": png(images[0]), "0.cls": b"dog"})
    with pytest.raises(SourceError, match=r"0\.cls says 'dog', which is not the number of a class"):
        list_source(tmp_path / "bad.tar")


@pytest.mark.parametrize("digits", [b"1000000", b"999999999"])
def test_a_cls_that_would_make_millions_of_classes_is_refused(digits: bytes, tmp_path: Path) -> None:
    tar = shard_of(tmp_path / "a.tar", {"0.png": png(random_images(1, 16)[0]), "0.cls": digits})
    with pytest.raises(SourceError, match=rf"0\.cls says class {digits.decode()}: number the classes from 0"):
        list_source(tar)


def test_a_tar_cut_after_the_header_of_a_class_is_refused(tmp_path: Path) -> None:
    whole = shard_of(tmp_path / "a.tar", {"0.png": b"", "0.cls": b"1"}).read_bytes()
    (tmp_path / "a.tar").write_bytes(whole[: 2 * tarfile.BLOCKSIZE])
    with pytest.raises(SourceError, match="is not a complete tar file"):
        list_source(tmp_path / "a.tar")


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE])
def test_a_tar_with_thousands_of_extension_headers_is_refused(kind: bytes, tmp_path: Path) -> None:
    header = tarfile.TarInfo("x")
    header.type = kind
    (tmp_path / "a.tar").write_bytes(2000 * header.tobuf(tarfile.GNU_FORMAT) + bytes(2 * tarfile.BLOCKSIZE))
    with pytest.raises(SourceError, match="is not a complete tar file"):
        list_source(tmp_path / "a.tar")


def test_a_tar_with_a_header_of_megabytes_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz", pax_headers={"comment": (2 << 20) * "x"}):
        pass
    with pytest.raises(SourceError, match=r"is not a complete tar file \(it has a header of 2,097,\d+ bytes\)"):
        list_source(tmp_path / "a.tar.gz")


def test_a_sparse_file_in_a_tar_is_refused(tmp_path: Path) -> None:
    """A sparse file of a kilobyte may unpack to any size."""
    info = tarfile.TarInfo("a.png")
    info.type = tarfile.GNUTYPE_SPARSE
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[483:495] = b"17777777777\0"  # the real size
    header[148:156] = bytes(8 * b" ")
    header[148:156] = b"%06o\0 " % sum(header[:512])
    (tmp_path / "a.tar").write_bytes(header + bytes(2 * tarfile.BLOCKSIZE))
    with pytest.raises(SourceError, match=r"a\.png is packed as a sparse file"):
        list_source(tmp_path / "a.tar")


def image_tar(*before: bytes) -> bytes:
    """Return a tar of one image, which follows the given blocks."""
    return b"".join(before) + member("b.png", png(random_images(1, 16)[0])) + bytes(2 * tarfile.BLOCKSIZE)


def member(name: str, content: bytes) -> bytes:
    return header(name, b"0", len(content)) + content + bytes(-len(content) % tarfile.BLOCKSIZE)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (image_tar(header("a.png", b"0", at124=b"\xff" * 12)), "a field of its header is no valid number"),
        (image_tar(header("a.png", b"0", at124=b"\x80" + b"\xff" * 11)), "it has a size that no file can have"),
        (image_tar(extension(b"x", record(b"size", b"-1024"))), "a field of its header is no valid number"),
        (image_tar(extension(b"x", records_in_records((1 << 20) - 2))), "it has an extended header that is damaged"),
        (image_tar(extension(b"x", record(b"GNU.sparse.major", b"1"))), "packed as a sparse file"),
        (sparse_map_without_end(10_000), r"a\.png is packed as a sparse file"),
        (image_tar(17 * extension(b"L", b"name")), "one member has more than 16 headers"),
        (image_tar(member("a.png", b"x"), b"damaged" * 512), "the header at byte 1,024 is damaged"),
        (image_tar(member("a.png", b"x"))[: -2 * tarfile.BLOCKSIZE], "it has no end: it is cut"),
        (gzip.compress(member("a.txt", bytes(16 << 20))), "unpacks to more than .* bytes, far more than the file"),
        (lzma.compress(member("a.png", bytes(16 << 20))), "unpacks to more than .* bytes, far more than the file"),
        (gzip.compress(image_tar())[:-20], "ended before the end-of-stream marker|Error -3"),
    ],
)
def test_a_hostile_tar_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(content)
    with pytest.raises(SourceError, match=f"a.tar is not a complete tar file .*{message}"):
        list_source(tmp_path / "a.tar")


@pytest.mark.parametrize("layout", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("pack", [bytes, gzip.compress, bz2.compress, lzma.compress])
def test_the_reader_finds_the_same_files_as_pythons_tarfile(
    layout: int, pack: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    long = {} if layout == tarfile.USTAR_FORMAT else {"ü/" + 60 * "long/" + "c.png": png(random_images(1, 16, 1)[0])}
    files = {"train/" + 90 * "a" + "/b.png": png(random_images(1, 16)[0]), "../../d.txt": b"text", "\udcff.png": b""}
    path = tmp_path / "a.tar"
    path.write_bytes(pack(tar_of(files | long, layout)))
    with tarfile.open(path) as archive:
        theirs = [(info.name, archive.extractfile(info).read()) for info in archive if info.isreg()]  # type: ignore[union-attr]
    with path.open("rb") as tar:
        ours = [member[:2] for member in read_members(tar, lambda *_: True, 1 << 20) if member.is_regular]
    assert ours == theirs
    assert len(theirs) == len(files | long)
