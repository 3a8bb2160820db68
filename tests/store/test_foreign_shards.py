"""Shards that another program wrote, with right checksums: record batches that could harm a reader are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from ssl_dist.errors import StoreDamaged
from ssl_dist.store import ImageStore
from tests.store.hostile.stores import message, write_store

PX = 8
PIXELS = pa.array([[7] * (PX * PX * 3)] * 2, pa.list_(pa.uint8(), PX * PX * 3))
NO_PIXELS = pa.array([[7] * (PX * PX * 3), None], PIXELS.type)
LABELS, KEYS = pa.array([0, None], pa.int32()), pa.array(["a", "b"])


@pytest.mark.parametrize(
    ("columns", "compression", "reason"),
    [
        ([PIXELS, LABELS, KEYS], "zstd", "it is compressed"),
        ([PIXELS, LABELS, KEYS], "lz4", "it is compressed"),
        ([NO_PIXELS, LABELS, KEYS], None, "it has a row without an image or a key"),
        ([PIXELS, LABELS, pa.array(["a", None])], None, "it has a row without an image or a key"),
        ([PIXELS, pa.array([1, 0], pa.int32()), KEYS], None, "it has labels that are not 0 to 0"),
        ([PIXELS, pa.array([0, -1], pa.int32()), KEYS], None, "it has labels that are not 0 to 0"),
    ],
)
def test_record_batches_that_no_shard_may_have_are_refused(
    columns: list[pa.Array], compression: str | None, reason: str, tmp_path: Path
) -> None:
    write_store(tmp_path / "s", message([PIXELS, LABELS, KEYS]), 2, "raw", (PX, PX, 3), ("a",))
    opened = ImageStore(tmp_path / "s", verify="lazy")
    assert (opened.gather(np.arange(2)).min(), opened.labels.tolist()) == (7, [0, -1])
    content = message(columns, compression)
    room = max(0, 512 - len(content))  # compressed, it may be shorter than a manifest may say
    write_store(tmp_path / "s", content + bytes(room), 2, "raw", (PX, PX, 3), ("a",))
    for verify in ("lazy", "off"):
        opened = ImageStore(tmp_path / "s", verify=verify)
        with pytest.raises(StoreDamaged, match=f"record batch 0 cannot be read .{reason}"):
            opened.gather(np.arange(2))


def test_a_row_of_a_jpeg_store_without_a_file_is_damage(tmp_path: Path) -> None:
    columns = [pa.array([None, b"x"], pa.binary()), LABELS, KEYS]
    write_store(tmp_path / "s", message(columns), 2, "jpeg", (PX, PX, 3), ("a",))
    with pytest.raises(StoreDamaged, match="a row without an image"):
        ImageStore(tmp_path / "s").gather(np.arange(2))
