"""The commands of several runs, called with a small network and small batches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from ssl_dist.commands.main import app
from ssl_dist.store import build
from tests.conftest import write_images

SMALL = (
    "backbone={name: resnet8, stem: half, width: 4}",
    "batch={size: 16, micro: 8}",
    "epochs=2",
    "probe=null",
    "cluster.workers=1",
    "engine.precision=fp32",
)


def invoke(*arguments: object) -> Any:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def sets(option: str, *settings: str) -> list[str]:
    return [part for setting in settings for part in (option, setting)]


AUTOENCODER = sets("--set-autoencoder", "backbone={name: autoencoder}", *SMALL[1:])


def g_simclr(store: Path, run_dir: Path, *more: object) -> Any:
    return invoke("g-simclr", *sets("--set", f"data.store={store}", *SMALL), *AUTOENCODER, "--run-dir", run_dir, *more)


def self_train(store: Path, few: Path, run_dir: Path, *more: object) -> Any:
    settings = sets("--set", f"data.store={store}", *SMALL, "method.num_classes=3", f"data.label_file={few}")
    command = ["self-train", *settings, "--margin", -1, "--rounds", 1, "--json", "--run-dir", run_dir, "--test", store]
    return invoke(*command, *more)


def settings_of(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "config.json").read_text())
    return found


def build_another(store: Path) -> Path:
    """Build a store like the small one, with other images and other classes."""
    images = store.parent / f"images-of-{store.name}"
    write_images(images, num_classes=4, per_class=13, seed=1)
    build(images, store, workers=1)
    return store
