"""Fixtures of all tests: small real stores, a bucket, and groups of gloo workers that live as long as the session."""

from __future__ import annotations

import logging
import os
import signal

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ.pop("RAY_ADDRESS", None)

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pyarrow import fs

from ssl_dist import store
from tests.command import Command, run_in_process
from tests.gloo import GlooPool

signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup, processes that tests start would ignore it
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))  # torch's own choice would be every core


def write_images(folder: Path, *, num_classes: int, per_class: int, size_px: int = 16, seed: int = 0) -> None:
    """Write class folders of smooth random PNG images: each class around a colour of its own, none black or white."""
    random = np.random.default_rng(seed)
    for label in range(num_classes):
        target = folder / f"class{label}"
        target.mkdir(parents=True)
        tint = random.uniform(90, 165, 3)
        for number in range(per_class):
            coarse = np.clip(tint + random.normal(0, 25, (4, 4, 3)), 0, 255).astype(np.uint8)
            image = Image.fromarray(coarse).resize((size_px, size_px), Image.Resampling.BICUBIC)
            image.save(target / f"{number:03d}.png")


@pytest.fixture(scope="session", autouse=True)
def _user_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Replace the user's cache directory, so that tests leave nothing in it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("user-cache")))
        yield


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write three class folders of 17 images each, 16 px."""
    folder = tmp_path_factory.mktemp("images")
    write_images(folder, num_classes=3, per_class=17)
    return folder


@pytest.fixture(scope="session")
def small_store(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build a store of 51 labelled images of 16 px."""
    path = tmp_path_factory.mktemp("stores") / "small"
    store.build(image_folder, path, workers=1)
    return path


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    """Return a function that runs ``ssl-dist`` with its arguments in this process."""
    return partial(run_in_process, monkeypatch, capfd)


@pytest.fixture(scope="session")
def gloo() -> Iterator[Callable[[int], GlooPool]]:
    """Return pools: ``gloo(W).run(function, *arguments)`` -> the W results of ``function(rank, W, *arguments)``."""
    pools: dict[int, GlooPool] = {}

    def pool(size: int) -> GlooPool:
        if size in pools and pools[size].broken:
            pools.pop(size).kill()
        if size not in pools:
            pools[size] = GlooPool(size)
        return pools[size]

    yield pool
    for one in pools.values():
        one.close()


@pytest.fixture(scope="session")
def bucket() -> Iterator[str]:
    """Start an S3 server in this process; yield a URI in a bucket on it."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    options = f"scheme=http&endpoint_override=127.0.0.1:{port}&region=us-east-1"
    fs.FileSystem.from_uri(f"s3://key:secret@bucket?{options}&allow_bucket_creation=true")[0].create_dir("bucket")
    yield f"s3://key:secret@bucket/runs?{options}"
    server.stop()
