"""The runs of a fine-tuning: which labels are drawn, and the settings of each cell of its grid. Torch is not needed."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cluster.pipelines.label_files import listing, write_labels
from cluster.pipelines.origin import Origin
from cluster.prepare import resolve_settings
from ssl_dist.config import ResolvedConfig, RunConfig
from ssl_dist.config.overrides import put_override
from ssl_dist.errors import ConfigError
from ssl_dist.evaluate.label_draw import draw, held_out
from ssl_dist.evaluate.labelled import labels_by_name, open_labelled, warn_of_same_images
from ssl_dist.files import write_text
from ssl_dist.reading import settle, value_at
from ssl_dist.settings import DataConfig
from ssl_dist.store import ImageStore

# Short names of the settings that a grid may have; others have their dotted keys.
SHORT = {
    "lr": "optim.lr",
    "batch": "batch.size",
    "epochs": "epochs",
    "unfreeze": "method.unfreeze",
    "hidden": "method.hidden",
    "layer-decay": "optim.layer_decay",
}
_COMMAND = "evaluate finetune"  # for messages
OWN = ("data.store.", "data.label_file.", "probe.label_file.", "probe.kind.", "method.name.")  # the command sets them
_SECTIONS = {name for name in RunConfig.model_fields if name not in ("seed", "epochs")}


class Cell(NamedTuple):
    """One run of a fine-tuning.

    Attributes:
        start: "run" (the weights that were given) or "random".
        settings: those of the grid, by their names in it.
    """

    start: str
    settings: Mapping[str, Any]
    seed: int
    directory: Path
    config: ResolvedConfig


class Draw(NamedTuple):
    """Labels of one seed: int32 ``[n]`` each, -1: none."""

    train: np.ndarray
    validation: np.ndarray

    @property
    def total(self) -> int:
        """Number of all labels that were drawn."""
        return int((self.train >= 0).sum() + (self.validation >= 0).sum())


class Opened(NamedTuple):
    """The two stores, and the test labels as numbers of the training store's classes, int32 ``[n]``, -1: none."""

    train: ImageStore
    test: ImageStore
    truth: np.ndarray

    @classmethod
    def of(cls, stores: tuple[str, str], data: DataConfig) -> Opened:
        """Open the training and the test store.

        Raises:
            StoreError: there is no such store, one has no labels, or they do not fit each other.
        """
        train = open_labelled(stores[0], data)
        test = open_labelled(stores[1], data, train.image_shape)
        warn_of_same_images(train, test)
        return cls(train, test, labels_by_name(train, test))


@dataclass(frozen=True)
class Protocol:
    """A fine-tuning as it was asked for; ``cells`` are its runs.

    Attributes:
        directory: folder of the runs, and of the labels that were drawn for them.
        settings: of all cells, by dotted key.
        grid: values of some settings by their names, of which each combination is a cell.
        starts: "run", "random", or both.
        seeds: repetitions of the draw and of training.
        labels: how many are drawn, see ``label_draw.draw``; None: all.
        validation: share of these that is held out, 0 <= share < 1.
        stores: the training and the test store.
    """

    directory: Path
    origin: Origin
    settings: Mapping[str, Any]
    grid: Mapping[str, Sequence[Any]]
    starts: Sequence[str]
    seeds: int
    labels: str | None
    validation: float
    stores: tuple[str, str]

    @functools.cached_property
    def opened(self) -> Opened:
        """The stores.

        Raises:
            StoreError: there is no such store, one has no labels, or they do not fit each other.
        """
        return Opened.of(self.stores, self._base.data)

    @functools.cached_property
    def cells(self) -> list[Cell]:
        """The runs, those of all seeds of a cell together; their labels are drawn, and written into ``directory``.

        Raises:
            ConfigError: a setting is out of range, there are not so many labels, or others were drawn there before.
            StoreError: see ``opened``.
        """
        self.origin.expect_start(self.starts)
        grid = [dict(zip(self.grid, values, strict=True)) for values in itertools.product(*self.grid.values())]
        seeds = [self._base.seed + number for number in range(self.seeds)]
        wanted = list(itertools.product(self.starts, grid, seeds))
        for one in wanted:  # what is wrong with a setting is told before anything is written
            RunConfig.from_tree(self._tree(*one), _COMMAND)
        drawn = {seed: self._draw(seed) for seed in seeds}
        files = {seed: self._write(drawn[seed], seed) for seed in seeds}
        return [self._cell(start, settings, seed, files[seed]) for start, settings, seed in wanted]

    @functools.cached_property
    def _base(self) -> RunConfig:
        return RunConfig.from_tree(self._tree("random", {}), _COMMAND)

    @property
    def num_validated(self) -> int:
        """Number of labels that a run is validated on."""
        return int((self._draw(self._base.seed).validation >= 0).sum())

    def _draw(self, seed: int) -> Draw:
        train = self.opened.train
        drawn = np.flatnonzero(train.labels >= 0)
        if self.labels is not None:
            drawn = drawn[draw(train.labels[drawn], self.labels, seed, train.class_names)]
        is_held = np.zeros(len(drawn), dtype=bool)
        if self.validation:
            is_held = held_out(train.labels[drawn], self.validation, seed)
            if not is_held.any():
                raise ConfigError(
                    f"--validation {self.validation:g}: one label of each class leaves none to validate on: draw more"
                    " --labels, or choose --validation 0"
                )
        parts = [np.full_like(train.labels, -1) for _ in range(2)]
        for part, chosen in zip(parts, (drawn[~is_held], drawn[is_held]), strict=True):
            part[chosen] = train.labels[chosen]
        return Draw(*parts)

    def _write(self, drawn: Draw, seed: int) -> dict[str, str]:
        """Write the drawn labels, unless the very same were written before; return the settings that name the files.

        Raises:
            ConfigError: others were.
        """
        place = self.directory / f"{drawn.total}-labels-seed-{seed}"
        files = {name: place.with_name(f"{place.name}-{name}.npy") for name in Draw._fields}
        write_labels({files[name]: labels for name, labels in drawn._asdict().items()})
        listed = place.with_name(f"{place.name}.csv")
        if not listed.exists():
            ids = (np.flatnonzero(labels >= 0) for labels in drawn)
            write_text(listed, listing(self.opened.train, *ids))
        held = {"probe.label_file": str(files["validation"])} if self.validation else {}
        return {"data.label_file": str(files["train"]), **held}

    def _cell(self, start: str, settings: Mapping[str, Any], seed: int, files: Mapping[str, str]) -> Cell:
        tree = self._tree(start, settings, seed)
        for key, value in files.items():
            put_override(tree, key, value)
        config = resolve_settings(RunConfig.from_tree(tree, _COMMAND))
        known = {"unfreeze": config.method.model_dump()["unfreeze"], "lr": f"{config.optim.lr:g}"}
        known |= {"batch": config.batch.size, "epochs": f"{config.epochs:g}"}
        others = {key: value for key, value in settings.items() if key not in known}
        words = [f"{key}-{value}" for key, value in {**known, **others, "seed": config.seed}.items()]
        labels = Path(files["data.label_file"]).name.partition("-")[0]
        name = "-".join([self.origin.name if start == "run" else "random", f"{labels}-labels", *words])
        return Cell(start, settings, seed, self.directory / safe_name(name), config)

    def _tree(self, start: str, settings: Mapping[str, Any], seed: int | None = None) -> dict[str, Any]:
        """Return the settings of a cell as a tree, with a stand-in for the file of validation labels."""
        tree = self.origin.tree(self.stores[0])
        probe = {"kind": "validation", "label_file": "drawn"} if self.validation else None
        tree |= {"probe": probe, "method": {"name": "supervised"}, "checkpoint": {"keep": 1}}
        chosen = {SHORT.get(key, key): value for key, value in settings.items()}
        chosen |= {} if seed is None else {"seed": seed}
        for key, value in {**self.settings, **chosen}.items():
            put_override(tree, key, value)
        if not {"batch", "batch.micro"} & {*self.settings, *chosen}:
            halve_batch(tree)
        self.origin.put_start(tree, start)
        return tree


def expect_free(keys: Iterable[str], option: str, own: tuple[str, ...] = OWN) -> None:
    """Refuse settings that the command itself makes, and sections given whole, which would drop some of these.

    Args:
        own: what the command makes: sections and keys, each with a dot at its end.

    Raises:
        ConfigError: one of them is among the keys.
    """
    for key in keys:
        if f"{key}.".startswith(own) and not key.startswith("data.cache"):
            raise ConfigError(f"{option} {key}: this command sets it by itself, from its stores and its other options")
        if key in _SECTIONS - {"backbone"}:
            raise ConfigError(
                f"{option} {key}: a section given whole would drop what this command sets in it: give its keys one by"
                f" one, as {option} {key}.NAME=VALUE"
            )


def halve_batch(tree: dict[str, Any]) -> None:
    """Make two micro-batches of a batch, where its size is even, so that two workers share it."""
    size = settle(value_at(tree, "batch.size"), int)
    if isinstance(size, int):
        put_override(tree, "batch.micro", size if size % 2 else size // 2)


def safe_name(name: str) -> str:
    """Replace what a folder's name had better not have."""
    return "".join(letter if letter.isalnum() or letter in "-._=" else "-" for letter in name)
