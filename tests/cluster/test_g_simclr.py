"""G-SimCLR uses one store for both runs, and keeps the clusters that SimCLR began with."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from ssl_dist.errors import ConfigError
from tests.cluster.pipeline_commands import AUTOENCODER, SMALL, build_another, g_simclr, invoke, sets, settings_of


@pytest.mark.parametrize("spelling", ["dotted", "section", "recipe"])
def test_the_autoencoder_learns_from_simclrs_store_however_it_is_named(
    untrained: list[str], small_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spelling: str
) -> None:
    monkeypatch.chdir(tmp_path)
    build_another(tmp_path / "stores" / "cifar10-train")  # which the autoencoder's recipe names
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"data: {{store: {small_store}}}\naugment: {{recipe: simclr-small}}\n")
    given = {
        "dotted": ["--set", f"data.store={small_store}"],
        "section": ["--set", f"data={{store: {small_store}}}"],
        "recipe": [recipe],
    }[spelling]
    invoke("g-simclr", *given, *sets("--set", *SMALL), *AUTOENCODER, "--run-dir", "here")
    assert untrained == ["autoencoder", "simclr"]
    for run in untrained:
        assert settings_of(tmp_path / "here" / run)["data"]["store"] == str(small_store)


def test_clusters_of_another_store_are_refused(untrained: list[str], small_store: Path, tmp_path: Path) -> None:
    other = build_another(tmp_path / "other")
    for spelling in (f"data.store={other}", f"data={{store: {other}}}"):
        with pytest.raises(ConfigError, match=r"the autoencoder's data\.store .*other is not SimCLR's"):
            g_simclr(small_store, tmp_path / "here", "--set-autoencoder", spelling)
    with pytest.raises(ConfigError, match="52 clusters of 51 images: choose fewer --clusters"):
        g_simclr(small_store, tmp_path / "here", "--clusters", 52)
    assert not untrained


def test_simclr_resumes_with_the_clusters_that_it_began_with(
    untrained: list[str], small_store: Path, tmp_path: Path
) -> None:
    here = tmp_path / "here"
    g_simclr(small_store, here)
    record = here / "clusters.json"
    assert json.loads(record.read_text())["clusters"] == 16, "as many as a batch has images"
    before = (here / "clusters.npy").read_bytes()
    with pytest.raises(ConfigError, match=r"simclr/ has begun with them: clusters 5 \(they have 16\)"):
        g_simclr(small_store, here, "--clusters", 5)
    assert (here / "clusters.npy").read_bytes() == before
    shutil.rmtree(here / "simclr")
    g_simclr(small_store, here, "--clusters", 5)
    assert np.load(here / "clusters.npy").max() < 5, "nothing had begun with the others"
    assert json.loads(record.read_text())["clusters"] == 5
    shutil.rmtree(here / "autoencoder")
    with pytest.raises(ConfigError, match=r"simclr/ has begun with them: seed 1 .*, autoencoder "):
        g_simclr(small_store, here, "--clusters", 5, "--set-autoencoder", "seed=1")


def test_clusters_are_computed_on_the_fastest_device(
    untrained: list[str], small_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ssl_dist.evaluate.fastest_device", lambda: torch.device("meta"))  # nothing to copy back
    with pytest.raises(NotImplementedError, match="meta"):
        g_simclr(small_store, tmp_path / "here")
