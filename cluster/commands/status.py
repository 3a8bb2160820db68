"""The commands that look at a run or a sweep from another terminal or machine, and end it."""

from __future__ import annotations

import json
import shlex
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Column
from rich.text import Text

from cluster.run_status import STOP, RunStatus, TrialStatus, is_driven, read_status, read_trials
from ssl_dist.commands.console import console, print_json, say, show, table
from ssl_dist.commands.options import Json
from ssl_dist.errors import RunError

_RUNNING = ("running", "stopping")

Place = Annotated[Path, typer.Argument(help="Directory of a run or a sweep.")]


def status(run: Place, as_json: Json = False) -> None:
    """Show whether a run is running and where, its step, speed, time left and last probe; of a sweep, all trials."""
    if (trials := read_trials(run)) is not None:
        _show_trials(run, trials, as_json)
        return
    found = read_status(run)
    show(str(run), _rows(found), {}, as_json=False)
    if found.state == "running":
        say(f"end it: ssl-dist stop {shlex.quote(str(run))}")
    elif found.state not in ("stopping", "finished"):
        say(f"resume it: ssl-dist pretrain --resume {shlex.quote(str(run))}")
    print_json({"run": str(run), **found._asdict()}, as_json)


def stop(run: Place, as_json: Json = False) -> None:
    """End a run after its current step, with a checkpoint, from any machine that sees its directory; or end a sweep."""
    trials = read_trials(run)
    if trials is None:
        read_status(run)
    if not (is_driven(run) or any(one.run.state in _RUNNING for one in trials or ())):
        raise RunError(f"{run} is not running: `ssl-dist status {shlex.quote(str(run))}` says how it ended")
    (run / STOP).touch()
    resume = f"ssl-dist {'pretrain' if trials is None else 'tune'} --resume {shlex.quote(str(run))}"
    say("asked to end after its current step, with a checkpoint" if trials is None else "asked to end its trials")
    say(f"resume with: {resume}")
    print_json({"run": str(run), "resume": resume}, as_json)


def _rows(found: RunStatus) -> list[tuple[str, str]]:
    place = f" on {found.host} (process {found.process})" if found.host else ""
    sign = f", last sign of life {timedelta(seconds=round(found.silent_s))} ago" if found.host else ""
    rows = [("state", f"{found.state}{place}{sign}")]
    if found.message:
        rows.append(("reason", found.message))
    share = f" of {found.total_steps:,} ({found.step / found.total_steps:.0%})" if found.total_steps else ""
    rows.append(("step", f"{found.step:,}{share}"))
    if found.images_per_s:
        rows.append(("speed", f"{found.images_per_s:,.0f} images/s"))
    if found.state in _RUNNING and found.left_s is not None:
        rows.append(("time left", str(timedelta(seconds=round(found.left_s)))))
    rows += [(name, f"{value:.4g} ({found.first_probe[name]:.4g} at first)") for name, value in found.probe.items()]
    rows.append(("checkpoint", found.checkpoint or "none yet"))
    return rows + [("health", f"step {one['step']:,}: {one['text']}") for one in found.health]


def _show_trials(sweep: Path, trials: list[TrialStatus], as_json: bool) -> None:
    shown = table(Column("trial", no_wrap=True), "settings", "state", "step", "probe")
    for one in trials:
        run, settings = one.run, (f"{key.rpartition('.')[2]}={_short(value)}" for key, value in one.settings.items())
        step = f"{run.step:,} of {run.total_steps:,}" if run.total_steps else ""
        probe = ", ".join(f"{key} {value:.4g}" for key, value in run.probe.items())
        shown.add_row(one.trial, *map(Text, (" ".join(settings), run.state, step, probe)))
    if trials:
        console.print(shown)
    else:
        say("no trial has begun")
    there = shlex.quote(str(sweep))
    say(f"its results: ssl-dist tune results {there}")
    if is_driven(sweep) or any(one.run.state in _RUNNING for one in trials):
        say(f"end it: ssl-dist stop {there}")
    else:
        left = "" if any(one.run.state in ("killed", "stopped") for one in trials) else "if it has trials left, "
        say(f"it is not running; {left}resume it: ssl-dist tune --resume {there}")
    rows = [{"trial": one.trial, "settings": one.settings, **one.run._asdict()} for one in trials]
    print_json({"sweep": str(sweep), "trials": rows}, as_json)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value)
