"""A device whose memory is too small ends the run with one line that says which setting to lower."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ssl_dist.collectives import World
from ssl_dist.errors import RunError
from ssl_dist.methods.simclr import SimCLR
from ssl_dist.training.loop import StopRequests, pretrain
from tests.helpers import resolved_config

TOLD = "out of memory on cpu with batch.micro=4: "
LOWER = "lower batch.micro, by --set or in the recipe; batch.size=12 must stay"
KEEP_NONE = "set batch.keep_graphs=0, which takes a third more time; if that is not enough, "


@pytest.mark.parametrize(
    ("place", "kept", "advice"),
    [("embed", "auto", KEEP_NONE + LOWER), ("loss", 2, KEEP_NONE + LOWER), ("loss", 0, LOWER)],
)
def test_a_run_without_room_names_what_to_lower(
    place: str, kept: str | int, advice: str, small_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> Callable[..., None]:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has a total capacity ...")

    monkeypatch.setattr(SimCLR, place, full)
    with pytest.raises(RunError) as told:
        pretrain(resolved_config(small_store, batch__keep_graphs=kept), tmp_path, World(), StopRequests())
    assert str(told.value).startswith(TOLD + advice)
    assert "\n" not in str(told.value)
    assert told.value.exit_code == 2
