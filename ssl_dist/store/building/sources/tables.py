"""Parquet and Arrow files with a column of encoded images, read a batch of rows at a time."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import IO, Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import parquet

from ssl_dist.errors import SourceError
from ssl_dist.store.building.sources.base import MOST_CLASSES, Member, Source, text
from ssl_dist.store.building.sources.files import File, fingerprint, most_unpacked, reading
from ssl_dist.store.schema import NO_LABEL, is_shard_schema

PARQUET, ARROW, STREAM = b"PAR1", b"ARROW1", b"\xff\xff\xff\xff"  # what the three kinds of file begin with
_IMAGES, _LABELS = ("image", "img", "jpg", "jpeg", "png"), ("label", "labels", "cls", "class", "fine_label")
_ROW_BYTES = 64  # no image file is smaller, and no row is made of less
_LABELS_AT_ONCE = 65536


class _Columns(NamedTuple):
    image: str
    label: str | None
    class_names: tuple[str, ...]


def of_tables(name: str, files: Sequence[File]) -> Source:
    """Rows of files of one schema. The column of images is binary, or Hugging Face's struct of ``bytes`` and ``path``,
    and is called ``image``, ``img``, ``jpg``, ``jpeg`` or ``png``, or is the only such column. Labels are whole numbers
    in ``label``, ``labels``, ``cls``, ``class`` or ``fine_label``; their names are Hugging Face's, where given.

    Raises:
        SourceError: a file cannot be read, has no such column, or is a shard of a store; schemas or labels differ.
    """
    found = {_columns(file) for file in files}
    if len(found) > 1:
        raise SourceError(f"{name}: its files differ in their columns of images, labels or names of classes")
    [columns] = found
    total, largest = 0, NO_LABEL
    for file in files:
        rows, label = _labels(file, columns.label) if columns.label else (_num_rows(file), NO_LABEL)
        if label >= MOST_CLASSES:
            raise SourceError(f"{file.path} has a label {label}: number the classes from 0, below {MOST_CLASSES:,}")
        total, largest = total + rows, max(largest, label)
    names = columns.class_names or tuple(str(number) for number in range(largest + 1))
    if largest >= len(names):
        raise SourceError(f"{name} has a label {largest}, and there are {len(names)} names of classes")

    def members() -> Iterator[Member]:
        for file in files:
            yield from _members(file, columns)

    return Source(name, total, (), names if largest >= 0 else (), fingerprint(files), members)


def _labels(file: File, column: str) -> tuple[int, int]:
    """How many, and the largest."""
    rows, largest = 0, NO_LABEL
    for batch in _batches(file, [column], _LABELS_AT_ONCE):
        rows += batch.num_rows
        top = pc.max(batch.column(0)).as_py()
        largest = largest if top is None else max(largest, top)
    return rows, largest


def _num_rows(file: File) -> int:
    """As the file says: no image is read."""
    with reading(file, "Parquet or Arrow file") as content:
        opened = _opened(content)
        if isinstance(opened, parquet.ParquetFile):
            return int(opened.metadata.num_rows)
        if isinstance(opened, pa.ipc.RecordBatchFileReader):
            return int(opened.count_rows())
        content.seek(0)
        nothing = pa.schema([("nothing", pa.null())])  # a column without bytes: how many rows, and no more
        messages = (message for message in pa.ipc.MessageReader.open_stream(content) if message.type == "record batch")
        return sum(pa.ipc.read_record_batch(message, nothing).num_rows for message in messages)


def _members(file: File, columns: _Columns) -> Iterator[Member]:
    number = 0
    # of Parquet one row at once: a dictionary makes many large images of one
    for batch in _batches(file, [columns.image, *([columns.label] if columns.label else [])], 1):
        images = batch.column(0)
        if pa.types.is_struct(images.type):
            images = pc.struct_field(images, "bytes")
        labels = batch.column(1).to_pylist() if columns.label else [None] * len(images)
        for image, label in zip(images, labels, strict=True):
            known = NO_LABEL if label is None or label < 0 else label
            yield Member(f"{file.key}/{number}", known, image.as_py() or b"")  # without bytes: left out, with its name
            number += 1


def _columns(file: File) -> _Columns:
    with reading(file, "Parquet or Arrow file") as content:
        opened = _opened(content)
        schema = opened.schema_arrow if isinstance(opened, parquet.ParquetFile) else opened.schema
        if is_shard_schema(schema):  # whose names of classes are in its store's manifest
            raise SourceError(
                f"{file.path} is a shard of a store: give the store's folder (of several, to `ssl-dist store merge`);"
                " copy it into a folder first if it is elsewhere"
            )
        if twice := [name for name, count in Counter(schema.names).items() if count > 1]:
            raise SourceError(f"{file.path} has several columns of the name {twice[0]}: rename them")
        holding = [field.name for field in schema if _holds_images(field.type)]
    named = [name for name in _IMAGES if name in holding] or holding
    if not named or (len(holding) > 1 and named == holding):
        raise SourceError(
            f"{file.path} has no one column of images among {', '.join(schema.names):.300}: it is binary, or a struct"
            f" with bytes, and its name is one of {', '.join(_IMAGES)}"
        )
    labels = {name: schema.field(name).type for name in _LABELS if name in schema.names}
    label = next((name for name, kind in labels.items() if pa.types.is_integer(kind)), None)
    if labels and label is None:
        [(name, kind), *_] = labels.items()
        raise SourceError(
            f"{file.path} has labels of type {kind} in the column {name}: number the classes, or rename the column to"
            " build without labels"
        )
    return _Columns(named[0], label, _class_names(schema, label) if label else ())


def _holds_images(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        inside = [field.type for field in kind if field.name == "bytes"]
        return len(inside) == 1 and _is_binary(inside[0])
    return _is_binary(kind)


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _class_names(schema: pa.Schema, label: str) -> tuple[str, ...]:
    """What Hugging Face's metadata says of the column."""
    try:
        features: Any = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        names = features[label]["names"]
    except (KeyError, TypeError, ValueError):
        return ()
    return tuple(text(str(name)) for name in names) if isinstance(names, list) else ()


def _opened(content: IO[bytes], columns: Sequence[str] = ()) -> Any:
    """The reader of what it begins like; of Arrow, with these columns alone (all: none are named)."""
    start = content.read(len(ARROW))
    content.seek(0)
    if start.startswith(PARQUET):
        return parquet.ParquetFile(content)
    arrow = pa.ipc.open_file if start.startswith(ARROW) else pa.ipc.open_stream
    opened = arrow(content)
    if not columns:
        return opened
    wanted = [opened.schema.get_field_index(name) for name in columns]
    content.seek(0)
    return arrow(content, options=pa.ipc.IpcReadOptions(included_fields=wanted))


def _batches(file: File, columns: list[str], rows: int) -> Iterator[pa.RecordBatch]:
    """Of these columns, no others read; of Parquet at most so many rows each."""
    with reading(file, "Parquet or Arrow file") as content:
        most = most_unpacked(content.seek(0, 2))
        content.seek(0)
        opened, unpacked = _opened(content, columns), 0
        if isinstance(opened, parquet.ParquetFile):
            _bounded(_unpacked_bytes(opened.metadata), most)
            batches = opened.iter_batches(rows, columns=columns)
        elif isinstance(opened, pa.ipc.RecordBatchFileReader):
            batches = map(opened.get_batch, range(opened.num_record_batches))
        else:
            batches = opened
        for batch in batches:
            batch.validate(full=True)  # foreign bytes: offsets may point anywhere
            unpacked += batch.nbytes + _ROW_BYTES * batch.num_rows
            _bounded(unpacked, most)
            yield batch.select(columns)


def _unpacked_bytes(metadata: parquet.FileMetaData) -> int:
    """What all rows take, by what the file says. Of row groups, not of their columns: pyarrow ends the process where
    those are damaged."""
    groups = (metadata.row_group(number) for number in range(metadata.num_row_groups))
    return int(metadata.num_rows * _ROW_BYTES + sum(group.total_byte_size for group in groups))


def _bounded(num_bytes: int, most: int) -> None:
    if num_bytes > most:
        raise ValueError(
            f"it unpacks to {num_bytes:,} bytes or more, far more than its own: write it anew, uncompressed"
        )
