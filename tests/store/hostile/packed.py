"""Hostile files of CIFAR and STL-10: real ones that were changed, pickles of any values, operations in any order."""

from __future__ import annotations

import pickle
import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st

from tests.store.hostile.archives import read_all
from tests.store.hostile.meter import Case
from tests.store.hostile.mutate import mutated
from tests.store.hostile.structured import drawn


def _cifar(protocol: int, **content: Any) -> bytes:
    return pickle.dumps(content, protocol=protocol)


def seeds() -> list[bytes]:
    data = np.random.default_rng(0).integers(0, 256, (3, 3072), dtype=np.uint8)
    made = [_cifar(protocol, data=data, labels=[1, 2, 0]) for protocol in (2, 3, 4, 5)]
    made.append(_cifar(2, data=np.asfortranarray(data), fine_labels=[1, 2, 99], coarse_labels=[1, 2, 3]))
    made.append(_cifar(2, label_names=[str(number) for number in range(10)]))
    return made


_OPERATIONS = (
    *(
        b"]",
        b"}",
        b")",
        b"(",
        b"a",
        b"e",
        b"s",
        b"u",
        b"t",
        b"\x85",
        b"\x86",
        b"\x87",
        b"b",
        b"R",
        b"0",
        b"2",
        b"1",
        b".",
    ),
    *(
        b"N",
        b"\x88",
        b"\x89",
        b"K\1",
        b"M\0\x0c",
        b"J\xff\xff\xff\xff",
        b"U\1x",
        b"U\4data",
        b"X\6\0\0\0labels",
        b"T\0\0\0\x7f",
    ),
    *(
        b"q\0",
        b"h\0",
        b"q\1",
        b"h\1",
        b"r\xff\xff\xff\xff",
        b"\x94",
        b"\x93",
        b"\x8a\1\1",
        b"I1\n",
        b"L9\n",
        b"F1.5\n",
        b"G" + bytes(8),
    ),
    *(
        b"cnumpy\nndarray\n",
        b"cnumpy\ndtype\n",
        b"c_codecs\nencode\n",
        b"cos\nsystem\n",
        b"\x8c\1x",
        b"C\1x",
        b"B\1\0\0\0x",
    ),
    *(b"\x95" + bytes(8), b"\x8b\xff\xff\xff\x7f", b"Pid\n", b"Q", b"\x81", b"o", b"i", b"\x90", b"\x8f"),
)


def cases(folder: Path, seed: int) -> Iterator[Case]:
    choose, real = random.Random(seed), seeds()
    images, labels, meta = bytes(27648 * 2), b"\1\2", folder / "batches.meta"
    stl, binary = folder / "train_X.bin", (bytes(2 * 3073), bytes(2 * 3074))

    def of_cifar(content: bytes) -> Case:
        path = folder / "data_batch_1"
        path.write_bytes(content)
        return Case(lambda: read_all(path), content)

    yield of_cifar(b"\x80\x02" + 900_000 * b"]0" + b".")
    yield of_cifar(b"\x80\x02" + 900_000 * b"]" + b".")
    yield of_cifar(b"\x80\x02]" + 300_000 * b"K\1a" + b".")
    yield of_cifar(b"\x80\x02X" + (200 << 20).to_bytes(4, "little") + bytes(1 << 20))
    while True:
        kind = choose.random()
        meta.unlink(missing_ok=True)
        if kind < 0.1:
            stl.write_bytes(mutated([images], choose))
            (folder / "train_y.bin").write_bytes(mutated([labels], choose))
            yield Case(lambda: read_all(stl), stl.read_bytes())
        elif kind < 0.15:
            path = folder / choose.choice(("data_batch_1.bin", "train.bin"))
            path.write_bytes(mutated(binary, choose))
            yield Case(partial(read_all, path), path.read_bytes())
        elif kind < 0.3:
            length = choose.randrange(40)
            yield of_cifar(b"\x80\x02" + b"".join(choose.choice(_OPERATIONS) for _ in range(length)) + b".")
        elif kind < 0.4:
            meta.write_bytes(mutated(real, choose))
            yield of_cifar(real[0])
        else:
            yield of_cifar(mutated(real, choose))


def structured(folder: Path, seed: int) -> Iterator[Case]:
    """Yield pickles of any values."""
    leaves = (
        st.none()
        | st.booleans()
        | st.integers(-(2**80), 2**80)
        | st.floats()
        | st.text(max_size=9)
        | st.binary(max_size=9)
    )
    keys = st.sampled_from(("data", "labels", "fine_labels", "label_names")) | st.text(max_size=3) | st.integers()
    values = st.recursive(
        leaves
        | st.sampled_from((np.zeros((2, 3072), np.uint8), np.zeros((1, 3072), np.float32), np.float64(1), set())),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4) | st.tuples(inner, inner),
        max_leaves=12,
    )
    path = folder / "data_batch_1"
    for value, protocol in drawn(
        st.tuples(st.dictionaries(keys, values, max_size=4) | values, st.integers(2, 5)), seed
    ):
        try:
            content = pickle.dumps(value, protocol=protocol)
        except (TypeError, ValueError):
            continue
        path.write_bytes(content)
        yield Case(lambda: read_all(path), content)
