"""The Parquet file of an embedding: what it says of itself, how it is written, and how it is read a block at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pydantic
from pyarrow import compute, parquet

from ssl_dist.embedding.parts import embeddings
from ssl_dist.errors import RunError
from ssl_dist.files import replacing

_META = b"ssl_dist"  # key of the file's metadata
FORMAT = 1


class Facts(pydantic.BaseModel):
    """What the file says of itself, as JSON under the key ``ssl_dist`` of its metadata.

    Attributes:
        format: of this metadata.
        ssl_dist: version that wrote it.
        run, checkpoint: what ``load_encoder`` loads the encoder from; of a URI the secrets are left out.
        step: steps that the encoder was trained for.
        encoder: digest of its weights.
        dim, image_size: number of features, and pixels a side of the images that the encoder takes.
        store: path or URI, without secrets, of the images.
        images: digest of the images, keys and labels, or of a source's files.
        num_images, left_out: rows, and images that could not be read.
        class_names: the names that labels are indices into.
        job: digest of all that the features depend on.
        map: how x and y were made; None: there are none.
        neighbours: the number of each image's neighbours; 0: there are none.
    """

    format: int = pydantic.Field(FORMAT, ge=1, le=FORMAT)
    ssl_dist: str
    run: str
    checkpoint: Literal["newest", "best"] | int
    step: int | None
    encoder: str
    dim: int = pydantic.Field(ge=1)
    image_size: int = pydantic.Field(ge=1)
    store: str
    images: str
    num_images: int
    left_out: int
    class_names: list[str]
    job: str
    map: str | None
    neighbours: int


class Row(NamedTuple):
    """An image of the table: its number, key, label (None: it has none), and the name of its class, if it has one."""

    number: int
    key: str
    label: int | None
    class_: str | None


def write_table(path: Path, blocks: Iterator[pa.Table], facts: Facts) -> None:
    """Write the file, whole or not at all; each block becomes a row group.

    Raises:
        RunError: it cannot be written.
    """
    meta = {_META: facts.model_dump_json()}
    try:
        with replacing(path, durable=True) as aside, contextlib.ExitStack() as closing:
            writer = None
            for block in blocks:
                if writer is None:
                    schema = block.schema.with_metadata(meta)
                    texts = [name for name in ("class",) if name in schema.names]
                    writer = closing.enter_context(
                        parquet.ParquetWriter(
                            aside, schema, compression="zstd", use_dictionary=texts, write_page_checksum=True
                        )
                    )
                writer.write_table(block, row_group_size=max(1, len(block)))
    except OSError as error:
        raise RunError(f"{path} cannot be written ({error.strerror or error})") from None


class EmbeddingTable:
    """A file that ``ssl-dist embed`` has written, opened.

    Attributes:
        path: of the file.
        facts: what it says of itself.
    """

    def __init__(self, path: Path) -> None:
        """Open the file.

        Raises:
            RunError: it is not there, is not such a file, or is damaged.
        """
        self.path = path
        if not path.is_file():
            raise RunError(
                f"{path}: {'it is no file' if path.exists() else 'no such file'}: make one with `ssl-dist embed`"
            )
        with self._reading():
            self._file = parquet.ParquetFile(path, page_checksum_verification=True)
        content = (self._file.schema_arrow.metadata or {}).get(_META)
        if content is None:
            raise RunError(f"{path} was not written by `ssl-dist embed`: its metadata has no {_META.decode()}")
        try:
            self.facts = Facts.model_validate_json(content)
        except ValueError:
            raise RunError(f"{path}: this version cannot read its metadata: embed the images again") from None
        meta = self._file.metadata
        self._starts = np.cumsum([0, *(meta.row_group(number).num_rows for number in range(meta.num_row_groups))])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def blocks(self) -> Iterator[np.ndarray]:
        """Yield the features, float32 ``[n, D]`` at a time.

        Raises:
            RunError: the file is damaged.
        """
        for number in range(self._file.num_row_groups):
            yield embeddings(self._read(number, ["embedding"]))

    def features_at(self, rows: np.ndarray) -> np.ndarray:
        """Return the features of rows, float32 ``[N, D]``; raise RunError where the file is damaged."""
        found = np.empty((len(rows), self.facts.dim), dtype=np.float32)
        for number, places in self._places(rows):
            found[places] = embeddings(self._read(number, ["embedding"]))[rows[places] - self._starts[number]]
        return found

    def rows_at(self, rows: Sequence[int]) -> list[Row]:
        """Return what the table says of rows; raise RunError where the file is damaged."""
        numbers, found = np.asarray(rows, dtype=np.int64), dict[int, Row]()
        columns = [name for name in ("key", "label", "class") if name in self._file.schema_arrow.names]
        for group, places in self._places(numbers):
            here = self._read(group, columns).take(numbers[places] - self._starts[group]).to_pylist()
            for place, one in zip(places.tolist(), here, strict=True):
                found[place] = Row(int(numbers[place]), one["key"], one["label"], one.get("class"))
        return [found[place] for place in range(len(numbers))]

    def rows_of(self, key: str) -> list[int]:
        """Return the numbers of the rows that have this key; raise RunError where the file is damaged."""
        found = list[int]()
        for number, start in enumerate(self._starts[:-1].tolist()):
            equal = compute.equal(self._read(number, ["key"])["key"], key)
            found += [start + row for row in np.flatnonzero(equal.to_numpy()).tolist()]
        return found

    def _places(self, rows: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """Yield each row group that holds some of the rows, and the places of these in ``rows``."""
        group_of = np.searchsorted(self._starts, rows, side="right") - 1
        for number in np.unique(group_of).tolist():
            yield number, np.flatnonzero(group_of == number)

    def _read(self, number: int, columns: list[str]) -> pa.Table:
        with self._reading():
            return self._file.read_row_group(number, columns=columns)

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except (OSError, pa.ArrowException) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise RunError(f"{self.path} is no whole Parquet file ({reason}): embed the images again") from None


def facts_at(path: Path) -> Facts | None:
    """Return what a file says of itself; None where it is no embedding."""
    try:
        return EmbeddingTable(path).facts
    except RunError:
        return None


def classes_of(labels: Any, names: Sequence[str]) -> pa.Array:
    """Return the names of labels, int32 with null for none."""
    return pa.array(names, pa.string()).take(labels.combine_chunks())
