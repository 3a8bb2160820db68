"""Process that runs one loader on one core: it reads commands from standard input and answers each with a JSON line.

    python -m benchmarks.contestant NAME ENCODING FOLDER

A command is ``{"do": METHOD, ...}`` with a method of ``_Session`` and its arguments; the answer is what it returns.
"""

from __future__ import annotations

import importlib.util
import json
import multiprocessing
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import loaders, transforms
from benchmarks.loaders import BATCH, Loader, Rows
from benchmarks.processes import cpu_seconds

Record = dict[str, Any]
OURS = "ours"  # name of this project's loader, and of its views


class Ours(Loader):
    """Our store, as training reads it: record batches are checked on first touch, and a thread fetches ahead."""

    module, views = "ssl_dist.data.batches", (OURS,)

    def write(self) -> None:
        from ssl_dist.store import build

        build(self.folder / "jpeg", self.place, encoding=self.encoding, workers=1)

    def rows(self) -> Rows:
        from ssl_dist.store import ImageStore

        return ImageStore(self.place).gather

    def training_batches(self) -> Iterator[Any]:
        from ssl_dist.collectives import World
        from ssl_dist.config import RunConfig
        from ssl_dist.data import SamplePlan
        from ssl_dist.data.batches import Batches
        from ssl_dist.store import ImageStore

        policy = transforms.policy_name(self.image_shape[0])
        overrides = {"data.store": str(self.place), "augment.recipe": policy}
        config = RunConfig.load("simclr-cifar10", overrides | {"batch": {"size": BATCH, "micro": BATCH}})
        return iter(Batches(SamplePlan(config, ImageStore(self.place)), World(), 0, 10**9))


class TableTake(Ours):
    """Our store's shards, read by Arrow alone: memory-mapped as one table, rows by ``take``."""

    encodings, measures = ("raw",), ("rows",)

    def write(self) -> None:
        """Do nothing: this contestant reads the store that ``Ours`` wrote."""

    def rows(self) -> Rows:
        import pyarrow as pa

        shards = sorted(self.place.glob("shard-*.arrow"))
        table = pa.concat_tables([pa.ipc.open_file(pa.memory_map(str(shard))).read_all() for shard in shards])

        def read(ids: np.ndarray) -> np.ndarray:
            column = table.take(pa.array(ids))["image"].combine_chunks()
            made: np.ndarray = column.to_numpy_ndarray()
            return made

        return read


class NumPy(Loader):
    """All images in one array in memory, rows by fancy indexing."""

    module, encodings, measures = "numpy", ("raw",), ("rows",)

    def rows(self) -> Rows:
        images = np.array(self.pixels)
        return lambda ids: images[ids]


CONTESTANTS: dict[str, type[Loader]] = {
    OURS: Ours,
    "NumPy in memory": NumPy,
    "Table.take": TableTake,
    "DataLoader + ImageFolder": loaders.TorchImageFolder,
    "WebDataset": loaders.WebDatasetTars,
    "MosaicML Streaming": loaders.MosaicStreaming,
    "HF datasets": loaders.HuggingFace,
    "HF datasets, shuffled indices": loaders.HuggingFaceShuffled,
    "Lance": loaders.Lance,
}


def batches(loader: Loader, views: str) -> Iterator[Any]:
    """Open the loader and yield batches without end: of pixels if ``views`` is "none", else of two float32 views."""
    size_px = loader.image_shape[0]
    if isinstance(loader, Ours):
        for batch in loader.training_batches():
            yield batch.images if views == "none" else batch.views(0, torch.device("cpu")).crops[0]
    per_image = transforms.PER_IMAGE[views](size_px) if views in transforms.PER_IMAGE else None
    whole: Callable[[Any], Any] = transforms.kornia(size_px) if views == "kornia" else lambda batch: batch
    while True:
        yield from map(whole, loader.samples(per_image))


class _Session:
    """The methods that answer commands. The loader is open in one way at a time."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader
        self._open: tuple[str, Any] = ("", None)
        self._random = np.random.default_rng(0)

    def _opened(self, what: str, opens: Callable[[], Any]) -> Any:
        if self._open[0] != what:
            self._open = ("", None)
            self._open = (what, opens())
        return self._open[1]

    def write(self) -> Record:
        """Write the loader's form of the images, in a child process: its memory is not measured with the rest."""
        if importlib.util.find_spec(self._loader.module) is None:
            return {"missing": self._loader.module}
        child = multiprocessing.get_context("fork").Process(target=self._loader.write)
        child.start()
        child.join()
        if child.exitcode:
            raise RuntimeError(f"{self._loader.place} could not be written")
        return {}

    def load(self, views: list[str]) -> Record:
        """Import what is needed, so that no measure includes it, and keep to one core; return the views there are."""
        importlib.import_module(self._loader.module)
        found = transforms.installed(views)
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
        torch.set_num_threads(1)
        return {"views": found}

    def rows(self, batch: int, seconds: float) -> Record:
        """Measure random rows, ``batch`` a call, after one epoch that is not measured.

        Each image is read once an epoch, as in training.
        """
        read = self._opened("rows", self._loader.rows)
        for ids in np.split(np.arange(len(self._loader.pixels)), range(batch, len(self._loader.pixels), batch)):
            read(ids)
        count, cpu_began, began = 0, cpu_seconds(), time.perf_counter()
        while not count or time.perf_counter() - began < seconds:
            order = self._random.permutation(len(self._loader.pixels))
            for ids in np.split(order, range(batch, len(order), batch)):
                read(ids)
                count += len(ids)
        wall_s, cpu_s = time.perf_counter() - began, cpu_seconds() - cpu_began
        return {"rows_per_s": count / wall_s, "rows_per_cpu_s": count / cpu_s}

    def first(self) -> Record:
        """Measure the time from opening to the first batch of pixels."""
        self._open = ("", None)
        began = time.perf_counter()
        next(batches(self._loader, "none"))
        return {"first_batch_s": time.perf_counter() - began}

    def batches(self, views: str, seconds: float) -> Record:
        """Measure batches; the first one, which opens the loader, is not counted."""
        if self._open[0] != views:
            next(self._opened(views, lambda: batches(self._loader, views)))
        made, count = self._open[1], 0
        cpu_began, began = cpu_seconds(), time.perf_counter()
        while not count or time.perf_counter() - began < seconds:
            next(made)
            count += BATCH
        wall_s, cpu_s = time.perf_counter() - began, cpu_seconds() - cpu_began
        return {"images_per_cpu_s": count / cpu_s, "images_per_s": count / wall_s}


def main(name: str, encoding: str, folder: str) -> None:
    """Answer commands until standard input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # keep what libraries print out of the answers
    warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # batches are only read here
    session = _Session(CONTESTANTS[name](Path(folder), encoding))
    for line in sys.stdin:
        command = json.loads(line)
        answer = getattr(session, command.pop("do"))(**command)
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
