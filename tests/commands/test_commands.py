"""The command line: one clear line and exit code 2 for the user's mistakes, JSON for machines."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from pyarrow import fs

from ssl_dist import __version__, store
from ssl_dist.commands.table import COMMANDS
from ssl_dist.data import resolve
from ssl_dist.uris import join_uri
from tests.command import Command, Outcome
from tests.helpers import RECIPE, save, small_config, train


def refused(outcome: Outcome, message: str) -> None:
    assert outcome.code == 2, outcome
    assert message in outcome.err
    assert "Traceback" not in outcome.err
    assert outcome.err.startswith("error: ")
    assert outcome.err.count("\n") == 1, outcome.err


@pytest.fixture(scope="module")
def finished(small_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a run of two steps with its checkpoint; return its directory."""
    run = tmp_path_factory.mktemp("finished")
    config = small_config(small_store)
    save(train(0, 1, config, 0, 2).state, run, 2, config)
    return run


def test_checkpoint_list_and_verify(command: Command, finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    outcome = command("checkpoint", "list", run, "--json")
    [one] = outcome.json["checkpoints"]
    assert (outcome.code, one["name"], one["step"], one["score"]) == (0, "step-00000002", 2, None)
    assert one["bytes"] > 100_000
    outcome = command("checkpoint", "verify", run, "--json")
    assert (outcome.code, outcome.json["checkpoints"][0]["state"]) == (0, "whole")
    (run / "checkpoints" / "step-00000002" / "model.safetensors").write_bytes(b"rubbish")
    outcome = command("checkpoint", "verify", run, "--json")
    assert outcome.code == 1
    assert "model.safetensors differs from its checksum" in outcome.json["checkpoints"][0]["state"]
    refused(command("checkpoint", "list", tmp_path / "nowhere"), "has no checkpoints")


def test_store_build_info_and_verify(command: Command, image_folder: Path, tmp_path: Path) -> None:
    built = command(
        "store", "build", image_folder, tmp_path / "s", "--size-px", 8, "--split", "all", "--workers", 1, "--json"
    )
    assert (built.code, built.json["rows"], built.json["image_shape"]) == (0, 51, [8, 8, 3])
    info = command("store", "info", tmp_path / "s", "--json")
    assert info.json == built.json
    assert "51 of 8 x 8 px" in info.err
    whole = command("store", "verify", tmp_path / "s", "--json")
    assert (whole.code, whole.json["damaged"]) == (0, [])
    shard = tmp_path / "s" / "shard-00000.arrow"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    torn = command("store", "verify", tmp_path / "s", "--json")
    assert (torn.code, torn.json["damaged"]) == (1, [{"shard": "shard-00000.arrow", "batch": 0, "rows": [0, 51]}])
    assert "damaged: shard-00000.arrow, record batch 0, samples 0..50" in torn.err


def test_a_store_in_a_bucket_goes_wherever_a_store_does(
    command: Command,
    bucket: str,
    small_store: Path,
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    uri = join_uri(bucket, tmp_path.name)
    system, base = fs.FileSystem.from_uri(uri)
    fs.copy_files(str(small_store), base, fs.LocalFileSystem(), system)
    info, here = command("store", "info", uri, "--json"), command("store", "info", small_store, "--json")
    not_counted = {"images_per_class": None, "without_label": None}  # that would read all shards of the bucket
    assert {**info.json, "store": ""} == {**here.json, **not_counted, "store": ""}
    assert info.json["store"] == f"s3://bucket/runs/{tmp_path.name}"
    found = command("evaluate", "knn", finished, "--train", uri, "--test", uri, "--json")
    local = command("evaluate", "knn", finished, "--train", small_store, "--test", small_store, "--json")
    assert {**found.json, "protocol": ""} == {**local.json, "protocol": ""}
    moved = command("evaluate", "transfer", finished, uri, "--k", 3, "--json")
    assert moved.code == 0, moved.err
    assert "key:secret" in uri
    assert "secret" not in moved.out + moved.err
    assert len(list((tmp_path / "ssl_dist").glob("*.arrow"))) == 1
    assert resolve(small_config(small_store, data={"store": uri})).config.data.store == uri
    whole = command("store", "verify", uri, "--json")
    assert (whole.code, whole.json) == (0, {"store": info.json["store"], "rows": 51, "damaged": []})
    system.delete_file(f"{base}/shard-00000.arrow")
    torn = command("store", "verify", uri, "--json")
    assert (torn.code, torn.json["damaged"]) == (1, [{"shard": "shard-00000.arrow", "batch": 0, "rows": [0, 51]}])
    refused(command("store", "info", join_uri(bucket, "nothing")), "s3://bucket/runs/nothing is not a store")


def test_stores_are_split_added_to_and_merged(command: Command, image_folder: Path, tmp_path: Path) -> None:
    options = ("--workers", 1, "--json")
    built = command("store", "build", image_folder, tmp_path / "s", "--split-by-hash", 0.3, *options)
    held = json.loads((tmp_path / "s-held-out" / "manifest.json").read_text())
    rest = json.loads((tmp_path / "s" / "manifest.json").read_text())
    assert (built.code, built.json["split"], built.json["rows"]) == (0, "train", rest["rows"])
    assert held["split"] == built.json["held_out"]["split"] == "held-out"
    (tmp_path / "s" / "manifest.json").unlink()
    (tmp_path / "s" / ".building").touch()  # as a kill in the second part leaves it
    again = command("store", "build", image_folder, tmp_path / "s", "--split-by-hash", 0.3, *options)
    assert (again.code, again.json) == (0, built.json)
    assert held["rows"] + rest["rows"] == 51
    merged = command("store", "merge", tmp_path / "s", tmp_path / "s-held-out", tmp_path / "m", *options)
    assert (merged.code, merged.json["rows"]) == (0, 51)
    again = ("store", "append", f"{image_folder}/class{{0,2}}/*.png", tmp_path / "m", *options)
    refused(command(*again), "has class0/000.png, class0/001.png, class0/002.png and ")
    added = command(*again, "--allow-duplicates")
    assert (added.code, added.json["rows"]) == (0, 51 + 34)
    as_jpeg = command("store", "build", image_folder, tmp_path / "j", "--encoding", "jpeg", *options)
    assert (as_jpeg.code, as_jpeg.json["encoding"]) == (0, "jpeg")
    refused(command("store", "build", image_folder, tmp_path / "x", "--split-by-hash", 1), "--split-by-hash 1: it is")
    refused(command("store", "merge", tmp_path / "s", tmp_path / "m", tmp_path / "j"), "holds a store already")


def test_store_mistakes(command: Command, image_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    refused(command("store", "build", tmp_path / "empty", tmp_path / "s"), "no image file")
    refused(command("store", "build", tmp_path / "none", tmp_path / "s"), "no such file or folder")
    refused(command("store", "info", tmp_path / "empty"), "is not a store")
    folder = tmp_path / "images"
    shutil.copytree(image_folder, folder)
    (folder / "class0" / "torn.png").write_bytes(b"no image")
    refused(command("store", "build", folder, tmp_path / "s", "--strict"), "class0/torn.png: ")


def test_an_error_that_looks_like_markup_is_printed_as_it_is(command: Command, tmp_path: Path) -> None:
    for name in ("[b]", "[/b]", "\\[/b]", "x\\"):
        refused(command("store", "build", tmp_path / name / "x", tmp_path / "s"), f"/{name}/x: no such file")


@pytest.mark.parametrize("kind", ["knn", "linear"])
def test_evaluate_prints_trained_beside_random(command: Command, finished: Path, small_store: Path, kind: str) -> None:
    done = command("evaluate", kind, finished, "--train", small_store, "--test", small_store, "--json")
    assert done.code == 0, done
    assert (done.json["step"], done.json["num_test"]) == (2, 51)
    assert 0.3 < done.json["trained"] <= 1
    assert 0.3 < done.json["random"] <= 1
    assert "random weights" in done.err


def test_one_neighbour_of_itself_is_itself(command: Command, finished: Path, small_store: Path) -> None:
    done = command("evaluate", "knn", finished, "--train", small_store, "--test", small_store, "--k", 1, "--json")
    assert done.json["trained"] == 1.0


def test_evaluate_mistakes(
    command: Command, finished: Path, small_store: Path, image_folder: Path, tmp_path: Path
) -> None:
    store.build(image_folder / "class0", tmp_path / "flat", workers=1)
    store.build(image_folder, tmp_path / "other-size", size_px=24, workers=1)
    ask = ("evaluate", "knn", finished, "--train", small_store, "--test")
    refused(command(*ask, tmp_path / "flat"), "has no labels")
    refused(command(*ask, tmp_path / "other-size"), "holds (24, 24, 3) images where (16, 16, 3) is needed")
    refused(command(*ask, tmp_path / "nothing"), "is not a store")
    refused(command(*ask, small_store, "--k", 99), "k 99: the bank has 51 labelled images, k is one of 1..51")
    refused(
        command("evaluate", "linear", tmp_path / "run", "--train", small_store, "--test", small_store),
        "is not a run directory",
    )
    refused(
        command("evaluate", "knn", tmp_path, "--train", small_store, "--test", small_store),
        "holds no checkpoint",
    )


@pytest.fixture
def recipe(tmp_path: Path, small_store: Path) -> Path:
    file = tmp_path / "mine.yaml"
    file.write_text(RECIPE + f"data: {{store: {small_store}}}\n")
    return file


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("optim.lrr=1", "--set optim.lrr: unknown key optim.lrr; did you mean optim.lr?"),
        ("lr=1", "--set lr: unknown key lr; did you mean optim.lr?"),
        ("batch.size=1.5", "error: --set batch.size: Input should be a valid integer"),
        ("batch.size=1", "--set batch.size: Input should be greater than or equal to 2"),
        ("batch.size=13", "batch.size 13 is not a multiple of batch.micro 4"),
        ("method.temperature=0", "method.temperature: Input should be greater than 0"),
        ("epochs=0.01", "are less than one batch of 12"),
        ("data.store=/nowhere", "/nowhere is not a store"),
        ("optim.lr", "write it as key=value"),
    ],
)
def test_pretrain_refuses_a_setting_before_anything_starts(
    command: Command, recipe: Path, tmp_path: Path, setting: str, message: str
) -> None:
    refused(command("pretrain", recipe, "--set", setting, "--out", tmp_path / "runs"), message)
    assert not (tmp_path / "runs").exists()


def test_pretrain_mistakes(command: Command, recipe: Path, finished: Path, tmp_path: Path) -> None:
    refused(command("pretrain", tmp_path / "no.yaml"), "no such file")
    refused(command("pretrain"), "give either a recipe, or --resume RUN_DIR")
    refused(command("pretrain", recipe, "--resume", finished), "give either a recipe, or --resume RUN_DIR")
    refused(command("pretrain", recipe, "--run-dir", finished), "is not empty: resume its run by --resume")
    refused(command("pretrain", recipe, "--run-dir", recipe / "under-a-file"), "cannot be written")
    refused(command("pretrain", "--resume", tmp_path / "nothing"), "is not a run that can resume")
    refused(command("pretrain", "--resume", finished, "--set", "optim.lr=3"), "a resumed run keeps its settings")


def test_an_unwritable_run_directory_is_refused(command: Command, recipe: Path) -> None:
    """/proc takes no new folder, from nobody."""
    refused(command("pretrain", recipe, "--out", "/proc"), "cannot be written: ")


@pytest.mark.parametrize("place", ["file", "file/under-it", "/proc/new"])
@pytest.mark.parametrize("evaluation", ["finetune", "semi"])
def test_a_folder_that_cannot_be_made_is_one_line(
    command: Command, recipe: Path, small_store: Path, tmp_path: Path, evaluation: str, place: str
) -> None:
    (tmp_path / "file").touch()
    stores = ("--train", small_store, "--test", small_store, "--labels", 12)
    more = ("--ratios", "1:1", "--unlabelled-batch", 4, "--batch", 4) if evaluation == "semi" else ("--batch", 4)
    done = command("evaluate", evaluation, recipe, *stores, *more, "--run-dir", tmp_path / place, "--json")
    assert done.code == 2, done.err
    last = done.err.splitlines()[-1]  # before it stands a warning: both stores are the same
    assert last.startswith("error: ")
    assert str(tmp_path / "file") in last or place == "/proc/new" in last
    assert done.json == {"error": last.removeprefix("error: ")}
    if place != "/proc/new":
        refused(
            command("pretrain", recipe, "--run-dir", tmp_path / place, "--dry-run"), "no folder that can be written"
        )


@pytest.mark.parametrize(("number", "code"), [(errno.ENOSPC, 1), (errno.EIO, 1), (errno.EACCES, 2), (errno.ENOENT, 2)])
def test_a_file_that_fails_in_any_command_is_one_line(
    command: Command, monkeypatch: pytest.MonkeyPatch, number: int, code: int
) -> None:
    def fail(name: str) -> None:
        raise OSError(number, os.strerror(number), f"some\n{name}")

    monkeypatch.setattr("ssl_dist.commands.main.command_of", fail)
    done = command("recipes")
    assert (done.code, done.err) == (code, f"error: some\\nrecipes: {os.strerror(number)}\n")


def test_a_port_in_use_is_refused(command: Command, recipe: Path, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        setting = f"cluster.dashboard_port={port}"
        outcome = command("pretrain", recipe, "--set", setting, "--run-dir", tmp_path / "run")
    refused(outcome, f"cluster.dashboard_port {port}: Address already in use; choose another")
    assert not (tmp_path / "run").exists(), "the corrected command can have the same --run-dir"


def test_an_unreachable_cluster_is_refused(
    command: Command, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setenv("RAY_ADDRESS", address)
    outcome = command("pretrain", recipe, "--run-dir", tmp_path / "run")
    refused(outcome, f"the Ray cluster at RAY_ADDRESS={address} cannot be reached")


def test_a_recipe_and_an_empty_store_folder(command: Command, recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    refused(
        command("pretrain", recipe, "--set", f"data.store={tmp_path / 'empty'}"), "is not a store (no manifest.json)"
    )


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_the_table_of_commands_names_code_that_is_there(name: str, command: Command) -> None:
    outcome = command(name, "--help")
    assert outcome.code == 0
    assert re.search(rf"Usage: .+ {name} ", outcome.out)


def test_help_lists_every_command_and_the_version_is_the_packages(command: Command) -> None:
    outcome = command("--help")
    assert all(re.search(rf"│ {name} +{re.escape(entry.help[:40])}", outcome.out) for name, entry in COMMANDS.items())
    assert command("--version").out == f"ssl_dist {__version__}\n"
    assert "Did you mean 'store'" in command("stor").err


def test_python_m_is_the_same_command_line() -> None:
    done = subprocess.run([sys.executable, "-m", "ssl_dist", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"ssl_dist {__version__}\n"


def test_settings_are_explained_by_key_section_and_all_at_once(command: Command) -> None:
    one = command("settings", "data.window", "--json")
    assert [row["key"] for row in one.json["settings"]] == ["data.window"]
    assert "262144" in one.err
    assert {row["key"] for row in command("settings", "batch", "--json").json["settings"]} == {
        "batch.size",
        "batch.micro",
        "batch.labelled",
        "batch.keep_graphs",
    }
    assert len(command("settings", "--json").json["settings"]) > 60
    refused(command("settings", "optim.lrr"), "unknown setting optim.lrr; did you mean optim.lr?")


@pytest.mark.parametrize(
    "line",
    [
        "evaluate knn {} --train a --test b",
        "checkpoint list {}",
        "checkpoint verify {}",
        "pretrain --resume {}",
    ],
)
def test_a_sweep_in_place_of_a_run_is_refused(command: Command, tmp_path: Path, line: str) -> None:
    (tmp_path / "sweep.json").touch()
    refused(
        command(*line.format(tmp_path).split()), f"{tmp_path} is a sweep: give one of its runs, such as {tmp_path}/best"
    )


def test_a_folder_that_is_no_store_is_the_source_of_one(command: Command, tmp_path: Path) -> None:
    refused(command("store", "info", tmp_path), f"make one with `ssl-dist store build {tmp_path} STORE`")
    refused(command("store", "info", tmp_path / "s"), f"make one with `ssl-dist store build SOURCE {tmp_path / 's'}`")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["evalute"], "No such command 'evalute'. Did you mean 'evaluate'? See ssl-dist --help"),
        (["checkpoint", "lst"], "No such command 'lst'. Did you mean 'list'? See ssl-dist checkpoint --help"),
        (["pretrain", "--nope"], "No such option: --nope. See ssl-dist pretrain --help"),
        (["evaluate", "knn"], "Missing argument 'RUN'. See ssl-dist evaluate knn --help"),
        (["report", "run", "--out"], "Option '--out' requires an argument"),
    ],
)
def test_a_wrong_call_is_one_line_and_one_json_object(command: Command, arguments: list[str], said: str) -> None:
    outcome = command(*arguments)
    assert (outcome.code, outcome.out, outcome.err) == (2, "", f"error: {said}\n")
    if "--out" not in arguments:  # which would take it for its value
        assert command(*arguments, "--json").json == {"error": said}
