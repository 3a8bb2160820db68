"""Embeddings that are computed on the nodes of a Ray cluster equal those of one process, byte for byte."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster

from cluster import embed as cluster_embed
from cluster.connect import RAY_ENVIRONMENT
from cluster.embed import ray_executor
from ssl_dist import __version__
from ssl_dist.embedding import embed
from ssl_dist.errors import ClusterError, RunError
from tests.command import Command
from tests.embedding import noted
from tests.embedding.conftest import run, small_parts

__all__ = ["run", "small_parts"]

pytestmark = pytest.mark.usefixtures("small_parts")


@pytest.fixture(scope="module")
def notes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("notes")


@pytest.fixture(scope="module")
def two_nodes(notes: Path) -> Iterator[str]:
    """Start a cluster of two nodes of one CPU each."""
    os.environ.update({**RAY_ENVIRONMENT, noted.FOLDER: str(notes), noted.NODES: "2"})
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    nodes.add_node(num_cpus=1)
    ray.init(address=nodes.address, log_to_driver=False)
    yield nodes.address
    ray.shutdown()
    nodes.shutdown()


def test_two_nodes_share_the_work_and_make_the_same_bytes(
    two_nodes: str, run: Path, image_folder: Path, notes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Features and neighbours; one of the images cannot be read."""
    folder, told = tmp_path / "images", list[str]()
    shutil.copytree(image_folder, folder)
    (folder / "class1" / "003.png").write_bytes(b"no image")
    embed(run, folder, tmp_path / "here.parquet", num_neighbours=3)
    monkeypatch.setattr(cluster_embed, "_run", noted.run)
    facts = embed(run, folder, tmp_path / "there.parquet", num_neighbours=3, executor=ray_executor(told.append)).facts
    assert (tmp_path / "there.parquet").read_bytes() == (tmp_path / "here.parquet").read_bytes()
    assert len(noted.nodes_of(notes, "features")) == len(noted.nodes_of(notes, "neighbours")) == 2
    assert (set(told), facts.left_out) == ({"2 workers"}, 1)


def test_a_store_is_embedded_by_the_command(
    two_nodes: str, command: Command, run: Path, small_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Paths may be relative to the caller's folder."""
    for name, place in (("run", run), ("s", small_store)):
        (tmp_path / name).symlink_to(place)
    embed(tmp_path / "run", tmp_path / "s", tmp_path / "here.parquet")
    monkeypatch.chdir(tmp_path)
    done = command("embed", "run", "s", "e.parquet", "--cluster", "--json")
    assert done.code == 0, done
    assert done.json["num_images"] == 51
    assert (tmp_path / "e.parquet").read_bytes() == (tmp_path / "here.parquet").read_bytes()


def test_a_node_that_sees_something_else_is_named(
    two_nodes: str, run: Path, small_store: Path, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """/proc/self/cwd is another folder in each process, as a disk of its own is on each node."""
    monkeypatch.chdir(tmp_path)
    own = Path("/proc/self/cwd")
    node = rf"node {re.escape(os.uname().nodename)} \(\S+\)"
    for name, source in (("run", run), ("s", small_store), ("images", image_folder)):
        shutil.copytree(source, tmp_path / name)
    for number, (of, images, out, message) in enumerate(
        [
            (own / "run", small_store, tmp_path, "cannot load the encoder"),
            (run, own / "s", tmp_path, "cannot open the store|sees another store"),
            (run, own / "images", tmp_path, "does not see /proc/self/cwd/images/class0/000.png as this machine"),
            (run, small_store, own, "does not see /proc/self/cwd/.*: choose an OUT"),
        ]
    ):
        with pytest.raises(ClusterError, match=f"{node} {message}" if "|" not in message else message):
            embed(of, images, out / f"{number}.parquet", executor=ray_executor())
    monkeypatch.setattr(cluster_embed, "versions", lambda _: {"ssl_dist": __version__, "pillow": "1.0"})
    with pytest.raises(ClusterError, match=f"{node} has pillow .*, and the machine that started this 1.0"):
        embed(run, small_store, tmp_path / "v.parquet", executor=ray_executor())


def _die(*_: object) -> None:
    os._exit(1)


@pytest.mark.slow
def test_a_part_that_kills_its_worker_each_time_is_given_up_and_the_rest_is_kept(
    two_nodes: str, run: Path, small_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster_embed, "_run", _die)
    with pytest.raises(ClusterError, match=r"the workers of a part were lost \(.*call again to resume"):
        embed(run, small_store, tmp_path / "e.parquet", executor=ray_executor())
    assert not (tmp_path / "e.parquet").exists()
    embed(run, small_store, tmp_path / "e.parquet")


def test_what_a_task_raises_ends_the_command_as_it_does_here(
    two_nodes: str, run: Path, small_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster_embed, "_run", _refuse)
    with pytest.raises(RunError, match="take an earlier --checkpoint"):
        embed(run, small_store, tmp_path / "e.parquet", executor=ray_executor())


def _refuse(*_: object) -> None:
    raise RunError("the features are not finite numbers: take an earlier --checkpoint")
