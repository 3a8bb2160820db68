"""Try hostile cases one after the other, those of each kind in a process of their own, and record what each cost.

    python -m tests.store.hostile.meter

reads tasks, a line of JSON each: ``[kind, seed, count, folder]``. It forks a process for each, since imports take
longer than cases, and answers with a line: the process's exit code, or minus the signal that ended it. The folder gets
``outcome.json``, ``number`` (of the case that was reached), and the inputs of the cases that failed.

Every case must end in a value or in an error of ssl_dist whose message is one line. It may write nothing on stdout
and stderr, and may take at most LIMIT_S of CPU time and MOST_BYTES more resident memory than there was before the
first case. CPU time is that of all threads, user and system; wall time would measure the other processes of a shared
machine. On a slower CPU than the one that LIMIT_S was chosen on, seconds are as much longer as a fixed calculation
takes longer. The kernel ends a process that takes more time, wherever it is.
"""

from __future__ import annotations

import importlib
import itertools
import json
import logging
import mmap
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from ssl_dist.errors import SslDistError

LIMIT_S = 1.0
DEADLOCK_S = 60.0  # wall time: threads that wait for one another take no CPU time
MOST_BYTES = 1 << 30
_REFERENCE_S = 0.021  # CPU time of ``_calculate`` on a core of an AMD EPYC at 2.6 GHz, for which LIMIT_S was chosen
_ADDRESS_BYTES = 16 << 30  # a limit that protects the machine; the test is about resident memory
_MOST_FAULTS, _LONGEST_MESSAGE = 10, 2000


class Case(NamedTuple):
    """One case.

    Attributes:
        attempt: the function that is measured.
        content: the input, which is kept when the case fails.
        honest_s: additional time for input that is allowed to take long, such as the largest image.
    """

    attempt: Callable[[], object]
    content: bytes
    honest_s: float = 0.0


Cases = Callable[[Path, int], Iterator[Case]]


def _calculate() -> float:
    """Return the CPU time of a fixed calculation."""
    start = time.process_time()
    sum(number * number for number in range(500_000))
    return time.process_time() - start


def _peak_bytes() -> int:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status[status.index("VmHWM:") + 6 :].split(maxsplit=1)[0]) << 10


def _try(case: Case, written: Path) -> tuple[str, str | None]:
    """Run a case; return how it ended, and what is wrong with that."""
    try:
        case.attempt()
        ended, fault = "value", None
    except SslDistError as error:
        message = str(error)
        ended = type(error).__name__
        fault = None if message.isprintable() and len(message) < _LONGEST_MESSAGE else f"a message: {message!r:.300}"
    except BaseException:
        ended, fault = "fault", traceback.format_exc(limit=-4)
    if written.stat().st_size:
        fault = f"{fault or ''} wrote: {written.read_text()[:300]}"
        os.truncate(2, 0)
    return ended, fault


def run(kind: str, seed: int, count: int, result: Path) -> dict[str, object]:
    name, _, function = kind.partition(".")
    cases: Cases = getattr(importlib.import_module(f"tests.store.hostile.{name}"), function)
    endings: dict[str, int] = {}
    faults: list[str] = []
    slowest, number = (0.0, -1), 0
    second = max(1.0, min(_calculate() for _ in range(5)) / _REFERENCE_S)
    with (result / "number").open("w+b") as file, tempfile.TemporaryDirectory(dir=result) as folder:
        file.truncate(8)
        reached = mmap.mmap(file.fileno(), 8)
        made = cases(Path(folder), seed)
        first = next(made)
        base = peak = _peak_bytes()
        for number, case in enumerate(itertools.islice(itertools.chain([first], made), count)):
            reached[:] = number.to_bytes(8, "little")
            signal.setitimer(signal.ITIMER_REAL, DEADLOCK_S)
            signal.setitimer(signal.ITIMER_PROF, (LIMIT_S + case.honest_s) * second)
            start = time.process_time()
            ended, fault = _try(case, result / "written")
            took = (time.process_time() - start) / second - case.honest_s
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.setitimer(signal.ITIMER_REAL, 0)
            slowest = max(slowest, (took, number))
            endings[ended] = endings.get(ended, 0) + 1
            before, peak = peak, _peak_bytes()
            if peak > before and peak - base > MOST_BYTES:
                fault = f"{fault or ''} took {(peak - base) >> 20} MiB"
            if fault:
                (result / f"case-{number}").write_bytes(case.content)
                faults.append(f"case {number}: {fault}")
            if len(faults) == _MOST_FAULTS:
                break
    return {
        "kind": kind,
        "seed": seed,
        "cases": sum(endings.values()),
        "endings": endings,
        "slowest_s": round(slowest[0], 3),
        "slowest_case": slowest[1],
        "peak_mib": (peak - base) >> 20,
        "faults": faults,
    }


def _measure(kind: str, seed: int, count: int, result: Path) -> None:
    """Try the cases in this process; ``harness`` of the result's folder tells why it could not."""
    resource.setrlimit(resource.RLIMIT_AS, (_ADDRESS_BYTES, _ADDRESS_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    said = os.open(result / "written", os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
    for stream in (1, 2):  # what a case prints must not be read as this process's answer
        os.dup2(said, stream)
    try:
        (result / "outcome.json").write_text(json.dumps(run(kind, seed, count, result)))
    except BaseException:
        (result / "harness").write_text(traceback.format_exc())
        raise


def main() -> None:
    logging.getLogger("ssl_dist").addHandler(logging.NullHandler())  # skipped files are logged on purpose
    for file in Path(__file__).parent.glob("*.py"):
        importlib.import_module(f"tests.store.hostile.{file.stem}")
    for line in sys.stdin:
        kind, seed, count, result = json.loads(line)
        if child := os.fork():
            _, status = os.waitpid(child, 0)
            print(os.waitstatus_to_exitcode(status), flush=True)
        else:
            ended = 1
            try:
                _measure(kind, seed, count, Path(result))
                ended = 0
            finally:
                os._exit(ended)


if __name__ == "__main__":
    main()
