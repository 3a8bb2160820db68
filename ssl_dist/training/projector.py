"""Embeddings for TensorBoard's projector: of some images of the store, with their thumbnails and labels.

RUN/tensorboard/projector_config.pbtxt       what the projector shows, written anew each time
RUN/tensorboard/projector/N-images/
  metadata.tsv, sprite.png                   classes and keys, and thumbnails in rows, of the same N images at each step
  step-00000123.tsv                          their features, a line each

n images, D features.
"""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ssl_dist.backbones import Backbone
from ssl_dist.collectives import World
from ssl_dist.config import ResolvedConfig
from ssl_dist.evaluate.features import extract, over_workers
from ssl_dist.evaluate.probe import candidates
from ssl_dist.files import replacing, write_text
from ssl_dist.store import ImageStore
from ssl_dist.training.boards.tensorboard import TENSORBOARD

_MOST_FEATURES = 200  # of which the projector takes principal components; it cuts off what is more
_THUMBNAIL_PX = 64
_SPRITE_PX = 8192  # the largest side that the projector takes
_CHUNK = 256  # images that are read together
_STEP = re.compile(r"step-(\d{8})\.tsv")


class Projector:
    """A fixed choice of images, spread evenly over the store.

    Args:
        run: the run directory.
        first_step: steps done before; files of later steps, from an interrupted run, are deleted.
    """

    def __init__(self, run: Path, config: ResolvedConfig, store: ImageStore, world: World, first_step: int) -> None:
        assert config.monitor.projector, "a run without a projector has none"
        rows = candidates(config, store, with_labels=False)
        count = min(config.monitor.projector.images, len(rows))
        self.ids = rows[np.arange(count) * len(rows) // count]
        if config.data.damaged == "skip":
            self.ids = self.ids[store.intact(self.ids)]
        self._board = run / TENSORBOARD
        self._folder = self._board / "projector" / f"{len(self.ids)}-images"
        self._config, self._store, self._world = config, store, world
        if world.rank == 0:
            for file in self._board.glob("projector/*/step-*.tsv"):
                if (found := _STEP.fullmatch(file.name)) and int(found[1]) > first_step:
                    file.unlink()
            if first_step:
                self._list()

    def write(self, step: int, backbone: Backbone) -> None:
        """Embed the images and write their features; every rank calls, and embeds its part."""
        features = over_workers(
            self.ids,
            self._world,
            lambda ids: extract(backbone, self._store, ids, self._world.device, self._config),
        )
        if self._world.rank:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        if not (self._folder / "metadata.tsv").exists():
            self._write_images()
        with replacing(self._folder / f"step-{step:08}.tsv") as aside:
            np.savetxt(aside, principal(features.cpu(), _MOST_FEATURES).numpy(), fmt="%.5g", delimiter="\t")
        self._list()

    def _list(self) -> None:
        """Tell TensorBoard which files there are."""
        entries = sorted(self._board.glob("projector/*/step-*.tsv"), key=lambda file: file.name)
        write_text(self._board / "projector_config.pbtxt", "".join(map(self._entry, entries)))

    def _write_images(self) -> None:
        """Write classes, keys and thumbnails; the table comes last, since it says that the picture is whole."""
        side = math.ceil(math.sqrt(len(self.ids)))  # the projector wants as many columns as rows
        size = _thumbnail_px(len(self.ids), self._store.image_shape[0])
        sheet = Image.new("RGB", (side * size, side * size))
        for start in range(0, len(self.ids), _CHUNK):
            for number, pixels in enumerate(self._store.gather(self.ids[start : start + _CHUNK]), start):
                small = Image.fromarray(pixels).resize((size, size), Image.Resampling.LANCZOS)
                sheet.paste(small, (number % side * size, number // side * size))
        with replacing(self._folder / "sprite.png") as aside:
            sheet.save(aside, format="png")
        names = self._store.class_names
        labels = (names[label] if label >= 0 else "" for label in self._store.labels_at(self.ids))
        rows = zip(labels, self._store.keys_at(self.ids), strict=True)
        lines = ["class\tkey", *(f"{_cell(label)}\t{_cell(key)}" for label, key in rows)]
        write_text(self._folder / "metadata.tsv", "\n".join(lines) + "\n")

    def _entry(self, file: Path) -> str:
        """Return the projector's entry of a file of features; the last one is what it shows at first."""
        place, step = file.parent.relative_to(self._board), int(file.stem.rpartition("-")[2])
        size = _thumbnail_px(int(file.parent.name.partition("-")[0]), self._store.image_shape[0])
        return (
            f'embeddings {{\n  tensor_name: "step {step:,}"\n  tensor_path: "{place}/{file.name}"\n'
            f'  metadata_path: "{place}/metadata.tsv"\n  sprite {{\n    image_path: "{place}/sprite.png"\n'
            f"    single_image_dim: {size}\n    single_image_dim: {size}\n  }}\n}}\n"
        )


def principal(features: Tensor, most: int) -> Tensor:
    """Return features ``[n, D]`` as they are or, where D is larger than ``most``, their first principal components.

    Returns:
        float64 ``[n, min(D, most)]``, without the mean where they are components.
    """
    features = features.double()
    if features.shape[1] <= most:
        return features
    centred = features - features.mean(0)
    _, vectors = torch.linalg.eigh(centred.T @ centred)  # ascending
    components: Tensor = centred @ vectors[:, -most:].flip(1)
    return components


def _thumbnail_px(count: int, stored_px: int) -> int:
    """Return the side of a thumbnail of ``count`` images in a square."""
    return min(_THUMBNAIL_PX, stored_px, _SPRITE_PX // math.ceil(math.sqrt(count)))


def _cell(text: str) -> str:
    """Return text for a cell of a table: its tabs and ends of lines are blanks; "-" where there is none."""
    return " ".join(text.split()) or "-"
