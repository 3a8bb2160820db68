"""Hostile stores: shards and manifests that are damaged or malicious, with checksums that fit them or do not."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import strategies as st
from PIL import Image

from ssl_dist import store
from ssl_dist.store import ImageStore, image_store
from ssl_dist.store.building import builder
from ssl_dist.store.schema import MANIFEST, Manifest, checksum
from tests.store.hostile.meter import Case
from tests.store.hostile.mutate import mutated
from tests.store.hostile.structured import drawn

_PX, _ROWS, _BATCH = 8, 20, 6


def _two_stores(folder: Path) -> list[Path]:
    """Build two stores of the same images, raw and JPEG, each of four record batches in two shards."""
    builder.BATCH_ROWS, builder.SHARD_IMAGES = _BATCH, 2 * _BATCH
    images = np.random.default_rng(0).integers(0, 256, (_ROWS, _PX, _PX, 3), dtype=np.uint8)
    for number, image in enumerate(images):
        path = folder / "images" / f"class{number % 3}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    for encoding in ("raw", "jpeg"):
        store.build(folder / "images", folder / encoding, encoding=encoding, workers=1)
    return [folder / "raw", folder / "jpeg"]


def use(path: Path, verify: image_store.Verify) -> np.ndarray:
    """Read everything that a run and a merge read of a store."""
    opened = ImageStore(path, verify=verify)
    labels = opened.labels
    assert labels.shape == (len(opened),)
    assert labels.max() < max(1, len(opened.class_names)), "a label that stands for no class"
    for key, label, _ in opened.rows():
        assert isinstance(key, str)
        assert label >= -1
    images = opened.gather(np.arange(min(len(opened), 100)))
    assert images.shape[1:] == opened.image_shape
    opened.verify()
    return images


def shards(folder: Path, seed: int) -> Iterator[Case]:
    """Yield stores whose shards have changed bytes: read unchecked, so that they reach Arrow and the decoder; read with
    checks; and with checksums that fit the changed bytes."""
    choose, stores = random.Random(seed), _two_stores(folder)
    whole = {path: [(file, file.read_bytes()) for file in sorted(path.glob("*.arrow"))] for path in stores}
    images = {path: use(path, "full") for path in stores}
    manifests = {path: (path / MANIFEST).read_bytes() for path in stores}
    while True:
        path = choose.choice(stores)
        (path / MANIFEST).write_bytes(manifests[path])
        for file, content in whole[path]:
            file.write_bytes(content)
        file, content = choose.choice(whole[path])
        changed = mutated([content], choose)
        file.write_bytes(changed)
        how = choose.choice(("off", "lazy", "full", "resealed"))
        if how == "resealed":
            _reseal(path, file, changed)
        yield Case(_attempt(path, how, images[path]), changed)


def _attempt(path: Path, how: str, images: np.ndarray) -> Callable[[], None]:
    def attempt() -> None:
        read_now = use(path, "lazy" if how == "resealed" else how)
        assert how in ("off", "resealed") or np.array_equal(read_now, images), "damage that was not seen"

    return attempt


def _reseal(path: Path, file: Path, content: bytes) -> None:
    told = json.loads((path / MANIFEST).read_text())
    data = np.frombuffer(content, np.uint8)
    for entry in told["shards"]:
        if entry["file"] == file.name:
            entry |= {"bytes": max(1, len(content)), "xxh3": checksum(data)}
            for batch in entry["batches"]:
                batch["xxh3"] = checksum(data[batch["offset"] : batch["offset"] + batch["length"]])
    (path / MANIFEST).write_text(json.dumps(told | {"xxh3": None}))


def packed(folder: Path, seed: int) -> Iterator[Case]:
    """Yield an attacker's record batches: compressed, with nulls, of other types, with impossible labels and sizes."""
    choose = random.Random(seed)
    path = folder / "s"
    while True:
        encoding = choose.choice(("raw", "jpeg"))
        content, rows = _batch(encoding, choose)
        shape = choose.choice((*3 * ((_PX, _PX, 3),), (2 * _PX, _PX // 2, 3), (60000, 60000, 3)))
        write_store(path, content, rows, encoding, shape, choose.choice((("a", "b"), ())))
        yield Case(lambda: use(path, "lazy"), content)


def write_store(
    path: Path, content: bytes, rows: int, encoding: str, shape: tuple[int, ...], class_names: tuple[str, ...]
) -> None:
    """Write a store of one shard that consists of one record batch's message, with checksums that fit."""
    path.mkdir(exist_ok=True)
    (path / "shard-00000.arrow").write_bytes(content)
    digest = checksum(np.frombuffer(content, np.uint8))
    batch = {"rows": rows, "offset": 0, "length": len(content), "xxh3": digest}
    entry = {"file": "shard-00000.arrow", "rows": rows, "bytes": len(content), "xxh3": digest, "batches": [batch]}
    told = {"split": "train", "encoding": encoding, "image_shape": shape, "resize": "none", "class_names": class_names}
    (path / MANIFEST).write_text(
        json.dumps({**told, "rows": rows, "bytes": len(content), "skipped": 0, "shards": [entry]})
    )


def _batch(encoding: str, choose: random.Random) -> tuple[bytes, int]:
    """Return the message of a record batch, and its number of rows."""
    rows = choose.choice((1, 2, 5))
    size = choose.choice((*12 * (8,), 1 << 20, 16 << 20))
    pixels = pa.array([[7] * (_PX * _PX * 3)] * rows, pa.list_(pa.uint8(), _PX * _PX * 3))
    if encoding == "raw":
        image = choose.choice((pixels, pixels, pa.nulls(rows, pixels.type)))
    else:
        image = pa.array([choose.choice((b"", None, bytes(size))) for _ in range(rows)], pa.binary())
    label = pa.array([choose.choice((0, 1, None, 2, -5, 2**31 - 1)) for _ in range(rows)], pa.int32())
    key = pa.array(["x"] * rows)
    if choose.random() < 0.2:
        names = [choose.choice((b"x", b"\xff", None, bytes(size))) for _ in range(rows)]
        key = pa.array(names, pa.binary()).cast(pa.string(), safe=False)
    columns = [image, label, key]
    if choose.random() < 0.2:
        choose.shuffle(columns)
    content = message(columns, choose.choice((None, None, "zstd", "lz4")))
    return content, choose.choice((rows, rows, rows, rows + 1, 10**9))


def message(columns: list[pa.Array], compression: str | None = None) -> bytes:
    """Return the message of a record batch as it is in a shard."""
    record = pa.RecordBatch.from_arrays(columns, ["image", "label", "key"])
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, record.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
        writer.write_batch(record)
        stop = sink.tell()
    content: bytes = sink.getvalue().to_pybytes()[record.schema.serialize().size : stop]
    return content


def manifests(folder: Path, seed: int) -> Iterator[Case]:
    """Yield manifests: of any values, with another value in one place, and with changed bytes."""
    choose, path = random.Random(seed), _two_stores(folder)[0]
    whole = json.loads((path / MANIFEST).read_text())
    text = (path / MANIFEST).read_bytes()

    def case(content: bytes) -> Case:
        (path / MANIFEST).write_bytes(content)
        return Case(lambda: use(path, "lazy"), content)

    yield from map(case, _hard_manifests(whole))
    huge = st.sampled_from((0, -1, 1, 2**31, 2**40, 2**63, 2**64, 10**30, 10**9, 1e308, float("nan"), float("inf")))
    leaves = st.none() | st.booleans() | huge | st.integers() | st.text(max_size=20)
    values = st.recursive(
        leaves,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=6,
    )
    for value, among in drawn(st.tuples(values, st.integers(0, 10**6)), seed):
        if choose.random() < 0.3:
            yield case(mutated([text], choose))
            continue
        told = copy.deepcopy(whole) if choose.random() < 0.97 else copy.deepcopy(value)
        if isinstance(told, dict):
            told["xxh3"] = None if choose.random() < 0.8 else told.get("xxh3")
            elements = list(_elements(told))
            into, key = elements[among % len(elements)] if elements else (told, "x")
            into[key] = copy.deepcopy(value)
        yield case(_sealed(told) if choose.random() < 0.2 else json.dumps(told).encode())


def _hard_manifests(whole: dict[str, Any]) -> Iterator[bytes]:
    yield b"[" * 200_000
    yield b'{"a":' * 100_000
    yield b'{"rows": ' + b"9" * 100_000 + b"}"
    yield json.dumps(whole).encode("utf-16")
    yield b""
    for rows in (2**40, 2**33):
        told = copy.deepcopy(whole) | {"rows": rows, "xxh3": None, "class_names": []}
        told["shards"] = told["shards"][:1]
        told["shards"][0] |= {"rows": rows, "batches": [told["shards"][0]["batches"][0] | {"rows": rows}]}
        yield json.dumps(told).encode()
    for side in (2**16, 20000):
        yield json.dumps(whole | {"xxh3": None, "image_shape": [side, side, 3]}).encode()
        yield json.dumps(whole | {"xxh3": None, "encoding": "jpeg", "image_shape": [side, side, 3]}).encode()


def _elements(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield (container, key) of every element at every depth."""
    keys = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in list(keys):
        yield value, key
        yield from _elements(value[key])


def _sealed(told: Any) -> bytes:
    try:
        return Manifest.model_validate(told | {"xxh3": None}).with_checksum().model_dump_json().encode()
    except (TypeError, ValueError):
        return json.dumps(told).encode()
