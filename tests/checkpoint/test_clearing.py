"""Checkpoints of ended runs are deleted when a person says so, and nothing else is."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.run_directory import RunDirectory
from ssl_dist.checkpoint import Checkpoints, State
from ssl_dist.config import ResolvedConfig
from tests.command import Command
from tests.helpers import resolved_config

SCORES = {2: 0.25, 4: 0.75, 6: None, 8: 0.5}


@pytest.fixture
def config(small_store: Path) -> ResolvedConfig:
    return resolved_config(small_store, probe=None, checkpoint__keep=4)


@pytest.fixture
def run(config: ResolvedConfig, tmp_path: Path) -> Path:
    run = tmp_path / "a run"
    RunDirectory.create(run, config).release()
    for step, score in SCORES.items():
        Checkpoints(run).save(step, config, State(config.initial_method().state_dict(), {}), score)
    return run


def steps(run: Path) -> list[int]:
    return sorted(row["step"] for row in Checkpoints(run).describe())


@pytest.mark.parametrize(("options", "kept"), [((), [8]), (("--keep", "newest"), [8]), (("--keep", "best"), [4, 8])])
def test_all_but_those_to_keep_are_listed_and_with_yes_deleted(
    command: Command, run: Path, options: tuple[str, ...], kept: list[int]
) -> None:
    listed = command("checkpoint", "clear", run, *options, "--json")
    assert steps(run) == [2, 4, 6, 8], "nothing is deleted without --yes"
    superfluous = [one["path"] for one in listed.json["runs"][0]["superfluous"]]
    assert superfluous == [str(Checkpoints(run).path(step)) for step in (8, 6, 4, 2) if step not in kept]
    assert all(f"would be deleted: {path}, 0." in listed.err for path in superfluous)
    assert listed.json["bytes"] > 100_000
    done = command("checkpoint", "clear", run, *options, "--yes", "--json")
    assert steps(run) == kept
    assert {**done.json, "deleted": False} == listed.json


def test_the_newest_that_verifies_stays_beside_a_damaged_one(command: Command, run: Path) -> None:
    (Checkpoints(run).path(8) / "model.safetensors").write_bytes(b"rubbish")
    assert command("checkpoint", "clear", run, "--yes").code == 0
    assert steps(run) == [6, 8]
    (Checkpoints(run).path(6) / "model.safetensors").write_bytes(b"rubbish")
    refused = command("checkpoint", "clear", run, "--yes")
    assert refused.code == 1
    assert "none of the 2 checkpoints" in refused.err
    assert steps(run) == [6, 8]


def test_a_run_that_is_running_keeps_all_and_so_do_the_others(
    command: Command, run: Path, config: ResolvedConfig, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    for step in (1, 2):
        Checkpoints(other).save(step, config, State(config.initial_method().state_dict(), {}))
    running, _ = RunDirectory.reopen(run)
    for options in ((), ("--yes",)):
        refused = command("checkpoint", "clear", other, run, *options)
        assert refused.code == 2
        assert "a run is being run by another process, so nothing is deleted" in refused.err
    assert (steps(run), steps(other)) == ([2, 4, 6, 8], [1, 2])
    running.release()
    assert command("checkpoint", "clear", other, run, "--yes").code == 0
    assert (steps(run), steps(other)) == ([8], [2])


def test_what_a_kill_left_of_a_checkpoint_is_deleted_too(command: Command, run: Path) -> None:
    torn = run / "checkpoints" / ".step-00000010.abc.tmp"
    torn.mkdir()
    (torn / "model.safetensors").write_bytes(bytes(2_000_000))
    assert f"would be deleted: {torn}, 2.0 MB" in command("checkpoint", "clear", run).out
    assert command("checkpoint", "clear", run, "--yes").code == 0
    assert not torn.exists()


def test_mistakes(command: Command, run: Path, tmp_path: Path) -> None:
    for arguments, message in (
        ((tmp_path / "nowhere",), "nowhere has no checkpoints"),
        (
            (run, tmp_path),
            f"{tmp_path} has no checkpoints: give directories of runs that have written one, such as {tmp_path}/*",
        ),
        ((run, "--keep", "worst"), "--keep worst: it is newest, or best"),
    ):
        refused = command("checkpoint", "clear", *arguments, "--yes")
        assert refused.code == 2
        assert message in refused.err
    assert steps(run) == [2, 4, 6, 8]
