"""Spaces: random and grid samples of their domains, and the configs that samples make of a recipe."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ssl_dist.errors import ConfigError
from tests.helpers import resolved_config
from tests.tune.test_sweep import make
from tune import space as spaces
from tune.space import Domain

TEXT = """
optim.lr: {log_uniform: [0.001, 0.1]}
method.temperature: {uniform: [0.1, 0.5]}
batch.size: {powers_of_two: [4, 40]}
epochs: [1, 2, 4]
"""


@pytest.fixture
def space(tmp_path: Path) -> spaces.Space:
    (tmp_path / "space.yaml").write_text(TEXT)
    return spaces.load(tmp_path / "space.yaml")


def test_samples_are_within_their_domains_and_the_same_for_the_same_seed(space: spaces.Space) -> None:
    samples = spaces.draw(space, 200, seed=3)
    assert samples == spaces.draw(space, 200, seed=3) != spaces.draw(space, 200, seed=4)
    assert len(samples) == len({repr(sample) for sample in samples}) == 200
    rates = np.array([sample["optim.lr"] for sample in samples])
    assert rates.min() >= 0.001
    assert rates.max() <= 0.1
    assert 0.4 < (rates < 0.01).mean() < 0.6, "half of a log-uniform is below the geometric mean"
    assert {sample["batch.size"] for sample in samples} == {4, 8, 16, 32}
    assert {sample["epochs"] for sample in samples} == {1, 2, 4}


def test_values_are_yaml_with_decimal_numbers_as_in_a_recipe(tmp_path: Path) -> None:
    file = tmp_path / "space.yaml"
    file.write_text(
        "optim.lr: [1e-3, 1e-2, 3E-3, .5]\nbatch.size: {choice: [010, 16]}\ndata.cache: ['00012', a, null]\n"
        "method.temperature: {log_uniform: [1e-1, 1]}\ndata.stratified: [true, false]\nprobe: [{k: 05}, null]"
    )
    space = spaces.load(file)
    assert space["optim.lr"].values == (0.001, 0.01, 0.003, 0.5)
    assert space["batch.size"].values == (10, 16)
    assert space["data.cache"].values == ("00012", "a", None)
    assert space["method.temperature"].log_uniform == (0.1, 1)
    assert space["data.stratified"].values == (True, False)
    assert space["probe"].values == ({"k": 5}, None)
    file.write_text("epochs: [1]\noptim.lr: [1]\nepochs: [2]")
    with pytest.raises(ConfigError, match="epochs is given on line 1 and again on line 3: keep one"):
        spaces.load(file)


def test_fewer_samples_where_there_are_not_so_many() -> None:
    assert len(spaces.draw({"epochs": Domain(choice=(1, 2))}, 16, seed=0)) == 2


def test_a_grid_has_every_combination() -> None:
    space = {"epochs": Domain(choice=(1, 2)), "batch.size": Domain(powers_of_two=(4, 16))}
    expected = [{"epochs": e, "batch.size": b} for e in (1, 2) for b in (4, 8, 16)]
    assert spaces.grid(space) == expected


def test_a_grid_refuses_continuous_domains(space: spaces.Space) -> None:
    with pytest.raises(ConfigError, match=r"try optim.lr: \[0.001, 0.01, 0.1\]"):
        spaces.grid(space)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, 2]", "must map dotted keys to domains"),
        ("optim.lr: {uniform: [2, 1]}", "optim.lr: uniform .* the first bound must be below the second"),
        ("optim.lr: {log_uniform: [0, 1]}", "bounds must be above 0"),
        ("optim.lr: {normal: [0, 1]}", "optim.lr: "),
        ("optim.lr: {uniform: [0, 1], choice: [1]}", "exactly one of"),
        ("optim.lr: []", "optim.lr: "),
        ("batch.size: {powers_of_two: [5, 7]}", "there is none between them"),
        ("a: {b", "cannot be read"),
        ("optim: {lr: [1, 2]}", "optim: give a list of values, or one of .* by dotted keys, as optim.lr"),
        ("optim.lr: 0.1", "optim.lr: give a list of values, or one of choice, uniform, log_uniform, powers_of_two as"),
        ("optim.lr: {loguniform: [1, 2]}", "optim.lr: give a list of values, or one of choice, uniform"),
        ("optim.lr: {uniform: [1]}", r"optim.lr: uniform: Input should have more values \(given \[1\]\)"),
        ("optim.lr: {uniform: 1}", r"optim.lr: uniform: Input should be a list, such as \[1, 2\] \(given 1\)"),
        ("batch.size: {powers_of_two: [1.5, 64]}", "batch.size: powers_of_two.0: Input should be a valid integer"),
    ],
)
def test_bad_spaces_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "space.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        spaces.load(tmp_path / "space.yaml")


def test_a_sample_is_a_dict_of_overrides_whose_micro_batch_is_made_to_fit(small_store: Path) -> None:
    recipe = resolved_config(small_store, batch={"size": 12, "micro": 4})
    assert spaces.apply(recipe, {"optim.lr": 0.5, "batch.size": 16}).optim.lr == 0.5
    micro = {size: spaces.apply(recipe, {"batch.size": size}).batch.micro for size in (16, 2, 6, 10)}
    assert micro == {16: 4, 2: 2, 6: 2, 10: 2}
    with pytest.raises(ConfigError, match="not a multiple"):
        spaces.apply(recipe, {"batch.size": 10, "batch.micro": 4})


def test_a_misspelt_key_is_answered_with_its_neighbour(small_store: Path) -> None:
    with pytest.raises(ConfigError, match=r"did you mean optim\.lr"):
        spaces.apply(resolved_config(small_store), {"optim.lrr": 0.5})


@pytest.mark.parametrize("kind", ["uniform", "log_uniform"])
def test_no_value_lies_beyond_its_bounds(kind: str) -> None:
    bounds = (0.123456, 0.99999)
    domain, random = Domain.model_validate({kind: bounds}), np.random.default_rng(0)
    drawn = [domain.draw(random) for _ in range(20_000)]
    assert bounds[0] <= min(drawn) < 0.13
    assert 0.99 < max(drawn) <= bounds[1]
    assert (domain.clip(0.999995), domain.clip(2.0), domain.clip(0.1)) == (bounds[1], bounds[1], bounds[0])
    distribution = domain.distribution()
    assert (distribution.low, distribution.high) == bounds
    assert domain.encode(1.0) == bounds[1], "earlier versions rounded beyond a bound"


def test_a_grid_that_is_too_large_is_refused_at_once(small_store: Path) -> None:
    space = {
        f"augment.{name}_p": Domain(choice=tuple(n / 100 for n in range(1, 31))) for name in ("flip", "grey", "blur")
    }
    with pytest.raises(ConfigError, match="a grid of 27,000 trials: search at random"):
        make(small_store, space=space, search="grid").check()
    with pytest.raises(ConfigError, match="samples: Input should be less than or equal to 10000"):
        make(small_store, samples=20_000)
