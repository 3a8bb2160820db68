"""`ray up`, `ray submit`, `ray down` on three hosts of this machine (see hosts.py), of which one is lost on the way."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ssl_dist import checkpoint, store
from tests.cluster.hosts import Hosts, why_not
from tests.conftest import write_images
from tests.helpers import RECIPE

ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.hosts,
    pytest.mark.timeout(900),
    pytest.mark.skipif(why_not() is not None, reason=why_not() or ""),
]


class Cluster:
    """cluster/local.yaml with the hosts' addresses, started; commands as a person types them."""

    def __init__(self, hosts: Hosts, folder: Path, venv: Path) -> None:
        self.hosts, self.folder, self._bin = hosts, folder, venv / "bin"
        self.home = folder / "home"
        self.home.mkdir()
        self._environment = {
            "HOME": str(self.home),
            "PATH": f"{self._bin}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "RAY_UP_enable_autoscaler_v2": "0",
            "RAY_AUTH_MODE": "token",
        }
        self.ray("get-auth-token", "--generate")
        config = yaml.safe_load((ROOT / "cluster" / "local.yaml").read_text())
        config["provider"] |= {"head_ip": hosts.address(1), "worker_ips": [hosts.address(2), hosts.address(3)]}
        config["auth"] = {"ssh_user": "root", "ssh_private_key": str(hosts.key)}
        # what is installed is the same on all machines here; the package itself is the copy that `ray up` made
        config["setup_commands"][0] = f"ln -sfn {venv} ~/venv; echo 'export PYTHONPATH=~/ssl_dist' > ~/.bashrc"
        for commands in ("head_start_ray_commands", "worker_start_ray_commands"):  # a worker a host
            config[commands][-1] += " --num-cpus=1"
        self.file = folder / "cluster.yaml"
        self.file.write_text(yaml.safe_dump(config))

    def ray(self, *arguments: object, check: bool = True) -> str:
        command = [str(self._bin / "ray"), *map(str, arguments)]
        done = self.hosts.type("env", "--chdir", str(ROOT), *command, check=check, **self._environment)
        return done.stdout + done.stderr

    def submit(self, *arguments: object) -> dict[str, Any]:
        """What `ray submit` printed last: the command's JSON."""
        out = self.ray("submit", "--no-config-cache", self.file, "cluster/launch.py", "--", *arguments, "--json")
        line = next(line for line in reversed(out.splitlines()) if line.startswith("{"))
        result: dict[str, Any] = json.loads(line)
        return result

    def on_the_head(self, command: str, *, check: bool = True) -> str:
        done = self.hosts.ssh(1, f"source ~/.bashrc; {command} 2>&1", check=check)
        return done.stdout

    def num_nodes(self) -> int:
        status = self.on_the_head("ray status", check=False)
        found = re.search(r"/(\d+)\.0 CPU", status)  # each has one
        return int(found[1]) if found else 0


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    import sys

    folder = tmp_path_factory.mktemp("cluster")
    with Hosts(folder / "hosts", 3) as hosts:
        found = Cluster(hosts, folder, Path(sys.prefix))
        found.ray("up", "--yes", "--no-config-cache", found.file)
        deadline = time.monotonic() + 180
        while found.num_nodes() < 3:
            assert time.monotonic() < deadline, found.on_the_head("ray status", check=False)
            time.sleep(1)
        yield found
        found.ray("down", "--yes", found.file)
        deadline = time.monotonic() + 60
        while still := [h for h in (1, 2, 3) if "raylet" in hosts.ssh(h, "ps ax -o comm", check=False).stdout]:
            assert time.monotonic() < deadline, f"Ray still runs on hosts {still}"
            time.sleep(1)


@pytest.fixture(scope="module")
def recipe(cluster: Cluster) -> Path:
    write_images(cluster.folder / "images", num_classes=3, per_class=20)
    store.build(cluster.folder / "images", cluster.folder / "store", workers=1)
    file = cluster.folder / "recipe.yaml"
    file.write_text(RECIPE + f"data: {{store: {cluster.folder / 'store'}}}\nprobe: null\nmonitor: {{every_steps: 1}}\n")
    return file


def losses(run: Path) -> dict[int, float]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line["train/loss"] for line in lines if "train/loss" in line}


@pytest.fixture(scope="module")
def undisturbed(cluster: Cluster, recipe: Path) -> Path:
    run = cluster.folder / "undisturbed"
    result = cluster.submit(recipe, "--set", "epochs=8", "--set", "cluster.workers=3", "--run-dir", run)
    assert result["step"] == 40
    return run


def test_ray_submit_pretrains_over_three_hosts(undisturbed: Path) -> None:
    hosts = {re.findall(r"process \d+ on (\S+)", (undisturbed / f"worker-{n}.log").read_text())[0] for n in range(3)}
    assert hosts == {"host1", "host2", "host3"}
    events = EventAccumulator(str(undisturbed / "tensorboard")).Reload()
    assert len(events.Scalars("train/loss")) == 40


def test_a_lost_host_costs_nothing_but_time(cluster: Cluster, recipe: Path, undisturbed: Path) -> None:
    """Its workers are gone with it; the two others go on from the newest checkpoint, with the same losses."""
    run, result = cluster.folder / "lost", dict[str, Any]()
    settings = ("--set", "epochs=8", "--set", "cluster.workers.min=1", "--set", "cluster.workers.max=3")
    often = ("--set", "checkpoint.every_epochs=0.4", "--set", "monitor.every_steps=1")
    person = threading.Thread(target=lambda: result.update(cluster.submit(recipe, *settings, *often, "--run-dir", run)))
    person.start()
    while checkpoint.newest(run) is None:
        assert person.is_alive()
        time.sleep(0.05)
    cluster.hosts.kill(3)
    person.join()
    assert result["step"] == 40
    for step, loss in losses(run).items():
        assert loss == pytest.approx(losses(undisturbed)[step], rel=1e-5), step
    cluster.hosts.start(3)
