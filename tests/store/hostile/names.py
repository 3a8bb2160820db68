"""Hostile names: patterns of any characters, and file names and labels inside tars and folders."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from hypothesis import strategies as st

from ssl_dist import store
from ssl_dist.store import ImageStore
from tests.store.hostile.archives import png, read_all, tar_of
from tests.store.hostile.meter import Case
from tests.store.hostile.structured import drawn

_PIECES = (
    "*",
    "**",
    "?",
    "[",
    "]",
    "!",
    "{",
    "}",
    "..",
    ",",
    "-",
    "/",
    "\\",
    "\0",
    "\n",
    "a",
    "b.png",
    "0",
    "9",
    "999999",
    "^",
    "&&",
    "[[",
    "~",
    "%20",
    "é",
    "\udcff",
    "#",
)


def patterns(folder: Path, seed: int) -> Iterator[Case]:
    """Yield patterns for a folder with a few files, of which one has a long name and one lies deep."""
    for name in ("a.png", "b.png", "{a}.png", "[0].png", "a/b.png", "a" * 200 + ".png", "/".join("a" * 60) + "/b.png"):
        path = folder / "files" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(0))
    here = str(folder / "files")

    def case(pattern: str) -> Case:
        return Case(lambda: read_all(pattern), ascii(pattern).encode())  # type: ignore[arg-type]

    for hard in (
        "**/" * 30 + "c",
        "*a" * 60 + "c",
        "{a,b}" * 30,
        "{" * 600,
        "{a}" * 500,
        "{0..9999}" * 9,
        "a" * 1500,
    ):
        yield case(f"{here}/{hard}")
    for place in (
        "",
        "~",
        "/dev/null",
        "/dev/zero",
        "s3://",
        "gs://",
        "file://",
        "file://nowhere/x",
        "://",
        "hdfs://\0",
        "s3://a b/*",
    ):
        if place not in ("s3://", "gs://"):  # these use the network
            yield case(place)
    starts = st.sampled_from((f"{here}/", f"file://{here}/"))
    strategy = st.tuples(starts, st.lists(st.sampled_from(_PIECES) | st.text(max_size=2), max_size=12).map("".join))
    for start, pattern in drawn(strategy, seed):
        if ".." not in re.split("[/{},]", pattern):  # ".." leads out of the folder
            yield case(start + pattern)


def keys(folder: Path, seed: int) -> Iterator[Case]:
    """Yield builds of a tar or a folder with such names; the store must hold what was written."""
    name = st.lists(
        st.text(min_size=1, max_size=12) | st.sampled_from(("..", ".", "a", "\x1b[2J", "\udcff")),
        min_size=1,
        max_size=3,
    )
    names = st.lists(st.tuples(name, st.sampled_from((".png", ".PNG", ".jpg", ".cls", "", ".json"))), max_size=5)
    image, source = png(0), folder / "source"
    for drawn_names, number, in_tar in drawn(st.tuples(names, st.integers(-9, 10**7), st.booleans()), seed):
        files = {
            "/".join(parts) + suffix: str(number).encode() if suffix == ".cls" else image
            for parts, suffix in drawn_names
        }
        shutil.rmtree(source, ignore_errors=True)
        if in_tar:
            source.mkdir()
            (source / "a.tar").write_bytes(tar_of(files))
        else:
            source.mkdir()
            _write_files(source, files)
        yield Case(lambda: _build(source, folder / "store"), repr(files).encode())


def _write_files(source: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        path = os.path.normpath(os.path.join(source, name.lstrip("/")))
        if path.startswith(f"{source}/"):
            try:
                os.makedirs(os.path.dirname(path), exist_ok=True)
                Path(path).write_bytes(content)
            except (OSError, ValueError):  # not a possible file name: too long, or with a null character
                continue


def _build(source: Path, path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)
    manifest = store.build(source, path, workers=1)
    opened = ImageStore(path, verify="full")
    assert opened.manifest == manifest
    assert all(label < len(opened.class_names) for _, label, _ in opened.rows())
