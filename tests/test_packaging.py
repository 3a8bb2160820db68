"""The package as others install it: a wheel, in a clean environment, without the checkout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(*command: object, **options: object) -> str:
    """Run a command; return what it prints."""
    return subprocess.run([*map(str, command)], capture_output=True, text=True, check=True, **options).stdout  # type: ignore[call-overload,no-any-return]


def test_everything_optional_is_in_one_extra_and_pinned() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    optional = extras.keys() - {"all", "dev", "bench"}
    assert set(extras["all"]) == {f"ssl_dist[{name}]" for name in optional}
    pinned = {line.partition("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines()}
    for name in optional:
        assert {one.partition(">=")[0] for one in extras[name]} <= pinned


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, ROOT)
    [built] = folder.glob("*.whl")
    return built


@pytest.mark.slow
def test_the_wheel_has_the_packages_the_recipes_and_the_page_alone(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.partition("/")[0] for name in names if ".dist-info" not in name} == {"ssl_dist", "cluster", "tune"}
    inside = {
        file.relative_to(ROOT).as_posix()
        for top in ("ssl_dist", "cluster", "tune")
        for file in (ROOT / top).rglob("*.py")
    }
    recipes = {file.relative_to(ROOT).as_posix() for file in (ROOT / "ssl_dist/config/recipes").glob("*.yaml")}
    assert inside | recipes | {"ssl_dist/report/map.html"} <= set(names)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_demo_runs_from_a_wheel_in_a_clean_environment(wheel: Path, tmp_path: Path) -> None:
    """The requirements are lent by this environment's folder, whose editable install is not followed from there."""
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", env=environment).strip())
    (site / "requirements.pth").write_text(sysconfig.get_path("purelib"))
    run(python, "-m", "pip", "install", "-q", "--no-deps", "--no-index", wheel, env=environment)
    where = run(python, "-c", "import ssl_dist, cluster, tune; print(ssl_dist.__file__)", env=environment, cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(tmp_path)
    command = (python.with_name("ssl-dist"), "demo", "--out", tmp_path / "demo", "--json")
    result = json.loads(run(*command, env=environment, cwd=tmp_path))
    assert result["trained"] > result["random"]
