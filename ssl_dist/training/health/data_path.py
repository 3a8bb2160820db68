"""The rule of a run that waits for its images."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from statistics import median

from ssl_dist.training.health.rule import LOGS, Rule
from ssl_dist.uris import is_remote

_STARVED = 0.3  # of the time; the run would be a third faster or more if it did not wait


class Starved(Rule):
    """A run that waits for images in at least 30 % of its time, by the median of five logs.

    The median leaves out the first log after a start, in which nothing was fetched ahead.
    """

    name = "starved"
    tags = ("speed/data_wait_share",)

    def __init__(self, store: str) -> None:
        self._is_remote = is_remote(store)
        self._shares = deque[float](maxlen=LOGS)

    def judge(self, line: Mapping[str, float]) -> str | None:
        self._shares.append(line["speed/data_wait_share"])
        if len(self._shares) < LOGS or (share := median(self._shares)) < _STARVED:
            return None
        place = "a larger data.cache_gb, or a copy of the store on a local disk" if self._is_remote else "a faster disk"
        return (
            f"the run waits for images in {share:.0%} of its time. Try {place}, a store of raw images in place of JPEG"
            " (ssl-dist store build --encoding raw), or more cores (cluster.cpus_per_worker, cluster.workers)"
        )
