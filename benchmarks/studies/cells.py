"""Cells of a study: a few commands and the JSON that they end with; a finished cell is not run again.

All paths in a cell's commands are relative to the folder of results, OUT, where the commands run:

    runs/CELL, stores/CELL      what the cell makes
    CELL.json                   the cell's commands, their seconds and their JSON objects, written whole or not at all
    logs/CELL.log               what the commands said
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ssl_dist.errors import UsageError
from ssl_dist.files import lock, write_text

_ROOT = Path(__file__).parents[2]
_MADE = re.compile(r"(?:^|[=\s])(?:runs|stores)/([\w.-]+)")
_WAIT_S = 5.0

Runner = Callable[[Sequence[str], Path, Path], dict[str, Any]]
"""(arguments, working directory, log file) -> the JSON object that the command printed; CellFailed if it failed."""


class CellFailed(UsageError):
    """A command of a cell ended with an error, or there are results of other commands."""


class Cell(NamedTuple):
    """A few commands of the product, which run one after the other.

    Attributes:
        name: also that of the run or store that it makes.
        commands: as a person types them in OUT; ``--json`` is added to each.
    """

    name: str
    commands: tuple[str, ...]

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of the cells whose runs and stores the commands name."""
        found = (name for command in self.commands for name in _MADE.findall(command))
        return tuple(dict.fromkeys(name for name in found if name != self.name))


def cell(name: str, *commands: str) -> Cell:
    """Make a cell; a command may stand on several lines."""
    return Cell(name, tuple(" ".join(command.split()) for command in commands))


def with_needs(names: Sequence[str], cells: Mapping[str, Cell]) -> list[Cell]:
    """Return the named cells in their order, each behind those that it needs."""
    order = dict[str, Cell]()

    def add(name: str) -> None:
        for need in cells[name].needs:
            add(need)
        order.setdefault(name, cells[name])

    for name in names:
        add(name)
    return list(order.values())


class Results(NamedTuple):
    """The folder of results."""

    folder: Path

    def of(self, cell: Cell) -> dict[str, Any] | None:
        """Return what a finished cell's file holds; None of a cell that is not finished.

        Raises:
            CellFailed: it is finished with other commands, as with other epochs.
        """
        file = self._file(cell.name)
        if not file.exists():
            return None
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        if list(map(_words, found["commands"])) != list(map(_words, cell.commands)):
            raise CellFailed(
                f"{file} has figures of other commands, perhaps of other --epochs: give those, or choose another --out"
            )
        return found

    def last(self, name: str) -> dict[str, Any] | None:
        """Return the JSON object of a cell's last command; None of a cell that is not finished."""
        file = self._file(name)
        result = json.loads(file.read_text(encoding="utf-8"))["results"][-1] if file.exists() else None
        return result if isinstance(result, dict) else None

    def run(self, cell: Cell, runner: Runner) -> None:
        """Run the commands of a cell, and write its file."""
        results, seconds = [], []
        for command in cell.commands:
            began = time.perf_counter()
            words = [*_resumed(shlex.split(command), self.folder), "--json"]
            results.append(runner(words, self.folder, self.folder / "logs" / f"{cell.name}.log"))
            seconds.append(round(time.perf_counter() - began, 1))
        found = {"cell": cell.name, "commands": cell.commands, "seconds": seconds, "results": results}
        write_text(self._file(cell.name), json.dumps(found, indent=1))

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}.json"


def run_all(
    cells: Sequence[Cell], results: Results, runner: Runner, say: Callable[[str], None], wait_s: float = _WAIT_S
) -> list[str]:
    """Run all cells that are not finished, in their order; return the names of those that could not be.

    A cell that fails is told of, and those that do not need it run on. Several processes may share the work: each
    takes cells that no other one has, and waits for those that it needs.
    """
    (results.folder / "logs").mkdir(parents=True, exist_ok=True)
    failed = list[str]()
    pending = list(cells)
    while pending := [one for one in pending if results.of(one) is None and one.name not in failed]:
        names = {one.name for one in pending}
        failed += [one.name for one in pending if set(one.needs) & set(failed)]
        ready = [one for one in pending if not set(one.needs) & (names | set(failed))]
        if not any(_run_one(one, results, runner, say, failed) for one in ready):
            time.sleep(wait_s)
    return failed


def _run_one(cell: Cell, results: Results, runner: Runner, say: Callable[[str], None], failed: list[str]) -> bool:
    """Run a cell unless another process runs it, or has by now; return whether there was something to do."""
    held = lock(results.folder / "logs" / f"{cell.name}.lock")
    if held is None:
        return False
    with held:
        if results.of(cell) is None:
            began = time.perf_counter()
            try:
                results.run(cell, runner)
                say(f"{cell.name}: {time.perf_counter() - began:,.0f} s")
            except CellFailed as error:
                failed.append(cell.name)
                say(f"{cell.name}: failed: {error}")
    return True


def _words(command: str) -> list[str]:
    """Return a command's words sorted, so that its options may stand in another order."""
    return sorted(command.split())


def _resumed(words: list[str], folder: Path) -> list[str]:
    """Return the command that goes on where an earlier one with these words was killed.

    The other commands do so by themselves.
    """
    if words[:2] == ["ssl-dist", "pretrain"]:
        run = words[words.index("--run-dir") + 1]
        if (folder / run / "config.json").exists():
            return ["ssl-dist", "pretrain", "--resume", run]
    if words[:2] == ["ssl-dist", "label-request"]:  # it refuses a folder in which it cannot go on
        shutil.rmtree(folder / words[words.index("--out") + 1], ignore_errors=True)
    return words


def run_command(words: Sequence[str], folder: Path, log: Path) -> dict[str, Any]:
    """Run a command, with the interpreter and the sources of this process.

    Raises:
        CellFailed: it ended with another exit code than 0.
    """
    program = [sys.executable, "-m", "ssl_dist"] if words[0] == "ssl-dist" else [sys.executable]
    threads = {"OMP_NUM_THREADS": "1"}  # a worker has one core; two cells side by side would wait for each other
    environment = {**threads, **os.environ, "PYTHONPATH": str(_ROOT)}
    with log.open("a", encoding="utf-8") as said:
        said.write(f"$ {shlex.join(words)}\n")
        said.flush()
        options: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": said, "text": True}
        with subprocess.Popen([*program, *words[1:]], cwd=folder, env=environment, **options) as process:
            try:
                printed, _ = process.communicate()
            except BaseException:  # Ctrl-C or SIGTERM: it may write its checkpoint before it ends
                process.terminate()
                process.wait()
                raise
    if process.returncode:
        raise CellFailed(f"exit code {process.returncode} of {shlex.join(words)}; see {log}")
    found: dict[str, Any] = json.loads(printed)
    return found
