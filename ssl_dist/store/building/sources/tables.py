"""Parquet and Arrow files with a column of encoded images as a source; rows are read a few at a time."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import IO, Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import parquet

from ssl_dist.errors import SourceError
from ssl_dist.store.building.sources.base import MAX_CLASSES, Member, Source, class_name
from ssl_dist.store.building.sources.files import File, fingerprint, max_unpacked_bytes, open_source_file
from ssl_dist.store.schema import NO_LABEL, is_shard_schema

PARQUET, ARROW, STREAM = b"PAR1", b"ARROW1", b"\xff\xff\xff\xff"  # first bytes: Parquet, Arrow IPC file, Arrow stream
_KIND = "Parquet or Arrow file"
_IMAGE_COLUMNS = ("image", "img", "jpg", "jpeg", "png")
_LABEL_COLUMNS = ("label", "labels", "cls", "class", "fine_label")
_ROW_BYTES = 64  # counted for each row besides its content: no image file is smaller
_LABEL_ROWS = 65536  # rows of labels read at a time


class _Columns(NamedTuple):
    """The names of the columns to read, and the class names that the schema has."""

    image: str
    label: str | None
    class_names: tuple[str, ...]


def list_tables(name: str, files: Sequence[File]) -> Source:
    """List the rows of files that have the same columns.

    The column of images is binary, or Hugging Face's struct of ``bytes`` and ``path``. It is called ``image``, ``img``,
    ``jpg``, ``jpeg`` or ``png``, or is the only such column. Labels are whole numbers in ``label``, ``labels``,
    ``cls``, ``class`` or ``fine_label``; Hugging Face's metadata names the classes, where it is there. The letters of
    these names may be capital ones. A negative label, such as -1, means none.

    Raises:
        SourceError: a file cannot be read, has no such column or is a shard of a store, or columns or labels differ.
    """
    found = {_find_columns(file) for file in files}
    if len(found) > 1:
        raise SourceError(f"{name}: its files differ in their columns of images, labels or names of classes")
    [columns] = found
    total, largest = 0, NO_LABEL
    for file in files:
        rows, label = _read_labels(file, columns.label) if columns.label else (_count_rows(file), NO_LABEL)
        if label >= MAX_CLASSES:
            raise SourceError(f"{file.path} has a label {label}: number the classes from 0, below {MAX_CLASSES:,}")
        total, largest = total + rows, max(largest, label)
    names = columns.class_names or tuple(str(number) for number in range(largest + 1))
    if largest >= len(names):
        raise SourceError(f"{name} has a label {largest}, and there are {len(names)} names of classes")

    def members() -> Iterator[Member]:
        for file in files:
            yield from _read_members(file, columns)

    return Source(name, total, names if largest >= 0 else (), fingerprint(files), members)


def _read_labels(file: File, column: str) -> tuple[int, int]:
    """Return the number of rows, and the largest label."""
    batches = [(batch.num_rows, pc.max(batch[0]).as_py()) for batch in _read_batches(file, [column], _LABEL_ROWS)]
    largest = max((label for _, label in batches if label is not None), default=NO_LABEL)
    return sum(rows for rows, _ in batches), largest


def _count_rows(file: File) -> int:
    """Return the number of rows that the file states; no image is read."""
    with open_source_file(file, _KIND) as content:
        reader = _open_reader(content)
        if isinstance(reader, parquet.ParquetFile):
            return int(reader.metadata.num_rows)
        if isinstance(reader, pa.ipc.RecordBatchFileReader):
            return int(reader.count_rows())
        content.seek(0)
        empty = pa.schema([("empty", pa.null())])  # a column without bytes: only the rows are counted
        messages = (message for message in pa.ipc.MessageReader.open_stream(content) if message.type == "record batch")
        return sum(pa.ipc.read_record_batch(message, empty).num_rows for message in messages)


def _read_members(file: File, columns: _Columns) -> Iterator[Member]:
    number = 0
    # one row of Parquet at a time: with a dictionary, one large image may be repeated in many rows
    for batch in _read_batches(file, [columns.image, *([columns.label] if columns.label else [])], 1):
        images = batch.column(0)
        if pa.types.is_struct(images.type):
            images = pc.struct_field(images, "bytes")
        labels = batch.column(1).to_pylist() if columns.label else [None] * len(images)
        for image, label in zip(images, labels, strict=True):
            known = NO_LABEL if label is None or label < 0 else label
            # a row without an image becomes an empty file, which is skipped with a message that names it
            yield Member(f"{file.key}/{number}", known, image.as_py() or b"")
            number += 1


def _find_columns(file: File) -> _Columns:
    with open_source_file(file, _KIND) as content:
        reader = _open_reader(content)
        schema = reader.schema_arrow if isinstance(reader, parquet.ParquetFile) else reader.schema
        if is_shard_schema(schema):  # the names of its classes are in its store's manifest
            raise SourceError(
                f"{file.path} is a shard of a store: give the store's folder (of several, to `ssl-dist store merge`);"
                " copy it into a folder first if it is elsewhere"
            )
        if repeated := [name for name, count in Counter(schema.names).items() if count > 1]:
            raise SourceError(f"{file.path} has several columns called {repeated[0]}: rename them")
        candidates = [field.name for field in schema if _holds_images(field.type)]
    named = _known(_IMAGE_COLUMNS, candidates, file) or candidates
    if not named or (len(candidates) > 1 and named == candidates):
        raise SourceError(
            f"{file.path} has no column, or several, that may be the images among {', '.join(schema.names):.300}: it"
            f" must be binary or a struct with bytes, and its name one of {', '.join(_IMAGE_COLUMNS)}"
        )
    labels = {name: schema.field(name).type for name in _known(_LABEL_COLUMNS, schema.names, file)}
    label = next((name for name, kind in labels.items() if pa.types.is_integer(kind)), None)
    if labels and label is None:
        [(name, kind), *_] = labels.items()
        raise SourceError(
            f"{file.path} has labels of type {kind} in the column {name}: number the classes, or rename the column to"
            " build without labels"
        )
    return _Columns(named[0], label, _class_names(schema, label) if label else ())


def _known(wanted: Sequence[str], names: Sequence[str], file: File) -> list[str]:
    """Return the names that are wanted, in the order of ``wanted``, by any case of letters.

    Raises:
        SourceError: two of them differ in their case alone.
    """
    found = [[name for name in names if name.lower() == one] for one in wanted]
    for alike in found:
        if len(alike) > 1:
            raise SourceError(f"{file.path} has the columns {' and '.join(alike)}: rename all but one")
    return [name for [name] in filter(None, found)]


def _holds_images(kind: pa.DataType) -> bool:
    kinds = [field.type for field in kind if field.name == "bytes"] if pa.types.is_struct(kind) else [kind]
    return len(kinds) == 1 and bool(pa.types.is_binary(kinds[0]) or pa.types.is_large_binary(kinds[0]))


def _class_names(schema: pa.Schema, label: str) -> tuple[str, ...]:
    """Return the class names that Hugging Face's metadata has for a column."""
    try:
        features: Any = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        names = features[label]["names"]
    except (KeyError, TypeError, ValueError):
        return ()
    return tuple(class_name(str(name)) for name in names) if isinstance(names, list) else ()


def _open_reader(content: IO[bytes], columns: Sequence[str] = ()) -> Any:
    """Open a reader for the kind of file that the first bytes show; an Arrow reader reads only these columns, if any
    are given."""
    start = content.read(len(ARROW))
    content.seek(0)
    if start.startswith(PARQUET):
        return parquet.ParquetFile(content)
    open_arrow = pa.ipc.open_file if start.startswith(ARROW) else pa.ipc.open_stream
    reader = open_arrow(content)
    if not columns:
        return reader
    wanted = [reader.schema.get_field_index(name) for name in columns]
    content.seek(0)
    return open_arrow(content, options=pa.ipc.IpcReadOptions(included_fields=wanted))


def _read_batches(file: File, columns: list[str], max_rows: int) -> Iterator[pa.RecordBatch]:
    """Yield record batches of these columns, reading no others; those of Parquet have at most ``max_rows`` rows."""
    with open_source_file(file, _KIND) as content:
        max_bytes = max_unpacked_bytes(content.seek(0, 2))
        content.seek(0)
        reader, unpacked = _open_reader(content, columns), 0
        if isinstance(reader, parquet.ParquetFile):
            groups = map(reader.metadata.row_group, range(reader.num_row_groups))
            # columns state their bytes too, but where those are damaged pyarrow ends the process
            stated = sum(group.total_byte_size for group in groups)
            _refuse_bomb(reader.metadata.num_rows * _ROW_BYTES + stated, max_bytes)
            batches = reader.iter_batches(max_rows, columns=columns)
        elif isinstance(reader, pa.ipc.RecordBatchFileReader):
            batches = map(reader.get_batch, range(reader.num_record_batches))
        else:
            batches = reader
        for batch in batches:
            batch.validate(full=True)  # in a damaged file, offsets may point anywhere
            unpacked += batch.nbytes + _ROW_BYTES * batch.num_rows
            _refuse_bomb(unpacked, max_bytes)
            yield batch.select(columns)


def _refuse_bomb(num_bytes: int, max_bytes: int) -> None:
    if num_bytes > max_bytes:
        raise ValueError(f"it unpacks to {num_bytes:,} bytes, far more than the file has: write it again, uncompressed")
