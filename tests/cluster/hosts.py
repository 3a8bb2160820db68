"""Several hosts on one Linux machine: each has its own network, PID and mount namespaces, and an sshd.

They share the files of this machine but for root's home, /tmp/ray, /dev/shm and /run. A bridge in a namespace of its
own joins them; the person who types `ray up` sits there too. Nothing is bound outside these namespaces. Needs root.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

NETWORK = "10.77.0"
NEEDED = ("ip", "unshare", "sshd", "ssh", "rsync", "ssh-keygen")

_HOST = """
set -e
mount --make-rprivate /
hostname {name}
mount --bind {home}/passwd /etc/passwd
mkdir -p /tmp/ray
mount --bind {home}/ray /tmp/ray
mount -t tmpfs tmpfs /dev/shm
mount --bind {folder}/etc-hosts /etc/hosts
mount -t tmpfs tmpfs /run
mkdir -p -m 755 /run/sshd
exec {sshd} -D -e -f {folder}/sshd_config
"""


def why_not() -> str | None:
    """Say what this machine lacks for hosts; None where it has everything."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "hosts in namespaces need Linux and root"
    path = os.environ["PATH"] + ":/usr/sbin:/sbin"
    missing = [tool for tool in NEEDED if not shutil.which(tool, path=path)]
    if missing:
        return f"missing: {', '.join(missing)} (Debian: apt-get install openssh-server rsync iproute2)"
    tried = subprocess.run(["unshare", "--net", "--mount", "--pid", "--fork", "true"], capture_output=True, check=False)
    return None if tried.returncode == 0 else f"no namespaces here: {tried.stderr.decode().strip()}"


class Hosts:
    """The hosts host1, host2 ... at ``address(1)`` ..., and one for the person, at ``address(0)``."""

    def __init__(self, folder: Path, number: int) -> None:
        self.folder, self.number = folder, number
        self._prefix = f"ssl{os.getpid() % 10000}"
        self._processes: dict[int, subprocess.Popen[bytes]] = {}

    def address(self, host: int) -> str:
        return f"{NETWORK}.{10 + host}"

    def __enter__(self) -> Hosts:
        self.folder.mkdir(parents=True, exist_ok=True)
        names = "".join(f"{self.address(host)} host{host}\n" for host in range(self.number + 1))
        (self.folder / "etc-hosts").write_text("127.0.0.1 localhost\n" + names)
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.key], check=True)
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.folder / "host_key"],
            check=True,
        )
        (self.folder / "sshd_config").write_text(
            f"HostKey {self.folder}/host_key\nAuthorizedKeysFile {self.key}.pub\nPermitRootLogin yes\n"
            "PasswordAuthentication no\nStrictModes no\nUsePAM no\nPidFile none\nPrintMotd no\nMaxStartups 100\n"
            "Subsystem sftp internal-sftp\n"
        )
        try:
            self._ip("netns", "add", self._netns(0))
            self._ip("-n", self._netns(0), "link", "set", "lo", "up")
            self._ip("-n", self._netns(0), "link", "add", "bridge", "type", "bridge")
            self._ip("-n", self._netns(0), "address", "add", f"{self.address(0)}/24", "dev", "bridge")
            self._ip("-n", self._netns(0), "link", "set", "bridge", "up")
            for host in range(1, self.number + 1):
                self.start(host)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for host in range(self.number + 1):
            self.kill(host)

    @property
    def key(self) -> Path:
        return self.folder / "key"

    def start(self, host: int) -> None:
        """Start a host, with the files of its earlier start."""
        home, name = self.folder / f"host{host}", self._netns(host)
        (home / "ray").mkdir(parents=True, exist_ok=True)
        (home / "root").mkdir(exist_ok=True)
        (home / "root" / ".bashrc").touch()
        users = Path("/etc/passwd").read_text().splitlines()
        (home / "passwd").write_text(f"root:x:0:0:root:{home}/root:/bin/bash\n" + "\n".join(users[1:]) + "\n")
        self._ip("netns", "add", name)
        self._ip("-n", name, "link", "set", "lo", "up")
        self._ip("-n", self._netns(0), "link", "add", f"port{host}", "type", "veth", "peer", "eth0", "netns", name)
        self._ip("-n", self._netns(0), "link", "set", f"port{host}", "master", "bridge", "up")
        self._ip("-n", name, "address", "add", f"{self.address(host)}/24", "dev", "eth0")
        self._ip("-n", name, "link", "set", "eth0", "up")
        script = _HOST.format(name=f"host{host}", home=home, folder=self.folder, sshd=self._tool("sshd"))
        own = ("--mount", "--pid", "--uts", "--ipc", "--fork", "--kill-child", "--mount-proc")
        with (self.folder / f"host{host}.log").open("ab") as log:
            self._processes[host] = subprocess.Popen(
                [self._tool("ip"), "netns", "exec", name, "unshare", *own, "bash", "-c", script],
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + 30
        while self.ssh(host, "true", check=False).returncode:
            assert time.monotonic() < deadline, (self.folder / f"host{host}.log").read_text()
            time.sleep(0.2)

    def kill(self, host: int) -> None:
        """Kill all processes of a host at once, like a power failure."""
        if process := self._processes.pop(host, None):
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        subprocess.run([self._tool("ip"), "netns", "delete", self._netns(host)], capture_output=True, check=False)
        link = [self._tool("ip"), "-n", self._netns(0), "link", "delete", f"port{host}"]
        subprocess.run(link, capture_output=True, check=False)

    def ssh(self, host: int, command: str, *, check: bool = True) -> subprocess.CompletedProcess[str]:
        options = ("-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR")
        return self.type("ssh", "-i", str(self.key), *options, f"root@{self.address(host)}", command, check=check)

    def inside(self, host: int) -> list[str]:
        """Return the prefix of a command that changes a host's mounts."""
        [first] = subprocess.run(
            ["pgrep", "-P", str(self._processes[host].pid)], capture_output=True, text=True, check=True
        ).stdout.split()
        return ["nsenter", "--target", first, "--mount", "--pid", "--net", "--uts", "--ipc"]

    def type(
        self, *command: str, check: bool = True, typed: str | None = None, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a command as the person, with ``typed`` as its input."""
        done = subprocess.run(
            [self._tool("ip"), "netns", "exec", self._netns(0), *command],
            capture_output=True,
            text=True,
            input=typed or "",
            check=False,
            timeout=600,
            env={**os.environ, **environment},
        )
        if check and done.returncode:
            raise AssertionError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
        return done

    def _netns(self, host: int) -> str:
        return f"{self._prefix}-{host}"

    def _ip(self, *arguments: str) -> None:
        subprocess.run([self._tool("ip"), *arguments], check=True, capture_output=True)

    @staticmethod
    def _tool(name: str) -> str:
        return shutil.which(name, path=os.environ["PATH"] + ":/usr/sbin:/sbin") or name
