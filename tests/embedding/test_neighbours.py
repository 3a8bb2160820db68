"""Nearest images: exact search a block at a time, approximate indexes with their recall, the table and the picture."""

from __future__ import annotations

import errno
import importlib.util
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from pyarrow import parquet
from torch.nn.functional import normalize

from ssl_dist.checkpoint import Checkpoints, State
from ssl_dist.embedding import embed, making, parts
from ssl_dist.embedding import index as indexes
from ssl_dist.embedding.search import nearest_in_blocks
from ssl_dist.embedding.table import EmbeddingTable
from ssl_dist.errors import RunError
from ssl_dist.evaluate.knn import nearest
from ssl_dist.report import neighbours
from ssl_dist.store.decode import decode
from tests.command import Command
from tests.helpers import resolved_config


@pytest.fixture(scope="module")
def table(run: Path, small_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Embed the small store's 51 images in four row groups."""
    out = tmp_path_factory.mktemp("tables") / "e.parquet"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(making, "PART_ROWS", 10)
        patch.setattr(parts, "BLOCK_PARTS", 2)
        embed(run, small_store, out)
    assert parquet.read_metadata(out).num_row_groups == 4
    return out


def exact(table: Path, row: int, count: int) -> tuple[list[str], np.ndarray]:
    """Return the keys of the nearest others of a row, by dense float64 products, and their similarities."""
    found = parquet.read_table(table)
    rows = normalize(torch.tensor(found["embedding"].to_pylist(), dtype=torch.float64), dim=1)
    similarity = rows @ rows[row]
    similarity[row] = -torch.inf
    values, order = similarity.topk(count)
    return [found["key"][number].as_py() for number in order.tolist()], values.numpy()


@pytest.mark.parametrize("size", [1, 7, 40, 100])
def test_blocks_of_any_size_give_what_one_block_gives(size: int) -> None:
    """Equal rows lie in different blocks; the lower number is nearer."""
    torch.manual_seed(0)
    bank = torch.randn(40, 5).repeat(2, 1)
    queries = torch.cat([bank[:3], torch.zeros(1, 5), torch.randn(2, 5)])
    for count in (1, 6, 80, 99):
        similarity, rows = nearest_in_blocks(bank.split(size), queries, count)
        wanted, wanted_rows = nearest(bank, queries, min(count, 80))
        assert torch.equal(similarity, wanted)
        assert torch.equal(rows, wanted_rows)
    _, rows = nearest_in_blocks(bank.split(size), bank[:3], 2, torch.arange(3))
    assert rows[:, 0].tolist() == [40, 41, 42]
    _, rows = nearest_in_blocks(bank.split(size), bank[:3], 99, torch.arange(3))
    assert rows.shape == (3, 79)


def test_a_key_has_its_nearest_others(command: Command, table: Path) -> None:
    done = command("neighbours", table, "class1/003.png", "--count", 5, "--json")
    keys, similarities = exact(table, 20, 5)
    assert done.code == 0, done
    assert done.json["row"] == 20
    assert [one["key"] for one in done.json["neighbours"]] == keys
    np.testing.assert_allclose([one["similarity"] for one in done.json["neighbours"]], similarities, rtol=0, atol=1e-14)
    assert all(one["class"] == one["key"].partition("/")[0] for one in done.json["neighbours"])
    assert keys[0] in done.err


def test_a_picture_file_has_itself_as_its_nearest(command: Command, table: Path, image_folder: Path) -> None:
    """Its features are computed alone, and those of the table in fours: the last bits may differ."""
    done = command("neighbours", table, image_folder / "class2" / "005.png", "--count", 99, "--json")
    first, *others = done.json["neighbours"]
    assert (first["key"], len(others)) == ("class2/005.png", 50)
    assert first["similarity"] == pytest.approx(1, abs=1e-9)
    assert done.json["row"] is None


@pytest.mark.parametrize("image", ["class0/002.png", "{images}/class0/002.png"])
def test_the_picture_shows_the_query_and_its_neighbours(
    command: Command, table: Path, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, image: str
) -> None:
    drawn = list[Any]()
    monkeypatch.setattr(neighbours, "save", lambda figure, path: drawn.append((figure, path)))
    done = command("neighbours", table, image.format(images=image_folder), "--count", 3, "--out", tmp_path / "n.png")
    assert done.code == 0, done
    [(figure, path)] = drawn
    assert path == tmp_path / "n.png"
    shown = [axis.images[0].get_array() for axis in figure.axes]
    keys = [key for key in re.findall(r"class\d/\d+\.png", done.out) if key != "class0/002.png" or "{" in image][-3:]
    for pixels, key in zip(shown[1:], keys, strict=True):
        np.testing.assert_array_equal(pixels, np.asarray(Image.open(image_folder / key)))
    of_query = (image_folder / "class0" / "002.png").read_bytes()
    np.testing.assert_array_equal(shown[0], decode(of_query, 96 if "{" in image else None))
    assert [axis.get_xlabel().splitlines()[0] for axis in figure.axes[1:]] == [key[:6] for key in keys]


def test_the_picture_of_many_is_written(command: Command, table: Path, image_folder: Path, tmp_path: Path) -> None:
    """The images are read from a folder in place of the store."""
    options = ("--out", tmp_path / "n.png", "--store", image_folder)
    assert command("neighbours", table, "class0/002.png", "--count", 14, *options).code == 0
    width, height = Image.open(tmp_path / "n.png").size
    assert width == pytest.approx(11 * 1.15 * 110, abs=2)
    assert height == pytest.approx(2 * 1.65 * 110, abs=2)


MISTAKES = {
    "none.parquet a": "none.parquet: no such file",
    "{new} a": "it is no file",
    "{new}/other.parquet a": "was not written by `ssl-dist embed`",
    "{new}/text.parquet a": "is no whole Parquet file",
    "{new}/cut.parquet a": "is no whole Parquet file",
    "{table} a.png": "it is no file, and no key of .*, such as class0/000.png",
    "{new}/twice.parquet class0/000.png": "2 images of .* have this key",
    "{table} {new}/text.parquet": "does not begin as an image",
    "{table} class0/000.png --index annoy": "--index annoy: it is exact, faiss or usearch",
    "{table} class0/000.png --out {new}/a.jpg": "must end in .png",
    "{table} class0/000.png --store {images}": "give --out",
    "{table} class0/000.png --store {new}/empty --out {new}/a.png": "no image file",
    "{table} class0/000.png --store {images}/class1 --out {new}/a.png": "has no image class0/000.png",
    "{table} class0/000.png --count 0": "greater than or equal to 1",
    "{table} {images}/class0/000.png --run {new}/run": "is not the encoder of step 2 that made",
    "{new}/moved.parquet {images}/class0/000.png": "names this run: if it is elsewhere now, give --run",
}


@pytest.fixture(scope="module")
def broken(table: Path, small_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of files that are no embeddings, or lack something, and of a run that did not make the table."""
    folder, content, whole = tmp_path_factory.mktemp("broken"), table.read_bytes(), parquet.read_table(table)
    (folder / "empty").mkdir()
    (folder / "text.parquet").write_text("no table, and no picture")
    (folder / "cut.parquet").write_bytes(content[: len(content) // 2])
    parquet.write_table(pa.table({"key": ["a"]}), folder / "other.parquet")
    parquet.write_table(pa.concat_tables([whole, whole]), folder / "twice.parquet")
    facts = EmbeddingTable(table).facts.model_copy(update={"run": str(folder / "gone")})
    parquet.write_table(whole.replace_schema_metadata({b"ssl_dist": facts.model_dump_json()}), folder / "moved.parquet")
    config = resolved_config(small_store)
    Checkpoints(folder / "run").save(1, config, State(config.initial_method().state_dict(), {}))
    return folder


@pytest.mark.parametrize("arguments", MISTAKES)
def test_a_mistake_is_one_line(command: Command, table: Path, broken: Path, image_folder: Path, arguments: str) -> None:
    done = command("neighbours", *arguments.format(table=table, images=image_folder, new=broken).split())
    assert done.code == 2
    assert re.search(MISTAKES[arguments], done.err), done.err
    assert "Traceback" not in done.err
    assert not (broken / "a.png").exists()


def test_a_key_goes_before_a_file_and_the_output_says_which(
    command: Command, table: Path, image_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(image_folder)
    assert "class0/000.png, image 0 of the file" in command("neighbours", table, "class0/000.png").out
    assert "./class0/000.png, a picture file" in command("neighbours", table, "./class0/000.png").out


def test_a_flipped_byte_of_the_features_is_found(table: Path, tmp_path: Path) -> None:
    content = bytearray(table.read_bytes())
    where = parquet.read_metadata(table).row_group(1).column(3)
    content[where.data_page_offset + where.total_compressed_size // 2] ^= 1
    (tmp_path / "e.parquet").write_bytes(bytes(content))
    with pytest.raises(RunError, match="is no whole Parquet file"):
        list(EmbeddingTable(tmp_path / "e.parquet").blocks())


@pytest.mark.skipif(importlib.util.find_spec("faiss") is not None, reason="faiss is installed")
def test_without_its_library_an_index_says_what_to_install(command: Command, table: Path) -> None:
    done = command("neighbours", table, "class0/000.png", "--index", "faiss")
    assert (done.code, "pip install 'ssl_dist[faiss]'" in done.err) == (2, True)


class _Poor:
    """A graph that knows only the first half of the images, by exact products."""

    def __init__(self, dim: int, file: Path | None) -> None:
        self._rows = np.load(file) if file else np.empty((0, dim), np.float32)

    def add(self, rows: np.ndarray) -> None:
        self._rows = np.concatenate([self._rows, rows])

    def search(self, rows: np.ndarray, count: int) -> np.ndarray:
        near = (rows @ self._rows[:25].T).argsort(1)[:, ::-1][:, :count]
        return np.pad(near, ((0, 0), (0, count - near.shape[1])), constant_values=-1)

    def write(self, file: Path) -> None:
        with file.open("wb") as target:
            np.save(target, self._rows)


@pytest.fixture
def poor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(indexes._KINDS, "faiss", _Poor)
    monkeypatch.setattr(indexes, "version_of", lambda _: "1.0")
    monkeypatch.setattr(indexes, "expect_known", lambda _: None)


def test_the_recall_is_the_share_of_exact_neighbours_that_are_found(
    command: Command, table: Path, tmp_path: Path, poor: None
) -> None:
    shutil.copy(table, tmp_path / "e.parquet")
    wanted = [exact(table, row, 4)[0] for row in range(51)]
    keys = parquet.read_table(table)["key"].to_pylist()
    known = set(keys[:25])
    recall = sum(key in known for some in wanted for key in some) / (4 * 51)
    for _ in range(2):  # made, and read
        done = command("neighbours", tmp_path / "e.parquet", keys[3], "--count", 4, "--index", "faiss", "--json").json
        assert done["recall"] == pytest.approx(recall, abs=0.02)  # of five that a graph is asked for, one is the image
        assert {one["key"] for one in done["neighbours"]} <= known
        assert keys[3] not in {one["key"] for one in done["neighbours"]}


def test_an_index_is_made_again_when_its_table_has_changed(
    command: Command, run: Path, table: Path, image_folder: Path, tmp_path: Path, poor: None
) -> None:
    out = tmp_path / "e.parquet"
    shutil.copy(table, out)
    line = ("neighbours", out, "class0/003.png", "--index", "faiss", "--json")
    assert command(*line).code == 0
    graph = tmp_path / "e.parquet.faiss" / "graph"
    made = graph.stat().st_mtime_ns
    assert command(*line).code == 0
    assert graph.stat().st_mtime_ns == made
    os.unlink(out)
    embed(run, f"{image_folder}/class0/00?.png", out)
    found = command("neighbours", out, "003.png", "--index", "faiss", "--json")
    assert found.code == 0, found
    assert len(np.load(graph)) == 10


NEAREST = ("class0/003.png", "--index", "faiss", "--json")


@pytest.mark.parametrize("damage", [lambda file: file.write_bytes(file.read_bytes()[:90]), Path.unlink])
def test_a_damaged_index_is_named_and_made_again(
    command: Command,
    table: Path,
    tmp_path: Path,
    poor: None,
    damage: Callable[[Path], object],
    caplog: pytest.LogCaptureFixture,
) -> None:
    out, graph = Path(shutil.copy2(table, tmp_path / "e.parquet")), tmp_path / "e.parquet.faiss" / "graph"
    whole = command("neighbours", out, *NEAREST).json
    damage(graph)
    again = command("neighbours", out, *NEAREST)
    assert (again.code, again.json) == (0, whole)
    assert "is damaged" in caplog.text
    assert len(np.load(graph)) == 51


def test_an_index_that_cannot_be_kept_leaves_no_other_under_its_name(
    command: Command,
    run: Path,
    table: Path,
    image_folder: Path,
    tmp_path: Path,
    poor: None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The folder has the graph of an earlier table, and the disk is full when the new one is to be written."""
    out = Path(shutil.copy2(table, tmp_path / "e.parquet"))
    assert command("neighbours", out, *NEAREST).code == 0
    out.unlink()
    embed(run, f"{image_folder}/class0/00?.png", out)
    known = [f"00{number}.png" for number in range(10)]

    def no_room(self: _Poor, file: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(_Poor, "write", no_room)
    for _ in range(2):
        found = command("neighbours", out, "003.png", *NEAREST[1:])
        assert found.code == 0, found
        assert {one["key"] for one in found.json["neighbours"]} <= set(known)
        assert "the index cannot be kept" in caplog.text
        caplog.clear()


def test_a_search_does_not_need_to_write(
    command: Command,
    table: Path,
    tmp_path: Path,
    poor: None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The index is another person's, whose folder cannot be written."""
    out = Path(shutil.copy2(table, tmp_path / "e.parquet"))
    assert command("neighbours", out, *NEAREST, "--count", 4).code == 0

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(indexes, "write_text", refuse)
    found = command("neighbours", out, *NEAREST, "--count", 7)
    assert (found.code, len(found.json["neighbours"])) == (0, 7)
    assert "the recall cannot be kept" in caplog.text


@pytest.mark.extras
@pytest.mark.parametrize("kind", ["faiss", "usearch"])
def test_a_librarys_index_finds_the_nearest_of_many(command: Command, table: Path, tmp_path: Path, kind: str) -> None:
    whole = parquet.read_table(table)
    rows = np.random.default_rng(0).normal(size=(4000, 32)).astype(np.float32)
    columns = parts.feature_table([f"{number}.png" for number in range(4000)], np.full(4000, -1, np.int32), rows)
    parquet.write_table(columns.replace_schema_metadata(whole.schema.metadata), tmp_path / "e.parquet")
    for _ in range(2):
        done = command("neighbours", tmp_path / "e.parquet", "17.png", "--index", kind, "--json")
        assert done.code == 0, done
        assert done.json["recall"] > 0.9, "of random features, which are the hardest"
        keys, similarities = exact(tmp_path / "e.parquet", 17, 10)
        found = {one["key"]: one["similarity"] for one in done.json["neighbours"]}
        assert len(found.keys() & set(keys)) >= 8
        for key, similarity in zip(keys, similarities, strict=True):
            assert found.get(key, similarity) == pytest.approx(similarity, abs=1e-14)
