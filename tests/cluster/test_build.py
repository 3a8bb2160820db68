"""Stores whose shards are written by Ray tasks equal stores written by one process."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cluster import build as cluster_build
from cluster import tasks
from cluster.build import ray_writers
from cluster.connect import RAY_ENVIRONMENT
from ssl_dist import store
from ssl_dist.commands.main import app
from ssl_dist.errors import ClusterError, ConfigError, SourceError, StoreError
from ssl_dist.store.building import builder
from ssl_dist.store.building.shard_writer import ShardFormat, ShardJob, ShardSummary, WrittenShard
from ssl_dist.store.building.sources import Member
from tests.store import held
from tests.store.held import let_go, wait_until, writers_of
from tests.store.test_growing import everything, files_of

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make six shards of 51 images; the last has one image."""
    monkeypatch.setattr(builder, "SHARD_IMAGES", 10)
    monkeypatch.setattr(builder, "BATCH_ROWS", 4)


@pytest.fixture
def whole(image_folder: Path, tmp_path: Path) -> Path:
    """Build the store with one process of this machine."""
    store.build(image_folder, tmp_path / "whole", workers=1)
    return tmp_path / "whole"


def test_a_store_is_the_same_with_any_number_of_workers(
    local_ray: None, image_folder: Path, whole: Path, tmp_path: Path
) -> None:
    for workers in (1, 2, 3):
        told, done = list[str](), list[tuple[int, int]]()
        path, writers = tmp_path / f"by-{workers}", ray_writers(workers, told.append)
        store.build(image_folder, path, workers=writers, progress=lambda *now, done=done: done.append(now))
        assert files_of(path) == files_of(whole)
        assert done == [*((images, 51) for images in (10, 20, 30, 40, 50, 51)), (51, 51)]
        assert set(told) == {f"{workers} workers"}


def test_tars_stores_and_stores_that_grow_are_the_same_too(
    local_ray: None, image_folder: Path, whole: Path, tmp_path: Path
) -> None:
    """Their members' bytes and pixels travel through the object store."""
    tar, writers = tmp_path / "images.tar", ray_writers(3)
    with tarfile.open(tar, "w") as archive:
        archive.add(image_folder, "images")
    (tmp_path / "one").symlink_to(image_folder / "class1")
    assert files_of_both(lambda path, by: store.build(tar, path, workers=by), tmp_path / "s", writers)
    assert files_of_both(lambda path, by: store.merge([whole, whole], path, workers=by), tmp_path / "merged", writers)
    shutil.copytree(whole, tmp_path / "grown")
    store.append(tmp_path / "one", tmp_path / "grown", workers=writers)
    store.append(tmp_path / "one", whole, workers=1)
    assert files_of(tmp_path / "grown") == files_of(whole)


def files_of_both(make: Callable[[Path, Any], object], path: Path, writers: Any) -> bool:
    """Return whether these writers and one process make equal stores."""
    make(path, writers)
    make(path.with_name("by-one"), 1)
    alike = files_of(path) == files_of(path.with_name("by-one"))
    shutil.rmtree(path.with_name("by-one"))
    return alike


def test_paths_may_be_relative(
    local_ray: None, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("images").symlink_to(image_folder)
    store.build("images", "s", workers=ray_writers(2))
    store.build("images", "whole", workers=1)
    assert files_of(tmp_path / "s") == files_of(tmp_path / "whole")


def test_the_command_builds_appends_and_merges(
    local_ray: None, image_folder: Path, whole: Path, tmp_path: Path
) -> None:
    options = ("--cluster", "--workers", 2, "--json")
    built = invoke("build", image_folder, tmp_path / "s", *options)
    assert built.exit_code == 0, built.output
    assert files_of(tmp_path / "s") == files_of(whole)
    assert json.loads(built.stdout)["rows"] == 51
    assert invoke("append", image_folder, tmp_path / "s", "--allow-duplicates", *options).exit_code == 0
    assert invoke("merge", tmp_path / "s", whole, tmp_path / "m", *options).exit_code == 0
    assert everything(tmp_path / "m") == everything(whole) * 3
    held = invoke("build", image_folder, tmp_path / "t", "--split-by-hash", 0.3, *options)
    assert held.exit_code == 0, held.output
    assert sorted(everything(tmp_path / "t") + everything(tmp_path / "t-held-out")) == sorted(everything(whole))
    none = invoke("build", image_folder, tmp_path / "n", "--cluster", "--workers", 0)
    assert isinstance(none.exception, ConfigError)


def invoke(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["store", *map(str, arguments)])


def test_without_a_cluster_the_command_needs_no_ray(image_folder: Path, tmp_path: Path) -> None:
    arguments = ["ssl-dist", "store", "build", str(image_folder), str(tmp_path / "s"), "--workers", "1"]
    at_exit = "import atexit, sys; atexit.register(lambda: print('ray' in sys.modules))"
    code = f"{at_exit}; sys.argv = {arguments}; from ssl_dist.commands.main import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.splitlines()[-1] == "False"


def test_broken_images_are_skipped_or_refused_as_on_one_machine(
    local_ray: None, image_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "images"
    shutil.copytree(image_folder, folder)
    for name in ("class0/003.png", "class2/016.png"):
        (folder / name).write_bytes(b"no image")
    assert files_of_both(lambda path, by: store.build(folder, path, workers=by), tmp_path / "s", ray_writers(3))
    lines = re.findall(r"left out \d.*", re.sub("0x[0-9a-f]+", "", caplog.text))
    assert lines[: len(lines) // 2] == lines[len(lines) // 2 :]
    assert all(name in "".join(lines) for name in ("class0/003.png", "class2/016.png"))
    messages = []
    for writers in (1, ray_writers(3)):
        with pytest.raises(SourceError, match=r"class0/003.png: .*--strict") as strict:
            store.build(folder, tmp_path / "strict", workers=writers, strict=True)
        messages.append(re.sub("0x[0-9a-f]+", "", str(strict.value)))
        with pytest.raises(SourceError, match="is 16 x 16 px where the images before it are 9 x 9") as sizes:
            store.append(folder, _store_of_9_px(tmp_path), workers=writers)
        messages.append(str(sizes.value))
    assert messages[:2] == messages[2:]


def _store_of_9_px(tmp_path: Path) -> Path:
    from PIL import Image

    path = tmp_path / "of-9-px"
    if not path.exists():
        Image.new("RGB", (9, 9)).save(tmp_path / "nine.png")
        store.build(tmp_path / "nine.png", path, workers=1)
    return path


def _full(piece: ShardJob, *_: object) -> None:
    piece.path.with_suffix(".tried").open("x").close()  # once
    raise OSError(errno.ENOSPC, "No space left on device", str(piece.path))


def test_a_full_disk_is_no_traceback_and_not_tried_again(
    local_ray: None, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster_build, "_write", _full)
    with pytest.raises(StoreError) as error:
        store.build(image_folder, tmp_path / "s", workers=ray_writers(1))
    full = "No space left on device (make room, and the same command continues)"
    assert str(error.value) == f"cannot write a store at {tmp_path / 's'}: {full}"
    assert error.value.__cause__ is None
    assert error.value.__suppress_context__


def _die(*_: object) -> None:
    os._exit(1)


def test_a_shard_that_kills_its_writer_each_time_is_given_up(
    local_ray: None, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster_build, "_write", _die)
    monkeypatch.setattr(cluster_build, "_RETRIES", 1)
    with pytest.raises(ClusterError, match=r"the writers of a shard were lost \(.*call again to resume"):
        store.build(image_folder, tmp_path / "s", workers=ray_writers(1))


def test_a_node_that_sees_another_destination_or_source_is_named(
    local_ray: None, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """/proc/self/cwd is another folder in each process, as a disk of its own is on each node."""
    monkeypatch.chdir(tmp_path)
    own = Path("/proc/self/cwd")
    shutil.copytree(image_folder, tmp_path / "images")
    node = re.escape(os.uname().nodename)
    with pytest.raises(ClusterError, match=rf"node {node} \(\S+\) does not see the store .* at {own}/s: choose"):
        store.build(image_folder, own / "s", workers=ray_writers(2))
    for number, source in enumerate([own / "images", f"{own}/images/*/*.png"]):
        with pytest.raises(
            ClusterError, match=rf"node {node} \(\S+\) does not see {own}/images/class0/000.png as this"
        ):
            store.build(source, tmp_path / f"t{number}", size_px=8, workers=ray_writers(2))
    monkeypatch.setattr(cluster_build, "versions", lambda _: {**VERSIONS, "pillow": "1.0"})
    ours = VERSIONS["pillow"]
    with pytest.raises(ClusterError, match=rf"node {node} \(\S+\) has pillow {ours}, and .* started this 1.0"):
        store.build(image_folder, tmp_path / "u", workers=ray_writers(2))


VERSIONS = tasks.versions(cluster_build._PACKAGES)


def test_a_file_that_went_after_it_was_listed_is_left_out(
    local_ray: None, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No node is blamed for it."""
    folder = tmp_path / "images"
    shutil.copytree(image_folder, folder)
    absolute = cluster_build.with_absolute_paths

    def late(members: Sequence[Member]) -> list[Member]:
        (folder / "class1" / "005.png").unlink(missing_ok=True)
        return absolute(members)

    monkeypatch.setattr(cluster_build, "with_absolute_paths", late)
    manifest = store.build(folder, tmp_path / "s", workers=ray_writers(2))
    assert (manifest.rows, manifest.skipped) == (50, 1)


def _slowly(piece: ShardJob, *_: object) -> cluster_build._Answer:
    began = time.monotonic()
    with piece.path.with_suffix(".from").open("x") as file:
        file.write(str(began))
    wait_until(lambda: len(list(piece.path.parent.glob("*.from"))) > 1)
    time.sleep(0.3)  # so that one too many would be seen
    piece.path.with_suffix(".to").write_text(str(time.monotonic()))
    return cluster_build._Answer(WrittenShard(piece.path, ShardSummary(members=1), None), "node", [])


@pytest.mark.parametrize(("at_most", "store_bytes", "most"), [(2, 10**9, 2), (None, 6000, 3)])
def test_a_bounded_number_of_shard_jobs_is_in_flight(
    local_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_most: int | None, store_bytes: int, most: int
) -> None:
    """Each shard has 1,000 bytes, and half of the object store is for shards."""
    monkeypatch.setattr(cluster_build, "_write", _slowly)
    monkeypatch.setattr(tasks, "object_store_bytes", lambda: store_bytes)
    form = ShardFormat(encoding="raw", image_shape=(8, 8, 3), size_px=8, batch_rows=4)
    cut = []

    def pieces() -> Iterator[ShardJob]:
        for number in range(12):
            cut.append(number)
            yield ShardJob([Member("a", 0, b"x" * 1000)], tmp_path / f"{number}", form)

    ahead = [len(cut) - taken for taken, _ in enumerate(ray_writers(at_most)(pieces()))]
    assert max(ahead) <= 2 * (at_most or 2 * 4) + 1
    moments = [(float(file.read_text()), 1) for file in tmp_path.glob("*.from")]
    moments += [(float(file.read_text()), -1) for file in tmp_path.glob("*.to")]
    running = [sum(step for _, step in sorted(moments)[:n]) for n in range(1, 25)]
    assert 1 < max(running) <= most


DRIVER = """
import sys
from cluster import build
from ssl_dist import store
from ssl_dist.store.building import builder
from tests.store import held

build._write = held.task
builder.SHARD_IMAGES, builder.BATCH_ROWS = 10, 4
store.build(sys.argv[1], sys.argv[2], encoding="jpeg", size_px=24, workers=build.ray_writers(2))
"""


def held_build(image_folder: Path, path: Path, address: str) -> subprocess.Popen[bytes]:
    """Start a build in another process, whose writers wait after the second shard."""
    command = [sys.executable, "-c", DRIVER, str(image_folder), str(path)]
    return subprocess.Popen(command, env={**os.environ, "RAY_ADDRESS": address, "PYTHONPATH": str(ROOT)}, cwd=ROOT)


def address() -> str:
    import ray

    found: str = ray.get_runtime_context().gcs_address
    return found


def rebuild(image_folder: Path, path: Path, workers: Any) -> dict[str, bytes]:
    """Build the store that ``held_build`` builds."""
    store.build(image_folder, path, encoding="jpeg", size_px=24, workers=workers)
    return files_of(path)


@pytest.fixture
def undisturbed(image_folder: Path, tmp_path: Path) -> dict[str, bytes]:
    return rebuild(image_folder, tmp_path / "undisturbed", 1)


def test_a_killed_writer_costs_nothing_but_time(
    local_ray: None,
    image_folder: Path,
    undisturbed: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The writer is killed in the middle of a shard."""
    monkeypatch.setattr(cluster_build, "_write", held.task)
    killed = []

    def kill() -> None:
        wait_until((tmp_path / "s" / "shard-00001.arrow").exists)
        killed.extend(wait_until(lambda: writers_of(tmp_path / "s")))
        for pid in killed:
            os.kill(pid, signal.SIGKILL)
        let_go(tmp_path / "s")

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    made = rebuild(image_folder, tmp_path / "s", ray_writers(2))
    killer.join()
    assert killed
    assert made == undisturbed


def test_a_killed_build_resumes_and_its_tasks_do_not_write_into_another(
    local_ray: None, image_folder: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    """The other build begins at once; the first is resumed in a copy of its files."""
    path, copy = tmp_path / "s", tmp_path / "copy"
    first = held_build(image_folder, path, address())
    wait_until((path / ".shard-00001.json").exists)
    wait_until(lambda: writers_of(path))
    first.kill()
    first.wait()
    shutil.copytree(path, copy, ignore=shutil.ignore_patterns("*.tmp"))
    let_go(path)  # its tasks may still end
    store.build(image_folder, path, size_px=8, workers=ray_writers(2))
    store.build(image_folder, tmp_path / "other", size_px=8, workers=1)
    while writers_of(path):
        assert files_of(path).items() >= files_of(tmp_path / "other").items()
    assert files_of(path).items() >= files_of(tmp_path / "other").items()
    before = {path.name: path.stat().st_mtime_ns for path in copy.glob("shard-*.arrow")}
    assert set(before) == {"shard-00000.arrow", "shard-00001.arrow"}
    assert rebuild(image_folder, copy, ray_writers(2)) == undisturbed
    assert {name: (copy / name).stat().st_mtime_ns for name in before} == before


@pytest.mark.slow
def test_a_lost_node_costs_nothing_but_time(image_folder: Path, undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    """The node is lost while one of its workers writes."""
    from ray.cluster_utils import Cluster

    os.environ.update(RAY_ENVIRONMENT)
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    lost = nodes.add_node(num_cpus=1)
    raylet = lost.all_processes["raylet"][0].process.pid
    builder = held_build(image_folder, tmp_path / "s", nodes.address)
    wait_until(lambda: any(raylet == parent_of(pid) for pid in writers_of(tmp_path / "s")))
    nodes.remove_node(lost, allow_graceful=False)
    let_go(tmp_path / "s")
    assert builder.wait() == 0
    nodes.shutdown()
    assert files_of(tmp_path / "s") == undisturbed


COMMAND = """
import os
from ssl_dist.store.building import builder
from tests.store import held

os.fsync = held.fsync  # in the writers, which import this, too
if __name__ == "__main__":
    from cluster import build
    from ssl_dist.commands.main import main

    build._write, builder.SHARD_IMAGES = held.task, 2
    main()
"""


def started_build(image_folder: Path, folder: Path, *options: str) -> subprocess.Popen[str]:
    """Start the build of a store that is held after its second shard, as the leader of a process group."""
    (folder / "command.py").write_text(COMMAND)
    build = ["store", "build", str(image_folder), str(folder / "s"), "--size-px", "24", "--encoding", "jpeg"]
    command = [sys.executable, str(folder / "command.py"), *build, "--workers", "2", *options]
    environment = {**os.environ, "RAY_ADDRESS": address(), "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True)


@pytest.mark.parametrize("where", [[], pytest.param(["--cluster"], marks=pytest.mark.slow)])
def test_ctrl_c_prints_one_line_and_the_same_command_resumes(
    local_ray: None, image_folder: Path, tmp_path: Path, where: list[str]
) -> None:
    """The signal also reaches the writers, which are in the terminal's process group."""
    builder = started_build(image_folder, tmp_path, *where)
    wait_until((tmp_path / "s" / ".shard-00001.json").exists)
    os.killpg(builder.pid, signal.SIGINT)
    _, err = builder.communicate()
    assert (builder.returncode, err) == (130, "stopped; the same command goes on where it was\n")
    assert len(list((tmp_path / "s").glob("shard-*.arrow"))) == 2
    assert not writers_of(tmp_path / "s")


@pytest.mark.slow
def test_writers_do_not_answer_to_ctrl_c(local_ray: None, image_folder: Path, tmp_path: Path) -> None:
    builder = started_build(image_folder, tmp_path)
    for writer in wait_until(lambda: writers_of(tmp_path / "s")):
        os.kill(writer, signal.SIGINT)
    let_go(tmp_path / "s")
    assert (builder.wait(), builder.communicate()[1]) == (0, "")


def parent_of(pid: int) -> int:
    with contextlib.suppress(OSError):  # gone meanwhile
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return 0
