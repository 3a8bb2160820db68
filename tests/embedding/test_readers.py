"""Other readers of Parquet open an embedding unchanged: DuckDB, polars, Hugging Face's datasets, and Lance."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from pyarrow import parquet

from ssl_dist.embedding import embed


@pytest.fixture(scope="module")
def table(run: Path, image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tables") / "e.parquet"
    embed(run, image_folder, out, with_map=True, num_neighbours=3)
    return out


@pytest.fixture(scope="module")
def features(table: Path) -> np.ndarray:
    return np.stack(parquet.read_table(table)["embedding"].to_pylist()).astype(np.float32)


def test_duckdb(table: Path, features: np.ndarray) -> None:
    import duckdb

    found = duckdb.sql(f"from '{table}'").fetchnumpy()
    np.testing.assert_array_equal(np.stack(found["embedding"]), features)
    dim = features.shape[1]
    similarity = (
        f"array_cosine_similarity(embedding::float[{dim}], (select embedding::float[{dim}] from e where key = ?))"
    )
    query = f"with e as (from '{table}') select key, {similarity} s from e where key != $1 order by s desc limit 3"
    near = duckdb.execute(query.replace("?", "$1"), ["class1/004.png"]).fetchall()
    [(keys, similarities)] = duckdb.execute(
        f"select neighbours, similarities from '{table}' where key = ?", ["class1/004.png"]
    ).fetchall()
    assert [key for key, _ in near] == keys
    np.testing.assert_allclose([one for _, one in near], similarities, atol=1e-6)  # DuckDB adds up in float32
    [(facts,)] = duckdb.sql(
        f"select value from parquet_kv_metadata('{table}') where decode(key) = 'ssl_dist'"
    ).fetchall()
    assert json.loads(facts)["dim"] == dim


def test_polars(table: Path, features: np.ndarray) -> None:
    import polars as pl

    found = pl.read_parquet(table)
    assert found.schema["embedding"] == pl.Array(pl.Float32, features.shape[1])
    assert found.schema["neighbours"] == pl.List(pl.String)
    np.testing.assert_array_equal(found["embedding"].to_numpy(), features)
    assert found.group_by("class").len()["len"].to_list() == [17, 17, 17]
    assert found.filter(pl.col("x").is_null() | pl.col("y").is_null()).is_empty()


def test_datasets(table: Path, features: np.ndarray, tmp_path: Path) -> None:
    from datasets import load_dataset

    found = load_dataset("parquet", data_files=str(table), cache_dir=str(tmp_path), split="train")
    np.testing.assert_array_equal(found.with_format("numpy")["embedding"][:], features)
    assert found.features["embedding"].length == features.shape[1]
    assert found["class"][:2] == ["class0", "class0"]


@pytest.mark.extras
def test_lance(table: Path, features: np.ndarray, tmp_path: Path) -> None:
    import lance

    made = lance.write_dataset(
        parquet.ParquetFile(table).iter_batches(), tmp_path / "e.lance", schema=parquet.read_schema(table)
    )
    near = made.to_table(nearest={"column": "embedding", "q": features[20], "k": 4, "metric": "cosine"})
    [neighbours] = made.to_table(filter="key = 'class1/003.png'")["neighbours"].to_pylist()
    assert near["key"].to_pylist() == ["class1/003.png", *neighbours]
