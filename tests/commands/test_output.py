"""What commands print: JSON alone on standard output, tables and bars of 80 columns, every terminal's encoding."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pytest
from rich.console import Console

from cluster.connect import Background
from cluster.doctor import show_report
from cluster.doctor.checks import Report
from cluster.doctor.complaints import Complaint
from cluster.doctor.workers import Link
from cluster.run_directory import RunDirectory
from ssl_dist.commands import console as streams
from ssl_dist.commands.main import command_of
from ssl_dist.commands.table import COMMANDS
from ssl_dist.embedding import embed
from ssl_dist.training.exactness import Finding
from ssl_dist.training.progress_bar import ProgressBar
from tests.cluster.test_doctor import healthy
from tests.command import Command
from tests.helpers import RECIPE, save, small_config, train
from tests.tune.test_search import begin
from tests.tune.test_sweep import make
from tune import runner


def leaves(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Yield every command below a group, with its full name."""
    for inner, found in getattr(command, "commands", {}).items():
        yield from leaves(found, f"{name} {inner}")
    if not hasattr(command, "commands"):
        yield name, command


ALL = dict(leaf for name in COMMANDS for leaf in leaves(command_of(name), name))


@pytest.mark.parametrize("name", ALL)
def test_every_command_has_json_that_keeps_standard_output(name: str) -> None:
    [option] = [one for one in ALL[name].params if "--json" in one.opts]
    assert option.callback is not None, "the callback sends everything else to standard error"


@pytest.fixture(scope="module")
def things(small_store: Path, image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Make one thing of each kind that commands take: a store, images, a run, a sweep."""
    folder = tmp_path_factory.mktemp("things")
    config = small_config(small_store)
    save(train(0, 1, config, 0, 2).state, folder / "run", 2, config)
    (folder / "run" / "metrics.jsonl").write_text('{"step": 2, "epoch": 0.5, "train/loss": 1.5, "probe/knn": 0.5}\n')
    sweep = make(small_store, search="grid", scheduler="none")
    sweep.write(folder / "sweep")
    for sample in sweep.known_samples:
        begin(sweep, folder / "sweep", sample, "finished", 0.5 + sample["epochs"] / 100)
    (folder / "mine.yaml").write_text(f"{RECIPE}data: {{store: {small_store}}}\n")
    embed(folder / "run", small_store, folder / "e.parquet")
    made = {
        "table": folder / "e.parquet",
        "run": folder / "run",
        "sweep": folder / "sweep",
        "recipe": folder / "mine.yaml",
    }
    return {"store": small_store, "images": image_folder, **made}


QUICK = {
    "pretrain": "{recipe} --print-config",
    "store build": "{images} {new}/s --workers 1 --split-by-hash 0.3",
    "store append": "{images} {copy} --workers 1 --allow-duplicates",
    "store merge": "{store} {store} {new}/m --workers 1",
    "store info": "{store}",
    "store verify": "{store}",
    "settings": "optim",
    "checkpoint list": "{run}",
    "checkpoint verify": "{run}",
    "evaluate knn": "{run} --train {store} --test {store}",
    "evaluate rank": "{run} --store {store} --views 2 --out {new}/rank.png",
    "evaluate map": "{run} --store {store} --perplexity 5 --out {new}/map.png",
    "export": "{run} {new}/encoder",
    "embed": "{run} {images} {new}/e.parquet --neighbours 2",
    "neighbours": "{table} class0/000.png --out {new}/n.png",
    "report": "{run}",
    "tune results": "{sweep}",
    "status": "{sweep}",
    "checkpoint clear": "{run}",
}


@pytest.mark.parametrize("name", QUICK)
def test_standard_output_is_one_json_object(
    command: Command, things: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    shutil.copytree(things["store"], tmp_path / "copy")
    places = {**things, "new": tmp_path, "copy": tmp_path / "copy"}
    done = command(*name.split(), *QUICK[name].format(**places).split(), "--json")
    assert done.code == 0, done
    assert isinstance(done.json, dict)
    assert done.out.count("\n") == 1
    assert done.err, "what is for a person goes to standard error"
    assert all(len(line) <= 80 for line in done.err.splitlines() if line[:1] in "┏┃┡│└┌├")


@pytest.mark.parametrize(
    "line", ["settings", "recipes", "checkpoint verify {run}", "report {run}", "status {sweep}", "tune results {sweep}"]
)
def test_nothing_is_cut_on_a_narrow_screen(
    command: Command, things: dict[str, Path], monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    shown = command(*line.format(**things).split())
    assert shown.code == 0
    assert "…" not in shown.out
    assert all(len(row) <= 40 for row in shown.out.splitlines() if row[:1] in "┏┃┡│└┌├")


@pytest.mark.parametrize(
    "wrong",
    [
        *("settings optim.lrr", "recipes simclr", "status {new}", "stop {new}", "stop {sweep}", "report {new}"),
        *("checkpoint list {new}", "checkpoint clear {new}", "tune results {run}", "tune {new}", "pretrain {new}"),
        *("pretrain", "store info {images}", "init {images}", "evaluate knn {new} --train {store} --test {store}"),
        "label-request {run} {store} --count 3",
        *("embed {new} {store} {new}/e.parquet", "neighbours {new}/e.parquet a.png"),
        *("doctor --set epochs=1", "self-train --test {new} {new}", "demo --set epoch=1"),
    ],
)
def test_a_mistake_is_one_json_object_too(
    command: Command, things: dict[str, Path], tmp_path: Path, wrong: str
) -> None:
    done = command(*wrong.format(**things, new=tmp_path).split(), "--json")
    assert done.code == 2
    assert done.json.keys() == {"error"}
    assert f"error: {done.json['error']}\n" in done.err


@pytest.mark.parametrize(
    "wrong",
    [
        ("settings", "--json", "--nonsense"),
        ("evaluate", "knn", "run", "--train", "a", "--test", "b", "--json", "--checkpoint", "last"),
        ("evaluate", "knn", "run", "--train", "a", "--test", "b", "--json", "--seeds", "few"),
        ("store", "info", "--json"),
        ("tune", "simclr-digits", "--out", "sweeps", "--sweep-dir", "sweep", "--json"),
    ],
)
def test_a_wrong_option_beside_json_leaves_standard_output_as_it_was(command: Command, wrong: tuple[str, ...]) -> None:
    assert command(*wrong).code == 2
    assert "optim.lr" in command("settings", "optim.lr").out
    assert streams._json_file.get() is None, "later objects go to where standard output is then"


@pytest.mark.parametrize("encoding", ["cp1252", "utf-8"])
def test_a_name_that_the_terminal_lacks_is_escaped(image_folder: Path, tmp_path: Path, encoding: str) -> None:
    for label, name in ((0, "猫"), (1, "Grün\udcff")):  # the last one is a byte that is no UTF-8
        shutil.copytree(image_folder / f"class{label}", tmp_path / "images" / os.fsdecode(os.fsencode(name)))
    done = in_a_process(
        "store", "build", tmp_path / "images", tmp_path / "s", "--workers", 1, PYTHONIOENCODING=encoding
    )
    assert done.returncode == 0, done.stderr
    assert ("猫" if encoding == "utf-8" else r"\u732b") in done.stdout.decode(encoding)
    done = in_a_process("store", "info", tmp_path / "no 猫", PYTHONIOENCODING=encoding)
    assert done.returncode == 2
    assert b"Traceback" not in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no device that is always full")
@pytest.mark.parametrize("line", ["settings", "--help", "store info {store} --json", "store info {images} --json"])
def test_output_onto_a_full_disk_is_an_error_of_one_line(things: dict[str, Path], line: str) -> None:
    with Path("/dev/full").open("w") as full:
        done = in_a_process(*line.format(**things).split(), stdout=full)
    assert done.returncode == 1
    assert done.stderr.decode().splitlines()[-1] == (
        "error: No space left on device: the output of this command is cut off"
    )
    assert b"Traceback" not in done.stderr


def in_a_process(
    *arguments: object, stdout: IO[str] | int = subprocess.PIPE, **environment: str
) -> subprocess.CompletedProcess[bytes]:
    """Run ``ssl-dist`` in a process of its own."""
    script = "import sys; sys.argv[0] = 'ssl-dist'; from ssl_dist.commands.main import main; main()"
    line = [sys.executable, "-c", script, *map(str, arguments)]
    whole = {**os.environ, **environment}
    return subprocess.run(line, env=whole, stdout=stdout, stderr=subprocess.PIPE, check=False)


def screen() -> Console:
    return Console(width=80, file=io.StringIO(), force_terminal=True, color_system=None)


def lines(console: Console) -> list[str]:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def test_lines_to_copy_are_not_wrapped(tmp_path: Path) -> None:
    """Warnings and errors of any length stand on one line, in a file and in a terminal."""
    long = tmp_path.joinpath(*["a-folder-with-a-long-name"] * 4)
    script = f"""
import logging
from ssl_dist.commands import main
from ssl_dist.errors import Interrupted
def app(**options):
    logging.getLogger("x").warning("resume with: ssl-dist pretrain --resume %s", "{long}")
    raise Interrupted("stopped; resume with: ssl-dist pretrain --resume {long}")
main.app = app
main.main()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 130
    resume = f"resume with: ssl-dist pretrain --resume {long}"
    assert done.stderr.splitlines() == [f"warning: {resume}", f"stopped; {resume}"]


def test_the_doctors_tables_fit_80_columns() -> None:
    versions = {"python": "3.11.7", "ssl_dist": "0.1.0", "ray": "2.55.1", "torch": "2.14.0+cu130"}
    name = "ip-10-0-112-123"
    node = healthy("host1")._replace(name=name, address="10.0.112.123", versions=versions)
    node = node._replace(devices={"CPU": 192.0, "GPU": 8.0})
    mend = "a remedy that is longer than the screen is wide, and may be a command that a person copies as it stands"
    findings = [Finding("self_classifier", "step, ZeRO 3, float32", 16, 1.0, 1e-7, 1e-4)]
    report = Report([node], [Complaint(name, "is unwell", mend)], Link(2, 1e-3, 1e9), findings, None)
    console = screen()
    show_report(console, report)
    shown = lines(console)
    assert max(len(line) for line in shown if not line.endswith(mend)) <= 80, "a remedy stands on one line, to copy it"
    assert any("2 workers: all-reduce" in line for line in shown)
    console = screen()
    show_report(console, report._replace(link=Link(1, 1e-6, 1e13)))
    assert not any("all-reduce" in line for line in lines(console)), "one worker has no link"
    for word in (name, "10.0.112.123", "2.14.0+cu130", "192 CPU", "8 GPU", "self_classifier", "float32"):
        assert any(word in line for line in shown), word


def test_bars_fit_80_columns(small_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    console = screen()
    metrics = {"step": 0, "train/loss": 5.43219, "probe/linear": 0.47321, "plan/total_steps": 234567}
    later = {"step": 123456, "probe/linear": 0.54321, "speed/images_per_s": 12345.6}
    with ProgressBar(tmp_path, console) as bar, (tmp_path / "metrics.jsonl").open("w") as file:
        for seconds, line in enumerate((metrics, later, {**later, "step": 123457})):
            monkeypatch.setattr(bar._progress, "get_time", lambda now=50_000.0 * seconds: now)
            print(json.dumps(line), file=file, flush=True)
            bar.update()
    whole = "123457/234567 loss 5.432  linear 0.473 to 0.5432  12,346 img/s [-0-9]+:[-0-9]{2}:[-0-9]{2}$"
    assert any(re.search(whole, line) for line in lines(console))
    sweep = make(small_store, search="grid", scheduler="none")
    monkeypatch.setattr(runner, "_POLL_S", 0.01)
    monkeypatch.setattr(runner, "_progress", lambda *_: (123_456_789.0, 234_567_890.0, 15, 0.54321))
    fit = Background(lambda: None)
    fit.start()
    (tmp_path / "lock").touch()
    runner._show_progress(fit, sweep, RunDirectory(tmp_path), console)
    monkeypatch.setattr(streams, "errors", console)
    with streams.image_bar("embedding", "reading the checkpoint") as bar:
        bar.add_note("3 nodes write")
        bar(1_234_567, 1_300_000)
    drawn = [re.sub(r"\x1b\[\??\d*[A-Za-z]|\r", "", line) for line in lines(console)]
    assert 70 < max(map(len, drawn)) <= 80
    assert not any("…" in line for line in drawn)


@pytest.mark.parametrize(
    ("typed", "found"),
    [
        ("ssl-dist chec", {"checkpoint"}),
        ("ssl-dist store ", {"build", "append", "merge", "info", "verify"}),
        ("ssl-dist tune recipe.yaml --sch", {"--scheduler"}),
        ("ssl-dist evaluate knn run --tr", {"--train"}),
    ],
)
def test_shells_complete_commands_and_options(typed: str, found: set[str]) -> None:
    words = typed.split(" ")
    asked = {"_SSL_DIST_COMPLETE": "complete_bash", "COMP_WORDS": typed, "COMP_CWORD": str(len(words) - 1)}
    done = in_a_process(**asked)
    assert found <= set(done.stdout.decode().split()), done


def test_the_script_that_completes_is_shown() -> None:
    done = in_a_process("--show-completion", "zsh", _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1")
    assert b"_SSL_DIST_COMPLETE" in done.stdout, done
