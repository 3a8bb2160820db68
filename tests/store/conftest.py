"""A store of several shards, as it would lie in a bucket."""

from __future__ import annotations

from pathlib import Path

import pytest

from ssl_dist import store
from ssl_dist.store.building import builder

ROWS = 6  # of a shard: the 51 images are in 8 of these and one of 3


@pytest.fixture(scope="module")
def here(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small store, in nine shards of two record batches."""
    path = tmp_path_factory.mktemp("stores") / "here"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(builder, "SHARD_FILES", ROWS)
        patch.setattr(builder, "BATCH_ROWS", 4)
        store.build(image_folder, path, workers=1)
    return path
