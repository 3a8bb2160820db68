"""Ctrl-C, SIGTERM and SIGHUP end a command in the same way, also where the terminal is gone."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import termios
from pathlib import Path
from typing import IO

import pytest
from rich.console import Console

from cluster import launch
from cluster.connect import _signals_kept
from cluster.run_directory import RunDirectory
from ssl_dist.commands.signals import ENDING, handled, interrupt
from ssl_dist.errors import Interrupted
from tests.command import Command

# A build that lasts until it is told to end, and says so by a file.
_CODE = """
import pathlib, sys, time
from ssl_dist import store
from ssl_dist.commands.main import main

def build(*_, **__):
    pathlib.Path("began").touch()
    time.sleep(100)

store.build = build
sys.argv[1:] = ["store", "build", "images", "store"]
try:
    main()
finally:
    pathlib.Path("ended").touch()
"""


def begun(folder: Path, output: int | IO[bytes], **options: object) -> subprocess.Popen[bytes]:
    code = [sys.executable, "-c", _CODE]
    child = subprocess.Popen(code, cwd=folder, stdin=output, stdout=output, stderr=output, **options)  # type: ignore[call-overload]
    while not (folder / "began").exists():
        assert child.poll() is None
    return child  # type: ignore[no-any-return]


@pytest.mark.parametrize("number", ENDING, ids=lambda number: number.name)
def test_a_signal_ends_a_build_with_a_word(number: signal.Signals, tmp_path: Path) -> None:
    with (tmp_path / "log").open("w+b") as log:
        child = begun(tmp_path, log)
        child.send_signal(number)
        assert child.wait() == 130
    assert "stopped; the same command goes on where it was" in (tmp_path / "log").read_text()


def test_a_command_under_nohup_outlives_its_terminal(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w+b") as log:
        child = begun(tmp_path, log, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
        child.send_signal(signal.SIGHUP)
        with pytest.raises(subprocess.TimeoutExpired):
            child.wait(0.3)
        child.send_signal(signal.SIGTERM)
        assert child.wait() == 130


def test_a_closed_terminal_ends_a_command_that_writes_to_it(tmp_path: Path) -> None:
    """Its last words would be an error of the terminal, which is gone."""
    master, terminal = os.openpty()

    def own_terminal() -> None:
        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    child = begun(tmp_path, terminal, preexec_fn=own_terminal)
    os.close(terminal)
    os.close(master)
    assert child.wait() == 130
    assert (tmp_path / "ended").exists()


@pytest.mark.parametrize("number", ENDING, ids=lambda number: number.name)
def test_a_signal_asks_a_run_to_stop_and_a_second_one_ends_it(number: signal.Signals, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)

    def two_signals() -> None:
        with launch._interrupts(run, Console(quiet=True), "the same again") as interrupts:
            assert not run.stop_asked()
            os.kill(os.getpid(), number)
            assert interrupts.asked
            assert run.stop_asked()
            os.kill(os.getpid(), number)
            os.kill(os.getpid(), signal.SIGINT if number == signal.SIGHUP else 0)

    with pytest.raises(Interrupted, match="stopped at once; resume from the newest checkpoint with: the same again"):
        two_signals()


def test_rays_processes_do_not_hear_that_a_terminal_closes() -> None:
    code = "import os, signal; os.kill(os.getpid(), signal.SIGHUP); print('lives')"
    with handled(interrupt):
        ours = [signal.getsignal(number) for number in ENDING]
        with _signals_kept():
            done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (0, "lives\n")
        assert [signal.getsignal(number) for number in ENDING] == ours
        assert signal.SIGHUP not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_ray_takes_no_signal_over() -> None:
    import ray._private.utils

    with handled(interrupt):
        ours = signal.getsignal(signal.SIGTERM)
        with _signals_kept():
            ray._private.utils.set_sigterm_handler(lambda *_: None)
            assert signal.getsignal(signal.SIGTERM) != ours, "it waits"
            assert signal.getsignal(signal.SIGTERM).__module__ == "cluster.connect"
        assert signal.getsignal(signal.SIGTERM) == ours


@pytest.mark.parametrize("number", ENDING, ids=lambda number: number.name)
def test_a_signal_waits_until_ray_has_started(number: signal.Signals) -> None:
    steps = []

    def start() -> None:
        with _signals_kept():
            os.kill(os.getpid(), number)
            steps.append("started")
        steps.append("not reached")

    with handled(interrupt):
        ours = signal.getsignal(number)
        with pytest.raises(KeyboardInterrupt):
            start()
        assert steps == ["started"]
        assert signal.getsignal(number) == (signal.SIG_IGN if number == signal.SIGHUP else ours), (
            "a second HUP is nothing"
        )


def test_a_second_signal_does_not_wait_for_ray() -> None:
    def start() -> None:
        with _signals_kept():
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGTERM)
            raise AssertionError("it has waited")

    with handled(interrupt), pytest.raises(KeyboardInterrupt):
        start()


def test_a_run_that_is_stopped_before_it_begins_leaves_no_directory(
    small_store: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def connect(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(launch, "needs_no_ray", lambda _: False)
    monkeypatch.setattr(launch, "ray_with_capacity", connect)
    settings = [f"data.store={small_store}", "batch={size: 12, micro: 4}", "optim.warmup_epochs=0", "cluster.workers=1"]
    options = [part for setting in settings for part in ("--set", setting)]
    outcome = command("pretrain", "simclr-digits", *options, "--run-dir", tmp_path / "run")
    assert (outcome.code, outcome.err) == (130, "stopped before it began\n"), outcome
    assert not (tmp_path / "run").exists()


def test_ctrl_c_ends_any_command_with_a_word(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def draw(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr("ssl_dist.report.curves.draw", draw)
    (tmp_path / "metrics.jsonl").touch()
    outcome = command("report", tmp_path, "--out", tmp_path / "curves.png", "--json")
    assert (outcome.code, outcome.err, outcome.json) == (130, "stopped\n", {"error": "stopped"})
