"""Stores built from Parquet and Arrow files hold their images and labels; other files give one clear error."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from ssl_dist import store
from ssl_dist.errors import SourceError
from ssl_dist.store.building.sources import list_source
from tests.store.sources import assert_holds, built, image_column, png, random_images, write_table

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.parametrize("kind", ["struct", "binary", "large"])
@pytest.mark.parametrize("suffix", [".parquet", ".arrow", ".stream"])
def test_tables_of_encoded_images(kind: str, suffix: str, tmp_path: Path) -> None:
    images, labels = random_images(7, 16), [1, 0, None, 2, 2, 1, 0]
    table = pa.table(
        {"id": pa.array(range(7)), "image": image_column(kind, images), "label": pa.array(labels, pa.int64())}
    )
    features = {"label": {"names": ["ant", "bee", "cat"], "_type": "ClassLabel"}}
    named = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    known = [-1 if label is None else label for label in labels]
    opened = built(write_table(named, tmp_path / f"a{suffix}"), tmp_path / "named")
    assert_holds(opened, images, known)
    assert opened.class_names == ("ant", "bee", "cat")
    assert built(write_table(table, tmp_path / f"b{suffix}"), tmp_path / "numbered").class_names == ("0", "1", "2")
    without = built(write_table(table.drop(["label"]), tmp_path / f"c{suffix}"), tmp_path / "without")
    assert_holds(without, images, [-1] * 7)


def test_a_folder_of_tables_with_rows_that_hold_no_image(tmp_path: Path) -> None:
    images = random_images(4, 16)
    encoded = [png(images[0]), None, b"no image", png(images[1])]
    (tmp_path / "d").mkdir()
    for number, name in enumerate(("b", "a")):
        table = pa.table({"jpg": pa.array(encoded, pa.binary()), "cls": pa.array([number] * 4)})
        write_table(table, tmp_path / "d" / f"{name}.parquet")
    (tmp_path / "d" / "dataset_info.json").write_text("{}")
    opened = built(tmp_path / "d", tmp_path / "s")
    assert_holds(opened, images[[0, 1, 0, 1]], [1, 1, 0, 0])
    assert opened.manifest.skipped == 5, "with dataset_info.json"
    with pytest.raises(SourceError, match=r"a\.parquet/1"):
        store.build(f"{tmp_path}/d/*.parquet", tmp_path / "t", workers=1, strict=True)


def test_tables_without_one_column_of_images_are_refused(tmp_path: Path) -> None:
    images = image_column("binary", random_images(2, 16))
    two = write_table(pa.table({"a": images, "b": images}), tmp_path / "two.parquet")
    with pytest.raises(SourceError, match="has no column, or several, that may be the images among a, b"):
        list_source(two)
    with pytest.raises(SourceError, match="has no column, or several, that may be the images among text"):
        list_source(write_table(pa.table({"text": ["x"]}), tmp_path / "text.parquet"))
    write_table(pa.table({"image": images, "label": [0, 1]}), tmp_path / "one.parquet")
    write_table(pa.table({"image": images}), tmp_path / "other.parquet")
    with pytest.raises(SourceError, match="its files differ in their columns"):
        list_source(f"{tmp_path}/{{one,other}}.parquet")
    for suffix in (".parquet", ".arrow", ".stream"):
        whole = write_table(pa.table({"image": images}), tmp_path / f"cut{suffix}").read_bytes()
        (tmp_path / f"cut{suffix}").write_bytes(whole[: len(whole) // 2])
        with pytest.raises(SourceError, match="is not a complete Parquet or Arrow file"):
            built(tmp_path / f"cut{suffix}", tmp_path / f"s{suffix}")


def test_tables_with_ambiguous_columns_are_refused(tmp_path: Path) -> None:
    images = image_column("binary", random_images(2, 16))
    for suffix in (".parquet", ".arrow", ".stream"):
        twins = pa.Table.from_arrays([images, images], ["image", "image"])
        with pytest.raises(SourceError, match="has several columns called image"):
            list_source(write_table(twins, tmp_path / f"twins{suffix}"))
        nested = pa.array([{"bytes": {"bytes": b""}}], pa.struct([("bytes", pa.struct([("bytes", pa.binary())]))]))
        with pytest.raises(SourceError, match="has no column, or several, that may be the images among image"):
            list_source(write_table(pa.table({"image": nested}), tmp_path / f"nested{suffix}"))


@pytest.mark.parametrize("suffix", [".parquet", ".arrow", ".stream"])
def test_a_label_that_would_make_millions_of_classes_is_refused(suffix: str, tmp_path: Path) -> None:
    table = pa.table({"image": image_column("binary", random_images(2, 16)), "label": [0, 1_000_000]})
    with pytest.raises(SourceError, match="has a label 1000000: number the classes from 0, below 1,000,000"):
        list_source(write_table(table, tmp_path / f"a{suffix}"))


@pytest.mark.parametrize("suffix", [".parquet", ".arrow", ".stream"])
@pytest.mark.parametrize("labelled", [False, True])
def test_listing_a_table_reads_no_image(suffix: str, labelled: bool, tmp_path: Path) -> None:
    """A few kilobytes may unpack to gigabytes of equal images."""
    columns: dict[str, Any] = {"image": pa.array([bytes(1 << 20)] * 64, pa.binary())}
    if labelled:
        columns["label"] = [1] * 64
    path, table = tmp_path / f"a{suffix}", pa.table(columns)
    if suffix == ".parquet":
        parquet.write_table(table, path, compression="zstd")
    else:
        new = pa.ipc.new_file if suffix == ".arrow" else pa.ipc.new_stream
        options = pa.ipc.IpcWriteOptions(compression="zstd")
        with path.open("wb") as file, new(file, table.schema, options=options) as writer:
            writer.write_table(table)
    del table, columns
    before = pa.default_memory_pool().total_bytes_allocated()
    listed = list_source(path)
    assert pa.default_memory_pool().total_bytes_allocated() - before < 16 << 20
    assert (listed.num_images, listed.class_names) == (64, ("0", "1") if labelled else ())


def test_labels_that_are_all_the_first_class_are_labels(tmp_path: Path) -> None:
    images = random_images(3, 16)
    table = pa.table({"image": image_column("binary", images), "label": [0, None, 0]})
    opened = built(write_table(table, tmp_path / "a.parquet"), tmp_path / "s")
    assert_holds(opened, images, [0, -1, 0])
    assert opened.class_names == ("0",)


@pytest.mark.parametrize("labels", [["cat", "dog"], [0.0, 1.0], [True, False], [[0], [1]]])
def test_labels_that_are_not_whole_numbers_are_refused(labels: list[Any], tmp_path: Path) -> None:
    """A build that ignored them would end in a store without labels, which is noticed late."""
    table = pa.table({"image": image_column("binary", random_images(2, 16)), "label": labels})
    with pytest.raises(SourceError, match=r"has labels of type .* in the column label: number the classes, or rename"):
        list_source(write_table(table, tmp_path / "a.parquet"))
    beside = table.append_column("fine_label", pa.array([1, 0]))
    assert list_source(write_table(beside, tmp_path / "b.parquet")).class_names == ("0", "1")


def test_one_large_image_repeated_in_every_row_does_not_fill_the_memory(tmp_path: Path) -> None:
    """With a dictionary, a file of kilobytes unpacks to gigabytes."""
    large = pa.array([bytes(1 << 20)], pa.binary())
    table = pa.table({"image": large.take(pa.array([0] * 64))})
    parquet.write_table(table, tmp_path / "a.parquet", compression="zstd", dictionary_pagesize_limit=1 << 30)
    del table
    before = pa.default_memory_pool().total_bytes_allocated()
    with pytest.raises(SourceError, match=r"a\.parquet .* unpacks to .* bytes, far more than the file has"):
        for _ in list_source(tmp_path / "a.parquet").members():
            pass
    assert pa.default_memory_pool().total_bytes_allocated() - before < 16 << 20


@pytest.mark.parametrize("suffix", [".parquet", ".arrow", ".stream"])
def test_a_million_rows_of_nothing_are_refused(suffix: str, tmp_path: Path) -> None:
    table = pa.table({"image": pa.nulls(1_000_000, pa.binary()), "label": pa.array([1] * 1_000_000, pa.int8())})
    path = tmp_path / f"a{suffix}"
    if suffix == ".parquet":
        parquet.write_table(table, path)
    else:
        new = pa.ipc.new_file if suffix == ".arrow" else pa.ipc.new_stream
        with (
            path.open("wb") as file,
            new(file, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as out,
        ):
            out.write_table(table)
    with pytest.raises(SourceError, match="far more than the file has"):
        list_source(path)


def test_no_byte_of_a_schema_ends_the_process(tmp_path: Path) -> None:
    """pyarrow crashes when a column's metadata is read that does not fit a damaged schema."""
    rows = [{"bytes": png(image), "path": "a"} for image in random_images(2, 16)]
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    path = write_table(pa.table({"image": pa.array(rows, struct), "label": [0, 1]}), tmp_path / "a.parquet")
    code = (
        "import sys; from pathlib import Path\n"
        "from tests.store.hostile.archives import read_all\n"
        "from ssl_dist.errors import SourceError\n"
        "path = Path(sys.argv[1]); whole = path.read_bytes()\n"
        "footer = len(whole) - 8 - int.from_bytes(whole[-8:-4], 'little')\n"
        "for place in range(footer, footer + 150):\n"
        "    path.write_bytes(whole[:place] + bytes([(whole[place] + 1) % 256]) + whole[place + 1 :])\n"
        "    try: read_all(path)\n"
        "    except SourceError: pass\n"
    )
    ended = subprocess.run([sys.executable, "-c", code, path], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_a_length_beyond_all_memory_is_a_damaged_file(tmp_path: Path) -> None:
    table = pa.table({"image": image_column("binary", random_images(2, 16))})
    path = write_table(table, tmp_path / "a.stream")
    whole = path.read_bytes()
    messages = pa.ipc.MessageReader.open_stream(whole)
    body = [message.body.size for message in messages][1]
    path.write_bytes(whole.replace(body.to_bytes(8, "little"), (1 << 60).to_bytes(8, "little"), 1))
    with pytest.raises(SourceError, match=r"a\.stream is not a complete Parquet or Arrow file .MemoryError.$"):
        list_source(path)
