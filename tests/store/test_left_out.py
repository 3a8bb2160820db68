"""Which files become images, what is said of the others, and what --strict refuses."""

from __future__ import annotations

import io
import logging
import os
import re
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path
from posixpath import normpath

import pytest

from ssl_dist import store
from ssl_dist.errors import SourceError
from ssl_dist.store import ImageStore
from ssl_dist.store.building import left_out as telling
from ssl_dist.store.building.sources import LeftOut, Source, list_source
from ssl_dist.store.building.sources.files import fingerprint, local_file
from tests.store.hostile.archives import tar_of
from tests.store.sources import built, left_out, png, random_images, shard_of

IMAGE = png(random_images(1, 16)[0])


def folder_of(path: Path, names: Iterable[str]) -> Path:
    """Write a folder of files: the same image where the name is that of a PNG file, else text."""
    for name in names:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content_of(name))
    return path


def content_of(name: str) -> bytes:
    return IMAGE if name.endswith(".png") else b"some text"


def packed(path: Path, names: Iterable[str]) -> Path:
    return shard_of(path.with_suffix(".tar"), {name: content_of(name) for name in names})


def by_pattern(path: Path, names: Iterable[str]) -> str:
    return f"{folder_of(path, names)}/**/*.*"


def keys_of(listed: Source) -> list[str]:
    return [member.key for member in listed.members()]


@pytest.mark.parametrize("make", [folder_of, packed, by_pattern])
@pytest.mark.parametrize(
    "hidden",
    [
        ".ipynb_checkpoints/0-checkpoint.png",
        ".git/objects/0.png",
        "__MACOSX/cat/0.png",
        "@eaDir/0.png",
        "cat/._0.png",
        "cat/.thumbnails/0.png",
        "cat/.0.png",
    ],
)
def test_hidden_files_are_no_images_and_make_no_class(
    hidden: str, make: Callable[[Path, Iterable[str]], Path | str], tmp_path: Path
) -> None:
    listed = list_source(make(tmp_path / "d", ["cat/0.png", "dog/0.png", hidden]))
    assert listed.class_names == ("cat", "dog")
    assert sorted(keys_of(listed)) == ["cat/0.png", "dog/0.png"]
    [(name, reason)] = listed.passed_over
    assert hidden.startswith(name)
    assert reason == "hidden"


def test_what_is_named_or_lies_in_a_hidden_folder_is_meant(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / ".cache" / "d", ["a/0.png", "b/0.png"])
    assert list_source(folder).num_images == list_source(f"{folder}/*/*.png").num_images == 2
    assert list_source(packed(tmp_path / "x", ["./a/0.png", "./b/0.png"])).num_images == 2
    (tmp_path / ".a.tar").write_bytes((tmp_path / "x.tar").read_bytes())
    assert list_source(tmp_path / ".a.tar").num_images == 2
    with pytest.raises(SourceError, match=r"all files are hidden, below \.d"):
        list_source(folder_of(tmp_path / "e", [".d/0.png"]))


def test_a_hidden_folder_that_cannot_be_read_is_not_entered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folder_of(tmp_path / "d", ["0.png", ".Trashes/0.png"])
    scan = os.scandir

    def refuse(path: str) -> object:
        if ".Trashes" in path:
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert keys_of(list_source(folder)) == ["0.png"]


def linked_tar(path: Path, links: dict[str, tuple[bytes, str]], first: bool = False, mode: str = "w") -> Path:
    """Write a tar of ``a/0.png``, with links of a kind behind it or before it."""
    with tarfile.open(path, mode) as archive:
        for name, (kind, target) in links.items() if first else ():
            archive.addfile(_link(name, kind, target))
        info = tarfile.TarInfo("a/0.png")
        info.size = len(IMAGE)
        archive.addfile(info, io.BytesIO(IMAGE))
        for name, (kind, target) in () if first else links.items():
            archive.addfile(_link(name, kind, target))
    return path


def _link(name: str, kind: bytes, target: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize("mode", ["w", "w:gz"])
@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize(
    "links",
    [
        {"b/1.png": (tarfile.LNKTYPE, "a/0.png")},
        {"b/1.png": (tarfile.SYMTYPE, "../a/0.png")},
        {"b/1.png": (tarfile.SYMTYPE, "2.png"), "b/2.png": (tarfile.SYMTYPE, "../b/.././a/0.png")},
        {"b/" + 200 * "x" + ".png": (tarfile.LNKTYPE, "./a/0.png")},
        {"b/1.png": (tarfile.SYMTYPE, 40 * "../a/" + "0.png")},
    ],
)
def test_links_in_a_tar_are_images(links: dict[str, tuple[bytes, str]], first: bool, mode: str, tmp_path: Path) -> None:
    tar = linked_tar(tmp_path / "t.tar", links, first, mode)
    listed = list_source(tar)
    assert listed.left_out == ()
    members = list(listed.members())
    assert sorted(member.key for member in members) == sorted(["a/0.png", *links])
    assert {member.content for member in members} == {IMAGE}
    assert {listed.class_names[member.label] for member in members} == {"a", "b"}
    assert listed.num_images == len(members)
    with_fewer_rules = fingerprint([local_file(str(tar), tar.name)])
    assert listed.fingerprint != with_fewer_rules, "an unfinished build of an earlier version begins anew"


@pytest.mark.parametrize(
    ("kind", "target"),
    [
        (tarfile.SYMTYPE, "/etc/hosts"),
        (tarfile.SYMTYPE, "../nowhere.png"),
        (tarfile.LNKTYPE, "nowhere.png"),
        (tarfile.SYMTYPE, "../a"),
        (tarfile.SYMTYPE, "1.png"),
    ],
)
def test_links_that_lead_to_no_file_of_the_tar_are_left_out_by_name(kind: bytes, target: str, tmp_path: Path) -> None:
    tar = linked_tar(tmp_path / "t.tar", {"b/1.png": (kind, target)})
    listed = list_source(tar)
    assert (keys_of(listed), left_out(listed)) == (["a/0.png"], ("b/1.png",))
    with pytest.raises(SourceError, match=r"b/1\.png: a link to no file of the tar.*--strict"):
        store.build(tar, tmp_path / "s", workers=1, strict=True)
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("name", ["a/0.png", "./a/0.png", "b/../a/0.png"])
@pytest.mark.parametrize("link_is_first", [False, True])
def test_of_a_file_and_a_link_of_one_name_a_tar_has_the_later(name: str, link_is_first: bool, tmp_path: Path) -> None:
    names = [f"{name} -> b/1.png", "a/0.png"] if link_is_first else ["a/0.png", f"{name} -> b/1.png"]
    with tarfile.open(tmp_path / "t.tar", "w") as archive:
        for one in ("b/1.png", *names):
            key, _, target = one.partition(" -> ")
            info = _link(key, tarfile.LNKTYPE, target) if target else tarfile.TarInfo(key)
            info.size = 0 if target else len(IMAGE + key.encode())
            archive.addfile(info, None if target else io.BytesIO(IMAGE + key.encode()))
    listed = list_source(tmp_path / "t.tar")
    contents = {normpath(member.key): member.content for member in listed.members()}
    later = "a/0.png" if link_is_first else "b/1.png"
    assert contents == {"b/1.png": IMAGE + b"b/1.png", "a/0.png": IMAGE + later.encode()}
    assert listed.num_images == 2
    assert [reason.partition(":")[0] for _, reason in listed.left_out] == ["replaced"]


def test_a_file_that_gnu_tar_packs_twice_is_one_image(tmp_path: Path) -> None:
    listed = list_source(linked_tar(tmp_path / "t.tar", {"a/0.png": (tarfile.LNKTYPE, "a/0.png")}))
    assert (keys_of(listed), listed.left_out) == (["a/0.png"], ())


def test_a_link_to_a_hidden_file_is_an_image(tmp_path: Path) -> None:
    """The layout of git-annex."""
    tar = packed(tmp_path / "t.tar", [".git/annex/0.png", "b/9.png"])
    with tarfile.open(tar, "a") as archive:
        archive.addfile(_link("a/0.png", tarfile.SYMTYPE, "../.git/annex/0.png"))
    listed = list_source(tar)
    assert sorted(keys_of(listed)) == ["a/0.png", "b/9.png"]
    assert listed.class_names == ("a", "b")


@pytest.mark.parametrize(
    ("names", "classes"),
    [
        (["/a/0.png", "b/1.png"], ("a", "b")),
        (["a/../b/0.png", "c/1.png"], ("b", "c")),
        (["../a/0.png", "../b/1.png"], ("a", "b")),
        (["./a/./0.png", "b//1.png"], ("a", "b")),
    ],
)
def test_classes_of_a_tar_are_the_folders_that_its_paths_lead_to(
    names: list[str], classes: tuple[str, ...], tmp_path: Path
) -> None:
    listed = list_source(packed(tmp_path / "t.tar", names))
    assert listed.class_names == classes
    assert [member.label for member in listed.members()] == [0, 1]


def test_of_two_files_of_one_name_a_tar_has_the_last_and_pipes_are_named(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "t.tar", "w") as archive:
        for content in (b"old", IMAGE):
            info = tarfile.TarInfo("0.png")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        archive.addfile(_link("1.png", tarfile.FIFOTYPE, ""))
    listed = list_source(tmp_path / "t.tar")
    assert [member.content for member in listed.members()] == [IMAGE]
    assert [reason.partition(":")[0] for _, reason in listed.left_out] == ["replaced", "not a regular file"]


@pytest.mark.parametrize("make", [folder_of, packed])
def test_what_accompanies_images_is_not_foreign(make: Callable[[Path, Iterable[str]], Path], tmp_path: Path) -> None:
    beside = ["0.json", "0.txt", "0.xml", "0.jpg.json", "README.md", "labels.csv", "LICENSE"]
    foreign = ["notes.txt", "d/0.json", "9.json"]
    listed = list_source(make(tmp_path / "s", ["0.png", "1.png", *beside, *foreign]))
    assert sorted(left_out(listed)) == sorted(foreign)
    assert sorted(key for key, _ in listed.passed_over) == sorted(beside)
    assert listed.num_images == 2
    alone = make(tmp_path / "t", ["0.png", *beside])
    assert store.build(alone, tmp_path / "u", workers=1, strict=True).skipped == 0


def test_thousands_of_files_left_out_are_a_line_each_reason(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    names = [*(f"{number}.png" for number in range(40)), *(f"x{number}.xyz" for number in range(40))]
    tar = shard_of(tmp_path / "t.tar", {"good.png": IMAGE} | dict.fromkeys(names, b"rubbish"))
    with caplog.at_level(logging.INFO):
        manifest = store.build(tar, tmp_path / "s", workers=1)
    assert manifest.skipped == len(names)
    lines = [record.getMessage() for record in caplog.records]
    assert "left out 40 .xyz: not an image file (x0.xyz, x1.xyz, x2.xyz, ...)" in lines
    assert len(lines) <= telling._MAX_LINES + 2
    named = (tmp_path / "s-left-out.txt").read_text().splitlines()
    assert sorted(line.partition(": ")[0] for line in named) == sorted(names)


def test_reasons_are_summed_up_by_their_beginning_and_bounded(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cut = [LeftOut(f"{number}.PNG", f"cut: at byte {number}") for number in range(5)]
    others = [LeftOut(f"x.{number}", "odd\x1b[2J") for number in range(30)]
    where = telling.tell_left_out(tmp_path / "s", [*cut, *others], [])
    assert where == f"named in {tmp_path}/s-left-out.txt"
    lines = [record.getMessage() for record in caplog.records]
    assert lines[0] == "left out 5 .png: cut (0.PNG, 1.PNG, 2.PNG, ...)"
    assert re.fullmatch(r"left out 19 more, for 19 other reasons", lines[-2])
    assert "\x1b" not in "".join(lines)
    assert len((tmp_path / "s-left-out.txt").read_text().splitlines()) == 35


def test_a_file_that_cannot_be_written_beside_a_store_does_not_end_the_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(telling, "write_text", refuse)
    folder = folder_of(tmp_path / "d", ["0.png", "notes.txt"])
    assert store.build(folder, tmp_path / "s", workers=1).skipped == 1
    assert "s-left-out.txt cannot be written (Permission denied)" in caplog.text


def test_what_appends_leave_out_is_named_behind_what_the_build_left_out(tmp_path: Path) -> None:
    built(folder_of(tmp_path / "d", ["0.png", "notes.txt"]), tmp_path / "s")
    store.append(folder_of(tmp_path / "e", ["1.png"]), tmp_path / "s", workers=1)
    store.append(folder_of(tmp_path / "f", ["2.png", "more.txt"]), tmp_path / "s", workers=1)
    named = [line.partition(": ")[0] for line in (tmp_path / "s-left-out.txt").read_text().splitlines()]
    assert named == ["notes.txt", "more.txt"]
    assert ImageStore(tmp_path / "s").manifest.skipped == 2


def test_each_file_is_told_of_once_where_a_source_is_split(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    folder = tmp_path / "d"
    folder.mkdir()
    for number in range(30):
        (folder / f"{number}.png").write_bytes(png(random_images(1, 8)[0]) if number % 3 else b"no image")
        (folder / f"note-{number}.txt").write_text("no image")
        (folder / f".{number}").write_text("hidden")
    shares = {"a": (0.0, 0.4), "b": (0.4, 1.0)}
    skipped = [store.build(folder, tmp_path / name, share=share, workers=1).skipped for name, share in shares.items()]
    assert (sum(skipped), 0 in skipped) == (40, False)
    named = [line for name in shares for line in (tmp_path / f"{name}-left-out.txt").read_text().splitlines()]
    assert len(named) == len(set(named)) == 40
    hidden = re.findall(r"passed over: ([0-9]+) hidden", caplog.text)
    assert (len(hidden), sum(map(int, hidden))) == (2, 30)


def test_a_strict_append_leaves_the_store_as_it_was(tmp_path: Path) -> None:
    before = built(folder_of(tmp_path / "d", ["0.png"]), tmp_path / "s").manifest
    more = folder_of(tmp_path / "more", ["1.png", "2.png", "x.xyz"])
    (more / "2.png").write_bytes(b"no image")
    with pytest.raises(SourceError, match=r"x\.xyz: not an image file \(--strict: .* all 2 are named"):
        store.append(more, tmp_path / "s", workers=1, strict=True)
    assert sorted(path.name for path in (tmp_path / "s").iterdir()) == ["manifest.json", "shard-00000.arrow"]
    assert built(tmp_path / "s", tmp_path / "t").manifest.rows == before.rows


@pytest.mark.parametrize("name", ["a[1]", "b*", "{x,y}", "c?", "[!a]"])
def test_what_lies_there_is_no_pattern(name: str, tmp_path: Path) -> None:
    folder_of(tmp_path / name, ["p/0.png", "q/0.png"])
    folder_of(tmp_path, ["a1/0.png", "bb/0.png", "x/0.png", "cc/0.png", "b/0.png"])
    for source in (f"{tmp_path}/{name}", f"{tmp_path}/{name}/*/*.png", f"{tmp_path}/{name}/{{p,q}}/0.png"):
        listed = list_source(source)
        assert listed.num_images == 2
        assert all(f"/{name}/" in member.content.path for member in listed.members())  # type: ignore[union-attr]
    assert list_source(f"{tmp_path}/{name}/*/*.png").class_names == ("p", "q")


def test_a_tar_that_has_the_name_of_a_pattern_is_read(tmp_path: Path) -> None:
    (tmp_path / "a[0].tar").write_bytes(tar_of({"0.png": IMAGE}))
    (tmp_path / "a0.tar").write_bytes(tar_of({"0.png": IMAGE, "1.png": IMAGE}))
    assert list_source(tmp_path / "a[0].tar").num_images == 1
