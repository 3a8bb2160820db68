"""The ``ssl-dist`` command in the process of a test: what a test passes to it, and what comes back."""

from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest


class Outcome(NamedTuple):
    """The exit code of a command and its output."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Command = Callable[..., Outcome]


def run_in_process(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], *arguments: object) -> Outcome:
    """Run ``python -m ssl_dist`` with these arguments; a command that returns without an exit code succeeded."""
    from ssl_dist.commands.console import console, errors

    monkeypatch.setenv("PYTHONSAFEPATH", "")  # which the command sets: set back after the test
    monkeypatch.setattr(sys, "argv", ["ssl-dist", *map(str, arguments)])
    for one in (console, errors):
        monkeypatch.setattr(one, "_width", None)  # of COLUMNS as it was when the module was imported
    code: Any = 0
    try:
        runpy.run_module("ssl_dist", run_name="__main__")
    except SystemExit as ended:
        code = ended.code or 0
    return Outcome(code, *capfd.readouterr())
