"""An embedding that was killed resumes from its whole parts, and what another call has made is never replaced."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ssl_dist.checkpoint import Checkpoints, State
from ssl_dist.embedding import embed, making
from ssl_dist.embedding.parts import Done
from ssl_dist.embedding.table import EmbeddingTable
from ssl_dist.embedding.tasks import Count, Opened, Task
from ssl_dist.errors import ConfigError, RunError
from ssl_dist.files import lock
from tests.embedding.conftest import features_of, watched
from tests.embedding.killed import make_and_die
from tests.helpers import resolved_config

pytestmark = pytest.mark.usefixtures("small_parts")
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["tests.embedding.killed", "ssl_dist.encoder"])


@pytest.fixture
def whole(run: Path, small_store: Path, tmp_path: Path) -> bytes:
    """Return the bytes of an undisturbed embedding with all columns."""
    embed(run, small_store, tmp_path / "whole.parquet", with_map=True, num_neighbours=3)
    return (tmp_path / "whole.parquet").read_bytes()


def test_an_embedding_that_is_killed_twice_has_the_same_bytes(
    run: Path, small_store: Path, whole: bytes, tmp_path: Path
) -> None:
    """SIGKILL comes while a part is written: of features, then of neighbours."""
    out, options = tmp_path / "e.parquet", {"with_map": True, "num_neighbours": 3}
    for after in (3, 5):
        process = PROCESSES.Process(target=make_and_die, args=(run, small_store, out, after, options))
        process.start()
        process.join()
        assert process.exitcode == -9
        assert not out.exists()
    [folder] = tmp_path.glob(".e.parquet.*.parts")
    there = {path: path.stat().st_mtime_ns for path in folder.glob("*.parquet")}
    assert sorted(path.name[:3] for path in there) == ["fea"] * 7 + ["nei"]
    embed(run, small_store, out, **options)  # type: ignore[arg-type]
    assert out.read_bytes() == whole
    assert not list(tmp_path.glob(".*")), "nothing is left behind"


def stopped(after: int) -> Callable[[Iterator[Task], Opened, Count], Generator[Done, None, None]]:
    def execute(tasks: Iterator[Task], opened: Opened, count: Count) -> Generator[Done, None, None]:
        for number, task in enumerate(tasks):
            if number == after:
                raise KeyboardInterrupt
            yield task.run(opened, count)

    return execute


@pytest.fixture
def unfinished(run: Path, small_store: Path, tmp_path: Path) -> Path:
    """Leave three parts of an embedding that was to become e.parquet; return their folder."""
    with pytest.raises(KeyboardInterrupt):
        embed(run, small_store, tmp_path / "e.parquet", executor=stopped(3))
    [folder] = tmp_path.glob(".e.parquet.*.parts")
    return folder


def torn(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("damage", [torn, flipped, lambda path: path.write_bytes(b""), Path.unlink])
def test_a_damaged_part_is_computed_again(
    run: Path, small_store: Path, unfinished: Path, features: Tensor, tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    damage(unfinished / "features-000001.parquet")
    ran = list[str]()
    embed(run, small_store, tmp_path / "e.parquet", executor=watched(ran))
    assert ran == [f"features-00000{number}.parquet" for number in (1, 3, 4, 5, 6)]
    assert torch.equal(features_of(tmp_path / "e.parquet"), features)


def test_parts_of_other_images_or_another_encoder_are_not_used(
    run: Path,
    small_store: Path,
    image_folder: Path,
    unfinished: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = resolved_config(small_store)
    Checkpoints(tmp_path / "other").save(1, config, State(config.initial_method().state_dict(), {}))
    for other, images_ in ((tmp_path / "other", small_store), (run, image_folder)):
        ran = list[str]()
        embed(other, images_, tmp_path / "e.parquet", executor=watched(ran))
        assert len(ran) == 7
        (tmp_path / "e.parquet").unlink()
    assert f"{unfinished} holds parts of another embedding" in caplog.text
    assert len(list(unfinished.glob("features-*"))) == 3


def test_a_file_that_was_made_meanwhile_is_not_replaced(run: Path, small_store: Path, tmp_path: Path) -> None:
    out, ran = tmp_path / "e.parquet", list[str]()

    def slow(tasks: Iterator[Task], opened: Opened, count: Count) -> Iterator[Done]:
        yield from watched(ran)(tasks, opened, count)
        out.write_bytes(b"another call's")

    with pytest.raises(ConfigError, match="was made meanwhile"):
        embed(run, small_store, out, executor=slow)
    assert out.read_bytes() == b"another call's"
    out.unlink()
    embed(run, small_store, out, executor=watched(again := list[str]()))
    assert (len(ran) > 0, again) == (True, []), "the finished parts have stayed"


def test_two_processes_do_not_compute_the_same(run: Path, small_store: Path, unfinished: Path, tmp_path: Path) -> None:
    held = lock(unfinished / "lock")
    assert held
    with held, pytest.raises(RunError, match="another process is computing this embedding"):
        embed(run, small_store, tmp_path / "e.parquet")
    embed(run, small_store, tmp_path / "e.parquet")


def test_a_file_that_is_there_is_kept_or_refused(run: Path, small_store: Path, whole: bytes, tmp_path: Path) -> None:
    """A kill between the file's name and the end of its parts is gone on from, too."""
    out = tmp_path / "whole.parquet"
    left = tmp_path / f".whole.parquet.{EmbeddingTable(out).facts.job}.parts"
    left.mkdir()
    assert embed(run, small_store, out, with_map=True, num_neighbours=3).was_there
    assert not left.exists()
    for options in ({}, {"with_map": True}, {"with_map": True, "num_neighbours": 4}):
        with pytest.raises(
            ConfigError, match="there already, of other images, another encoder, other options or other versions"
        ):
            embed(run, small_store, out, **options)  # type: ignore[arg-type]
    assert out.read_bytes() == whole
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(making, "version_of", lambda package: f"{package} of tomorrow")
        with pytest.raises(ConfigError, match="or other versions"):
            embed(run, small_store, out, with_map=True, num_neighbours=3)
    out.write_bytes(b"my notes")
    with pytest.raises(ConfigError, match="it is there already: choose another name"):
        embed(run, small_store, out)
    assert out.read_bytes() == b"my notes"


def test_progress_begins_with_what_was_done_before(
    run: Path, small_store: Path, unfinished: Path, tmp_path: Path
) -> None:
    told = dict[str, list[tuple[int, int]]]()

    class Stage:
        def __init__(self, title: str, _: str) -> None:
            self.calls = told.setdefault(title, [])

        def __enter__(self) -> Callable[[int, int], None]:
            return lambda *now: self.calls.append(now)

        def __exit__(self, *_: object) -> None:
            pass

    embed(run, small_store, tmp_path / "e.parquet", num_neighbours=2, stage=Stage)
    assert told["embedding"] == [(24, 51), *((done, 51) for done in (28, 32, 36, 40, 44, 48, 51))]
    assert told["neighbours"] == [(done, 51) for done in (16, 32, 48, 51)]
    assert told["writing"][-1] == (51, 51)
