"""Prepare a run before Ray starts: read a recipe and open its store, or reopen an earlier run to resume it."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any, NamedTuple

from cluster.guards import check_data
from cluster.run_directory import FREE_ON_RESUME, RunDirectory, may_change_on_resume
from ssl_dist import data, methods
from ssl_dist.checkpoint import Checkpoints, pretrained
from ssl_dist.checkpoint.mirror import Mirror
from ssl_dist.config import ResolvedConfig, RunConfig
from ssl_dist.config.overrides import put_override
from ssl_dist.errors import ConfigError, RunError
from ssl_dist.training.boards import expect_libraries
from ssl_dist.uris import split_uri, without_secrets


def resolve(recipe: str, overrides: dict[str, Any]) -> ResolvedConfig:
    """Read a recipe and open its store once: whatever is wrong with it is said before anything starts."""
    return resolve_settings(RunConfig.load(recipe, overrides))


def resolve_settings(config: RunConfig) -> ResolvedConfig:
    """Resolve the settings of a new run, and refuse what cannot work with its store."""
    found = data.resolve(config)
    check_data(found.config, found.store)
    return _check(found.config)


def _check(config: ResolvedConfig) -> ResolvedConfig:
    """Check the run's length, its boards, mirror, network and initial weights; find the facts about these."""
    config.plan()
    expect_libraries(config.monitor.also)
    config.backbone.expect_features(config.view_sizes)
    if config.checkpoint.mirror:
        Mirror(config.checkpoint.mirror).expect_writable()
    return pretrained.resolve(config)


def restore(uri: str, out: Path) -> Path:
    """Make a run's directory anew where only its mirror is left; return the directory."""
    place, name = split_uri(uri)
    directory = out / name
    if directory.exists():
        raise RunError(f"{directory} is there: resume it by --resume {directory}, or choose another --out")
    found = Checkpoints(directory, Mirror(uri)).newest()
    if found is None:
        raise RunError(f"{without_secrets(uri)} holds no checkpoint: give RUN of checkpoint.mirror/RUN")
    tree = found.config.model_dump()
    put_override(tree, "checkpoint.mirror", place)
    RunDirectory.claim(directory, ResolvedConfig.from_tree(tree, uri)).release()
    return directory


class Reopened(NamedTuple):
    """A run that was opened to resume it, after ``step`` of its steps; ``finished``: it has ended by itself."""

    run: RunDirectory
    config: ResolvedConfig
    step: int
    finished: bool


def reopen(directory: Path, overrides: dict[str, Any]) -> Reopened:
    """Open a run to resume it, and write the settings that ``overrides`` changes into its config for later resumes.

    Raises:
        ConfigError: a setting must not change, or ``epochs`` to a length with which the past would have been another.
    """
    if fixed := [key for key in overrides if key != "epochs" and not may_change_on_resume(key)]:
        free = ", ".join(("epochs", *FREE_ON_RESUME))
        raise ConfigError(f"--set {fixed[0]}: a resumed run keeps its settings; only {free} may change")
    run, before = RunDirectory.reopen(directory)
    tree = before.model_dump()
    for key, value in overrides.items():
        put_override(tree, key, value)
    config = _check(data.resolve(ResolvedConfig.from_tree(tree, str(directory))).config)
    before.expect_same_data(config)
    found = Checkpoints.from_config(run.path, config).newest()
    step = found.step if found else 0
    expect_same_past(before, config, step, directory)
    run.update(config)
    return Reopened(run, config, step, config.is_over(step, found.losses if found else ()))


def expect_same_past(before: ResolvedConfig, now: ResolvedConfig, step: int, run: Path) -> None:
    """Refuse another length of a run if some of the ``step`` steps that it has trained would have been other ones.

    Raises:
        ConfigError: the run is shorter than what it has trained, or its schedule follows its length.
    """
    if now.epochs == before.epochs or step == 0:
        return
    plan = now.plan()
    if plan.total_steps < step:
        raise ConfigError(
            f"--set epochs={now.epochs:g}: that is {plan.total_steps} steps, and {run} has trained {step}"
        )
    if follows := _what_follows_length(before, now, step):
        raise ConfigError(
            f"--set epochs={now.epochs:g}: in {run} {follows} followed the length of {before.epochs:g} epochs, so its"
            f" {step} steps would have been other ones. Train on from its weights in a new run: {_from_weights(run)}"
        )


def how_to_train_longer(config: ResolvedConfig, step: int, run: Path) -> str:
    """Say how to go on with a run that has trained all its steps, or has ended early."""
    if step < config.plan().total_steps:
        return (
            f"Its validation loss fell no more for probe.patience {config.probe and config.probe.patience}: train on"
            f" from its weights in a new run: {_from_weights(run)}"
        )
    longer = config.model_copy(update={"epochs": 2 * config.epochs})
    if follows := _what_follows_length(config, longer, step):
        return f"Since {follows} followed its length, train on from its weights in a new run: {_from_weights(run)}"
    return "For a longer run add --set epochs=..."


def _what_follows_length(before: ResolvedConfig, now: ResolvedConfig, step: int) -> str:
    """Name what would have been other in the first ``step`` steps of a run of another length; "": nothing."""
    follows = [f"method {now.method.name}"] if methods.load(now.method.name).follows_length else []
    if any(was != would_be for was, would_be in zip(before.rates(step), now.rates(step), strict=True)):
        follows.append(f"the learning rate (optim.schedule {now.optim.schedule})")
    was_small, would_be_small = (min(step, config.small_steps) for config in (before, now))
    if was_small != would_be_small:
        follows.append(f"the size of views (augment.start_px {now.augment.start_px})")
    return " and ".join(follows)


def _from_weights(run: Path) -> str:
    """Return the command that trains on from a run's weights."""
    there = shlex.quote(str(run))
    return f"ssl-dist pretrain {there}/config.json --set backbone.weights={there} --set epochs=..."
