"""Remote stores: a machine downloads each shard once, keeps only whole ones, and never exceeds its cache's limit."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest
from pyarrow import fs

from ssl_dist import store
from ssl_dist.collectives import World
from ssl_dist.data import SamplePlan, open_store, resolve
from ssl_dist.data.batches import Batches
from ssl_dist.errors import ConfigError, StoreDamaged, StoreError
from ssl_dist.store import ImageStore
from ssl_dist.store.remote import Bucket, cache, fetcher
from ssl_dist.store.remote import bucket as bucket_module
from ssl_dist.store.schema import ShardEntry
from ssl_dist.uris import join_uri, without_secrets
from tests.helpers import differences, resolved_config, small_config, train
from tests.store.conftest import ROWS
from tests.store.held import wait_until


def put(folder: Path, uri: str) -> str:
    system, base = fs.FileSystem.from_uri(uri)
    fs.copy_files(str(folder), base, fs.LocalFileSystem(), system)
    return uri


@pytest.fixture
def uri(bucket: str, here: Path, tmp_path: Path) -> str:
    return put(here, join_uri(bucket, tmp_path.name))


@pytest.fixture
def cache_path(tmp_path: Path) -> Path:
    path = tmp_path / "cache"
    path.mkdir()
    return path


def size_gb(path: Path, shards: float) -> float:
    """Return the size of this many shards of a store, in GB."""
    return max(entry.bytes for entry in store.Manifest.read(path).shards) * shards / 1e9


def total_bytes(cache_path: Path) -> int:
    """Return the size of a cache's files, listed again where one was moved or deleted meanwhile."""
    while True:
        with contextlib.suppress(FileNotFoundError):
            return sum(path.stat().st_size for path in cache_path.iterdir())


def suffixes(cache_path: Path) -> list[str]:
    return sorted(path.suffix for path in cache_path.iterdir() if path.suffix)


def change(uri: str, name: str, new: Callable[[bytes], bytes | None]) -> None:
    """Replace the content of one object of a remote store; None deletes the object."""
    system, base = fs.FileSystem.from_uri(uri)
    with system.open_input_stream(f"{base}/{name}") as stream:
        content = new(stream.read())
    if content is None:
        system.delete_file(f"{base}/{name}")
    else:
        with system.open_output_stream(f"{base}/{name}") as out:
            out.write(content)


def flipped(content: bytes) -> bytes:
    position = len(content) // 2
    return content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :]


class SlowDownloads:
    """A replacement for ``Bucket.download`` that records the names of the shards, and waits before each."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, latency_s: float = 0.0) -> None:
        self.names: list[str] = []
        download = Bucket.download

        def counted(bucket: Bucket, entry: ShardEntry, file: IO[bytes], *more: Any) -> None:
            self.names.append(entry.file)
            time.sleep(latency_s)
            download(bucket, entry, file, *more)

        monkeypatch.setattr(Bucket, "download", counted)


def test_a_remote_store_has_the_same_rows_as_its_local_copy(here: Path, uri: str, cache_path: Path) -> None:
    local, opened = ImageStore(here), ImageStore(uri, cache=cache_path)
    assert len(opened) == 51
    assert opened.manifest == local.manifest
    assert not suffixes(cache_path), "nothing is fetched before it is touched"
    ids = np.random.default_rng(0).integers(0, 51, 200)
    assert np.array_equal(opened.gather(ids), local.gather(ids))
    assert np.array_equal(opened.labels_at(ids), local.labels[ids])
    assert np.array_equal(opened.labels, local.labels)
    assert opened.remote is not None
    assert (opened.remote.num_fetched, suffixes(cache_path)) == (9, [".arrow"] * 9)
    assert total_bytes(cache_path) == local.manifest.bytes
    assert "secret" not in opened.name
    again = ImageStore(uri, cache=cache_path)
    assert np.array_equal(again.gather(ids), local.gather(ids))
    assert again.remote is not None
    assert again.remote.num_fetched == 0
    with pytest.raises(StoreError, match=r"s3://bucket/.* has samples 0\.\.50"):
        opened.gather(np.array([51]))


def test_a_small_cache_never_exceeds_its_limit(here: Path, uri: str, cache_path: Path) -> None:
    local, opened = ImageStore(here), ImageStore(uri, cache=cache_path, cache_gb=size_gb(here, 2.5))
    assert opened.cache_bytes is not None
    random = np.random.default_rng(0)
    for _ in range(6):
        ids = random.integers(0, 51, 8)
        assert np.array_equal(opened.gather(ids), local.gather(ids))
        assert total_bytes(cache_path) <= opened.cache_bytes
    assert np.array_equal(opened.labels, local.labels)
    assert total_bytes(cache_path) <= opened.cache_bytes
    assert opened.remote is not None
    before = opened.remote.num_fetched
    opened.gather(np.arange(51))
    assert opened.remote.num_fetched - before <= 9, "in the store's order, each shard is downloaded once"


def test_the_least_recently_used_shard_is_evicted_first(here: Path, uri: str, cache_path: Path) -> None:
    names = [f"{entry.xxh3}-{entry.bytes}.arrow" for entry in store.Manifest.read(here).shards]
    opened = ImageStore(uri, cache=cache_path, cache_gb=size_gb(here, 3.5))
    for row in (0, 1, 2, 0, 3):
        opened.gather(np.array([row * ROWS]))
    assert {path.name for path in cache_path.glob("*.arrow")} == {names[0], names[2], names[3]}


def test_shards_in_use_by_another_reader_are_not_evicted(
    here: Path, uri: str, cache_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(fetcher, "_ROOM_S", 0.1)
    small = {"cache": cache_path, "cache_gb": size_gb(here, 2.5)}
    one, other = ImageStore(uri, **small), ImageStore(uri, **small)
    one.gather(np.array([0, ROWS]))
    with pytest.raises(StoreError, match=r"all of it is in use.*raise data\.cache_gb, or lower data\.window"):
        other.gather(np.array([2 * ROWS]))
    one.prepare([0], [])
    assert other.gather(np.array([2 * ROWS])).shape == (1, 16, 16, 3)
    assert one.remote is not None
    assert one.remote.num_waits == 2
    one.gather(np.array([1]))
    assert one.remote.num_waits == 2, "its other shard is still in the cache"
    del one
    assert other.gather(np.array([3 * ROWS, 4 * ROWS])).shape == (2, 16, 16, 3), "a deleted reader uses no shard"


@pytest.mark.parametrize(
    ("change_of", "message"),
    [
        (flipped, "differs from its checksum, downloaded twice: copy the file there again"),
        (lambda content: content[:-100], "differs from its checksum, downloaded twice"),
        (lambda content: content + b"more", "differs from its checksum, downloaded twice"),
        (lambda content: b"", "differs from its checksum, downloaded twice"),
        (lambda content: None, r"shard-00002\.arrow is missing: copy the store again"),
    ],
    ids=["flipped", "cut", "longer", "empty", "missing"],
)
def test_a_damaged_shard_in_the_bucket_is_named_and_never_cached(
    uri: str, cache_path: Path, change_of: Callable[[bytes], bytes | None], message: str
) -> None:
    change(uri, "shard-00002.arrow", change_of)
    opened = ImageStore(uri, cache=cache_path)
    for _ in range(2):
        with pytest.raises((StoreDamaged, StoreError), match=message):
            opened.gather(np.array([0, 2 * ROWS + 1]))
    assert suffixes(cache_path) == [".arrow"], "only the first shard is cached, nothing of the third"
    assert {damage.shard for damage in opened.verify()} == {"shard-00002.arrow"}


def test_verify_names_the_record_batch_of_a_flipped_bit_in_the_bucket(here: Path, uri: str, cache_path: Path) -> None:
    [_, batch] = store.Manifest.read(here).shards[2].batches
    position = batch.offset + 30
    change(uri, "shard-00002.arrow", lambda content: content[:position] + b"\xff" + content[position + 1 :])
    assert ImageStore(uri, cache=cache_path).verify() == [("shard-00002.arrow", 1, (2 * ROWS + 4, 3 * ROWS))]
    assert not suffixes(cache_path), "verifying caches nothing"


def test_a_shard_that_arrives_damaged_once_is_downloaded_again(
    uri: str, here: Path, cache_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    read, bad = bucket_module._read, [True]

    def once_damaged(stream: Any, count: int) -> bytes:
        content = read(stream, count)
        return flipped(content) if content and bad and bad.pop() else content

    monkeypatch.setattr(bucket_module, "_read", once_damaged)
    assert np.array_equal(
        ImageStore(uri, cache=cache_path).gather(np.arange(51)), ImageStore(here).gather(np.arange(51))
    )
    assert "arrived with another checksum" in caplog.text


def test_a_shard_damaged_in_the_cache_is_downloaded_again(uri: str, here: Path, cache_path: Path) -> None:
    whole = ImageStore(uri, cache=cache_path).gather(np.arange(51))
    for path in sorted(cache_path.glob("*.arrow"))[:2]:
        path.write_bytes(flipped(path.read_bytes()))
    for path in sorted(cache_path.glob("*.arrow"))[2:4]:
        path.write_bytes(path.read_bytes()[:-9])
    opened = ImageStore(uri, cache=cache_path)
    assert np.array_equal(opened.gather(np.arange(51)), whole)
    assert opened.remote is not None
    assert opened.remote.num_fetched == 4


def test_old_shards_of_an_extended_store_are_not_downloaded_again(
    here: Path, bucket: str, image_folder: Path, tmp_path: Path, cache_path: Path
) -> None:
    copy, uri = tmp_path / "copy", join_uri(bucket, tmp_path.name)
    shutil.copytree(here, copy)
    old = ImageStore(put(copy, uri), cache=cache_path)
    old.gather(np.arange(51))
    store.append(image_folder, copy, workers=1, allow_duplicates=True)
    new = ImageStore(put(copy, uri), cache=cache_path)
    assert np.array_equal(new.gather(np.arange(102)), ImageStore(copy).gather(np.arange(102)))
    assert new.remote is not None
    assert new.remote.num_fetched == len(new.manifest.shards) - 9
    assert np.array_equal(old.gather(np.arange(51)), new.gather(np.arange(51)))


def test_wrong_uris_and_caches_give_clear_errors(bucket: str, uri: str, cache_path: Path, tmp_path: Path) -> None:
    for wrong, message in {
        join_uri(bucket, "nothing"): r"s3://bucket/runs/nothing is not a store \(no manifest\.json\): build one",
        bucket.replace("bucket/runs", "nobucket/x"): "is not a store|cannot be reached",
        "ftp://host/x": "ftp://host/x is not the URI of a store",
        "s3://[x/store": r"s3://\[x/store is not the URI of a store",
    }.items():
        with pytest.raises(StoreError, match=message):
            ImageStore(wrong, cache=cache_path)
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match=r"data\.cache .*file cannot be used"):
        ImageStore(uri, cache=tmp_path / "file").gather(np.array([0]))
    assert ImageStore(uri, cache=tmp_path / "file").verify() == [], "verify needs no cache"
    change(uri, "manifest.json", lambda content: content[:-20])
    with pytest.raises(StoreError, match=r"manifest\.json cannot be read"):
        ImageStore(uri, cache=cache_path)


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("s3://key:SECRET@bucket/a?region=x", "s3://bucket/a"),
        ("s3://key:SE/CRET@bucket/a", "s3://bucket/a"),
        ("s3://key:SE@C/RET@bucket/a b", "s3://bucket/a b"),
        ("s3://key@bucket", "s3://bucket"),
        ("s3://bucket/me@home/a", "s3://bucket/me@home/a"),
        ("file:///data/me@home", "file:///data/me@home"),
        ("stores/me@home", "stores/me@home"),
    ],
)
def test_messages_hold_no_keys(here: Path, uri: str, shown: str) -> None:
    assert without_secrets(uri) == shown
    if "key" in uri:
        with pytest.raises(StoreError) as refused:
            Bucket(f"{uri.partition('?')[0]}?unknown=1")
        assert shown in str(refused.value)
        assert not re.search("key|SE|RET", str(refused.value))
        began = resolved_config(here)
        data, facts = began.data.model_copy(update={"store": uri}), began.facts.model_copy(update={"num_images": 4})
        with pytest.raises(StoreError, match=f"^{re.escape(shown)} has num_images 4"):
            began.expect_same_data(began.model_copy(update={"data": data, "facts": facts}))


def test_the_cache_is_where_its_user_says(monkeypatch: pytest.MonkeyPatch, here: Path, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    config = windowed(f"file://{here}", tmp_path, Path("~/shards"))
    assert resolve(config).config.data.cache == str(tmp_path / "shards")
    assert len(open_store(config.data).labels) == 51
    assert suffixes(tmp_path / "shards") == [".arrow"] * 9
    monkeypatch.chdir(tmp_path)
    assert cache.cache_folder("shards") == tmp_path / "shards"

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    monkeypatch.delenv("XDG_CACHE_HOME")
    opened = ImageStore(f"file://{here}")
    with pytest.raises(StoreError, match=r"data\.cache .*Could not determine home.*: set it to a folder's full path"):
        opened.gather(np.array([0]))
    with pytest.raises(ConfigError, match=r"data\.cache_gb"):
        windowed(f"file://{here}", tmp_path, tmp_path, data__cache_gb=1e300)


def test_a_manifest_cannot_name_files_outside_the_cache(uri: str, cache_path: Path) -> None:
    """Refuse a bad file name even if the manifest has no checksum of its own."""
    change(uri, "manifest.json", lambda content: re.sub(rb',\s*"xxh3": "\w+"\s*}$', b"}", content))
    ImageStore(uri, cache=cache_path)
    change(uri, "manifest.json", lambda content: re.sub(rb'("bytes": \d+,\s*"xxh3": ")\w+', rb"\1../x", content))
    with pytest.raises(StoreError, match=r"manifest\.json cannot be read \(shards\.0\.xxh3"):
        ImageStore(uri, cache=cache_path)


def test_errors_of_a_too_small_cache_and_of_a_full_disk_say_what_to_do(
    here: Path, uri: str, cache_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(StoreError, match=r"data\.cache_gb .* is less than the .* GB of shard-00000\.arrow"):
        ImageStore(uri, cache=cache_path, cache_gb=size_gb(here, 0.9)).gather(np.array([0]))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache.os, "posix_fallocate", full)
    with pytest.raises(StoreError, match=r"the disk of data\.cache .* is full: set data\.cache_gb"):
        ImageStore(uri, cache=cache_path).gather(np.array([0]))
    assert suffixes(cache_path) == []


def test_a_download_continues_after_a_broken_connection(
    uri: str, here: Path, cache_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(bucket_module, "_PAUSE_S", 0.01)
    monkeypatch.setattr(bucket_module, "_CHUNK_BYTES", 1000)
    read, breaks = bucket_module._read, iter([False, False, True] + [False] * 9 + [True] * 99)

    def breaking(stream: Any, count: int) -> bytes:
        if next(breaks, False):
            raise bucket_module._Unreachable("broken pipe")
        return read(stream, count)

    monkeypatch.setattr(bucket_module, "_read", breaking)
    opened = ImageStore(uri, cache=cache_path)
    assert np.array_equal(opened.gather(np.array([0])), ImageStore(here).gather(np.array([0])))
    assert "shard-00000.arrow: attempt 1 of 2 failed (broken pipe)" in caplog.text
    with pytest.raises(StoreError, match=r"shard-00001\.arrow: s3://bucket/.* cannot be reached \(broken pipe\)"):
        opened.gather(np.array([ROWS]))
    assert suffixes(cache_path) == [".arrow"]


class Proxy:
    """A TCP proxy that can close its connections in the middle of a download."""

    def __init__(self, port: int) -> None:
        self._port, self.passes = port, 1 << 40  # bytes that may still come from the server
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            client, _ = self._listening.accept()
            server = socket.create_connection(("127.0.0.1", self._port))
            threading.Thread(target=self._pass, args=(client, server, False), daemon=True).start()
            threading.Thread(target=self._pass, args=(server, client, True), daemon=True).start()

    def _pass(self, source: Any, target: Any, counted: bool) -> None:
        try:
            while content := source.recv(4096):
                if counted:
                    content = content[: max(0, self.passes)]
                    self.passes -= len(content)
                target.sendall(content)
                if counted and self.passes <= 0:
                    break
        except OSError:
            pass
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@pytest.mark.slow
def test_reading_continues_after_the_server_was_away(
    uri: str, here: Path, cache_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(bucket_module, "_PAUSE_S", 0.01)
    port = uri.partition("127.0.0.1:")[2].partition("&")[0]
    proxy = Proxy(int(port))
    opened = ImageStore(uri.replace(f":{port}", f":{proxy.port}"), cache=cache_path)
    proxy.passes = 9000  # one shard, and a part of the next
    with pytest.raises(StoreError, match=r"shard-0000\d\.arrow: s3://bucket/.* cannot be reached"):
        opened.gather(np.arange(51))
    assert ".part" not in suffixes(cache_path)
    assert "attempt 1 of 2 failed" in caplog.text
    proxy.passes = 1 << 40
    assert np.array_equal(opened.gather(np.arange(51)), ImageStore(here).gather(np.arange(51)))


READER = """
import os, sys, time
import numpy as np
from pathlib import Path
from ssl_dist.store import ImageStore
from ssl_dist.store.remote import Bucket
download, log, uri, room, latency, seed = Bucket.download, *sys.argv[1:]
def logged(place, entry, file, *more):
    with open(log, "a") as out:
        out.write(f"{os.getpid()} {entry.file}\\n")
    file.write(b"begun"); file.flush()
    time.sleep(float(latency))
    download(place, entry, file, *more)
Bucket.download = logged
there = ImageStore(uri, cache=room)
order = np.random.default_rng(int(seed)).permutation(51)
there.prepare(range(9), [])
print(there.gather(order)[np.argsort(order)].astype(np.int64).sum(axis=(1, 2, 3)).tolist())
"""


@contextlib.contextmanager
def reader(log: Path, uri: str, cache_path: Path, latency_s: float, seed: int) -> Iterator[subprocess.Popen[str]]:
    """Start a process that gathers all images in its own random order, and logs its downloads."""
    arguments = map(str, (log, uri, cache_path, latency_s, seed))
    process = subprocess.Popen([sys.executable, "-c", READER, *arguments], stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_processes_that_share_a_cache_download_each_shard_once(
    here: Path, uri: str, cache_path: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    expected = ImageStore(here).gather(np.arange(51)).astype(np.int64).sum(axis=(1, 2, 3)).tolist()
    with reader(log, uri, cache_path, 0.1, 0) as one, reader(log, uri, cache_path, 0.1, 1) as other:
        for process in (one, other):
            assert process.stdout is not None
            assert process.stdout.read() == f"{expected}\n"
    fetched = [line.split() for line in log.read_text().splitlines()]
    assert sorted(name for _, name in fetched) == [f"shard-{number:05d}.arrow" for number in range(9)]


def test_a_killed_download_leaves_nothing_that_is_taken_for_a_shard(
    here: Path, uri: str, cache_path: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    with reader(log, uri, cache_path, 600, 0) as process:
        wait_until(lambda: process.poll() is not None or (log.exists() and ".part" in suffixes(cache_path)))
        assert process.poll() is None
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    parts = suffixes(cache_path)
    assert set(parts) == {".part"}
    opened = ImageStore(uri, cache=cache_path, cache_gb=size_gb(here, 2))  # no room unless the partial file is removed
    assert np.array_equal(opened.gather(np.array([8 * ROWS])), ImageStore(here).gather(np.array([8 * ROWS])))
    assert ".part" not in suffixes(cache_path)
    assert np.array_equal(opened.gather(np.arange(51)), ImageStore(here).gather(np.arange(51)))


def windowed(uri: str, tmp_path: Path, cache_path: Path, **more: Any) -> Any:
    """Return a configuration with ``data.order: shards`` and windows of three shards."""
    settings = {"data__order": "shards", "data__window": 3 * ROWS, "data__cache": str(cache_path), **more}
    config = small_config(tmp_path / "store", batch={"size": 6, "micro": 2}, probe=None, **settings)
    return config.model_copy(update={"data": config.data.model_copy(update={"store": uri})})


def test_shards_are_downloaded_ahead_and_once_an_epoch(
    here: Path, uri: str, cache_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = SlowDownloads(monkeypatch, latency_s=0.01)
    config = windowed(uri, tmp_path, cache_path, data__cache_gb=size_gb(here, 8))
    opened, local = open_store(config.data), ImageStore(here)
    plan = SamplePlan(config, opened)
    batches = Batches(plan, World(), 0, 17)
    assert opened.remote is not None
    for step in range(2 * 51 // 6):
        batch = batches.fetch(step)
        assert np.array_equal(batch.images.numpy(), local.gather(batch.ids.numpy()))
        now, soon = plan.needed_shards(step)
        if len({*now, *soon}) <= 8:  # otherwise the cache has no room for them yet
            wait_until(lambda soon=soon: all(map(opened.remote.is_open, soon)))
    assert opened.remote.num_waits <= 3, "after the first window, each shard was there before it was touched"
    assert len(slow.names) <= 2 * 9 + 4, "each once an epoch, and the first ones of the third epoch"
    assert opened.cache_bytes is not None
    assert total_bytes(cache_path) <= opened.cache_bytes


def test_a_cache_of_one_window_downloads_no_shard_of_it_twice(
    here: Path, uri: str, cache_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step across two windows touches more shards than fit, but needs none of the old window's afterwards."""
    slow = SlowDownloads(monkeypatch)
    config = windowed(uri, tmp_path, cache_path, data__cache_gb=size_gb(here, 4.1))
    opened, local = open_store(config.data), ImageStore(here)
    for batch in Batches(SamplePlan(config, opened), World(), 0, 51 // 6):
        assert np.array_equal(batch.images.numpy(), local.gather(batch.ids.numpy()))
        assert opened.cache_bytes is not None
        assert total_bytes(cache_path) <= opened.cache_bytes
    assert len(slow.names) <= 9 + 4


@pytest.mark.parametrize(
    ("now", "soon", "requested"),
    [
        ([4, 5], [2, 0, 1], [4, 5, 2]),
        ([5], [2, 0, 1], [5, 2, 0]),
        ([5], [5, 2], [5, 2]),
        ([0, 1, 2, 3], [4], [0, 1, 2, 3]),
    ],
)
def test_no_more_is_fetched_ahead_than_fits_beside_what_is_needed_now(
    here: Path,
    uri: str,
    cache_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    now: list[int],
    soon: list[int],
    requested: Any,
) -> None:
    found: list[list[int]] = []
    monkeypatch.setattr(fetcher.Prefetcher, "request", lambda self, numbers, **_: found.append(numbers))
    ImageStore(uri, cache=cache_path, cache_gb=size_gb(here, 3.5)).prepare(now, soon)
    assert found == [requested]


def test_shards_that_do_not_all_fit_now_are_not_released_for_each_other(
    here: Path, uri: str, cache_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another store holds one of them in the cache, which has room for four."""
    slow = SlowDownloads(monkeypatch)
    other, opened = (ImageStore(uri, cache=cache_path, cache_gb=size_gb(here, 4.1)) for _ in range(2))
    assert other.remote is not None
    assert opened.remote is not None
    other.remote.open(8)
    assert opened.remote.open_together([0, 1, 2, 3]) is None
    assert [number for number in range(9) if opened.remote.is_open(number)] == [0, 1, 2]
    assert slow.names == [f"shard-{number:05d}.arrow" for number in (8, 0, 1, 2)]


def test_threads_that_look_for_room_do_not_keep_each_other_from_downloading(here: Path, cache_path: Path) -> None:
    """Each looks whether a dead process has left the files of the others."""
    [entry, *_] = store.Manifest.read(here).shards
    there = cache.Cache(cache_path, 50 / 1e9)
    entries = [entry.model_copy(update={"xxh3": f"{number:016x}", "bytes": 1}) for number in range(3000)]
    with ThreadPoolExecutor(4) as threads:
        for opened in threads.map(lambda one: there.fetch(one, lambda file: None, wait=False), entries):
            opened.close()


def test_a_cache_too_small_for_the_order_is_refused_with_the_size_it_needs(
    here: Path, uri: str, cache_path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    full = windowed(uri, tmp_path, cache_path, data__order="full", data__cache_gb=size_gb(here, 8))
    with pytest.raises(ConfigError, match=r"less than the .* GB of s3://bucket/.*: set data\.order=shards, or data\.c"):
        resolve(full)
    with pytest.raises(ConfigError, match=r"a window of 18 images of .* is in shards of .* GB: set it to"):
        resolve(windowed(uri, tmp_path, cache_path, data__cache_gb=size_gb(here, 3.5)))
    with caplog.at_level(logging.WARNING):
        resolve(windowed(uri, tmp_path, cache_path, data__cache_gb=size_gb(here, 5)))
    assert "has no room for two windows" in caplog.text
    assert resolve(windowed(uri, tmp_path, cache_path, data__cache_gb=size_gb(here, 8))).config.facts.num_images == 51
    assert resolve(windowed(uri, tmp_path, cache_path, data__order="full")).config.facts.num_images == 51


def test_training_from_a_bucket_equals_training_from_a_folder(
    here: Path, uri: str, cache_path: Path, tmp_path: Path
) -> None:
    """Train nine steps, a little more than an epoch, with a cache for five of the nine shards."""
    opened = windowed(uri, tmp_path, cache_path, data__cache_gb=size_gb(here, 5))
    local = opened.model_copy(update={"data": opened.data.model_copy(update={"store": str(here)})})
    found, expected = train(0, 1, opened, 0, 9), train(0, 1, local, 0, 9)
    assert found.losses == expected.losses
    assert not differences(found.state.model, expected.state.model)


def test_a_remote_jpeg_store_is_read(image_folder: Path, bucket: str, tmp_path: Path, cache_path: Path) -> None:
    store.build(image_folder, tmp_path / "s", encoding="jpeg", workers=1)
    opened = ImageStore(put(tmp_path / "s", join_uri(bucket, tmp_path.name)), cache=cache_path)
    assert np.array_equal(opened.gather(np.arange(51)), ImageStore(tmp_path / "s").gather(np.arange(51)))
