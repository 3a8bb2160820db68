"""Hostile Parquet and Arrow tables: each layout and compression, labels of every type, pages that unpack to more."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
from hypothesis import strategies as st
from pyarrow import parquet

from tests.store.hostile.archives import png, read_all
from tests.store.hostile.meter import Case
from tests.store.hostile.mutate import mutated
from tests.store.hostile.structured import drawn

_STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
_FEATURES = {"label": {"names": ["ant", "bee", "cat"], "_type": "ClassLabel"}}


def ipc(table: pa.Table, *, in_file: bool, compression: str | None = None) -> bytes:
    sink, new = io.BytesIO(), pa.ipc.new_file if in_file else pa.ipc.new_stream
    with new(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
        writer.write_table(table, max_chunksize=3)
    return sink.getvalue()


def packed(table: pa.Table, **options: Any) -> bytes:
    sink = io.BytesIO()
    parquet.write_table(table, sink, **{"row_group_size": 4, **options})
    return sink.getvalue()


def seeds() -> list[bytes]:
    images = [png(number) for number in range(5)]
    plain = pa.table({"image": pa.array([*images, None], pa.binary()), "label": [0, 1, None, 2, -1, 0]})
    large = pa.table({"png": pa.array(images, pa.large_binary()), "cls": pa.array(range(5), pa.uint8())})
    rows = [{"bytes": content, "path": "a"} for content in images]
    struct = pa.table(
        {"image": pa.array(rows, _STRUCT), "label": pa.array(range(5), pa.int64()), "text": list("abcde")}
    )
    struct = struct.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": _FEATURES}})})
    twins = pa.table({"image": pa.array(images[:1] * 40, pa.binary()).dictionary_encode().cast(pa.binary())})
    made = []
    for table in (plain, large, struct.slice(0, 3), twins):
        made += [packed(table), packed(table, compression="zstd", use_dictionary=False, data_page_version="2.0")]
        for in_file in (True, False):
            made += [ipc(table, in_file=in_file), ipc(table, in_file=in_file, compression="zstd")]
    return made


def bombs() -> Iterator[bytes]:
    """Yield files of kilobytes that unpack to hundreds of megabytes of equal images."""
    for size, rows in ((16 << 20, 16), (1 << 20, 256)):
        table = pa.table({"image": pa.array([bytes(size)], pa.binary()).take(pa.array([0] * rows))})
        yield packed(
            table, compression="zstd", use_dictionary=True, dictionary_pagesize_limit=1 << 30, row_group_size=rows
        )
        del table
    table = pa.table({"image": pa.array([bytes(4 << 20)] * 32, pa.binary())})
    yield packed(table, compression="zstd", use_dictionary=False)
    yield ipc(table, in_file=True, compression="zstd")
    yield ipc(table, in_file=False, compression="zstd")
    yield packed(pa.table({f"column{number}": pa.array([b""]) for number in range(5000)}))
    deep: Any = pa.binary()
    for _ in range(60):
        deep = pa.struct([("bytes", deep)])
    yield ipc(pa.table({"image": pa.array([], deep)}), in_file=True)
    yield from (b"PAR1", b"PAR1PAR1", b"ARROW1\0\0", b"\xff\xff\xff\xff", b"ARROW1\0\0" + bytes(50) + b"ARROW1")


def cases(folder: Path, seed: int) -> Iterator[Case]:
    choose, real = random.Random(seed), seeds()
    path = folder / "a"

    def case(content: bytes) -> Case:
        path.write_bytes(content)
        return Case(lambda: read_all(path), content)

    yield from map(case, real)
    yield from map(case, bombs())
    while True:
        yield case(mutated(real, choose))


_TYPES: tuple[Any, ...] = (
    *(pa.int8(), pa.int64(), pa.uint64(), pa.float64(), pa.bool_(), pa.string(), pa.large_string(), pa.null()),
    *(pa.binary(), pa.large_binary(), pa.binary(4), pa.binary_view(), pa.string_view(), pa.decimal128(20)),
    *(pa.list_(pa.int64()), pa.list_(pa.binary()), _STRUCT, pa.struct([("bytes", pa.string())]), pa.struct([])),
    *(pa.dictionary(pa.int8(), pa.string()), pa.dictionary(pa.int8(), pa.binary()), pa.timestamp("s"), pa.date32()),
    *(pa.fixed_shape_tensor(pa.uint8(), (2, 2)), pa.run_end_encoded(pa.int32(), pa.int64())),
)
_NAMES = ("image", "img", "jpg", "label", "labels", "cls", "fine_label", "other", "", "a\nb", "\0")


def _column(kind: Any, choose: random.Random, rows: int) -> pa.Array | None:
    values = (png(0), b"", None, 0, 1, -1, 2**63, "x", True, [1], {"bytes": png(1)}, {"bytes": None, "path": "x"}, 0.5)
    for _ in range(4):
        try:
            return pa.array([choose.choice(values) for _ in range(rows)], kind)
        except (pa.ArrowException, TypeError, ValueError, OverflowError):
            continue
    try:
        return pa.nulls(rows, kind)
    except (pa.ArrowException, TypeError):
        return None


def structured(folder: Path, seed: int) -> Iterator[Case]:
    """Yield tables whose columns have any name and type."""
    strategy = st.tuples(
        st.lists(st.tuples(st.sampled_from(_NAMES), st.sampled_from(range(len(_TYPES)))), max_size=4),
        st.integers(0, 6),
        st.sampled_from(("parquet", "file", "stream")),
        st.dictionaries(st.sampled_from(("huggingface", "x", "ARROW:schema")), st.text(max_size=30), max_size=2),
    )
    path = folder / "a"
    for number, (columns, rows, kind, metadata) in enumerate(drawn(strategy, seed)):
        choose = random.Random(number)
        pairs = [(name, _column(_TYPES[which], choose, rows)) for name, which in columns]
        arrays = [(name, array) for name, array in pairs if array is not None]
        table = pa.Table.from_arrays([array for _, array in arrays], [name for name, _ in arrays])
        try:
            table = table.replace_schema_metadata(metadata or None)
            content = packed(table) if kind == "parquet" else ipc(table, in_file=kind == "file")
        except (pa.ArrowException, UnicodeError):
            continue
        path.write_bytes(content)
        yield Case(lambda: read_all(path), content)
