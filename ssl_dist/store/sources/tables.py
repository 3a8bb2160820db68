"""Parquet and Arrow files with a column of encoded images, read a batch of rows at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import pyarrow as pa
from pyarrow import parquet

from ssl_dist.errors import SourceError
from ssl_dist.store.schema import NO_LABEL
from ssl_dist.store.sources.base import Member, Source
from ssl_dist.store.sources.files import File, fingerprint, reading

PARQUET, ARROW, STREAM = b"PAR1", b"ARROW1", b"\xff\xff\xff\xff"  # what the three kinds of file begin with
_IMAGES, _LABELS = ("image", "img", "jpg", "jpeg", "png"), ("label", "labels", "cls", "class", "fine_label")
_ROWS = 256  # at once, of Parquet


class _Columns(NamedTuple):
    image: str
    label: str | None
    class_names: tuple[str, ...]


def of_tables(name: str, files: Sequence[File]) -> Source:
    """Rows of files of one schema. The column of images is binary, or Hugging Face's struct of ``bytes`` and ``path``,
    and is called ``image``, ``img``, ``jpg``, ``jpeg`` or ``png``, or is the only such column. Labels are whole numbers
    in ``label``, ``labels``, ``cls``, ``class`` or ``fine_label``; their names are Hugging Face's, where given.

    Raises:
        SourceError: a file cannot be read, or has no such column; schemas or labels differ.
    """
    found = {_columns(file, _schema(file)) for file in files}
    if len(found) > 1:
        raise SourceError(f"{name}: its files differ in their columns of images, labels or names of classes")
    [columns] = found
    total, largest = 0, NO_LABEL
    for file in files:
        for batch in _batches(file, [columns.label] if columns.label else [columns.image]):
            total += batch.num_rows
            if columns.label and batch.num_rows > batch.column(0).null_count:
                largest = max(largest, *(value for value in batch.column(0).to_pylist() if value is not None))
    names = columns.class_names or tuple(str(number) for number in range(largest + 1))
    if largest >= len(names):
        raise SourceError(f"{name} has a label {largest}, and there are {len(names)} names of classes")

    def members() -> Iterator[Member]:
        for file in files:
            yield from _members(file, columns)

    return Source(name, total, (), names if largest >= 0 else (), fingerprint(files), members)


def _members(file: File, columns: _Columns) -> Iterator[Member]:
    number = 0
    for batch in _batches(file, [columns.image, *([columns.label] if columns.label else [])]):
        images = batch.column(0)
        labels = batch.column(1).to_pylist() if columns.label else [None] * len(images)
        for image, label in zip(images, labels, strict=True):
            content = image.as_py()
            if isinstance(content, dict):
                content = content.get("bytes")
            known = NO_LABEL if label is None or label < 0 else label
            yield Member(f"{file.key}/{number}", known, content or b"")  # without bytes: left out, with its name
            number += 1


def _schema(file: File) -> pa.Schema:
    with reading(file, "Parquet or Arrow file") as content:
        start = content.read(len(ARROW))
        content.seek(0)
        if start.startswith(PARQUET):
            return parquet.read_schema(content)
        return (pa.ipc.open_file if start.startswith(ARROW) else pa.ipc.open_stream)(content).schema


def _columns(file: File, schema: pa.Schema) -> _Columns:
    holding = [field.name for field in schema if _holds_images(field.type)]
    named = [name for name in _IMAGES if name in holding] or holding
    if not named or (len(holding) > 1 and named == holding):
        raise SourceError(
            f"{file.path} has no one column of images among {', '.join(schema.names)}: it is binary, or a struct with"
            f" bytes, and its name is one of {', '.join(_IMAGES)}"
        )
    label = next(
        (name for name in _LABELS if name in schema.names and pa.types.is_integer(schema.field(name).type)), None
    )
    return _Columns(named[0], label, _class_names(schema, label) if label else ())


def _holds_images(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(field.name == "bytes" and _holds_images(field.type) for field in kind)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _class_names(schema: pa.Schema, label: str) -> tuple[str, ...]:
    """What Hugging Face's metadata says of the column."""
    try:
        features: Any = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        names = features[label]["names"]
    except (KeyError, TypeError, ValueError):
        return ()
    return tuple(str(name) for name in names) if isinstance(names, list) else ()


def _batches(file: File, columns: list[str]) -> Iterator[pa.RecordBatch]:
    with reading(file, "Parquet or Arrow file") as content:
        start = content.read(len(ARROW))
        content.seek(0)
        if start.startswith(PARQUET):
            yield from parquet.ParquetFile(content).iter_batches(_ROWS, columns=columns)
            return
        reader: Any
        if start.startswith(ARROW):
            reader = pa.ipc.open_file(content)
            batches = (reader.get_batch(number) for number in range(reader.num_record_batches))
        else:
            batches = iter(pa.ipc.open_stream(content))
        for batch in batches:
            batch.validate(full=True)  # foreign bytes: offsets may point anywhere
            yield batch.select(columns)
