"""Run directories with all that a report shows, written by hand, and a reader of pages."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np

from ssl_dist.config import ResolvedConfig
from ssl_dist.report.label_page import thumbnail
from tests.helpers import resolved_config

CLASSES = ("cat", "dog", "a ship")
_VOID = {"meta", "img", "br"}
_IMAGE = thumbnail(np.full((16, 16, 3), 90, np.uint8))
VERSIONS = {"ssl_dist": "0.9", "python": "3.11.9"}


def write_run(run: Path, config: ResolvedConfig, *, steps: int = 40, probe: float = 0.5) -> Path:
    """Write a run's settings, metrics, one start of an hour, and what its health watch said."""
    run.mkdir(parents=True)
    (run / "config.json").write_text(config.model_dump_json())
    (run / "recipe.txt").write_text("simclr-cifar10\n")
    lines: list[dict[str, Any]] = [{"step": 0, "epoch": 0.0, "plan/total_steps": 40, "probe/knn": 0.25}]
    for step in range(2, steps + 1, 2):
        values = {"train/loss": 2 + math.cos(step), "train/loss_if_collapsed": 3.0, "train/learning_rate": 0.01 / step}
        rates = {"speed/images_per_s": 100.0, "speed/data_wait_share": 0.01, "memory/peak_mb": 700.0, "mine/own": -1.0}
        lines.append({"step": step, "epoch": step / 8, **values, **rates})
    lines.append({"step": steps, "epoch": steps / 8, "probe/knn": probe})
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    machine = {"workers": 2, "host": "here", "cpu": "a CPU", "cores": 4, "memory_bytes": 1 << 33, "gpu": None}
    start = {"began": 1e9, "ended": None, **machine, "versions": VERSIONS}
    (run / "starts.jsonl").write_text(f"{json.dumps(start)}\n{json.dumps({'ended': 1e9 + 3600})}\n")
    finding = {"step": 8, "epoch": 1.0, "rule": "temperature", "text": "the temperature is low"}
    (run / "health.jsonl").write_text(json.dumps(finding) + "\n")
    return run


def write_evaluation(run: Path, classes: Sequence[str] = CLASSES, *, top1: float = 0.6) -> None:
    """Write what ``evaluate all`` writes, of three classes."""
    rows = [
        {"encoder": encoder, "features": "backbone", "dim": 8, "top1": value, "repeats": [value], "chosen": {}}
        | {"top1_interval": [value - 0.05, value + 0.05]}
        for encoder, value in (("trained, 40 steps", top1), ("random weights", 0.4))
    ]
    rows[1] |= {"difference": 0.4 - top1, "difference_interval": [-0.25, -0.125]}
    one = {"trained": top1, "random": 0.4, "step": 40, "num_train": 30, "num_test": 20, "rows": rows}
    accuracies = [{**one, "evaluation": name, "protocol": f"how {name} was done"} for name in ("kNN, k = 20", "linear")]
    ranks = [
        {"step": step, **dict.fromkeys(("rankme", "lidar", "alpha", "alignment"), 2.5), "uniformity": None}
        for step in (None, 40)
    ]
    stores = {"train": "stores/train", "test": "stores/test"}
    left_out = {"further training labels": "30 of 50 fit"}
    whole = {"step": 40, **stores, "accuracies": accuracies, "ranks": ranks, "ranked_images": 30, "left_out": left_out}
    (run / "evaluation.json").write_text(json.dumps(whole))
    (run / "evaluation").mkdir()
    recalls = dict(zip(classes, (1, 0.1, 0.5), strict=True))
    by_class = {name: {"precision": 0.5, "recall": share, "support": 10} for name, share in recalls.items()}
    confusion = [[10, 0, 0], [2, 1, 7], [5, 0, 5]]
    answers = {
        "class_names": list(classes),
        "classes": by_class,
        "confusion": confusion,
        "summary": "Of 14 wrong answers, some.",
    }
    (run / "evaluation" / "classification.json").write_text(json.dumps(answers))
    image = {"thumbnail": _IMAGE, "key": f"{classes[0]}/1.png", "label": classes[0]}
    nearest = [{**image, "label": label, "similarity": 0.75} for label in classes[:2]]
    mistake = {"thumbnail": _IMAGE, "key": "k", "true": classes[1], "given": classes[0], "confidence": 0.9}
    places = {"group": [0, 1, 2, 0], "x": [0, 9999, 5, 7], "y": [100, 200, 300, 4000], "side": 9999}
    gallery = {"small": True, "mistakes": [mistake], "neighbours": [{**image, "nearest": nearest}]}
    drawn = {"title": "class", "groups": list(classes), **places}
    (run / "evaluation" / "gallery.json").write_text(json.dumps({**gallery, "map": drawn}))


def whole_run(run: Path, store: Path, **settings: Any) -> Path:
    """Write a run that has everything."""
    write_run(run, resolved_config(store, **settings))
    write_evaluation(run)
    return run


class Page(HTMLParser):
    """Reads a page.

    Attributes:
        elements: tag and attributes of each.
        text: what a person reads, with single blanks.
        open: elements that were not closed, or closed by another one.
    """

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.elements, self.open = list[tuple[str, dict[str, str | None]]](), list[str]()
        self._texts, self.source = list[str](), file.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()
        self.text = " ".join(" ".join(self._texts).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if self.open and self.open[-1] == tag:
            self.open.pop()
        else:
            self.open.append(f"/{tag}")

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & set(self.open):
            self._texts.append(data)

    @property
    def sections(self) -> list[str]:
        return [str(attributes["id"]) for tag, attributes in self.elements if tag == "section"]
