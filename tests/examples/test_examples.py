"""The examples run as they stand."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from cluster.commands import digits
from ssl_dist.store import build

EXAMPLES = Path(__file__).parents[2] / "examples"


def output_of(example: str, *arguments: Path) -> str:
    """Run an example as a person would; return what it prints."""
    command = [sys.executable, str(EXAMPLES / example), *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build stores of some digits; return their folder, which has the name of a run of ``ssl-dist demo``."""
    home = tmp_path_factory.mktemp("home")
    out, folder = home / "runs" / "demo" / "20260101-000000", home / "digits"
    digits.write_folders(folder)
    for number, file in enumerate(sorted(folder.rglob("*.png"))):
        if number % 12:
            file.unlink()
    for split in ("train", "test"):
        build(folder / split, out / f"store-{split}", split=split, size_px=32, workers=1)
    return out


@pytest.mark.slow
def test_the_notebook_shows_what_a_run_without_ray_has_learnt(stores: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The notebook lies beside what ``ssl-dist demo`` leaves, here of a shorter run."""
    home = stores.parents[2]
    printed = output_of("pretrain_without_ray.py", home / "digits" / "train", stores)
    assert "2-nearest-neighbour accuracy on the images themselves: " in printed
    assert "checkpoints in" in printed
    (home / "examples").mkdir()
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # the kernel's: more wait for each other on cores that are shared
    notebook = nbformat.read(EXAMPLES / "look_at_an_encoder.ipynb", as_version=4)
    NotebookClient(notebook, timeout=240, resources={"metadata": {"path": str(home / "examples")}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert any("random weights" in output.get("text", "") for output in outputs)
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 3


def test_a_method_of_ones_own_learns(stores: Path) -> None:
    printed = output_of("my_own_method.py", stores / "store-train")
    losses = [float(line.rpartition(" ")[2]) for line in printed.splitlines()]
    assert len(losses) == 20
    assert sum(losses[-5:]) < sum(losses[:5])
