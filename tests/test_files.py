"""Atomic writes: the old content or the new one, and nothing left beside it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ssl_dist.errors import RunError
from ssl_dist.files import new_folder, replacing, write_text


@pytest.mark.parametrize("durable", [False, True])
def test_a_file_is_replaced_whole(tmp_path: Path, durable: bool) -> None:
    file = tmp_path / "note.json"
    write_text(file, "old", durable=durable)
    with replacing(file, durable=durable) as aside:
        aside.write_text("new")
        assert file.read_text() == "old"
    assert file.read_text() == "new"
    assert os.listdir(tmp_path) == ["note.json"]


@pytest.mark.parametrize("durable", [False, True])
def test_a_directory_is_replaced_whole(tmp_path: Path, durable: bool) -> None:
    folder = tmp_path / "step-1"
    for names in (["a", "b"], ["b", "c"]):
        with replacing(folder, durable=durable) as aside:
            aside.mkdir()
            for name in names:
                (aside / name).write_text(name)
        assert sorted(os.listdir(folder)) == names
    assert os.listdir(tmp_path) == ["step-1"]


@pytest.mark.parametrize("name", [".", "new/..", ".."])
def test_a_folder_without_a_name_of_its_own_is_not_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "precious").touch()
    monkeypatch.chdir(tmp_path / "here")
    for making in (replacing, new_folder):
        with pytest.raises(RunError, match="has no name of its own"), making(Path(name)):
            pass
    assert (tmp_path / "here" / "precious").exists()


def test_a_new_folder_replaces_nothing_but_an_empty_one(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    with new_folder(folder) as aside:
        (aside / "a").touch()
    assert [path.name for path in folder.iterdir()] == ["a"]
    with pytest.raises(OSError, match="not empty"), new_folder(folder) as aside:
        (aside / "b").touch()
    assert [path.name for path in folder.iterdir()] == ["a"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("directory", [False, True])
def test_an_error_leaves_the_old_content_and_nothing_else(tmp_path: Path, directory: bool) -> None:
    write_text(tmp_path / "note", "old")
    with pytest.raises(OSError, match="full"):
        _fail(tmp_path / "note", directory)
    assert (tmp_path / "note").read_text() == "old"
    assert os.listdir(tmp_path) == ["note"]


def _fail(path: Path, directory: bool) -> None:
    with replacing(path) as aside:
        if directory:
            aside.mkdir()
        (aside / "part" if directory else aside).write_text("half")
        raise OSError("the disk is full")


def test_the_aside_of_a_hidden_file_has_one_dot_in_front(tmp_path: Path) -> None:
    with replacing(tmp_path / ".shard-1.json") as aside:
        assert aside.name.startswith(".shard-1.json.")
        assert aside.suffix == ".tmp"
        aside.touch()
