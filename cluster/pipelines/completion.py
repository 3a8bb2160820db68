"""Complete a run that the same command can resume, and hand labels from one run to the next."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

from cluster.launch import launch
from cluster.run_directory import RunDirectory, forbidden_changes
from ssl_dist.checkpoint import Checkpoints
from ssl_dist.commands.console import say
from ssl_dist.config import ResolvedConfig
from ssl_dist.data import resolve
from ssl_dist.errors import ClusterError, ConfigError, RunError, UsageError
from ssl_dist.settings import DataConfig
from ssl_dist.uris import join_uri

SAME_COMMAND = "the same command again"


def complete(directory: Path, config: ResolvedConfig, console: Console) -> dict[str, Any]:
    """Complete the run of this config in a directory: start it, resume it, or report that it was finished before.

    Returns:
        ``step`` and, unless the run was finished before, the last metrics.

    Raises:
        ConfigError, StoreError: the directory holds a run of other settings, or of other images.
        RunError: the run was stopped before its last step.
        Interrupted: Ctrl-C.
    """
    if config.checkpoint.mirror:  # several commands have runs of one name, and each needs a mirror of its own
        uri = join_uri(config.checkpoint.mirror, directory.parent.name)
        config = config.model_copy(update={"checkpoint": config.checkpoint.model_copy(update={"mirror": uri})})
    run = _claim(directory, config)
    try:
        if (step := finished_step(directory, config)) is not None:
            say(f"{directory}: finished before", console)
            return {"step": step}
        say(f"{directory}", console)
        last = launch(config, run, console, SAME_COMMAND)
    except (ClusterError, RunError):
        run.discard()
        raise
    finally:
        run.release()
    total_steps = config.plan().total_steps
    if last["step"] < total_steps and finished_step(directory, config) is None:
        raise RunError(f"{directory} was stopped after {last['step']} of {total_steps} steps: run {SAME_COMMAND}")
    return last


def finished_step(directory: Path, config: ResolvedConfig) -> int | None:
    """Return the step with which the run has ended by itself; None where it has not."""
    found = Checkpoints(directory).newest()
    return found.step if found is not None and config.is_over(found.step, found.losses) else None


def _claim(directory: Path, config: ResolvedConfig) -> RunDirectory:
    """Create or reopen a run, and refuse one of other settings or images."""
    if not has_begun(directory):
        return RunDirectory.create(directory, config)
    run, before = RunDirectory.reopen(directory)
    try:
        if differing := forbidden_changes(before, config):
            raise ConfigError(
                f"{directory} holds a run of other settings, {', '.join(differing)}: use the settings that it began"
                " with, or choose another --run-dir"
            )
        before.expect_same_data(config)
    except UsageError:
        run.release()
        raise
    run.update(config)
    return run


def expect_all_images(data: DataConfig) -> None:
    """Refuse settings that leave damaged images out: between two runs every image is looked at.

    Raises:
        ConfigError: ``damaged`` is skip.
    """
    if data.damaged == "skip":
        raise ConfigError(
            "data.damaged=skip: this command looks at every image between its runs: set data.damaged=refuse, and"
            " build the store again if it is damaged"
        )


def has_begun(directory: Path) -> bool:
    """Return whether the directory holds a run."""
    return (directory / "config.json").exists()


def with_data_settings(config: ResolvedConfig, **settings: Any) -> ResolvedConfig:
    """Replace some settings of ``data``, and find the facts about the data again.

    Raises:
        ConfigError: a label file does not fit, see ``data.read_labels``.
    """
    return resolve(config.model_copy(update={"data": config.data.model_copy(update=settings)})).config
