"""CIFAR-10 by the recipe ``simclr-cifar10-gpu`` through the command line, in calls of some minutes.

A call starts the run or resumes it, asks it to stop with a checkpoint when its time is over, and, once the run has all
its steps, measures its newest checkpoint. ``benchmark.json`` in the run's directory keeps what earlier calls took.
"""

from __future__ import annotations

import json
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from benchmarks.cuda.measure import Record, default_device, say
from ssl_dist.files import write_text
from ssl_dist.store import manifest_at
from ssl_dist.store.schema import MANIFEST
from ssl_dist.training.metrics import MetricsReader

RECIPE = "simclr-cifar10-gpu"
NOTE, CONFIG = "benchmark.json", "config.json"
EVALUATIONS = ("knn", "linear")
K = 200  # neighbours, as in lightly's table
_STOP_S = 40  # a run that was asked to stop writes its checkpoint in this time
_EVALUATION_S = 20  # less is not worth the start of an evaluation


def main(
    train: Annotated[Path, typer.Option(help="Store of the training images.")],
    test: Annotated[Path, typer.Option(help="Store of the test images.")],
    out: Annotated[Path, typer.Option(help="The run's directory; a run that is there is resumed.")],
    minutes: Annotated[float, typer.Option(help="Time of this call; stopping takes up to 45 s more.")] = 8.5,
    epochs: Annotated[float, typer.Option(help="Length of the run.")] = 200,
    raw: Annotated[bool, typer.Option(help="Train on a raw copy, beside the run, of a store of JPEG files.")] = True,
    recipe: Annotated[str, typer.Option(help="Recipe of a new run.")] = RECIPE,
    settings: Annotated[list[str], typer.Option("--set", metavar="KEY=VALUE", help="Setting of a new run.")] = [],  # noqa: B006
) -> None:
    """Train for some minutes and print JSON lines: what is done, and the accuracies once all is done."""
    where, deadline = torch.device(default_device()), time.monotonic() + 60 * minutes
    stores = [
        _raw_copy(store, out.parent / f"{out.name}-{store.name}-raw") if raw else store for store in (train, test)
    ]
    note: Record = json.loads((out / NOTE).read_text()) if (out / NOTE).exists() else {"calls": []}
    if not _is_done(out):
        began, first_step = time.monotonic(), _step(out)
        code = _pretrain(out, _start(out, recipe, stores[0], epochs, settings), deadline)
        call = {"seconds": time.monotonic() - began, "first_step": first_step, "step": _step(out), "exit_code": code}
        note["calls"].append(call)
    _keep(out, note)
    say(where, {"part": "cifar10", **_progress(out, note)})
    if _is_done(out):
        for name in EVALUATIONS:
            left_s = deadline - time.monotonic()
            if (
                name not in note
                and left_s > _EVALUATION_S
                and (found := _evaluate(name, out, stores, left_s + _STOP_S))
            ):
                note[name] = found
                _keep(out, note)
        figures = {name: note.get(name, "not measured yet: call again") for name in EVALUATIONS}
        say(where, {"part": "cifar10", "train_s": _seconds(note), **figures})


def _raw_copy(store: Path, place: Path) -> Path:
    """Return the store itself if it holds pixels, otherwise a raw copy of it, which is made if it is not there."""
    if manifest_at(str(store)).encoding == "raw":
        return store
    if not (place / MANIFEST).exists():
        command = [*_command("store", "build"), str(store), str(place), "--encoding", "raw"]
        subprocess.run(command, check=True, stdout=sys.stderr)
    return place


def _command(*words: str) -> list[str]:
    return [sys.executable, "-m", "ssl_dist", *words]


def _start(out: Path, recipe: str, store: Path, epochs: float, settings: list[str]) -> list[str]:
    """Return the command that starts the run, or resumes the one that is there."""
    if (out / CONFIG).exists():
        return _command("pretrain", "--resume", str(out))
    values = [f"data.store={store.absolute()}", f"epochs={epochs:g}", "cluster.max_failures=0", *settings]
    return [
        *_command("pretrain", recipe),
        *(word for value in values for word in ("--set", value)),
        "--run-dir",
        str(out),
    ]


def _pretrain(out: Path, command: list[str], deadline: float) -> int:
    """Run the command until the deadline, then ask it to stop; return its exit code."""
    process = subprocess.Popen(command, stdout=sys.stderr)
    for wait_s, number in ((deadline - time.monotonic(), signal.SIGINT), (_STOP_S, signal.SIGINT), (5, signal.SIGKILL)):
        try:
            return process.wait(max(0.0, wait_s))
        except subprocess.TimeoutExpired:
            process.send_signal(number)
    return process.wait()


def _lines(out: Path) -> list[Record]:
    return MetricsReader(out).read_new()


def _step(out: Path) -> int:
    """Return the last step of which the run has metrics."""
    return max((line["step"] for line in _lines(out)), default=0)


def _is_done(out: Path) -> bool:
    """Return whether the run has all its steps, and a checkpoint of the last one."""
    total = next((line["plan/total_steps"] for line in _lines(out) if "plan/total_steps" in line), None)
    return total is not None and (out / "checkpoints" / f"step-{int(total):08d}").exists()


def _seconds(note: Record) -> float:
    """Return the time of all calls' pretraining: start, training, probes and checkpoints."""
    return float(sum(call["seconds"] for call in note["calls"]))


def _progress(out: Path, note: Record) -> Record:
    lines = _lines(out)
    rates = [line["speed/images_per_s"] for line in lines if "speed/images_per_s" in line]
    waits = [line["speed/data_wait_share"] for line in lines if "speed/data_wait_share" in line]
    probes = {f"{line['epoch']:g}": line[tag] for line in lines for tag in line if tag.startswith("probe/")}
    last: dict[str, Any] = {tag: value for line in lines for tag, value in line.items()}
    return {
        "step": _step(out),
        "total_steps": last.get("plan/total_steps"),
        "loss": last.get("train/loss"),
        "images_per_s": statistics.median(rates) if rates else None,
        "data_wait_share": statistics.median(waits) if waits else None,
        "peak_mb": last.get("memory/peak_mb"),
        "probe_by_epoch": probes,
        "train_s": _seconds(note),
        "calls": note["calls"],
    }


def _evaluate(name: str, out: Path, stores: list[Path], seconds: float) -> Record | None:
    """Measure the run's newest checkpoint; return None where that failed or took too long."""
    options = ["--k", str(min(K, manifest_at(str(stores[0])).rows))] if name == "knn" else []
    words = ["--train", str(stores[0]), "--test", str(stores[1]), "--baselines", "none", *options, "--json"]
    began = time.monotonic()
    try:
        command = [*_command("evaluate", name), str(out), *words]
        answer = subprocess.run(command, stdout=subprocess.PIPE, timeout=seconds, check=True).stdout
    except (subprocess.TimeoutExpired, subprocess.CalledProcessError):
        return None
    found: Record = json.loads(answer)
    return {"top1": found["rows"][0]["top1"], "step": found["step"], "seconds": time.monotonic() - began}


def _keep(out: Path, note: Record) -> None:
    if out.is_dir():
        write_text(out / NOTE, json.dumps(note))
