"""Stores, runs and sweeps that an earlier version wrote are read, verified, grown, continued and concluded.

``tests/before`` holds the files and what that version said of them. Commands are run as a user runs them, so that a
module may be renamed without a change here.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from ssl_dist.store import ImageStore
from tests.command import Command

BEFORE = Path(__file__).parent / "before"
MADE_AT = "/tmp/ssl_dist-before"  # the absolute path in the files
LAST_STEP = 13
LABELS = [0] * 8 + [1] * 8 + [2] * 8 + [0] * 4 + [1] * 4 + [2] * 4

# Other processors round sums of float32 otherwise. With seven choices of instruction sets and threads on one processor
# the losses of the steps left differed by up to 2.3e-6, the objectives of the sweep by up to 1.7e-6, and the weights by
# up to 1.9e-7 of their tensor's length.
LOSS_TOLERANCE = 1e-5
WEIGHT_TOLERANCE = 1e-5


def in_a_process(*arguments: object) -> Any:
    """Run ``ssl-dist`` in a process that starts Ray; return its JSON."""
    line = [sys.executable, "-m", "ssl_dist", *map(str, arguments)]
    done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


def copied(name: str, folder: Path) -> Path:
    """Copy what an earlier version wrote into ``folder``."""
    return Path(shutil.copytree(BEFORE / name, folder / name))


def expected(name: str) -> Any:
    """Return what the earlier version said."""
    return json.loads((BEFORE / "expected" / name).read_text())


def inode(path: Path) -> int:
    return path.stat().st_ino


# Stores


@pytest.mark.parametrize("name", ["raw", "jpeg"])
def test_a_store_is_whole(command: Command, name: str) -> None:
    info = command("store", "info", BEFORE / name, "--json")
    assert {**info.json, "store": ""}.items() >= {**expected(f"info_{name}.json"), "store": ""}.items()
    assert (sum(info.json["images_per_class"]), info.json["without_label"]) == (info.json["rows"], 0)
    assert command("store", "verify", BEFORE / name, "--json").json["damaged"] == []


def test_a_store_has_the_same_pixels_and_labels() -> None:
    raw, jpeg = (ImageStore(BEFORE / name, verify="full") for name in ("raw", "jpeg"))
    pixels = raw.gather(np.arange(36))
    assert hashlib.sha256(pixels.tobytes()).hexdigest() == expected("raw_pixels.json")
    assert raw.labels.tolist() == LABELS
    assert jpeg.labels.tolist() == LABELS[:24]
    # another libjpeg may round a pixel otherwise
    assert np.abs(jpeg.gather(np.arange(24)).astype(int) - pixels[:24]).max() <= 2


def test_a_store_is_appended_to(command: Command, tmp_path: Path) -> None:
    store = copied("raw", tmp_path)
    assert command("store", "append", BEFORE / "raw", store, "--workers", 1, "--allow-duplicates").code == 0
    assert json.loads((store / "manifest.json").read_text()) == expected("raw.json")
    assert ImageStore(store, verify="full").labels.tolist() == 2 * LABELS


def test_a_killed_build_goes_on_with_the_shard_it_has(command: Command, tmp_path: Path) -> None:
    store = copied("half_built", tmp_path)
    assert command("store", "info", store).code == 2
    shard = inode(store / "shard-00000.arrow")
    assert command("store", "build", BEFORE / "jpeg", store, "--encoding", "jpeg", "--workers", 1).code == 0
    assert json.loads((store / "manifest.json").read_text()) == expected("half_built.json")
    assert inode(store / "shard-00000.arrow") == shard, "it was written again"
    assert {path.name for path in store.iterdir()} == {"manifest.json", "shard-00000.arrow"}
    assert ImageStore(store, verify="full").labels.tolist() == LABELS[:24]


def test_a_killed_append_goes_on_with_the_shard_it_has(command: Command, tmp_path: Path) -> None:
    store = copied("half_appended", tmp_path)
    assert len(ImageStore(store, verify="full")) == 24
    shard = inode(store / "shard-00001.arrow")
    assert command("store", "append", BEFORE / "jpeg", store, "--workers", 1, "--allow-duplicates").code == 0
    assert json.loads((store / "manifest.json").read_text()) == expected("half_appended.json")
    assert inode(store / "shard-00001.arrow") == shard, "it was written again"
    assert {path.name for path in store.iterdir()} == {"manifest.json", "shard-00000.arrow", "shard-00001.arrow"}
    assert ImageStore(store, verify="full").labels.tolist() == 2 * LABELS[:24]


# Runs


def test_a_checkpoint_is_whole_and_its_encoder_as_good(command: Command) -> None:
    [listed] = command("checkpoint", "verify", BEFORE / "run", "--json").json["checkpoints"]
    assert (listed["step"], listed["state"]) == (5, "whole")
    stores = ("--train", BEFORE / "jpeg", "--test", BEFORE / "raw")
    found = command("evaluate", "knn", BEFORE / "run", *stores, "--k", 5, "--json").json
    assert expected("knn.json").items() <= found.items()


def its_data(store: Path = BEFORE / "raw", label_file: Path = BEFORE / "run" / "labels.npy") -> list[str]:
    """Return the arguments that replace the paths in the run's config."""
    return ["--set", f"data.store={store}", "--set", f"data.label_file={label_file}"]


def test_a_run_goes_on_with_the_data_it_began_with_alone(command: Command, tmp_path: Path) -> None:
    """The run's config.json has the facts about its data; they are compared before anything starts."""
    began = json.loads((BEFORE / "run" / "config.json").read_text())["data"]
    labels = np.load(BEFORE / "run" / "labels.npy")
    np.save(tmp_path / "others.npy", np.where(labels < 0, labels, 2 - labels))
    assert command("store", "build", BEFORE / "raw", tmp_path / "one_shard", "--workers", 1).code == 0
    others = {
        "num_images": its_data(store=BEFORE / "jpeg"),
        "label_digest": its_data(label_file=tmp_path / "others.npy"),
        "shards_digest": its_data(store=tmp_path / "one_shard"),
    }
    for fact, data in others.items():
        refused = command("pretrain", "--resume", copied("run", tmp_path / fact), *data)
        assert refused.code == 2
        assert str(began[fact]) in refused.err, fact


def lines_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def curve_of(lines: list[dict[str, Any]], tag: str) -> dict[int, float]:
    """Return the values of ``tag`` by step, of which each has one."""
    found = [(line["step"], line[tag]) for line in lines if tag in line]
    assert len(dict(found)) == len(found)
    return dict(found)


def starts_of(run: Path) -> list[int]:
    """Return the step of each start of the workers."""
    return [line["step"] for line in lines_of(run) if "plan/total_steps" in line]


@pytest.mark.timeout(400)
def test_a_stopped_run_goes_on_to_the_end_it_would_have_had(tmp_path: Path) -> None:
    run, before = copied("run", tmp_path), (BEFORE / "run" / "metrics.jsonl").read_text()
    ended = in_a_process("pretrain", "--resume", run, *its_data(), "--json")
    assert ended["step"] == LAST_STEP
    assert (run / "metrics.jsonl").read_text().startswith(before)
    assert starts_of(run) == [0, 5]
    wanted = [json.loads(line) for line in (BEFORE / "expected" / "metrics.jsonl").read_text().splitlines()]
    for tag in ("train/loss", "train/learning_rate", "probe/knn"):
        assert curve_of(lines_of(run), tag) == pytest.approx(curve_of(wanted, tag), rel=LOSS_TOLERANCE)
    weights = load_file(run / "checkpoints" / f"step-{LAST_STEP:08d}" / "model.safetensors")
    assert sorted(weights) == sorted(expected("weights.json"))
    for name, (length, weighted_sum) in expected("weights.json").items():
        flat = weights[name].astype(float).ravel()
        found = [np.linalg.norm(flat), flat @ np.cos(np.arange(len(flat)))]
        assert found == pytest.approx([length, weighted_sum], abs=WEIGHT_TOLERANCE * max(1, length)), name


# Sweeps


def fingerprint(config: Path) -> str:
    """Return the name that the earlier version gave to the trial of this config.json."""
    tree = json.loads(config.read_text())
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()[:12]


def moved_sweep(name: str, folder: Path) -> Path:
    """Copy a sweep, with the store's path of this checkout in it, and so with other names of its trials."""
    sweep = copied(name, folder)
    for file in (sweep / "sweep.json", *sweep.glob("trials/*/config.json")):
        assert file.name == "sweep.json" or file.parent.name == fingerprint(file)
        file.write_text(file.read_text().replace(f"{MADE_AT}/raw", str(BEFORE / "raw")))
    for config in list(sweep.glob("trials/*/config.json")):
        config.parent.rename(config.parent.with_name(fingerprint(config)))
    return sweep


def trial_of(sweep: Path, lr: float) -> Path:
    [found] = (
        file.parent for file in sweep.glob("trials/*/config.json") if json.loads(file.read_text())["optim"]["lr"] == lr
    )
    return found


def test_a_finished_sweep_has_the_same_table(command: Command, tmp_path: Path) -> None:
    sweep, then = moved_sweep("finished_sweep", tmp_path), expected("sweep.json")
    found = command("tune", "results", sweep, "--json").json
    assert [Path(one.pop("run")) for one in found["trials"]] == [
        trial_of(sweep, one["sample"]["optim.lr"]) for one in found["trials"]
    ]
    for trial in (found["best"], then["best"], *then["trials"]):
        del trial["run"]
    for trial in (found["best"], *found["trials"]):
        assert trial.pop("reason") == ""  # a field that is new
    assert {**found, "sweep": ""} == {**then, "sweep": ""}
    assert (sweep / "best" / "config.json").resolve() == trial_of(sweep, 0.004).resolve() / "config.json"


@pytest.mark.timeout(400)
@pytest.mark.slow
def test_a_killed_sweep_goes_on_with_its_trials_and_finds_the_same_winner(tmp_path: Path) -> None:
    """One of the three trials had ended, one had a checkpoint, and one had not begun."""
    sweep, then = moved_sweep("sweep", tmp_path), expected("sweep.json")
    ended, begun = trial_of(sweep, 0.05), trial_of(sweep, 0.004)
    before = {run: (run / "metrics.jsonl").read_text() for run in (ended, begun)}
    found = in_a_process("tune", "--resume", sweep, "--concurrency", 1, "--json")
    assert len(list((sweep / "trials").iterdir())) == len(found["trials"]) == 3
    assert (ended / "metrics.jsonl").read_text() == before[ended], "a trial that had ended was run again"
    assert (begun / "metrics.jsonl").read_text().startswith(before[begun])
    assert starts_of(begun) == [0, 5]
    undisturbed = lines_of(trial_of(BEFORE / "finished_sweep", 0.004))
    assert curve_of(lines_of(begun), "train/loss") == pytest.approx(
        curve_of(undisturbed, "train/loss"), rel=LOSS_TOLERANCE
    )
    assert (sweep / "best" / "config.json").resolve() == begun.resolve() / "config.json"
    keys = ("sample", "status", "images")
    assert [[one[key] for key in keys] for one in found["trials"]] == [
        [one[key] for key in keys] for one in then["trials"]
    ]
    objectives = [one["objective"] for one in then["trials"]]
    assert [one["objective"] for one in found["trials"]] == pytest.approx(objectives, rel=LOSS_TOLERANCE)
