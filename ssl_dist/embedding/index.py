"""Approximate indexes of a table, by faiss or usearch, kept beside it, and their recall against exact search.

Both build a graph of near images (HNSW), for which all features are in memory. The similarities of what an index finds
are computed again from the table, so they are exact; what an index may do is miss an image.

Source: Malkov and Yashunin, "Efficient and robust approximate nearest neighbor search using Hierarchical Navigable
    Small World graphs", arXiv 1603.09320.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from ssl_dist.embedding.search import nearest_in_blocks
from ssl_dist.embedding.table import EmbeddingTable
from ssl_dist.errors import ConfigError
from ssl_dist.files import replacing, write_text
from ssl_dist.machine import version_of

LIBRARIES = {"faiss": "faiss-cpu", "usearch": "usearch"}  # kind of index -> package
MEASURED = 100  # images whose exact neighbours the recall is measured against
_LINKS, _LEAST_WIDTH = 32, 128  # of an image in the graph; candidates of a search

log = logging.getLogger(__name__)


class Graph(Protocol):
    """A graph of near images: it takes rows of length 1, float32 ``[n, D]``, and finds their numbers again."""

    def add(self, rows: np.ndarray) -> None: ...

    def search(self, rows: np.ndarray, count: int) -> np.ndarray:
        """Return the numbers of near rows, int64 ``[n, count]``; -1: none."""
        ...

    def write(self, file: Path) -> None: ...


class _Faiss:
    def __init__(self, dim: int, file: Path | None) -> None:
        self._faiss: Any = importlib.import_module("faiss")
        made = self._faiss.IndexHNSWFlat(dim, _LINKS, self._faiss.METRIC_INNER_PRODUCT)
        self._index = self._faiss.read_index(str(file)) if file else made

    def add(self, rows: np.ndarray) -> None:
        self._index.add(rows)

    def search(self, rows: np.ndarray, count: int) -> np.ndarray:
        self._index.hnsw.efSearch = max(_LEAST_WIDTH, 2 * count)
        found: np.ndarray = self._index.search(rows, count)[1]
        return found

    def write(self, file: Path) -> None:
        self._faiss.write_index(self._index, str(file))


class _Usearch:
    def __init__(self, dim: int, file: Path | None) -> None:
        index: Any = importlib.import_module("usearch.index")
        self._index = index.Index(ndim=dim, metric="ip", dtype="f32", connectivity=_LINKS)
        if file:
            self._index.load(str(file))

    def add(self, rows: np.ndarray) -> None:
        first = len(self._index)
        self._index.add(np.arange(first, first + len(rows), dtype=np.uint64), rows)

    def search(self, rows: np.ndarray, count: int) -> np.ndarray:
        self._index.expansion_search = max(_LEAST_WIDTH, 2 * count)
        found = np.full((len(rows), count), -1, dtype=np.int64)
        for number, row in enumerate(rows):
            keys = self._index.search(row, count).keys
            found[number, : len(keys)] = keys
        return found

    def write(self, file: Path) -> None:
        self._index.save(str(file))


_KINDS: dict[str, Callable[[int, Path | None], Graph]] = {"faiss": _Faiss, "usearch": _Usearch}


def expect_known(kind: str) -> None:
    """Refuse an index that does not exist or whose library is not installed.

    Raises:
        ConfigError: as above.
    """
    if kind != "exact" and kind not in LIBRARIES:
        raise ConfigError(f"--index {kind}: it is exact, {' or '.join(LIBRARIES)}")
    if kind in LIBRARIES and importlib.util.find_spec(kind) is None:
        raise ConfigError(
            f"--index {kind} needs {LIBRARIES[kind]}, which is not installed: pip install 'ssl_dist[{kind}]'"
        )


class Index:
    """An approximate index of a table.

    It is made at the first call, and kept in a folder beside the table, ``TABLE.faiss`` or ``TABLE.usearch``, with the
    recalls that were measured. Another table in its place has it made again, and so has a damaged index.
    """

    def __init__(self, table: EmbeddingTable, kind: str) -> None:
        self._table, self._folder = table, table.path.with_name(f"{table.path.name}.{kind}")
        status = table.path.stat()
        self._about = {
            "table": [table.facts.job, status.st_size, status.st_mtime_ns],
            "library": version_of(LIBRARIES[kind]),
            "settings": [_LINKS, _LEAST_WIDTH],
        }
        self._recalls = dict[str, float]()
        self._is_kept = False  # whether the folder holds this very graph
        self._graph = self._read(kind) or self._make(kind)

    def near(self, queries: np.ndarray, count: int) -> np.ndarray:
        """Return the numbers of near rows, int64 ``[q, count]``; -1: none. There are at least ``count`` rows."""
        return self._graph.search(_of_length_1(queries), count)

    def recall(self, count: int) -> float:
        """Return the share of the exact ``count`` nearest others of up to MEASURED images that the index finds."""
        if (known := self._recalls.get(str(count))) is not None:
            return known
        rows = np.unique(np.linspace(0, len(self._table) - 1, MEASURED).astype(np.int64))
        queries = self._table.features_at(rows)
        blocks = map(torch.from_numpy, self._table.blocks())
        _, exact = nearest_in_blocks(blocks, torch.from_numpy(queries), count, torch.from_numpy(rows))
        found = self.near(queries, min(count + 1, len(self._table)))
        shared = [
            len(set(true) & (set(some) - {own}))
            for true, some, own in zip(exact.tolist(), found.tolist(), rows.tolist(), strict=True)
        ]
        self._recalls[str(count)] = sum(shared) / max(1, exact.numel())
        if self._is_kept:
            try:
                self._write_about(self._folder)
            except OSError as error:
                log.warning("the recall cannot be kept at %s (%s): it is measured again", self._folder, error)
        return self._recalls[str(count)]

    def _read(self, kind: str) -> Graph | None:
        """Read the graph of this very table and its recalls; None where there is none, or it is damaged."""
        try:
            content = json.loads((self._folder / "about.json").read_text(encoding="utf-8"))
            recalls = content.pop("recalls")
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
        if content != self._about:
            return None
        try:
            graph = _KINDS[kind](self._table.facts.dim, self._folder / "graph")
        except (OSError, RuntimeError, ValueError) as error:
            log.warning("the index at %s is damaged (%s): it is made again", self._folder, error)
            return None
        self._recalls, self._is_kept = recalls, True
        return graph

    def _make(self, kind: str) -> Graph:
        """Make the graph of the table, and keep it if its folder can be written."""
        graph = _KINDS[kind](self._table.facts.dim, None)
        for block in self._table.blocks():
            graph.add(_of_length_1(block))
        try:
            with replacing(self._folder, durable=True) as aside:
                aside.mkdir()
                graph.write(aside / "graph")
                self._write_about(aside)
            self._is_kept = True
        except (OSError, RuntimeError) as error:
            log.warning("the index cannot be kept at %s (%s): it is made again at the next call", self._folder, error)
        return graph

    def _write_about(self, folder: Path) -> None:
        write_text(folder / "about.json", json.dumps({**self._about, "recalls": self._recalls}))


def _of_length_1(rows: np.ndarray) -> np.ndarray:
    return np.asarray(torch.nn.functional.normalize(torch.from_numpy(rows), dim=1).numpy())
