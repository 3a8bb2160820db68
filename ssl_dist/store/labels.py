"""Labels that replace those in the shards of a store: a file of their own, which the manifest names."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from ssl_dist.errors import StoreDamaged
from ssl_dist.files import replacing
from ssl_dist.store.schema import NO_LABEL, LabelsEntry, checksum


def write_labels(store: Path, labels: np.ndarray, shard_classes: int) -> LabelsEntry:
    """Write labels, int32 ``[n]``, into a store's folder, and return the entry for its manifest."""
    buffer = io.BytesIO()
    np.save(buffer, labels.astype("<i4"))
    content = buffer.getvalue()
    digest = checksum(content)
    file = f"labels-{digest}.npy"
    with replacing(store / file, durable=True) as aside:
        aside.write_bytes(content)
    return LabelsEntry(file=file, rows=len(labels), bytes=len(content), xxh3=digest, shard_classes=shard_classes)


def read_labels(store: Path, entry: LabelsEntry) -> bytes | None:
    """Read the file of a local store's labels, of which no more than one byte too many; None: it cannot be read."""
    try:
        with (store / entry.file).open("rb") as file:
            return file.read(entry.bytes + 1)
    except OSError:
        return None


def parse_labels(content: bytes | None, entry: LabelsEntry, num_classes: int, store: str) -> np.ndarray:
    """Return the labels in the bytes of a file, int32 ``[rows]``; they are not trusted, as ``parse_record_batch``'s.

    Args:
        content: the bytes; None: there is no such file.
        num_classes: labels are less than this, or NO_LABEL.
        store: name of the store, for messages.

    Raises:
        StoreDamaged: the bytes differ from their checksum, or are no such labels.
    """
    where = f"{store}/{entry.file}"
    if content is None or checksum(content) != entry.xxh3:
        wrong = "is missing" if content is None else "differs from its checksum"
        raise StoreDamaged(f"{where} {wrong}: restore the file, or label the store again with `ssl-dist store label`")
    start = len(content) - 4 * entry.rows  # NumPy's header lies before; only what it describes has exactly this length
    try:
        header = io.BytesIO(content[:start])
        np.lib.format.read_magic(header)
        shape, _, kind = np.lib.format.read_array_header_1_0(header)
        is_right = (shape, kind.str, header.tell()) == ((entry.rows,), "<i4", start)
    except ValueError:
        is_right = False
    labels = np.frombuffer(content, "<i4", offset=start) if is_right else np.empty(0, np.int32)
    if not is_right or labels.min() < NO_LABEL or labels.max() >= num_classes:
        raise StoreDamaged(f"{where} has no {entry.rows} labels of -1 to {num_classes - 1}: label the store again")
    return labels
