"""A store in a bucket: its shards come to a machine once, whole or not at all, and no more of them than it is told."""

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


def put(folder: Path, uri: str) -> str:
    system, base = fs.FileSystem.from_uri(uri)
    fs.copy_files(str(folder), base, fs.LocalFileSystem(), system)
    return uri


@pytest.fixture
def uri(bucket: str, here: Path, tmp_path: Path) -> str:
    return put(here, join_uri(bucket, tmp_path.name))


@pytest.fixture
def room(tmp_path: Path) -> Path:
    path = tmp_path / "cache"
    path.mkdir()
    return path


def gb(path: Path, shards: float) -> float:
    """As many of a store's shards."""
    return max(entry.bytes for entry in store.Manifest.read(path).shards) * shards / 1e9


def held(room: Path) -> int:
    return sum(path.stat().st_size for path in room.iterdir())


def kinds(room: Path) -> list[str]:
    return sorted(path.suffix for path in room.iterdir() if path.suffix)


def change(uri: str, name: str, new: Callable[[bytes], bytes | None]) -> None:
    """One object of a store."""
    system, base = fs.FileSystem.from_uri(uri)
    with system.open_input_stream(f"{base}/{name}") as stream:
        content = new(stream.read())
    if content is None:
        system.delete_file(f"{base}/{name}")
    else:
        with system.open_output_stream(f"{base}/{name}") as out:
            out.write(content)


def flipped(content: bytes) -> bytes:
    place = len(content) // 2
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


class Slow:
    """In place of a download: counts, and takes its time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, latency_s: float = 0.0) -> None:
        self.names: list[str] = []
        download = Bucket.download

        def counted(place: Bucket, entry: ShardEntry, file: IO[bytes], *more: Any) -> None:
            self.names.append(entry.file)
            time.sleep(latency_s)
            download(place, entry, file, *more)

        monkeypatch.setattr(Bucket, "download", counted)


def test_a_store_in_a_bucket_has_the_rows_of_the_one_here(here: Path, uri: str, room: Path) -> None:
    local, there = ImageStore(here), ImageStore(uri, cache=room)
    assert len(there) == 51
    assert there.manifest == local.manifest
    assert not kinds(room), "nothing is fetched before it is touched"
    ids = np.random.default_rng(0).integers(0, 51, 200)
    assert np.array_equal(there.gather(ids), local.gather(ids))
    assert np.array_equal(there.labels_at(ids), local.labels[ids])
    assert np.array_equal(there.labels, local.labels)
    assert there.remote is not None
    assert (there.remote.num_fetched, kinds(room)) == (9, [".arrow"] * 9)
    assert held(room) == local.manifest.bytes
    assert "secret" not in there.name
    again = ImageStore(uri, cache=room)
    assert np.array_equal(again.gather(ids), local.gather(ids))
    assert again.remote is not None
    assert again.remote.num_fetched == 0
    with pytest.raises(StoreError, match=r"s3://bucket/.* has samples 0\.\.50"):
        there.gather(np.array([51]))


def test_a_small_cache_is_never_more_than_full(here: Path, uri: str, room: Path) -> None:
    local, there = ImageStore(here), ImageStore(uri, cache=room, cache_gb=gb(here, 2.5))
    assert there.cache_bytes is not None
    random = np.random.default_rng(0)
    for _ in range(6):
        ids = random.integers(0, 51, 8)
        assert np.array_equal(there.gather(ids), local.gather(ids))
        assert held(room) <= there.cache_bytes
    assert np.array_equal(there.labels, local.labels)
    assert held(room) <= there.cache_bytes
    assert there.remote is not None
    before = there.remote.num_fetched
    there.gather(np.arange(51))
    assert there.remote.num_fetched - before <= 9, "in the order of the store, each comes once"


def test_the_shard_used_longest_ago_goes_first(here: Path, uri: str, room: Path) -> None:
    names = [f"{entry.xxh3}-{entry.bytes}.arrow" for entry in store.Manifest.read(here).shards]
    there = ImageStore(uri, cache=room, cache_gb=gb(here, 3.5))
    for row in (0, 1, 2, 0, 3):
        there.gather(np.array([row * ROWS]))
    assert {path.name for path in room.glob("*.arrow")} == {names[0], names[2], names[3]}


def test_shards_that_another_reader_has_mapped_stay(here: Path, uri: str, room: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(fetcher, "_ROOM_S", 0.1)
    small = {"cache": room, "cache_gb": gb(here, 2.5)}
    one, other = ImageStore(uri, **small), ImageStore(uri, **small)
    one.gather(np.array([0, ROWS]))
    with pytest.raises(StoreError, match=r"all of it is in use.*raise data\.cache_gb, or lower data\.window"):
        other.gather(np.array([2 * ROWS]))
    one.prepare([0], [])
    assert other.gather(np.array([2 * ROWS])).shape == (1, 16, 16, 3)
    assert one.remote is not None
    assert one.remote.num_waits == 2
    one.gather(np.array([1]))
    assert one.remote.num_waits == 2, "its other shard stayed"
    del one
    assert other.gather(np.array([3 * ROWS, 4 * ROWS])).shape == (2, 16, 16, 3), "a store that is gone uses nothing"


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
def test_what_is_damaged_there_is_named_and_never_kept(
    uri: str, room: Path, change_of: Callable[[bytes], bytes | None], message: str
) -> None:
    change(uri, "shard-00002.arrow", change_of)
    there = ImageStore(uri, cache=room)
    for _ in range(2):
        with pytest.raises((StoreDamaged, StoreError), match=message):
            there.gather(np.array([0, 2 * ROWS + 1]))
    assert kinds(room) == [".arrow"], "the first shard, and nothing of the third"
    assert {damage.shard for damage in there.verify()} == {"shard-00002.arrow"}


def test_a_flipped_bit_there_is_found_with_its_record_batch(here: Path, uri: str, room: Path) -> None:
    [_, batch] = store.Manifest.read(here).shards[2].batches
    place = batch.offset + 30
    change(uri, "shard-00002.arrow", lambda content: content[:place] + b"\xff" + content[place + 1 :])
    assert ImageStore(uri, cache=room).verify() == [("shard-00002.arrow", 1, (2 * ROWS + 4, 3 * ROWS))]
    assert not kinds(room), "nothing is kept of what is only checked"


def test_a_shard_that_arrives_damaged_once_is_fetched_again(
    uri: str, here: Path, room: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    read, bad = bucket_module._read, [True]

    def once_damaged(stream: Any, count: int) -> bytes:
        content = read(stream, count)
        return flipped(content) if content and bad and bad.pop() else content

    monkeypatch.setattr(bucket_module, "_read", once_damaged)
    assert np.array_equal(ImageStore(uri, cache=room).gather(np.arange(51)), ImageStore(here).gather(np.arange(51)))
    assert "arrived with another checksum" in caplog.text


def test_a_shard_that_is_damaged_in_the_cache_is_fetched_again(uri: str, here: Path, room: Path) -> None:
    whole = ImageStore(uri, cache=room).gather(np.arange(51))
    for path in sorted(room.glob("*.arrow"))[:2]:
        path.write_bytes(flipped(path.read_bytes()))
    for path in sorted(room.glob("*.arrow"))[2:4]:
        path.write_bytes(path.read_bytes()[:-9])
    there = ImageStore(uri, cache=room)
    assert np.array_equal(there.gather(np.arange(51)), whole)
    assert there.remote is not None
    assert there.remote.num_fetched == 4


def test_a_store_that_has_grown_keeps_the_shards_that_it_had(
    here: Path, bucket: str, image_folder: Path, tmp_path: Path, room: Path
) -> None:
    copy, uri = tmp_path / "copy", join_uri(bucket, tmp_path.name)
    shutil.copytree(here, copy)
    old = ImageStore(put(copy, uri), cache=room)
    old.gather(np.arange(51))
    store.append(image_folder, copy, workers=1)
    new = ImageStore(put(copy, uri), cache=room)
    assert np.array_equal(new.gather(np.arange(102)), ImageStore(copy).gather(np.arange(102)))
    assert new.remote is not None
    assert new.remote.num_fetched == len(new.manifest.shards) - 9
    assert np.array_equal(old.gather(np.arange(51)), new.gather(np.arange(51)))


def test_places_that_are_none_are_one_clear_error(bucket: str, uri: str, room: Path, tmp_path: Path) -> None:
    for wrong, message in {
        join_uri(bucket, "nothing"): r"s3://bucket/runs/nothing is not a store \(no manifest\.json\): build one",
        bucket.replace("bucket/runs", "nobucket/x"): "is not a store|cannot be reached",
        "ftp://host/x": "ftp://host/x is not the URI of a store",
        "s3://[x/store": r"s3://\[x/store is not the URI of a store",
    }.items():
        with pytest.raises(StoreError, match=message):
            ImageStore(wrong, cache=room)
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match=r"data\.cache .*file cannot be used"):
        ImageStore(uri, cache=tmp_path / "file").gather(np.array([0]))
    assert ImageStore(uri, cache=tmp_path / "file").verify() == [], "which keeps nothing here"
    change(uri, "manifest.json", lambda content: content[:-20])
    with pytest.raises(StoreError, match=r"manifest\.json cannot be read"):
        ImageStore(uri, cache=room)


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


def test_a_cache_is_where_its_user_says(monkeypatch: pytest.MonkeyPatch, here: Path, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    config = windowed(f"file://{here}", tmp_path, Path("~/shards"))
    assert resolve(config).config.data.cache == str(tmp_path / "shards")
    assert len(open_store(config.data).labels) == 51
    assert kinds(tmp_path / "shards") == [".arrow"] * 9
    monkeypatch.chdir(tmp_path)
    assert cache.cache_folder("shards") == tmp_path / "shards"

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    monkeypatch.delenv("XDG_CACHE_HOME")
    opened = ImageStore(f"file://{here}")
    with pytest.raises(StoreError, match=r"data\.cache .*Could not determine home.*: set it to a folder"):
        opened.gather(np.array([0]))
    with pytest.raises(ConfigError, match=r"data\.cache_gb"):
        windowed(f"file://{here}", tmp_path, tmp_path, data__cache_gb=1e300)


def test_a_manifest_cannot_name_files_outside_the_cache(uri: str, room: Path) -> None:
    """Not even one whose own checksum is right, as it is where there is none."""
    change(uri, "manifest.json", lambda content: re.sub(rb',\s*"xxh3": "\w+"\s*}$', b"}", content))
    ImageStore(uri, cache=room)
    change(uri, "manifest.json", lambda content: re.sub(rb'("bytes": \d+,\s*"xxh3": ")\w+', rb"\1../x", content))
    with pytest.raises(StoreError, match=r"manifest\.json cannot be read \(shards\.0\.xxh3"):
        ImageStore(uri, cache=room)


def test_a_cache_smaller_than_a_shard_and_a_full_disk_say_what_to_do(
    here: Path, uri: str, room: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(StoreError, match=r"data\.cache_gb .* is less than shard-00000\.arrow has"):
        ImageStore(uri, cache=room, cache_gb=gb(here, 0.9)).gather(np.array([0]))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache.os, "posix_fallocate", full)
    with pytest.raises(StoreError, match=r"the disk of data\.cache .* is full: set data\.cache_gb"):
        ImageStore(uri, cache=room).gather(np.array([0]))
    assert kinds(room) == []


def test_a_connection_that_breaks_in_the_middle_costs_time_only(
    uri: str, here: Path, room: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(bucket_module, "_PAUSE_S", 0.01)
    monkeypatch.setattr(bucket_module, "_CHUNK_BYTES", 1000)
    read, breaks = bucket_module._read, iter([False, False, True] + [False] * 9 + [True] * 99)

    def breaking(stream: Any, count: int) -> bytes:
        if next(breaks, False):
            raise bucket_module._Unreachable("broken pipe")
        return read(stream, count)

    monkeypatch.setattr(bucket_module, "_read", breaking)
    there = ImageStore(uri, cache=room)
    assert np.array_equal(there.gather(np.array([0])), ImageStore(here).gather(np.array([0])))
    assert "shard-00000.arrow: attempt 1 of 2 failed (broken pipe)" in caplog.text
    with pytest.raises(StoreError, match=r"shard-00001\.arrow: s3://bucket/.* cannot be reached \(broken pipe\)"):
        there.gather(np.array([ROWS]))
    assert kinds(room) == [".arrow"]


class Proxy:
    """Between a client and the server; can go away in the middle of what it passes on."""

    def __init__(self, port: int) -> None:
        self._port, self.passes = port, 1 << 40  # bytes that still come from the server
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
def test_a_server_that_goes_away_in_the_middle_and_comes_back_costs_time_only(
    uri: str, here: Path, room: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(bucket_module, "_PAUSE_S", 0.01)
    port = uri.partition("127.0.0.1:")[2].partition("&")[0]
    proxy = Proxy(int(port))
    there = ImageStore(uri.replace(f":{port}", f":{proxy.port}"), cache=room)
    proxy.passes = 9000  # one shard, and a part of the next
    with pytest.raises(StoreError, match=r"shard-0000\d\.arrow: s3://bucket/.* cannot be reached"):
        there.gather(np.arange(51))
    assert ".part" not in kinds(room)
    assert "attempt 1 of 2 failed" in caplog.text
    proxy.passes = 1 << 40
    assert np.array_equal(there.gather(np.arange(51)), ImageStore(here).gather(np.arange(51)))


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
def reader(log: Path, uri: str, room: Path, latency_s: float, seed: int) -> Iterator[subprocess.Popen[str]]:
    """A process that gathers all images in an order of its own, and logs what it fetches."""
    arguments = map(str, (log, uri, room, latency_s, seed))
    process = subprocess.Popen([sys.executable, "-c", READER, *arguments], stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_processes_that_want_the_same_shards_fetch_each_once(here: Path, uri: str, room: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    expected = ImageStore(here).gather(np.arange(51)).astype(np.int64).sum(axis=(1, 2, 3)).tolist()
    with reader(log, uri, room, 0.1, 0) as one, reader(log, uri, room, 0.1, 1) as other:
        for process in (one, other):
            assert process.stdout is not None
            assert process.stdout.read() == f"{expected}\n"
    fetched = [line.split() for line in log.read_text().splitlines()]
    assert sorted(name for _, name in fetched) == [f"shard-{number:05d}.arrow" for number in range(9)]


def test_a_fetch_that_is_killed_leaves_nothing_that_is_taken_for_a_shard(
    here: Path, uri: str, room: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    with reader(log, uri, room, 600, 0) as process:
        deadline = time.monotonic() + 60
        while ".part" not in kinds(room) or not log.exists():
            assert time.monotonic() < deadline, "it never began"
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    parts = kinds(room)
    assert set(parts) == {".part"}
    there = ImageStore(uri, cache=room, cache_gb=gb(here, 2))  # with no room for what the dead one took
    assert np.array_equal(there.gather(np.array([8 * ROWS])), ImageStore(here).gather(np.array([8 * ROWS])))
    assert ".part" not in kinds(room)
    assert np.array_equal(there.gather(np.arange(51)), ImageStore(here).gather(np.arange(51)))


def windowed(uri: str, tmp_path: Path, room: Path, **more: Any) -> Any:
    """Windows of three shards."""
    settings = {"data__order": "shards", "data__window": 3 * ROWS, "data__cache": str(room), **more}
    config = small_config(tmp_path / "store", batch={"size": 6, "micro": 2}, probe=None, **settings)
    return config.model_copy(update={"data": config.data.model_copy(update={"store": uri})})


def test_shards_are_fetched_ahead_and_once_an_epoch(
    here: Path, uri: str, room: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = Slow(monkeypatch, latency_s=0.01)
    config = windowed(uri, tmp_path, room, data__cache_gb=gb(here, 8))
    there, local = open_store(config.data), ImageStore(here)
    plan, deadline = SamplePlan(config, there), time.monotonic() + 60
    batches = Batches(plan, World(), 0, 17)
    assert there.remote is not None
    for step in range(2 * 51 // 6):
        batch = batches.fetch(step)
        assert np.array_equal(batch.images.numpy(), local.gather(batch.ids.numpy()))
        now, soon = plan.needed_shards(step)
        while len({*now, *soon}) <= 8 and not all(
            map(there.remote.is_open, soon)
        ):  # else there is no room for them yet
            assert time.monotonic() < deadline, "the next window's shards never came"
            time.sleep(0.005)
    assert there.remote.num_waits <= 3, "but for the first window, a shard was there before it was touched"
    assert len(slow.names) <= 2 * 9 + 4, "each once an epoch, and the first ones of the third"
    assert there.cache_bytes is not None
    assert held(room) <= there.cache_bytes


def test_a_cache_of_one_window_serves_it_without_fetching_twice(
    here: Path, uri: str, room: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step that lies in two windows touches more than there is room for, and no shard is needed twice after it."""
    slow = Slow(monkeypatch)
    config = windowed(uri, tmp_path, room, data__cache_gb=gb(here, 4.1))
    there, local = open_store(config.data), ImageStore(here)
    for batch in Batches(SamplePlan(config, there), World(), 0, 51 // 6):
        assert np.array_equal(batch.images.numpy(), local.gather(batch.ids.numpy()))
        assert there.cache_bytes is not None
        assert held(room) <= there.cache_bytes
    assert len(slow.names) <= 9 + 4


def test_a_cache_too_small_for_the_order_is_refused_with_the_figure(
    here: Path, uri: str, room: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    full = windowed(uri, tmp_path, room, data__order="full", data__cache_gb=gb(here, 8))
    with pytest.raises(ConfigError, match=r"less than the .* GB of s3://bucket/.*: set data\.order=shards, or data\.c"):
        resolve(full)
    with pytest.raises(ConfigError, match=r"a window of 18 images of .* is in shards of .* GB: set it to"):
        resolve(windowed(uri, tmp_path, room, data__cache_gb=gb(here, 3.5)))
    with caplog.at_level(logging.WARNING):
        resolve(windowed(uri, tmp_path, room, data__cache_gb=gb(here, 5)))
    assert "has no room for two windows" in caplog.text
    assert resolve(windowed(uri, tmp_path, room, data__cache_gb=gb(here, 8))).config.facts.num_images == 51
    assert resolve(windowed(uri, tmp_path, room, data__order="full")).config.facts.num_images == 51


def test_training_from_a_bucket_equals_training_from_a_folder(here: Path, uri: str, room: Path, tmp_path: Path) -> None:
    """Nine steps are an epoch and a bit, with a cache of five of nine shards."""
    there = windowed(uri, tmp_path, room, data__cache_gb=gb(here, 5))
    local = there.model_copy(update={"data": there.data.model_copy(update={"store": str(here)})})
    found, expected = train(0, 1, there, 0, 9), train(0, 1, local, 0, 9)
    assert found.losses == expected.losses
    assert not differences(found.state.model, expected.state.model)


def test_a_jpeg_store_is_read_from_a_bucket(image_folder: Path, bucket: str, tmp_path: Path, room: Path) -> None:
    store.build(image_folder, tmp_path / "s", encoding="jpeg", workers=1)
    there = ImageStore(put(tmp_path / "s", join_uri(bucket, tmp_path.name)), cache=room)
    assert np.array_equal(there.gather(np.arange(51)), ImageStore(tmp_path / "s").gather(np.arange(51)))
