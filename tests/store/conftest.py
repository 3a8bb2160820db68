"""Fixtures for the tests of the store: a store of several shards."""

from __future__ import annotations

from pathlib import Path

import pytest

from ssl_dist import store
from ssl_dist.store.building import builder

ROWS = 6  # rows of a shard: the 51 images fill eight of these, and half of a ninth


@pytest.fixture(scope="module")
def here(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the small store again, in nine shards: eight of two record batches, and one of one."""
    path = tmp_path_factory.mktemp("stores") / "here"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(builder, "SHARD_IMAGES", ROWS)
        patch.setattr(builder, "BATCH_ROWS", 4)
        store.build(image_folder, path, workers=1)
    return path
