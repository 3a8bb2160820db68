"""Recipes that come with the package are listed and printed, and one is proposed for a store and a machine."""

from __future__ import annotations

import itertools
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.commands import init
from ssl_dist.config import RunConfig
from ssl_dist.config.proposal import propose
from ssl_dist.reading import RECIPE_FOLDER
from ssl_dist.store import ImageStore
from tests.command import Command
from tests.helpers import with_facts


def test_the_list_has_what_each_header_says(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {row["name"]: row for row in command("recipes", "--json").json["recipes"]}
    assert sorted(rows) == sorted(file.stem for file in RECIPE_FOLDER.glob("*.yaml"))
    assert all(row[key] for row in rows.values() for key in ("method", "hardware", "time", "result"))
    assert (rows["moco-cifar10"]["method"], rows["moco-cifar10"]["time"]) == ("moco", "3 min 05 s, beside other work")
    assert "kNN-20 on 360 held-out digits 95.6 %" in rows["simclr-digits"]["result"]
    out = command("recipes").out
    assert all(name in out for name in rows)
    assert max(map(len, out.splitlines())) <= 80


def test_a_recipe_is_printed_as_it_is(command: Command) -> None:
    outcome = command("recipes", "simclr-digits")
    assert (outcome.code, outcome.out) == (0, (RECIPE_FOLDER / "simclr-digits.yaml").read_text())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["recipes", "simclr-cifar"], "did you mean simclr-cifar10?"),
        (["pretrain", "simclr-digit"], "did you mean simclr-digits?"),
        (["pretrain", "simclr-digits", "--set", "optim.lr"], "write it as key=value"),
        (["pretran", "simclr-digits"], "No such command"),
        (["recipes"], ""),
    ],
)
def test_lists_and_typos_need_no_torch(arguments: list[str], message: str) -> None:
    at_exit = "import atexit, sys; atexit.register(lambda: print([m for m in ('torch', 'ray') if m in sys.modules]))"
    code = f"{at_exit}; sys.argv = ['ssl-dist', *{arguments}]; from ssl_dist.commands.main import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert message in " ".join(done.stderr.split())
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(("cores", "gpus"), [(1, 0), (2, 0), (12, 0), (64, 0), (8, 1), (96, 8)])
def test_what_is_proposed_is_a_recipe_that_fits_store_and_machine(cores: int, gpus: int) -> None:
    for num_images, size_px in itertools.product((2, 9, 100, 2000, 10**6), (8, 16, 32, 64, 150, 500)):
        facts = {"num_images": num_images, "size_px": size_px, "num_classes": num_images % 3}
        bf16 = num_images % 2 > 0
        tree = propose("s", **facts, cores=cores, gpus=gpus, bf16=bf16)
        config = with_facts(RunConfig.from_tree(tree, "proposal"), num_images, size_px)
        assert config.plan().total_steps >= 1
        assert config.batch.size <= num_images
        assert config.cluster.workers.max <= min(gpus or cores, config.batch.num_micro)
        assert config.cluster.gpu == bool(gpus)
        assert config.engine.precision == ("bf16" if gpus or bf16 else "fp32")
        assert max(config.view_sizes) <= size_px
        assert config.probe is not None
        if config.probe.kind == "knn":
            assert facts["num_classes"] > 1
            assert config.probe.k <= num_images * 4 // 5


def test_init_writes_a_recipe_that_a_dry_run_accepts(
    command: Command, small_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    place = tmp_path / "photos #2"
    place.symlink_to(small_store)
    found = command("init", place, "--seconds", 0, "--json").json
    assert found["recipe"] == "photos #2.yaml"
    assert found["command"] == "ssl-dist pretrain 'photos #2.yaml'"
    text = (tmp_path / found["recipe"]).read_text()
    assert "# Time:     about" in text
    config = RunConfig.load(found["recipe"])
    assert ImageStore(config.data.store).location == str(place)
    planned = command("pretrain", found["recipe"], "--dry-run", "--json").json
    assert planned["steps"] == found["steps"]
    again = command("init", place)
    assert (again.code, again.err.startswith("error: photos #2.yaml is there")) == (2, True)


def test_a_file_that_cannot_be_written_is_refused_before_anything_is_measured(
    command: Command, small_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(shutil.copytree(small_store, tmp_path / "mine"))
    monkeypatch.setattr(init, "_proposal", lambda store, file, seconds: ({"file": str(file)}, [], {"file": str(file)}))
    for file, reason in (("/proc/a.yaml", "No such file"), ("no/a.yaml", "No such file"), ("manifest.json/a", "Not a")):
        refused = command("init", ".", "--out", file)
        assert (refused.code, f"error: {file} cannot be written: {reason}" in refused.err) == (2, True)
    assert command("init", ".", "--json").json["file"] == "mine.yaml", "the name of this folder"
