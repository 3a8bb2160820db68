"""Commands that only look, and mistakes, are answered without torch and Ray, whose imports take seconds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import RECIPE
from tests.tune.test_results import ended_sweep
from tests.tune.test_sweep import make
from tune.results import write_results

HEAVY = {"torch", "torchvision", "ray", "deepspeed", "sklearn", "matplotlib", "optuna", "tensorboard"}
SCRIPT = """
import atexit, sys
atexit.register(lambda: print("imported:", *sys.modules))
from ssl_dist.commands.main import main
main()
"""

LOOKS = ["--help", "settings", "settings optim", "checkpoint list {run}", "tune results {sweep}", "store info {store}"]
TYPOS = [
    "checkpont",
    "pretrain {recipe} --sett optim.lr=1",
    "pretrain simclr-cifar1",
    "pretrain {recipe} --set optim.lrr=1",
    "pretrain {recipe} --set method.temprature=1",
    "pretrain {recipe} --set method.name=simcrl",
    "pretrain {recipe} --set method.temperature=0",
    "pretrain {recipe} --set backbone.name=resnet51",
    "pretrain {recipe} --set backbone.name=resnet18 --set data.store=nowhere",
    "pretrain {recipe} --set backbone.name=vit_b_16",
    "pretrain {recipe} --set augment.recipe=simclr-smal",
    "pretrain {recipe} --set data.store=nowhere",
    "pretrain --resume nowhere",
    "settings optim.lrr",
    "checkpoint list nowhere",
    "tune {recipe} --set optim.lrr=1",
    "tune {recipe} --space nowhere.yaml",
    "tune results nowhere",
    "tune --resume nowhere",
    "demo --set optim.lrr=1",
    "doctor {recipe} --set optim.lrr=1",
    "g-simclr --set optim.lrr=1",
    "self-train --test nowhere --set optim.lrr=1",
    "store build nowhere s",
]


@pytest.fixture(scope="module")
def places(small_store: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("places")
    (folder / "recipe.yaml").write_text(f"{RECIPE}data: {{store: {small_store}}}\n")
    (folder / "run" / "checkpoints" / "step-00000002").mkdir(parents=True)
    sweep = make(small_store, search="grid", scheduler="none")
    ended_sweep(sweep, folder / "sweep")
    write_results(sweep, folder / "sweep")
    return {"recipe": folder / "recipe.yaml", "run": folder / "run", "sweep": folder / "sweep", "store": small_store}


@pytest.mark.parametrize(("line", "code"), [*((line, 0) for line in LOOKS), *((line, 2) for line in TYPOS)])
def test_nothing_heavy_is_imported(places: dict[str, Any], tmp_path: Path, line: str, code: int) -> None:
    arguments = line.format(**places).split()
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == code, done
    assert "Traceback" not in done.stderr
    [imported] = [text for text in done.stdout.splitlines() if text.startswith("imported: ")]
    assert HEAVY.isdisjoint(imported.split())
