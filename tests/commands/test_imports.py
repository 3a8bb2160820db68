"""Commands that only look, and mistakes, are answered without torch and Ray, whose imports take seconds."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ssl_dist.checkpoint import State
from tests.helpers import RECIPE, resolved_config, save
from tests.tune.test_results import ended_sweep
from tests.tune.test_sweep import make
from tune.results import write_results

HEAVY = {"torch", "torchvision", "ray", "deepspeed", "sklearn", "matplotlib", "optuna", "tensorboard"}

# Run each command line of standard input in a process of its own, forked from one that has imported what all need.
SCRIPT = """
import json, os, sys, tempfile
import ssl_dist.config.reference, ssl_dist.store
from ssl_dist.commands import main

for line in map(json.loads, sys.stdin.readlines()):
    reading, writing = os.pipe()
    with tempfile.TemporaryFile("w+") as printed:
        if not (child := os.fork()):
            os.dup2(printed.fileno(), 1), os.dup2(printed.fileno(), 2)
            sys.argv[1:], code = line, 0
            try:
                main.main()
            except BaseException as ended:
                code = ended.code if isinstance(ended, SystemExit) else repr(ended)
            os.write(writing, json.dumps([code or 0, [name for name in sys.modules if "." not in name]]).encode())
            sys.stdout.flush(), sys.stderr.flush(), os._exit(0)
        os.close(writing), os.waitpid(child, 0), printed.seek(0)
        print(json.dumps([*json.load(os.fdopen(reading)), printed.read()]), flush=True)
"""

LOOKS = [
    *("--help", "settings", "settings optim", "settings --json", "recipes", "recipes simclr-digits", "evaluate --help"),
    *("checkpoint list {run}", "checkpoint verify {run}", "checkpoint clear {run}", "status {run}", "status {sweep}"),
    *("tune results {sweep}", "tune results {sweep} --json", "store info {store}", "pretrain {recipe} --print-config"),
]
TYPOS = [
    "checkpont",
    "checkpoint lst {run}",
    "checkpoint list nowhere",
    "checkpoint verify nowhere",
    "checkpoint clear {run} --keep oldest",
    "recipes simclr-cifar1",
    "recipes --jsn",
    "settings optim.lrr",
    "status nowhere",
    "stop nowhere",
    "stop {run}",
    "report nowhere",
    "report {run} --ot x.png",
    "pretrain",
    "pretrain {recipe} --sett optim.lr=1",
    "pretrain simclr-cifar1",
    "pretrain {recipe} --set optim.lr",
    "pretrain {recipe} --set optim.lrr=1",
    "pretrain {recipe} --set method.temprature=1",
    "pretrain {recipe} --set method.name=simcrl",
    "pretrain {recipe} --set method.temperature=0",
    "pretrain {recipe} --set backbone.name=resnet51",
    "pretrain {recipe} --set backbone.name=resnet18 --set data.store=nowhere",
    "pretrain {recipe} --set backbone.name=vit_b_16",
    "pretrain {recipe} --set backbone.weights=nowhere",
    "pretrain {recipe} --set backbone.weights={run} --set backbone.checkpoint=bst",
    "pretrain {recipe} --set backbone.weights={run} --set backbone.checkpoint=3",
    "pretrain {recipe} --set checkpoint.mirror=nowhere",
    "pretrain {recipe} --set cluster.workers=999",
    "pretrain {recipe} --set augment.recipe=simclr-smal",
    "pretrain {recipe} --set data.store=nowhere",
    "pretrain {recipe} --set data.label_file=nowhere.npy",
    "pretrain {recipe} --run-dir {store}",
    "pretrain --resume nowhere",
    "pretrain --resume {run} --set optim.lr=1",
    "pretrain --resume {run} --dry-run",
    "tune {recipe} --set optim.lrr=1",
    "tune {recipe} --space nowhere.yaml",
    "tune {recipe} --search gird",
    "tune {recipe} --scheduler ash",
    "tune {recipe} --objective loss",
    "tune {recipe} --space {space} --rung-epochs inf",
    "tune {recipe} --space {space} --rung-epochs nan",
    "tune {recipe} --search grid",
    "tune nowhere",
    "tune results nowhere",
    "tune results {run}",
    "tune --resume nowhere",
    "tune --resume {sweep} --samples 3",
    "tune --set epochs=2 --resume {sweep}",
    "demo --ot x",
    "demo --set optim.lrr=1",
    "doctor nowhere",
    "doctor {recipe} --set optim.lrr=1",
    "doctor --set optim.lr=1",
    "g-simclr nowhere",
    "g-simclr --set optim.lrr=1",
    "g-simclr {recipe} --autoencoder nowhere",
    "g-simclr {recipe} --set-autoencoder optim.lrr=1",
    "g-simclr {recipe} --autoencoder {recipe} --set data.order=shards",
    "g-simclr {recipe} --autoencoder {recipe} --set cluster.workers=999",
    "tune {recipe} --space {space} --set cluster.workers=999 --sweep-dir new",
    "self-train",
    "self-train nowhere --test {store}",
    "self-train {recipe} --test nowhere",
    "self-train --test nowhere --set optim.lrr=1",
    "store build nowhere s",
    "init",
    "init nowhere",
    "init {store} --sconds 1",
    "init {store} --out {recipe}",
    "init {store} --out nowhere/recipe.yaml",
    "evaluate knnn {run}",
    "evaluate knn {run} --train {store}",
    "evaluate knn nowhere --train {store} --test {store}",
    "evaluate knn {run} --train nowhere --test {store}",
    "evaluate knn {run} --train {store} --test nowhere",
    "evaluate knn {run} --train {store} --test {store} --k 99",
    "evaluate knn {run} --train {store} --test {store} --kk 3",
    "evaluate knn {run} --train {store} --test {store} --temperature 0",
    "evaluate knn {run} --train {store} --test {store} --checkpoint newst",
    "evaluate linear {run} --train {store} --test {store} --checkpoint 3",
    "evaluate linear {run} --train {store} --test {store} --checkpoint best",
    "evaluate linear {run} --train {store} --test {store} --l2 0",
    "evaluate linear {run} --train {store} --test {store} --l2 inf",
    "evaluate knn {run} --train {store} --test {store} --temperature nan",
    "evaluate rank {run}",
    "evaluate rank nowhere --store {store}",
    "evaluate rank {run} --store nowhere",
    "evaluate rank {run} --store {store} --checkpoint al",
    "evaluate rank {run} --store {store} --out curve.jpg",
    "evaluate map {run} --store nowhere",
    "evaluate map {run} --store {store} --out map.svg",
    "evaluate map {run} --store {store} --perplexity 99",
    "evaluate map {run} --store {store} --colour red",
    "evaluate map {run} --store {store} --checkpoint newst",
    "evaluate finetune nowhere --train {store} --test {store}",
    "evaluate finetune {run} --train {store} --test nowhere --run-dir new",
    "evaluate finetune {run} --train {store} --test {store} --labels 99999 --run-dir new",
    "evaluate finetune {run} --train {store} --test {store} --grid rate=1,2 --run-dir new",
    "evaluate finetune {run} --train {store} --test {store} --optimizer adan --run-dir new",
    "evaluate semi {run} --train {store} --test {store} --labels 9 --ratios 5:1 --run-dir new",
    "evaluate semi {run} --train {store} --test {store} --labels 9 --ratios 1:99 --run-dir new",
]


@pytest.fixture(scope="module")
def outcomes(small_store: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Run all command lines; return of each the exit code, the modules that were imported, and what was printed."""
    folder = tmp_path_factory.mktemp("places")
    places = {name: folder / name for name in ("recipe", "space", "run", "sweep")} | {"store": small_store}
    places["recipe"].write_text(f"{RECIPE}data: {{store: {small_store}}}\n")
    places["space"].write_text("seed: [0, 1]")
    config = resolved_config(small_store)
    save(State(config.initial_method().state_dict(), {}), places["run"], 2, config)
    (places["run"] / "config.json").write_text(config.model_dump_json())
    sweep = make(small_store, search="grid", scheduler="none")
    ended_sweep(sweep, places["sweep"])
    write_results(sweep, places["sweep"])
    lines = [shlex.split(line.format(**places)) for line in (*LOOKS, *TYPOS)]
    given = "".join(f"{json.dumps(line)}\n" for line in lines)
    script = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(script, input=given, stdout=subprocess.PIPE, cwd=folder, text=True, check=True)
    assert not (folder / "new").exists(), "a refused sweep leaves nothing in the way of the next"
    return dict(zip((*LOOKS, *TYPOS), map(json.loads, done.stdout.splitlines()), strict=True))


@pytest.mark.parametrize(("line", "expected"), [*((line, 0) for line in LOOKS), *((line, 2) for line in TYPOS)])
def test_nothing_heavy_is_imported(outcomes: dict[str, Any], line: str, expected: int) -> None:
    code, imported, printed = outcomes[line]
    assert code == expected, printed
    assert "Traceback" not in printed
    assert HEAVY.isdisjoint(imported)
