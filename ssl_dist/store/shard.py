"""Write one shard: members of a source -> decoded, resized, checksummed record batches of one Arrow file.

Beside each shard of an unfinished store lies a note of what is in it, so that a build which was killed goes on after
the shards that it has.
"""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pydantic
from PIL import Image

from ssl_dist.errors import SourceError, Unreadable
from ssl_dist.store.decode import decode, resize, upright_jpeg_size
from ssl_dist.store.schema import BATCH_ROWS, BatchEntry, Encoding, ShardEntry, checksum, shard_schema
from ssl_dist.store.sources import NO_LABEL, File, Member

JPEG_QUALITY = 90
_MAGIC = b"ARROW1\0\0"  # opens an Arrow IPC file; the schema's message follows


class Shard(pydantic.BaseModel):
    """What a writer hands back: how many members it took, the entry (None if no image was readable) and what it left
    out, as (key, reason)."""

    members: int
    entry: ShardEntry | None = None
    skipped: list[tuple[str, str]] = []


class Form(pydantic.BaseModel):
    """How images are kept: their encoding, (H, W, 3), and the side they are resized to (None: they have that size)."""

    encoding: Encoding
    image_shape: tuple[int, int, int]
    size_px: int | None


def pixels(member: Member, size_px: int | None) -> np.ndarray:
    """uint8 ``[H, W, 3]``.

    Raises:
        Unreadable: it is no image that a store takes.
        OSError: its file cannot be read.
    """
    content = member.content
    return resize(content, size_px) if isinstance(content, np.ndarray) else decode(_bytes(content), size_px)


def _bytes(content: bytes | File) -> bytes:
    return content if isinstance(content, bytes) else content.read()


