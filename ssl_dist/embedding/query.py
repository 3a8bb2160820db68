"""What is asked of a table: the image whose neighbours are wanted, and the rows that are nearest to it."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from ssl_dist.embedding.index import Index
from ssl_dist.embedding.search import nearest_in_blocks
from ssl_dist.embedding.table import EmbeddingTable, Row
from ssl_dist.errors import ConfigError, SslDistError


class Query(NamedTuple):
    """The image whose neighbours are wanted.

    Attributes:
        features: float32 ``[1, D]``.
        row: what the table says of it; None: it is the picture file ``file``.
        file: of a picture that is not one of the table.
    """

    features: np.ndarray
    row: Row | None
    file: Path | None


class Neighbour(NamedTuple):
    """A near image and its cosine similarity."""

    row: Row
    similarity: float


def query_of(table: EmbeddingTable, image: str, run: str | None) -> Query:
    """Return what a key of the table or a path of a picture file stands for; a key goes before a file.

    Args:
        run: what the encoder is loaded from for a file; None: the run that the table names.

    Raises:
        ConfigError: it is neither, several images have this key, or the encoder is not the table's.
        RunError, CheckpointError: the encoder cannot be loaded, or the table is damaged.
        Unreadable: the file is no picture.
    """
    if len(rows := table.rows_of(image)) > 1:
        raise ConfigError(f"IMAGE {image}: {len(rows)} images of {table.path} have this key: give one's picture file")
    if rows:
        [row] = table.rows_at(rows)
        return Query(table.features_at(np.array(rows)), row, None)
    file = Path(image)
    if not file.is_file():
        example = f", such as {table.rows_at([0])[0].key}" if len(table) else ""
        raise ConfigError(f"IMAGE {image}: it is no file, and no key of {table.path}{example}")
    return Query(_features_of(table, file, run), None, file)


def _features_of(table: EmbeddingTable, file: Path, run: str | None) -> np.ndarray:
    from ssl_dist.embedding.tasks import encoder_digest
    from ssl_dist.encoder import load_encoder

    facts = table.facts
    try:
        encoder = load_encoder(run or facts.run, "newest" if run else facts.checkpoint)
    except SslDistError as error:
        if run:
            raise
        raise type(error)(f"{error}; {table.path} names this run: if it is elsewhere now, give --run") from None
    if encoder_digest(encoder) != facts.encoder:
        step = "" if facts.step is None else f" of step {facts.step}"
        raise ConfigError(
            f"{run or facts.run} is not the encoder{step} that made {table.path}: give that checkpoint by --run"
        )
    return np.asarray(encoder.embed([file]).numpy())


def neighbours_of(table: EmbeddingTable, query: Query, count: int, index: Index | None = None) -> list[Neighbour]:
    """Return the nearest images, without the query's own row, the nearest first; similarities are exact.

    Args:
        index: that names the candidates; None: the search is exact too, and reads the whole table.

    Raises:
        RunError: the table is damaged.
    """
    features = torch.from_numpy(query.features)
    own = None if query.row is None else query.row.number
    if index is None:
        of_itself = None if own is None else torch.tensor([own])
        similarity, rows = nearest_in_blocks(map(torch.from_numpy, table.blocks()), features, count, of_itself)
        numbers = rows[0].tolist()
    else:
        found = index.near(query.features, min(count + (own is not None), len(table)))[0]
        candidates = np.unique(found[(found >= 0) & (found != (-1 if own is None else own))])
        bank = torch.from_numpy(table.features_at(candidates))
        similarity, rows = nearest_in_blocks([bank], features, count)
        numbers = candidates[rows[0].numpy()].tolist()
    return [Neighbour(row, one) for row, one in zip(table.rows_at(numbers), similarity[0].tolist(), strict=True)]
