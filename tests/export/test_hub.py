"""An exported folder is pushed as it is, to a server of one's own choice; where it cannot be, the folder stays."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from ssl_dist.errors import ConfigError, HubError, SslDistError
from ssl_dist.export import hub as hub_module
from ssl_dist.export.hub import expect_hub, push
from tests.command import Command
from tests.export.hub_server import Hub, running

TOKEN = "hf_secret"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with running() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.address)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # its store of parts is another server
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "it's out"
    folder.mkdir()
    for name in ("model.safetensors", "README.md"):
        (folder / name).write_bytes(name.encode())
    return folder


def test_the_command_pushes_the_folder_with_the_servers_and_the_tokens_variables(
    runs: dict[str, Path], tmp_path: Path
) -> None:
    with running() as server:
        given = {"HF_ENDPOINT": server.address, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1"}
        arguments = ["export", runs["resnet8"], tmp_path / "out", "--push-to-hub", "user/encoder", "--json"]
        done = subprocess.run(
            [sys.executable, "-m", "ssl_dist", *map(str, arguments)],
            env={**os.environ, **given},
            capture_output=True,
            text=True,
            check=True,
        )
    assert f'"pushed_to": "{server.address}/user/encoder"' in done.stdout
    assert server.created == [{"name": "encoder", "organization": "user", "visibility": "private"}]
    assert server.tokens == {f"Bearer {TOKEN}"}
    assert server.files == {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert TOKEN not in done.stdout + done.stderr


def test_a_repository_may_be_public_and_be_there(hub: Hub, folder: Path) -> None:
    for _ in range(2):
        assert push(folder, "user/encoder", public=True) == f"{hub.address}/user/encoder"
    assert [one["visibility"] for one in hub.created] == ["public", "public"]


@pytest.mark.parametrize("request_", ["/create", "/commit/main"])
@pytest.mark.parametrize(("status", "kind", "code"), [(401, ConfigError, 2), (403, ConfigError, 2), (503, HubError, 1)])
def test_a_refusal_is_one_line_and_says_how_to_push_later(
    hub: Hub, folder: Path, status: int, kind: type[SslDistError], code: int, request_: str
) -> None:
    hub.refusal = (status, request_)
    with pytest.raises(
        kind, match=rf"is written.*\({status} the stand-in refuses.*hf upload --private user/encoder"
    ) as found:
        push(folder, "user/encoder", public=False)
    assert found.value.exit_code == code
    assert TOKEN not in str(found.value)
    assert len(list(folder.iterdir())) == 2


def test_a_hub_that_is_not_there_leaves_the_folder(
    command: Command, runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.address)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    done = command("export", runs["resnet8"], tmp_path / "out", "--push-to-hub", "user/encoder")
    assert done.code == 1
    assert "was not pushed to user/encoder" in done.err
    assert "Traceback" not in done.err
    assert (tmp_path / "out" / "encoder.json").exists()


def test_what_cannot_be_pushed_is_refused_before_the_export(
    command: Command, runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    for arguments, says in [
        (["--public"], "name one"),
        (["--push-to-hub", "encoder"], "write it as USER/NAME"),
        (["--push-to-hub", "user/a name"], "user/a name"),
    ]:
        done = command("export", runs["resnet8"], tmp_path / "out", *arguments)
        assert (done.code, done.out) == (2, "")
        assert says in done.err
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(ConfigError, match="there is no token of the Hub: log in by"):
        expect_hub("user/encoder")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match="HF_HUB_OFFLINE is set"):
        expect_hub("user/encoder")
    monkeypatch.setattr(hub_module.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"pip install 'ssl_dist\[hf\]'"):
        expect_hub("user/encoder")
