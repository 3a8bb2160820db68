"""Hostile input ends in a value or in one error, within a second and without filling the memory or crashing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.store.hostile import meter

ROOT = Path(__file__).parent.parent.parent
KINDS = {  # number of cases in the fast test, without the largest images, and in the slow one of 100,000
    "images.cases": (30, 30_000),
    "archives.cases": (20, 20_000),
    "stores.shards": (25, 12_000),
    "stores.packed": (25, 3_000),
    "stores.manifests": (30, 15_000),
    "tables.cases": (20, 8_000),
    "tables.structured": (20, 2_000),
    "packed.cases": (30, 5_000),
    "packed.structured": (20, 2_000),
    "names.patterns": (20, 2_000),
    "names.keys": (20, 1_000),
}


class Meter:
    """The process that tries cases, see tests/store/hostile/meter.py."""

    def __init__(self) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
        command = [sys.executable, "-m", "tests.store.hostile.meter"]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, cwd=ROOT, env=environment, text=True, stdin=pipe, stdout=pipe)

    def tried(self, kind: str, seed: int, count: int, folder: Path) -> dict[str, Any]:
        """Try this many cases, and return their outcome.

        A case that takes too long is tried again: input that is slow is slow again, a core that was shared may not be.
        """
        for _ in range(2):
            code = self._ask([kind, seed, count, str(folder)])
            if code != -signal.SIGPROF:
                break
        if code:
            number = int.from_bytes((folder / "number").read_bytes(), "little")
            endings = {-signal.SIGPROF: f"took more than {meter.LIMIT_S} s", -signal.SIGALRM: "waited for ever"}
            said = (folder / "harness").read_text()[-2000:] if (folder / "harness").exists() else ""
            why = endings.get(code, f"ended the process: {code} {said}")
            pytest.fail(f"case {number} of {kind}, seed {seed}, {why}")
        outcome: dict[str, Any] = json.loads((folder / "outcome.json").read_text())
        return outcome

    def _ask(self, task: list[object]) -> int:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps(task), file=self.process.stdin, flush=True)
        if not (line := self.process.stdout.readline()):
            pytest.fail(f"the meter has ended with code {self.process.wait()}")
        return int(line)


@pytest.fixture(scope="module")
def harness() -> Iterator[Meter]:
    started = Meter()
    yield started
    started.process.communicate()


def assert_harmless(outcome: dict[str, Any], count: int) -> None:
    assert outcome["faults"] == []
    assert outcome["cases"] == count
    assert outcome["slowest_s"] < meter.LIMIT_S
    assert outcome["peak_mib"] << 20 <= meter.MOST_BYTES


@pytest.mark.parametrize("kind", KINDS)
def test_hostile_input_does_not_crash_or_hang_or_fill_the_memory(harness: Meter, kind: str, tmp_path: Path) -> None:
    count, _ = KINDS[kind]
    assert_harmless(harness.tried(kind, 0, count, tmp_path), count)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_hundred_thousand_cases(harness: Meter, kind: str, tmp_path: Path) -> None:
    _, count = KINDS[kind]
    outcome = harness.tried(kind, 1, count, tmp_path)
    print(json.dumps(outcome))
    assert_harmless(outcome, count)


def test_the_slow_test_has_a_hundred_thousand_cases() -> None:
    assert sum(count for _, count in KINDS.values()) == 100_000


CRIMES = {
    "hang": "took more than 1.0 s",
    "crash": "ended the process: -11",
    "untyped": "KeyError",
    "talk": "wrote: hello",
    "talk_on_stdout": "wrote: hello",
    "memory": "took 12",
    "lines": "a message: .two.*nlines",
}


@pytest.mark.parametrize("kind", CRIMES)
def test_the_harness_notices_each_crime(harness: Meter, kind: str, tmp_path: Path) -> None:
    with pytest.raises((AssertionError, pytest.fail.Exception), match=CRIMES[kind]):
        assert_harmless(harness.tried(f"crimes.{kind}", 0, 2, tmp_path), 2)
