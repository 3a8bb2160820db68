"""Prepare a run before Ray starts: read a recipe and open its store, or reopen an earlier run to resume it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cluster.run_directory import FREE_ON_RESUME, RunDirectory, may_change_on_resume
from ssl_dist import data
from ssl_dist.checkpoint import Checkpoints, pretrained
from ssl_dist.checkpoint.mirror import Mirror
from ssl_dist.commands.console import say
from ssl_dist.config import ResolvedConfig, RunConfig
from ssl_dist.config.overrides import put_override
from ssl_dist.errors import ConfigError, RunError
from ssl_dist.uris import split_uri, without_secrets


def resolve(recipe: str, overrides: dict[str, Any]) -> ResolvedConfig:
    """Read a recipe and open its store once: whatever is wrong with it is said before anything starts."""
    return _resolve(RunConfig.load(recipe, overrides))


def _resolve(config: RunConfig) -> ResolvedConfig:
    """Find the facts about the run's data and weights, and check its length and its mirror."""
    resolved = data.resolve(config).config
    resolved.plan()
    if config.checkpoint.mirror:
        Mirror(config.checkpoint.mirror).expect_writable()
    return pretrained.resolve(resolved)


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


def reopen(directory: Path, overrides: dict[str, Any]) -> tuple[RunDirectory, ResolvedConfig]:
    """Open a run to resume it, and write the settings that ``overrides`` changes into its config for later resumes."""
    if fixed := [key for key in overrides if not may_change_on_resume(key)]:
        free = ", ".join(FREE_ON_RESUME)
        raise ConfigError(f"--set {fixed[0]}: a resumed run keeps its settings; only {free} may change")
    run, before = RunDirectory.reopen(directory)
    tree = before.model_dump()
    for key, value in overrides.items():
        put_override(tree, key, value)
    config = _resolve(ResolvedConfig.from_tree(tree, str(directory)))
    before.expect_same_data(config)
    found = Checkpoints.from_config(run.path, config).newest()
    say(f"continuing from step {found.step}" if found else "no checkpoint yet: starting from step 0")
    run.update(config)
    return run, config
