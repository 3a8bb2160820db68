"""Hostile input ends in a value or in one error, within a second and without filling the memory or crashing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
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


def tried(kind: str, seed: int, count: int, folder: Path) -> dict[str, Any]:
    """Try this many cases in a process of their own, and return its outcome.

    A case that takes too long is tried again: input that is slow is slow again, a core that was shared may not be.
    """
    command = [sys.executable, "-m", "tests.store.hostile.meter", kind, str(seed), str(count), str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
    for _ in range(2):
        ended = subprocess.run(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, check=False)
        if ended.returncode != -signal.SIGPROF:
            break
    if ended.returncode:
        number = int.from_bytes((folder / "number").read_bytes(), "little")
        endings = {-signal.SIGPROF: f"took more than {meter.LIMIT_S} s", -signal.SIGALRM: "waited for ever"}
        why = endings.get(ended.returncode, f"ended the process: {ended.returncode} {ended.stderr.decode()[-2000:]}")
        pytest.fail(f"case {number} of {kind}, seed {seed}, {why}")
    outcome: dict[str, Any] = json.loads((folder / "outcome.json").read_text())
    return outcome


def assert_harmless(outcome: dict[str, Any], count: int) -> None:
    assert outcome["faults"] == []
    assert outcome["cases"] == count
    assert outcome["slowest_s"] < meter.LIMIT_S
    assert outcome["peak_mib"] << 20 <= meter.MOST_BYTES


@pytest.mark.parametrize("kind", KINDS)
def test_hostile_input_does_not_crash_or_hang_or_fill_the_memory(kind: str, tmp_path: Path) -> None:
    count, _ = KINDS[kind]
    assert_harmless(tried(kind, 0, count, tmp_path), count)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_hundred_thousand_cases(kind: str, tmp_path: Path) -> None:
    _, count = KINDS[kind]
    outcome = tried(kind, 1, count, tmp_path)
    print(json.dumps(outcome))
    assert_harmless(outcome, count)


def test_the_slow_test_has_a_hundred_thousand_cases() -> None:
    assert sum(count for _, count in KINDS.values()) == 100_000


CRIMES = {
    "hang": "took more than 1.0 s",
    "crash": "ended the process: -11",
    "untyped": "KeyError",
    "talk": "wrote on stderr: hello",
    "memory": "took 12",
    "lines": "a message: .two.*nlines",
}


@pytest.mark.parametrize("kind", CRIMES)
def test_the_harness_notices_each_crime(kind: str, tmp_path: Path) -> None:
    with pytest.raises((AssertionError, pytest.fail.Exception), match=CRIMES[kind]):
        assert_harmless(tried(f"crimes.{kind}", 0, 2, tmp_path), 2)
