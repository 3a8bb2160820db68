"""What finished runs answer about the test images, and the accuracy of the runs of one cell over all seeds."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
import xxhash

from cluster.pipelines.cells import Opened
from ssl_dist.checkpoint import checksum, locate
from ssl_dist.commands.console import ImageBar, image_bar
from ssl_dist.data.images import store_digest
from ssl_dist.evaluate.pseudo_labels import predict
from ssl_dist.evaluate.scores import TOP, Accuracy, Answers, spread
from ssl_dist.files import replacing, write_text
from ssl_dist.settings import CheckpointChoice

TESTED, ANSWERS = "tested.json", "answers.npz"


class Tested(NamedTuple):
    """A run and its answers about the labelled images of the test store.

    Attributes:
        described: its directory, seed, checkpoint, step and validation score, for JSON.
    """

    described: dict[str, Any]
    answers: Answers


class Scores(NamedTuple):
    """Accuracy of the runs of one cell, over all seeds.

    Attributes:
        validation: mean accuracy of the tested checkpoints on the validation part; None where there is none.
        top1, top5: mean accuracies on the test store with their intervals; top5 is None with five classes or fewer.
        runs: of each seed: its run, its checkpoint and its accuracies.
    """

    validation: float | None
    top1: Accuracy
    top5: Accuracy | None
    runs: list[dict[str, Any]]

    @classmethod
    def of(cls, tested: Sequence[Tested], opened: Opened) -> Scores:
        """Score the answers of the cell's runs."""
        truth = opened.truth[opened.truth >= 0]
        rights = {top: [one.answers.right(truth, top) for one in tested] for top in (1, TOP)}
        validations = [one.described["validation"] for one in tested]
        runs = [{**one.described, "top1": float(right.mean())} for one, right in zip(tested, rights[1], strict=True)]
        has_top5 = len(opened.train.class_names) > TOP
        return cls(
            None if None in validations else fmean(validations),
            Accuracy.mean(rights[1]),
            Accuracy.mean(rights[TOP]) if has_top5 else None,
            runs,
        )

    @property
    def spread(self) -> float | None:
        """Standard deviation of the accuracy over the seeds; None of one."""
        return spread([one["top1"] for one in self.runs])

    def plain(self) -> dict[str, Any]:
        """Return the scores for JSON."""
        top5 = self.top5 and {"top5": self.top5.value, "top5_interval": [self.top5.low, self.top5.high]}
        return {
            "validation": self.validation,
            "top1": self.top1.value,
            "top1_interval": [self.top1.low, self.top1.high],
            **(top5 or {}),
            "spread": self.spread,
            "runs": self.runs,
        }


def tested(run: Path, choice: CheckpointChoice, opened: Opened) -> Tested:
    """Return what a finished run answers about the test images; its directory keeps it."""
    checkpoint = locate(run, choice)
    described = {"run": str(run), "seed": checkpoint.config.seed, "checkpoint": checkpoint.path.name}
    described |= {"step": checkpoint.step, "validation": checkpoint.score}
    rows = np.flatnonzero(opened.truth >= 0)
    of = {"checkpoint": checkpoint.path.name, "model": checksum(checkpoint.model_file)}
    of |= {"test": store_digest(opened.test), "images": xxhash.xxh3_64_hexdigest(rows.tobytes())}
    file = run / TESTED
    with contextlib.suppress(OSError, ValueError):
        if of.items() <= json.loads(file.read_text(encoding="utf-8")).items():
            kept = np.load(run / ANSWERS)
            return Tested(described, Answers(kept["classes"], kept["confidence"]))
    with image_bar("classifying the test images", "reading the checkpoint") as bar:
        answers = Answers.of(predict(checkpoint.path, opened.test, rows, "newest", _Counted(bar, len(rows))).numpy())
    file.unlink(missing_ok=True)  # it must never lie beside other answers
    with replacing(run / ANSWERS) as aside, aside.open("wb") as content:
        np.savez(content, **answers._asdict())
    write_text(file, json.dumps(of, indent=1))
    return Tested(described, answers)


class _Counted:
    """Tells a bar of how many images are done, of the chunks' sizes."""

    def __init__(self, bar: ImageBar, total: int) -> None:
        self._bar, self._done, self._total = bar, 0, total

    def __call__(self, images: int) -> None:
        self._done += images
        self._bar(self._done, self._total)
