"""The caller's surroundings: no file of the current folder and no launcher's variable reaches a command's workers."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest
import ray
import torch
from ray.train.torch import TorchConfig

from cluster.backend import PreemptibleTorchConfig
from cluster.connect import ray_connection
from ssl_dist.collectives import World
from ssl_dist.errors import ClusterError
from ssl_dist.settings import ClusterConfig
from ssl_dist.store import ImageStore
from ssl_dist.training import zero
from tests.conftest import write_images

NAMES = (
    "cluster",
    "tune",
    "tests",
    "torch",
    "numpy",
    "yaml",
    "ray",
    "psutil",
    "random",
    "socket",
    "selectors",
    "typer",
)
SCRIPT = [str(Path(sys.executable).with_name("ssl-dist"))]
MODULE = [sys.executable, "-m", "ssl_dist"]


@pytest.fixture
def trapped(tmp_path: Path) -> Path:
    """Make a folder of modules with the names of libraries and of our packages; importing one leaves a file."""
    folder = tmp_path / "trapped"
    folder.mkdir()
    for name in NAMES:
        (folder / f"{name}.py").write_text(
            f"open({str(tmp_path / 'executed')!r}, 'a').write('{name} ')\nraise SystemExit(3)"
        )
    write_images(folder / "images", num_classes=2, per_class=20)
    return folder


def call(folder: Path, *command: object, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder; stop the test where a module of that folder was executed."""
    done = subprocess.run(
        list(map(str, command)), cwd=folder, env=os.environ | variables, capture_output=True, text=True, check=False
    )
    executed = folder.parent / "executed"
    assert not executed.exists(), executed.read_text()
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.parametrize("program", [SCRIPT, MODULE], ids=["script", "module"])
def test_a_command_and_its_writers_import_nothing_of_the_current_folder(program: list[str], trapped: Path) -> None:
    call(trapped, *program, "store", "build", "images", "store", "--workers", 2)  # the paths are of that folder, though
    assert len(ImageStore(trapped / "store")) == 40


@pytest.mark.slow
def test_ray_workers_import_nothing_of_the_current_folder(trapped: Path) -> None:
    (trapped / "ssl_dist").mkdir()
    (trapped / "ssl_dist" / "__init__.py").write_text("raise SystemExit('executed')")
    call(trapped, *SCRIPT, "store", "build", "images", "store", "--workers", 1, "--cluster", RAY_worker_niceness="10")
    assert len(ImageStore(trapped / "store")) == 40


def test_a_folder_of_pythonpath_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("print('asked for')")
    done = call(tmp_path, *MODULE, "--version", PYTHONPATH=str(tmp_path))
    assert "asked for" in done.stdout


@pytest.mark.parametrize(
    ("variables", "blamed"),
    [
        ({"TMPDIR": "/long"}, "TMPDIR=/long"),
        ({"TMPDIR": "/tmp", "RAY_TMPDIR": "/long"}, "RAY_TMPDIR=/long"),
        ({"TMPDIR": "/long", "RAY_TMPDIR": ""}, "TMPDIR=/long"),
    ],
)
def test_a_temporary_folder_too_long_for_sockets_is_refused_with_its_remedy(
    variables: dict[str, str], blamed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def init(**_: object) -> None:
        raise OSError("validate_socket_filename failed: AF_UNIX path length cannot exceed 107 bytes: /long/ray/...")

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    said = f"Ray cannot start here: {blamed} is too long for its sockets: set RAY_TMPDIR to a short one, as /tmp"
    with pytest.raises(ClusterError, match=said), ray_connection(ClusterConfig()):
        pass


@pytest.mark.parametrize(("late", "starts"), [(0, True), (2, True), (3, False)])
def test_ray_is_started_again_where_a_busy_machine_starts_it_late(
    late: int, starts: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def init(**_: object) -> None:
        calls.append("init")
        if calls.count("init") <= late:
            raise Exception("The current node timed out during startup. This could happen because ...")

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: calls.append("shutdown"))
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    refused = pytest.raises(ClusterError, match=r"did not start in 3 times 30 s: is it busy\?")
    with contextlib.nullcontext() if starts else refused, ray_connection(ClusterConfig()):
        pass
    assert calls == ["init", "shutdown"] * min(late + 1, 3), "each try ends what it began, and so does the connection"


LAUNCHERS = {
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",  # mpirun
    "PMIX_RANK": "1",
    "PMI_SIZE": "2",
    "SLURM_PROCID": "3",
    "MV2_COMM_WORLD_RANK": "1",
    "RANK": "1",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "LOCAL_SIZE": "2",
    "MASTER_ADDR": "head",
    "MASTER_PORT": "29500",
    "TORCHELASTIC_USE_AGENT_STORE": "True",  # torchrun: the ranks' store would be its agent's
}
KEPT = {"CUDA_VISIBLE_DEVICES": "2", "NCCL_SOCKET_IFNAME": "eth0", "GLOO_SOCKET_IFNAME": "eth0", "OMP_NUM_THREADS": "1"}


class _Group:
    """A group of one worker, this process."""

    def execute(self, function: Callable[[], object]) -> None:
        function()


def test_rays_workers_join_their_group_without_the_variables_of_a_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    with mock.patch.dict(os.environ, LAUNCHERS | KEPT):
        config = PreemptibleTorchConfig()
        seen: dict[str, str] = {}
        monkeypatch.setattr(TorchConfig().backend_cls, "on_start", lambda *_: seen.update(os.environ))
        config.backend_cls().on_start(_Group(), config)
    assert seen.keys() & LAUNCHERS.keys() == set()
    assert seen.items() >= KEPT.items()


def test_a_process_that_trains_alone_is_rank_0_under_any_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: False)
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda *_, **__: None)
    with mock.patch.dict(os.environ, LAUNCHERS | KEPT):
        zero._import_deepspeed(World())
        assert os.environ.keys() & LAUNCHERS.keys() == {"LOCAL_RANK"}
        assert os.environ["LOCAL_RANK"] == "0"


@pytest.mark.parametrize("given", [":/nowhere", "/nowhere:", "/nowhere::/elsewhere"])
def test_an_empty_entry_of_pythonpath_is_not_the_current_folder(given: str, tmp_path: Path) -> None:
    for name in ("cluster", "tune"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit(7)")
    code = "import sys; from ssl_dist.commands.main import main; sys.argv = ['ssl-dist', 'status', '.']; main()"
    environment = {**os.environ, "PYTHONPATH": given}
    line = [sys.executable, "-P", "-c", code]
    done = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, "is no run" in done.stderr) == (2, True), done.stderr


def test_a_current_folder_that_is_gone_is_named(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    code = "import os, sys; from ssl_dist.commands.main import main; os.rmdir(os.getcwd()); main()"
    for rest in (["settings"], ["store", "build", "a", "b", "--json"]):
        gone.mkdir(exist_ok=True)
        line = [sys.executable, "-P", "-c", code, *rest]
        done = subprocess.run(line, cwd=gone, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (
            2,
            "error: the current folder is gone: change to another one, as with cd\n",
        )
