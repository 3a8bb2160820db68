"""The rules of the health watch: each has a run that it names, and one that it does not."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from ssl_dist import methods
from ssl_dist.training.health import at_start, watch
from ssl_dist.training.health.collapse import Collapse, FewDimensions, LowTemperature
from ssl_dist.training.health.curves import DeadRate, ExplodingGradient, FallingProbe, FlatLoss, RisingLoss
from ssl_dist.training.health.data_path import Starved
from ssl_dist.training.health.rule import PATIENCE, Rule
from tests.helpers import with_facts

DOCS = Path(__file__).parents[2] / "docs" / "health.md"
WARM = 50
Curve = Callable[[int], float]


class Case(NamedTuple):
    """A rule with a run that it names, with which words, and another one that differs in one curve."""

    rule: Callable[[], Rule]
    sick: dict[str, Curve]
    said: str
    well: dict[str, Curve]
    every: int = 10


def constant(value: float) -> Curve:
    return lambda step: value


def falling(step: int) -> float:
    return 2.0 + 3.0 / (1 + step / 40) + 0.05 * (step // 10 % 3)


SPREAD = {"embedding/separation": constant(0.5), "embedding/rank": constant(30), "embedding/rank_limit": constant(128)}
CASES = {
    "collapse, one point": Case(
        lambda: Collapse(WARM, 64),
        {**SPREAD, "train/loss": falling, "embedding/std": lambda step: 0.8 if step < 40 else 0.001},
        "all embeddings are in one point",
        {**SPREAD, "train/loss": falling, "embedding/std": lambda step: 0.8 if step < 40 else 0.04},
    ),
    "few dimensions": Case(
        lambda: FewDimensions(WARM),
        {**SPREAD, "embedding/rank": lambda step: 40 if step < 40 else 9.4},
        "embeddings use 9 of 128 dimensions",
        {**SPREAD, "embedding/rank": lambda step: 40 if step < 40 else 12},
    ),
    "few dimensions from the start": Case(
        lambda: FewDimensions(WARM),
        {**SPREAD, "embedding/rank": lambda step: 19 if step < 40 else 9},
        "embeddings use 9 of 128 dimensions",
        {**SPREAD, "embedding/rank": lambda step: 17 if step < 40 else 9},
    ),
    "low temperature": Case(
        lambda: LowTemperature(WARM, 0.02),
        {**SPREAD, "embedding/std": constant(0.4)},
        "use 30 of 128 dimensions, with a spread of 0.4 (1: all over the sphere): temperature 0.02 is low; try",
        {**SPREAD, "embedding/std": constant(0.6)},
    ),
    "low temperature, where it is not low": Case(
        lambda: LowTemperature(WARM, 0.09),
        {"embedding/std": constant(0.4)},
        "temperature 0.09 is low",
        {},
    ),
    "flat loss": Case(
        lambda: FlatLoss(WARM),
        {"train/loss": lambda step: 5.0 + 0.2 * (step // 10 % 3)},
        "the run learns nothing",
        {"train/loss": lambda step: 5.0 + 0.2 * (step // 10 % 3) - 0.001 * step},
    ),
    "flat loss, logged rarely": Case(
        lambda: FlatLoss(WARM),
        {"train/loss_at_start": constant(5.0), "train/loss": constant(5.0)},
        "the loss is 5 and was 5 at the start",
        {"train/loss_at_start": constant(6.0), "train/loss": constant(5.0)},
        every=PATIENCE,
    ),
    "rising loss": Case(
        lambda: RisingLoss(WARM),
        {"train/loss": lambda step: falling(step) + max(0, step - 500) / 100},
        "training comes apart",
        {"train/loss": lambda step: falling(step) + max(0, step - 500) / 1000},
    ),
    "exploding gradient": Case(
        lambda: ExplodingGradient(WARM, None),
        {"train/gradient_norm": lambda step: 1.0 if step < 600 else 20.0},
        "the gradient's norm is 20 and was 1: it explodes. Try a third of optim.lr, or optim.clip_norm=3",
        {"train/gradient_norm": lambda step: 200.0 if step < WARM else 1.0 if step % 90 else 50.0},
    ),
    "dead learning rate": Case(
        lambda: DeadRate(0.1, WARM, 1000),
        {"train/learning_rate": lambda step: 0.1 if step < 500 else 1e-6},
        "the learning rate is 1e-06, 1e-05 of its peak, with 50% of the run left",
        {"train/learning_rate": lambda step: 0.1 if step < 950 else 1e-6},
    ),
    "starved": Case(
        lambda: Starved("/stores/photos"),
        {"speed/data_wait_share": lambda step: 0.62 if step > 300 else 0.0},
        "the run waits for images in 62% of its time. Try a faster disk",
        {"speed/data_wait_share": lambda step: 0.9 if step <= 20 else 0.2},
    ),
    "starved of a bucket": Case(
        lambda: Starved("s3://bucket/photos"), {"speed/data_wait_share": constant(0.5)}, "data.cache_gb", {}
    ),
    "falling probe": Case(
        lambda: FallingProbe("probe/knn", 1000, WARM),
        {"probe/knn": lambda step: 0.3 + step / 2000 if step < 600 else 0.5},
        "the probe is 50.0% and was 59.5% at step 590: it falls. That step's checkpoint may be better",
        {"probe/knn": lambda step: 0.3 + step / 2000 if step < 600 else 0.56},
    ),
    "probe below step 0": Case(
        lambda: FallingProbe("probe/linear", 1000, WARM),
        {"probe/linear": lambda step: 0.4 if not step else 0.3},
        "the probe is 30.0% and was 40.0% before training",
        {"probe/linear": lambda step: 0.4 if not step else 0.3 if step <= WARM else 0.36},
    ),
    "falling rank": Case(
        lambda: FallingProbe("probe/rankme", 1000, WARM),
        {"probe/rankme": lambda step: (200.0 if step < 500 else 140.0) if step else 90.0},
        "the probe is rank 140 and was rank 200 at step 10",
        {"probe/rankme": lambda step: 200.0 - step % 50},
    ),
}


def lines(curves: Mapping[str, Curve], every: int) -> Iterable[dict[str, float]]:
    """Yield lines as a run writes them: of step 0, which has no training yet, and to step 1,000 or of 20 logs."""
    for step in range(0, max(1000, 20 * every), every):
        start = ("embedding/", "probe/", "train/loss_at_start")
        tags = [tag for tag in curves if (tag != start[2] if step else tag.startswith(start))]
        values = {tag: curves[tag](step) for tag in tags}
        yield {"step": step, "epoch": step / 100, **values}


def said_of(case: Case, curves: Mapping[str, Curve]) -> dict[int, str]:
    rule, found = case.rule(), dict[int, str]()
    for line in lines(curves, case.every):
        if any(tag in line for tag in rule.tags) and (text := rule.judge(line)):
            found[int(line["step"])] = text
    return found


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_rule_names_what_it_is_for(case: Case) -> None:
    found = said_of(case, case.sick)
    assert found
    assert case.said in found[min(found)]


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_rule_says_nothing_of_a_run_that_is_well(case: Case) -> None:
    assert said_of(case, case.well) == {}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_rule_says_nothing_of_a_run_that_was_never_sick(case: Case) -> None:
    """A plain run of SimCLR: numbers of the CIFAR-10 run, rounded."""
    healthy = {
        **SPREAD,
        "train/loss": falling,
        "train/loss_at_start": constant(5.1),
        "train/gradient_norm": lambda step: 3.0 + step % 7 / 4,
        "train/learning_rate": lambda step: 0.1 * (1 - step / 1000),
        "embedding/std": constant(0.95),
        "speed/data_wait_share": lambda step: 0.4 if step <= 10 else 0.01,
        **{f"probe/{kind}": lambda step: 0.3 + 0.2 * step / 1000 for kind in ("knn", "linear", "rankme")},
    }
    assert said_of(case, healthy) == {}


def test_a_low_temperature_is_none_from_a_tenth_on() -> None:
    rule = LowTemperature(0, 0.1)
    assert not any(rule.judge({"step": step, "embedding/std": 0.1}) for step in range(1, 100))


SETTINGS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "lars-without-decay": (
        "they grow without end",
        {"optim.name": "lars", "optim.weight_decay": 0.0},
        {"optim.name": "lars", "optim.weight_decay": 1e-6},
    ),
    "low-temperature-in-bf16": (
        "which temperature 0.02 makes 0.25",
        {"method.temperature": 0.02, "engine.precision": "bf16"},
        {"method.temperature": 0.02, "engine.precision": "fp32"},
    ),
    "small-learning-rate": (
        "no weight moves by more than about 5e-05",
        {"optim.name": "adamw", "optim.lr": 1e-6},
        {"optim.name": "sgd", "optim.lr": 1e-6},
    ),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_are_judged_before_the_first_step(name: str) -> None:
    said, sick, well = SETTINGS[name]
    assert said in str(at_start.RULES[name](config(sick)))
    assert at_start.RULES[name](config(well)) is None
    assert not any(rule(config({})) for rule in at_start.RULES.values())


@pytest.mark.parametrize(
    ("settings", "temperature"),
    [
        ({"method": {"name": "simclr", "temperature": 0.3}}, 0.3),
        ({"method": {"name": "simclr", "temperature": 0.3, "similarity": "dot"}}, None),
        ({"method": {"name": "moco", "temperature": 0.3, "queue": 64}}, 0.3),
        ({"method": {"name": "swav", "temperature": 0.3, "prototypes": 8}}, None),
        ({"method": {"name": "vicreg"}}, None),
    ],
)
def test_a_temperature_counts_where_cosines_of_embeddings_are_divided_by_it(
    settings: dict[str, Any], temperature: float | None
) -> None:
    assert at_start.temperature_of(config(settings)) == temperature


def config(settings: Mapping[str, Any]) -> Any:
    """Return the settings of a run of 50 steps on a store that does not exist."""
    from ssl_dist.config import RunConfig
    from ssl_dist.config.overrides import put_override

    tree: dict[str, Any] = {"data": {"store": "none"}, "batch": {"size": 64, "micro": 64}, "epochs": 5}
    tree |= {"augment": {"recipe": "simclr-small"}, "method": {"name": "simclr", "temperature": 0.2}}
    for key, value in settings.items():
        put_override(tree, key, value)
    return with_facts(RunConfig.from_tree(tree, "test"), 640)


def test_methods_get_the_rules_that_are_true_for_them() -> None:
    names = {}
    for name in ("simclr", "byol", "vicreg"):
        settings = config({"method": {"name": name}})
        rules = watch.rules_of(
            settings, settings.plan(), loss_falls=methods.load(name).loss_falls, probe_images=10 * (name == "byol")
        )
        names[name] = {rule.name for rule in rules}
    every = {"collapse", "few-dimensions", "exploding-gradient", "dead-learning-rate", "starved"}
    assert names["simclr"] == every | {"low-temperature", "flat-loss", "rising-loss"}
    assert names["byol"] == every | {"falling-probe"}
    assert names["vicreg"] == every | {"flat-loss", "rising-loss"}


def test_every_rule_is_documented_and_no_other() -> None:
    documented = re.findall(r"^### `([a-z0-9-]+)`", DOCS.read_text(encoding="utf-8"), re.MULTILINE)
    known = {kind.name for kind in Rule.__subclasses__()} | set(at_start.RULES)
    assert len(documented) == len(set(documented))
    assert set(documented) == known
