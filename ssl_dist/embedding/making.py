"""Make the Parquet file of an embedding: have the missing parts computed, and put all of them together."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import uuid
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa
import xxhash

from ssl_dist import __version__
from ssl_dist.checkpoint.exported import is_exported
from ssl_dist.checkpoint.locating import is_one
from ssl_dist.embedding.images import Images, open_images
from ssl_dist.embedding.parts import (
    BLOCK_PARTS,
    LOCK,
    PACKAGES,
    PART_ROWS,
    Done,
    Parts,
    embeddings,
    num_blocks,
    parts_of,
    read_part,
)
from ssl_dist.embedding.plane import Plane
from ssl_dist.embedding.table import FORMAT, Facts, classes_of, facts_at, write_table
from ssl_dist.embedding.tasks import Executor, FeatureTask, Job, NeighbourTask, Opened, Task, encoder_digest, run_here
from ssl_dist.encoder import load_encoder
from ssl_dist.errors import ConfigError, RunError
from ssl_dist.files import lock
from ssl_dist.machine import version_of
from ssl_dist.progress import Tally
from ssl_dist.store import ImageStore
from ssl_dist.store.building.left_out import tell_left_out
from ssl_dist.store.building.sources import LeftOut
from ssl_dist.store.building.writing import no_image
from ssl_dist.uris import is_remote, without_secrets

if TYPE_CHECKING:
    from ssl_dist.encoder import Encoder
    from ssl_dist.settings import CheckpointChoice

log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
Stage = Callable[[str, str], AbstractContextManager[Progress]]
"""(what is done, what is waited for until the number of images is known) -> a context with a callback that is called
with (images done, images in all)."""


def _silent(title: str, waiting: str) -> AbstractContextManager[Progress]:
    return contextlib.nullcontext(lambda done, total: None)


class Embedded(NamedTuple):
    """What was made: the facts in the file, and whether it was there already, made by an earlier call."""

    facts: Facts
    was_there: bool


def embed(
    run: str | os.PathLike[str],
    images: str | os.PathLike[str],
    out: Path,
    *,
    checkpoint: CheckpointChoice = "newest",
    with_map: bool = False,
    num_neighbours: int = 0,
    executor: Executor = run_here,
    stage: Stage = _silent,
) -> Embedded:
    """Compute the features of all images, and write them into a Parquet file.

    A call that dies leaves its finished parts in a hidden folder beside the file; the same call resumes from them, and
    the file has the same bytes then. Files that are no readable images are left out, and named in ``OUT-left-out.txt``.

    Args:
        run: what ``load_encoder`` takes.
        images: an image store, or what a store can be built from (see ``store.build``), by path, URI or pattern.
        out: the file, which is not there.
        checkpoint: which one, where the run has several.
        with_map: add columns x and y, see ``plane.Plane``.
        num_neighbours: add the keys and cosine similarities of so many nearest other images; 0: none.
        executor: what runs the tasks; ``cluster.embed`` has one for a Ray cluster.
        stage: shows what is done.

    Raises:
        ConfigError: the file is there already, of other images or another encoder, or was made meanwhile.
        RunError, CheckpointError: the encoder cannot be loaded, or the file cannot be written.
        SourceError, StoreError, StoreDamaged: the images cannot be read.
    """
    if out.exists() and facts_at(out) is None:
        raise ConfigError(f"OUT {out}: it is there already: choose another name, or delete it")
    encoder = load_encoder(run, checkpoint)
    with stage("listing", "listing images"):
        listed = open_images(images)
    size = max(1, PART_ROWS // encoder.together) * encoder.together
    facts = _facts(os.fspath(run), checkpoint, encoder, listed, size, num_neighbours)
    folder = out.absolute().with_name(f".{out.name}.{facts.job}.parts")
    if out.exists():
        return Embedded(_same(out, facts, with_map, folder), True)
    _name_others(out, folder)
    with _locked(folder):
        place = os.fspath(run) if is_remote(run) else facts.run
        job = Job(place, facts.checkpoint, facts.encoder, listed.location, facts.images, folder, num_neighbours)
        opened = Opened(encoder, ImageStore(listed.location) if listed.location else None)
        counts, left_out = _compute(listed, job, opened, size, executor, stage)
        _expect_free(out)
        tell_left_out(out, [*listed.left_out, *left_out], listed.passed_over)
        if not counts.sum():
            assert listed.source is not None
            raise no_image(listed.source, next(iter(left_out), None))
        about = {"num_images": int(counts.sum()), "left_out": len(listed.left_out) + len(left_out)}
        facts = _assemble(out, Parts(folder), counts, facts.model_copy(update=about), stage, with_map=with_map)
        shutil.rmtree(folder, ignore_errors=True)  # a task of a call that died may still write there
    return Embedded(facts, False)


def _expect_free(out: Path) -> None:
    """Refuse a file that another call has made while this one computed.

    Raises:
        ConfigError: it is there.
    """
    if out.exists():
        raise ConfigError(f"OUT {out} was made meanwhile: choose another name, or delete it; the finished parts stay")


def _assemble(out: Path, parts: Parts, counts: np.ndarray, facts: Facts, stage: Stage, *, with_map: bool) -> Facts:
    """Write the file of all parts; return what it says of itself.

    Args:
        counts: rows of each part.
        with_map: lay the images out, see ``plane.Plane``.
    """
    plane = None
    if with_map:
        with stage("map", "laying out images by t-SNE"):
            plane = Plane(parts, counts)
    facts = facts.model_copy(update={"map": plane and plane.about})
    with stage("writing", "writing the table") as progress:
        _expect_free(out)
        write_table(out, _blocks(parts, counts, facts, plane, Tally(progress, facts.num_images)), facts)
    return facts


def _facts(
    run: str, checkpoint: CheckpointChoice, encoder: Encoder, listed: Images, size: int, num_neighbours: int
) -> Facts:
    """Return what the file will say of itself, but for what is known at the end.

    Args:
        size: images of a part.
    """
    digest, device = encoder_digest(encoder), next(encoder.parameters()).device.type
    parts = [FORMAT, digest, listed.digest, listed.name, size, BLOCK_PARTS, encoder.together, device]
    parts += [__version__, *map(version_of, PACKAGES)]
    remote = is_remote(run)
    path = Path(run)
    has_several = not remote and not is_exported(path) and not is_one(path)
    return Facts(
        ssl_dist=__version__,
        run=without_secrets(run) if remote else str(path.absolute()),
        checkpoint=encoder.step if has_several and encoder.step is not None else checkpoint,
        step=encoder.step,
        encoder=digest,
        dim=encoder.dim,
        image_size=encoder.image_size,
        store=listed.name,
        images=listed.digest,
        num_images=0,
        left_out=0,
        class_names=list(listed.class_names),
        job=xxhash.xxh3_64_hexdigest(json.dumps(parts).encode()),
        map=None,
        neighbours=num_neighbours,
    )


def _same(out: Path, facts: Facts, with_map: bool, folder: Path) -> Facts:
    """Return the facts of a file that is there, if it is what would be made; remove parts that a kill has left.

    Raises:
        ConfigError: it is another.
    """
    there = facts_at(out)
    if there is None or (there.job, there.neighbours, there.map is not None) != (facts.job, facts.neighbours, with_map):
        raise ConfigError(
            f"OUT {out}: it is there already, of other images, another encoder, other options or other versions:"
            " choose another name, or delete it"
        )
    shutil.rmtree(folder, ignore_errors=True)
    return there


def _name_others(out: Path, ours: Path) -> None:
    """Name the parts of other embeddings that were to become this file, and did not."""
    for other in out.absolute().parent.glob(f".{out.name}.*.parts"):
        if other != ours:
            log.warning("%s holds parts of another embedding that did not end: it is not used; delete it", other)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Make the folder of the parts, and lock it for this process.

    Raises:
        RunError: another process has locked it, or it cannot be made.
    """
    try:
        folder.mkdir(exist_ok=True)
        held = lock(folder / LOCK)
    except OSError as error:
        raise RunError(f"{folder} cannot be written ({error.strerror})") from None
    if held is None:
        raise RunError(f"{folder}: another process is computing this embedding: wait for it")
    with held:
        held.truncate(0)
        held.write(uuid.uuid4().hex)
        held.flush()
        yield


def _compute(
    listed: Images, job: Job, opened: Opened, size: int, executor: Executor, stage: Stage
) -> tuple[np.ndarray, list[LeftOut]]:
    """Have features and neighbours computed; return the number of rows of each part, and the images without a row."""
    together = opened.encoder.together
    with stage("embedding", "reading the first images") as progress:
        count = Tally(progress, listed.num_images)
        count(Parts(job.folder).num_images_done())
        features = (FeatureTask(job, number, cut) for number, cut in enumerate(listed.parts(size, together)))
        done = list(_run(executor, features, opened, count))
    counts = np.array([one.num_rows for one in done], dtype=np.int64)
    left_out = [lost for one in done for lost in one.left_out]
    if job.num_neighbours and counts.sum():
        with stage("neighbours", "reading the features") as progress:
            count, blocks = Tally(progress, int(counts.sum())), range(num_blocks(len(counts)))
            tasks = (NeighbourTask(job, number, len(counts)) for number in blocks)
            for _ in _run(executor, tasks, opened, count):
                pass
    return counts, left_out


def _run(
    executor: Executor, tasks: Iterator[Task], opened: Opened, count: Callable[[int], None]
) -> Generator[Done, None, None]:
    """Yield what tasks have done.

    Raises:
        RunError: a part cannot be written.
    """
    try:
        with contextlib.closing(executor(tasks, opened, count)) as results:
            yield from results
    except OSError as error:
        raise RunError(f"{error.filename or 'the parts'} cannot be written ({error.strerror or error})") from None


def _blocks(
    parts: Parts, counts: np.ndarray, facts: Facts, plane: Plane | None, count: Callable[[int], None]
) -> Iterator[pa.Table]:
    """Yield the blocks of the table, with all columns."""
    first = 0
    for block in range(num_blocks(len(counts))):
        table = pa.concat_tables([parts.table(part) for part in parts_of(block, len(counts))]).combine_chunks()
        table = table.replace_schema_metadata(None)
        if facts.class_names:
            table = table.add_column(2, "class", classes_of(table["label"], facts.class_names))
        if plane:
            places = plane.places(first, embeddings(table))
            table = table.append_column("x", pa.array(places[:, 0])).append_column("y", pa.array(places[:, 1]))
        if facts.neighbours:
            found = read_part(parts.neighbours(facts.neighbours, block), len(table))
            if found is None:
                raise RunError(f"{parts.neighbours(facts.neighbours, block)} is damaged or gone: call again")
            for name in found.column_names:
                table = table.append_column(name, found[name])
        first += len(table)
        yield table
        count(len(table))
