"""`ray up`, `ray submit`, `ray down` on three hosts of this machine (see hosts.py), of which one is lost on the way."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ssl_dist import store
from ssl_dist.checkpoint import Checkpoints
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
    """A started cluster of cluster/local.yaml with the hosts' addresses, and commands as a person types them."""

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

    def ray(self, *arguments: object, typed: str | None = None) -> str:
        command = [str(self._bin / "ray"), *map(str, arguments)]
        done = self.hosts.type("env", "--chdir", str(ROOT), *command, typed=typed, **self._environment)
        return done.stdout + done.stderr

    def submit(self, *arguments: object) -> dict[str, Any]:
        """Return the JSON that `ray submit` printed last."""
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


def test_a_person_looks_at_the_run(cluster: Cluster, undisturbed: Path) -> None:
    """`ray exec` runs a command on the head, `ray attach` opens a shell there."""
    listed = cluster.ray("exec", cluster.file, f"ls {undisturbed}/tensorboard")
    assert "events.out" in listed
    shell = cluster.ray("attach", cluster.file, typed=f"ls {undisturbed}/tensorboard\nexit\n")
    assert "events.out" in shell


def test_a_lost_host_costs_nothing_but_time(cluster: Cluster, recipe: Path, undisturbed: Path) -> None:
    """The host's worker is lost; the two others continue from the newest checkpoint with the same losses."""
    run, result = cluster.folder / "lost", dict[str, Any]()
    settings = ("--set", "epochs=8", "--set", "cluster.workers.min=1", "--set", "cluster.workers.max=3")
    often = ("--set", "checkpoint.every_epochs=0.4", "--set", "monitor.every_steps=1")
    person = threading.Thread(target=lambda: result.update(cluster.submit(recipe, *settings, *often, "--run-dir", run)))
    person.start()
    while Checkpoints(run).newest() is None:
        assert person.is_alive()
        time.sleep(0.05)
    cluster.hosts.kill(3)
    person.join()
    assert result["step"] == 40
    for step, loss in losses(run).items():
        assert loss == pytest.approx(losses(undisturbed)[step], rel=1e-5), step
    cluster.hosts.start(3)


def wait_for(what: Callable[[], object], seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_workers_leave_with_a_notice_and_come_back(cluster: Cluster, recipe: Path) -> None:
    """A drained host causes a checkpoint where none is due; two workers continue from it, and three when it is back."""
    come_back(cluster, 3)
    run, ended = cluster.folder / "elastic", list[dict[str, Any]]()
    elastic = ("--set", "cluster.workers.min=2", "--set", "cluster.workers.max=3", "--set", "cluster.resize_every_s=5")
    rarely = ("--set", "epochs=100000", "--set", "checkpoint.every_epochs=100000")
    person = threading.Thread(
        target=lambda: ended.append(cluster.submit(recipe, *elastic, *rarely, "--run-dir", run)), daemon=True
    )
    person.start()
    try:
        wait_for(lambda: (run / "metrics.jsonl").exists() and len(losses(run)) > 5)
        drain(cluster, 3)
        wait_for(lambda: Checkpoints(run).newest())
        cluster.hosts.kill(3)
        wait_for(lambda: len(starts(run, 0)) == 2)
        assert starts(run, 0)[1] > 5
        cluster.hosts.start(3)
        come_back(cluster, 3)
        wait_for(lambda: len(starts(run, 2)) == 2)
        assert starts(run, 2)[1] > starts(run, 0)[1], "no step of the two was lost when the third came"
        wait_for(lambda: max(losses(run)) > starts(run, 2)[1])
    finally:  # it would run for ever
        (run / "stop").touch()
        person.join()
    steps = [line["step"] for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines())]
    assert sorted(set(steps)) == list(range(ended[0]["step"] + 1)), "every step"


def come_back(cluster: Cluster, host: int) -> None:
    """Wait until Ray's autoscaler has started Ray on a host that is back; start it if the autoscaler gave up."""
    deadline = time.monotonic() + 120
    while cluster.num_nodes() != 3 and time.monotonic() < deadline:
        time.sleep(2)
    if cluster.num_nodes() != 3:
        restart(cluster, host)
    wait_for(lambda: cluster.num_nodes() == 3)


def drain(cluster: Cluster, host: int) -> None:
    """Drain a host, like a cloud's notice."""
    text = cluster.on_the_head("ray list nodes --format json")
    nodes = json.loads(text[text.index("[") :])
    address = cluster.hosts.address(host)
    [node] = [node["node_id"] for node in nodes if node["node_ip"] == address and node["state"] == "ALIVE"]
    why = "--reason DRAIN_NODE_REASON_PREEMPTION --reason-message spot --deadline-remaining-seconds 60"
    cluster.on_the_head(f"ray drain-node --address {cluster.hosts.address(1)}:6379 --node-id {node} {why}")


def starts(run: Path, worker: int) -> list[int]:
    """Return the steps from which a worker started."""
    log = run / f"worker-{worker}.log"
    return [int(step) for step in re.findall(r"continuing from step (\d+)", log.read_text())] if log.exists() else []


def test_ray_submit_sweeps(cluster: Cluster, recipe: Path) -> None:
    space = cluster.folder / "space.yaml"
    space.write_text("method.temperature: [0.1, 0.5]\noptim.lr: [0.002, 0.005]\n")
    sweep, probed = cluster.folder / "sweep", cluster.folder / "probed.yaml"
    probed.write_text(recipe.read_text().replace("probe: null", "probe: {kind: knn, bank: 30, queries: 12, k: 3}"))
    settings = ("--set", "epochs=2", "--search", "grid", "--rung-epochs", 1)
    result = cluster.submit("tune", probed, "--space", space, *settings, "--sweep-dir", sweep)
    assert len(result["trials"]) == 4
    assert result["best"]["status"] == "finished"
    text = "".join(log.read_text() for log in sweep.glob("trials/*/worker-0.log"))
    assert len(set(re.findall(r"process \d+ on (\S+)", text))) == 3, "all hosts were used"


def test_ray_job_submit_pretrains_and_nobody_without_the_token(cluster: Cluster, recipe: Path) -> None:
    """The job is submitted on the head, because the dashboard listens on loopback only."""
    run = cluster.folder / "job"
    command = f"ssl-dist pretrain {recipe} --set epochs=1 --set cluster.workers=2 --run-dir {run}"
    job = f"RAY_ADDRESS=http://127.0.0.1:8265 ray job submit -- {command}"
    assert "succeeded" in cluster.on_the_head(job)
    assert len(losses(run)) == 5
    for page in ("/api/jobs/", "/api/version", "/nodes?view=summary", "/api/cluster_status"):
        ask = f"curl -s -o /dev/null -w %{{http_code}} http://127.0.0.1:8265{page}"
        token = '-H "Authorization: Bearer $(cat ~/.ray/auth_token)"'
        assert cluster.on_the_head(ask) == "401", page
        assert cluster.on_the_head(f"{ask} -H 'Authorization: Bearer 0123'") in ("401", "403"), page
        assert cluster.on_the_head(f"{ask} {token}") == "200", page
    refused = cluster.on_the_head(f"RAY_AUTH_MODE=disabled {job}", check=False)
    assert "succeeded" not in refused
    elsewhere = f"curl -s -m 5 -o /dev/null http://{cluster.hosts.address(1)}:8265/api/version"
    assert cluster.hosts.ssh(2, elsewhere, check=False).returncode == 7, "the dashboard is on loopback only"


def doctor(cluster: Cluster) -> dict[str, Any]:
    hosts = ",".join(cluster.hosts.address(host) for host in (1, 2, 3))
    out = cluster.on_the_head(
        f"RAY_ADDRESS=auto ssl-dist doctor --workers 3 --hosts {hosts} --storage {cluster.folder}/shared --json",
        check=False,
    )
    result: dict[str, Any] = json.loads(out.splitlines()[-1])
    return result


def test_doctor_of_healthy_hosts(cluster: Cluster) -> None:
    come_back(cluster, 3)
    found = doctor(cluster)
    assert found["healthy"], found
    assert sorted(node["name"] for node in found["nodes"]) == ["host1", "host2", "host3"]
    assert all(node["storage_seen"] and node["token"] for node in found["nodes"])
    assert found["link"]["workers"] == 3


RESTART = "source ~/.bashrc; ray stop; {before} ray start --address={head}:6379 --num-cpus=1 2>&1"


def restart(cluster: Cluster, host: int, before: str = "") -> None:
    """Restart Ray on a host, with another command first."""
    command = RESTART.format(before=before, head=cluster.hosts.address(1))
    cluster.hosts.ssh(host, command, check=False)


def faults(cluster: Cluster, host: int) -> list[str]:
    found = doctor(cluster)
    assert not found["healthy"]
    names = {f"host{host}", cluster.hosts.address(host)}
    grave = {one["where"] for one in found["complaints"] if one["grave"]}
    assert grave - {"the cluster"} == names & {one["where"] for one in found["complaints"]}
    return [one["what"] for one in found["complaints"] if one["where"] in names]


def test_doctor_names_a_host_without_the_storage(cluster: Cluster) -> None:
    """Another folder is mounted in its place."""
    shared = cluster.folder / "shared"
    inside = cluster.hosts.inside(3)
    subprocess.run([*inside, "mount", "-t", "tmpfs", "tmpfs", str(shared)], check=True)
    assert f"{shared} is another folder there" in faults(cluster, 3)
    subprocess.run([*inside, "umount", str(shared)], check=True)


def test_doctor_names_a_host_with_another_version(cluster: Cluster) -> None:
    file = "~/ssl_dist/ssl_dist/__init__.py"
    cluster.hosts.ssh(3, f"cp {file} ~/kept; sed -i 's/__version__ = .*/__version__ = \"0.0.9\"/' {file}")
    restart(cluster, 3)
    assert any(what.startswith("ssl_dist is 0.0.9, elsewhere") for what in faults(cluster, 3))
    cluster.hosts.ssh(3, f"cp ~/kept {file}")


def test_doctor_names_a_host_with_another_clock(cluster: Cluster) -> None:
    """The host's Python processes see a time that is an hour ahead."""
    site = "~/ssl_dist/sitecustomize.py"
    cluster.hosts.ssh(3, f"echo 'import time; _time = time.time; time.time = lambda: _time() + 3600' > {site}")
    restart(cluster, 3)
    assert any(re.match(r"its clock is \+3(600|599)\.\d s off", what) for what in faults(cluster, 3))
    cluster.hosts.ssh(3, f"rm {site}")


def test_doctor_names_a_host_with_another_token(cluster: Cluster) -> None:
    """Ray does not let the host join."""
    cluster.hosts.ssh(3, "cp ~/.ray/auth_token ~/kept; echo 0123456789abcdef0123456789abcdef > ~/.ray/auth_token")
    restart(cluster, 3)
    assert faults(cluster, 3) == ["is not in the cluster"]
    cluster.hosts.ssh(3, "cp ~/kept ~/.ray/auth_token")
    restart(cluster, 3)
