"""The starts of a run: when its workers began and ended, on which machine, with which versions.

RUN/starts.jsonl has a line for each beginning, and one for each end that the workers lived to see.
"""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ssl_dist import __version__, machine
from ssl_dist.training.metrics import METRICS, MetricsReader

if TYPE_CHECKING:
    from ssl_dist.collectives import World

STARTS = "starts.jsonl"
_LIBRARIES = ("torch", "torchvision", "deepspeed", "ray", "numpy")


class Start(NamedTuple):
    """One start of a run's workers.

    Attributes:
        began: seconds since 1970.
        ended: the same; None where the workers were killed, or still train.
        workers: how many there were.
        host, cpu, cores, memory_bytes: of the first worker's machine.
        gpu: name of its device; None: it trained on the CPU.
        versions: of this package, of Python and of the libraries that compute.
    """

    began: float
    ended: float | None
    workers: int
    host: str
    cpu: str
    cores: int
    memory_bytes: int
    gpu: str | None
    versions: Mapping[str, str]


@contextlib.contextmanager
def noted(run: Path, world: World) -> Iterator[None]:
    """Note in the run's directory when the block begins and ends; only rank 0 does."""
    if world.rank:
        yield
        return
    gpu = None
    if world.device.type == "cuda":
        import torch

        gpu = torch.cuda.get_device_name(world.device)  # untested
    start = Start(
        began=time.time(),
        ended=None,
        workers=world.size,
        host=socket.gethostname(),
        cpu=machine.cpu_name(),
        cores=machine.num_cores(),
        memory_bytes=machine.memory_bytes(),
        gpu=gpu,
        versions={
            "ssl_dist": __version__,
            "python": machine.python_version(),
            **{name: machine.version_of(name) for name in _LIBRARIES},
        },
    )
    _append(run, start._asdict())
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # what ended the run is told, not what came of it
            _append(run, {"ended": time.time()})


def _append(run: Path, line: dict[str, Any]) -> None:
    with (run / STARTS).open("a+b") as file:
        file.seek(max(0, file.tell() - 1))
        torn = file.read(1) not in (b"", b"\n")  # by a kill
        file.write(b"\n" * torn + json.dumps(line).encode() + b"\n")


def read_starts(run: Path) -> list[Start]:
    """Return the starts of a run, oldest first; of versions that noted none, and lines that are damaged, nothing.

    The last start, where its end was not noted, ended with the last line of the run's metrics so far.
    """
    starts = list[Start]()
    for line in MetricsReader(run, STARTS).read_new():
        if "began" in line:
            with contextlib.suppress(TypeError):  # a field is missing, or there is one more
                starts.append(Start(**line))
        elif starts and isinstance(line.get("ended"), float):
            starts[-1] = starts[-1]._replace(ended=line["ended"])
    if starts and starts[-1].ended is None and (run / METRICS).exists():
        starts[-1] = starts[-1]._replace(ended=max(starts[-1].began, (run / METRICS).stat().st_mtime))
    return starts
