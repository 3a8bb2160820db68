"""Recipes and overrides make one object; errors name the key and the remedy."""

from __future__ import annotations

import math
import re
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st

from ssl_dist.augment import OPERATIONS, POLICIES
from ssl_dist.commands.options import overrides_of
from ssl_dist.config import DataFacts, Plan, ResolvedConfig, RunConfig
from ssl_dist.config.overrides import put_override
from ssl_dist.errors import ConfigError
from ssl_dist.reading import RECIPE_FOLDER, Written, exact, parse, parse_override
from tests.helpers import small_config, with_facts

STORE = Path("/nowhere/store")


def load(**overrides: Any) -> RunConfig:
    return RunConfig.load("simclr-cifar10", {key.replace("__", "."): value for key, value in overrides.items()})


@pytest.mark.parametrize("recipe", sorted(RECIPE_FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_that_ships_is_valid_and_opens_with_its_result(recipe: Path) -> None:
    config = RunConfig.load(recipe.stem)
    assert config == RunConfig.load(recipe)
    head = recipe.read_text().split("seed:")[0]
    for word in ("command:", "hardware:", "time:", "result:"):
        assert word in head.lower()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"optim__lrr": 1}, "unknown key optim.lrr; did you mean optim.lr?"),
        ({"tempeature": 1}, "unknown key tempeature; did you mean method.temperature?"),
        ({"method__temprature": 1}, "unknown key method.temprature; did you mean method.temperature?"),
        ({"bach__size": 8}, "unknown key bach; did you mean batch?"),
        ({"lr": 1}, "unknown key lr; did you mean optim.lr?"),
        ({"learning_rate": 1}, "unknown key learning_rate; did you mean optim.lr?"),
        ({"optim__leaning_rate": 1}, "unknown key optim.leaning_rate; did you mean optim.lr?"),
        ({"batch_size": 8}, "unknown key batch_size; did you mean batch.size?"),
        ({"batch__size": 1}, "batch.size: Input should be greater than or equal to 2 (given 1)"),
        (
            {"batch__size": 500},
            "batch.size 500 is not a multiple of batch.micro 256: try batch.size=256 or",
        ),
        ({"batch__size": 128}, "batch.micro 256: try batch.micro=128"),
        ({"epochs": float("inf")}, "epochs: Input should be a finite number"),
        ({"optim__betas": [2, 0.9]}, "optim.betas.0: Input should be less than 1 (given 2)"),
        ({"seed": 2**64}, "seed: "),
        ({"method__temperature": 0}, "method.temperature: Input should be greater than 0 (given 0)"),
        ({"method__temperature": -1.0}, "method.temperature: Input should be greater than 0 (given -1.0)"),
        ({"method__name": "simclrr"}, "method 'simclrr': it is one of "),
        ({"backbone__name": "resnet19"}, "backbone 'resnet19': it is one of convnet, resnet8"),
        ({"backbone__stem": "tiny"}, "backbone.stem: Input should be 'standard', 'small' or 'half' (given 'tiny')"),
        ({"backbone__dropout": 0.5}, "backbone resnet8 has no dropout (given 0.5): only convnet has"),
        (
            {"backbone": {"name": "vit_b_16"}, "augment__size_px": 40},
            "backbone vit_b_16 takes images of a multiple of 16 px: these have 40",
        ),
        (
            {"backbone": {"name": "vit_b_16"}, "augment": {"recipe": "swav-small"}},
            "backbone vit_b_16 takes images of one size: these have 16, 32 px",
        ),
        (
            {"augment__recipe": "swav-small"},
            "augment.recipe swav-small makes 6 views: method simclr takes 2 views, of one size; set augment.recipe to"
            " one of simclr, simclr-small, mocov2, byol, byol-small, weak-strong",
        ),
        (
            {"method": {"name": "swav"}, "augment__recipe": "none"},
            "augment.recipe none makes 1 views: method swav takes 2 views or more; set augment.recipe to one of simclr",
        ),
        (
            {"method": {"name": "supervised", "num_classes": 2}, "augment__recipe": "swav-small"},
            "augment.recipe swav-small makes 6 views: method supervised takes 1 views or more, of one size",
        ),
        (
            {"method": {"name": "moco"}, "batch": {"size": 8, "micro": 4}},
            "batch.micro 4: method moco needs two images for each of its 4 batch_norm_groups, and 16 images",
        ),
        (
            {"method": {"name": "vicreg"}, "batch": {"size": 4, "micro": 1}},
            "batch.micro 1: method vicreg needs 2 images for BatchNorm's statistics",
        ),
        (
            {"method": {"name": "swav"}, "epochs": 1},
            "method.freeze_prototypes_epochs 1: prototypes would learn nothing in a run of 1 epochs",
        ),
        (
            {"method": {"name": "swav", "queue": 100}},
            "method.queue_from_epoch 15: the queue would never be used in a run of 6 epochs",
        ),
        ({"augment__recipe": "x"}, "augment.recipe 'x': it is one of simclr, simclr-small"),
        ({"augment__only": ["crop", "jitter"]}, "augment.only 'jitter': each is one of crop, flip, rotation, colour"),
        (
            {"augment": {"only": ["flip"], "flip_p": 0}},
            "augment.only names flip and augment.flip_p is 0: leave one out",
        ),
        ({"augment__crop_scale": [0, 1]}, "crop_scale (0.0, 1.0): two shares of the area"),
        (
            {"optim__name": "lars", "engine__zero_stage": 3},
            "optim.name lars with engine.zero_stage 3: LARS needs the norms",
        ),
        ({"engine__zero_stage": 4}, "engine.zero_stage: Input should be 0, 1, 2 or 3 (given 4)"),
        ({"cluster__workers": 0}, "cluster.workers.min: Input should be greater than or equal to 1 (given 0)"),
        ({"cluster__workers": {"min": 3, "max": 2}}, "cluster.workers {min: 3, max: 2}: max must not be below min"),
        ({"data": {}}, "data.store is missing: set it with --set data.store=..."),
        ({"epochs": "many"}, "epochs: Input should be a valid number"),
    ],
)
def test_errors_name_the_key_and_the_remedy(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(**overrides)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_recipe_is_answered_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"recipe nope: no such file; .*simclr-cifar10"):
        RunConfig.load("nope")
    (tmp_path / "list.yaml").write_text("[1, 2]")
    with pytest.raises(ConfigError, match="is not a mapping"):
        RunConfig.load(tmp_path / "list.yaml")
    (tmp_path / "torn.yaml").write_text("a: [1")
    with pytest.raises(ConfigError, match=r"torn\.yaml cannot be read"):
        RunConfig.load(tmp_path / "torn.yaml")


def set_values(*settings: str) -> RunConfig:
    return RunConfig.load("simclr-cifar10", overrides_of(list(settings)))


@pytest.mark.parametrize(
    "value",
    [
        *("photos #2", "00012", "@data", "1:30", "1e-3", "010", "1_000", "yes", "off", "true", "2026-11-27", "a=b"),
        *("'q'", "null", "{a}", "[1", "*x", "&x", "!x", "%x", "a: b", "- a", ".5", "~", " x "),
    ],
)
def test_a_text_setting_of_the_command_line_is_taken_as_it_stands(value: str) -> None:
    assert set_values(f"data.store={value}").data.store == value


@pytest.mark.parametrize(
    "value", ["00012", "1:30", "1e-3", "1_000", "yes", "true", "2026-11-27", "0x1F", "007.5", "1."]
)
def test_a_text_setting_of_a_recipe_is_what_was_written_quoted_or_not(tmp_path: Path, value: str) -> None:
    for text in (value, f"'{value}'"):
        (tmp_path / "r.yaml").write_text(f"data: {{store: {text}, label_file: {text}}}\nmonitor: {{hparams: [{text}]}}")
        config = RunConfig.load(tmp_path / "r.yaml")
        assert (config.data.store, config.data.label_file, config.monitor.hparams) == (value, value, (value,))


@pytest.mark.parametrize(
    "text", ["1e-3", "00012", "yes", "null", "~", "photos #2", "a: b", "1:30", "2026-11-27", "1_000"]
)
def test_a_config_printed_as_a_recipe_is_read_back(tmp_path: Path, text: str) -> None:
    config = load(data={"store": text, "label_file": text}, monitor__hparams=[text], optim__lr=1e-5)
    (tmp_path / "r.yaml").write_text(config.to_yaml())
    assert RunConfig.load(tmp_path / "r.yaml") == config


@pytest.mark.parametrize(
    ("setting", "key", "expected"),
    [
        ("optim.lr=1e-3", "optim.lr", 0.001),
        ("optim.lr=1E+0", "optim.lr", 1.0),
        ("optim.lr=.5", "optim.lr", 0.5),
        ("optim.lr=5.", "optim.lr", 5.0),
        ("batch.micro=0128", "batch.micro", 128),
        ("batch={size: 010, micro: 05}", "batch.size", 10),
        ("batch.size=1_024", "batch.size", 1024),
        ("batch.size=1e3", "batch.size", 1000),
        ("epochs=010", "epochs", 10.0),
        ("engine.zero_stage=02", "engine.zero_stage", 2),
        ("engine.precision=fp32", "engine.precision", "fp32"),
        ("cluster.gpu=true", "cluster.gpu", True),
        ("cluster.gpu=off", "cluster.gpu", False),
        ("cluster.workers=03", "cluster.workers.max", 3),
        ("cluster.workers={min: 1, max: 4}", "cluster.workers.min", 1),
        ("optim.betas=[.8, 9e-1]", "optim.betas", [0.8, 0.9]),
        ("probe=null", "probe", None),
        ("probe=", "probe", None),
        ("data.label_file=null", "data.label_file", None),
        ("data.label_file=", "data.label_file", None),
        ("optim.clip_norm=~", "optim.clip_norm", None),
        ("monitor.hparams=[epochs, 010]", "monitor.hparams", ["epochs", "010"]),
        ("method={name: swav, queue: 0}", "method.queue", 0),
        ("engine.precision='fp32'", "engine.precision", "fp32"),
        ("engine.precision= fp32", "engine.precision", "fp32"),
        ("backbone.checkpoint=best", "backbone.checkpoint", "best"),
        ("backbone.checkpoint=0050", "backbone.checkpoint", 50),
        ("backbone.normalisation=none", "backbone.normalisation", "none"),
        ("backbone.normalisation=null", "backbone.normalisation", None),
        ("backbone.normalisation={mean: [0, .5, 0], std: [1, 1, 1]}", "backbone.normalisation.mean", [0, 0.5, 0]),
    ],
)
def test_other_settings_are_yaml_with_decimal_numbers(setting: str, key: str, expected: Any) -> None:
    extra = ["batch={size: 1000, micro: 5}"] if setting.startswith("batch.size=1e3") else []
    assert set_values(*extra, setting).flat()[key] == expected


@pytest.mark.parametrize("value", ["1:30", "0x10", "0o17", "0b11", "2026-11-27", "1e", "--1", ".inf", "nan", "yes"])
def test_what_is_no_decimal_number_is_refused_as_one(value: str) -> None:
    with pytest.raises(ConfigError, match=r"epochs: "):
        set_values(f"epochs={value}")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("epochs=true", "epochs: Input should be a valid number, unable to parse string as a number (given 'true')"),
        ("cluster.workers=true", "cluster.workers.min: Input should be a valid integer, unable"),
        ("engine.zero_stage=true", "engine.zero_stage: Input should be 0, 1, 2 or 3 (given 'true')"),
        ("epochs={a: 3}", "epochs: Input should be a valid number (given {'a': '3'})"),
        ("backbone.checkpoint=bst", "backbone.checkpoint: Input should be 'newest' or 'best', or a valid integer, una"),
        ("backbone.normalisation=rgb", "'inception', or a section, such as {key: value} (given 'rgb')"),
        ("optim.betas=[0.9]", "optim.betas: Input should have more values (given [0.9])"),
        ("optim.betas=0.9, 0.95", "optim.betas: Input should be a list, such as [1, 2] (given '0.9, 0.95')"),
        ("batch=8", "batch: Input should be a section, such as {key: value} (given 8)"),
        ("batch={siz: 8, micr: 4}", "unknown key batch.siz; did you mean batch.size?; unknown key batch.micr; did you"),
        ("seed=" + 3000 * "[", "seed: the value cannot be read as YAML: maximum recursion depth exceeded"),
    ],
)
def test_what_a_setting_does_not_take_is_refused_by_its_key_in_plain_words(setting: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        set_values(setting)
    assert message in str(caught.value)


def test_a_dotted_key_of_a_recipe_is_refused_with_its_section(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("data: {store: s}\noptim.lr: 0.1")
    with pytest.raises(ConfigError, match=r"unknown key optim\.lr; write it as optim: \{lr: \.\.\.\}"):
        RunConfig.load(tmp_path / "r.yaml")


def test_the_last_of_several_overrides_counts_in_their_order() -> None:
    batch = set_values("batch.size=8", "batch={size: 16, micro: 4}", "batch.size=32").batch
    assert (batch.size, batch.micro) == (32, 4)
    assert set_values("epochs=2", "epochs=3").epochs == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "epochs: 1\noptim: {lr: 1}\ndata: {store: s}\noptim: {name: sgd}",
            "optim is given on line 2 and again on line 4",
        ),
        ("epochs: 1\nepochs: 2", "epochs is given on line 1 and again on line 2: keep one"),
        ("data:\n  store: a\n  order: full\n  store: b", "store is given on line 2 and again on line 4"),
        ("data: {store: a}\nbatch: {size: 8, micro: 4, size: 16}", "size is given on line 2 and again on line 2"),
        (
            "data: {store: a}\ncluster:\n  workers:\n    max: 1\n    'max': 2",
            "max is given on line 4 and again on line 5",
        ),
    ],
)
def test_a_key_that_a_recipe_has_twice_is_refused_with_both_lines(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"recipe .*r\.yaml cannot be read") as caught:
        RunConfig.load(tmp_path / "r.yaml")
    assert message in str(caught.value)


def test_a_recipe_may_share_values_by_anchors(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(
        "data: {store: a}\nprobe: &p {every_epochs: 2, k: 5}\ncheckpoint: {<<: {keep: 3}, keep: 4}"
    )
    config = RunConfig.load(tmp_path / "r.yaml")
    assert (config.checkpoint.keep, config.probe and config.probe.k) == (4, 5)


@pytest.mark.parametrize("setting", ["optim.lr=[1", "batch={size: 8", "batch={size: 8, size: 16}", "probe={k: 1}}"])
def test_a_value_that_is_not_yaml_is_refused_with_its_key(setting: str) -> None:
    with pytest.raises(ConfigError, match=rf"{setting.partition('=')[0]}: the value cannot be read as YAML"):
        set_values(setting)


@pytest.mark.parametrize("text", ["optim.lr", "=3"])
def test_malformed_overrides_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--set"):
        parse_override(text)


def test_epochs_become_steps_once(tmp_path: Path) -> None:
    config = small_config(tmp_path / "s", epochs=2.5, batch={"size": 12, "micro": 4}, optim__warmup_epochs=0.5)
    plan = with_facts(config, 51).plan()
    assert (plan.total_steps, plan.warmup_steps) == (math.floor(2.5 * 51 / 12), 2)
    assert [step for step in range(1, 11) if plan.is_time(step, 1)] == [5, 9, 10]  # 4.25, 8.5 and the end
    with pytest.raises(ConfigError, match=r"epochs 2\.5 of 4 images are less than one batch of 12: raise epochs to 3"):
        with_facts(config, 4).plan()


def plan_of(num_samples: int, batch: int, **overrides: Any) -> Plan:
    return with_facts(
        load(batch={"size": batch, "micro": 1}, method={"name": "simclr"}, **overrides), num_samples
    ).plan()


@pytest.mark.parametrize(
    ("epochs", "num_samples", "batch", "steps"),
    [
        (2.3, 100, 10, 23),
        (0.29, 100, 29, 1),
        (0.58, 100, 29, 2),
        (2.01, 1000, 10, 201),
        (2.28, 100, 12, 19),
        (3, 100, 7, 42),
    ],
)
def test_no_step_is_lost_to_rounding(epochs: float, num_samples: int, batch: int, steps: int) -> None:
    assert plan_of(num_samples, batch, epochs=epochs).total_steps == steps


@pytest.mark.parametrize(
    ("every", "num_samples", "batch", "steps"),
    [
        (0.14, 100, 10, [2, 3, 5, 6, 7]),
        (0.17, 1000, 100, [2, 4, 6, 7, 9, 11, 12, 14, 16, 17]),
        (0.7, 20, 2, [7, 14, 21, 28]),
        (0.29, 100, 29, [1, 2, 3]),
        (100 / 9, 9, 10, [10, 20, 30]),
    ],
)
def test_no_probe_and_no_checkpoint_is_late_by_rounding(
    every: float, num_samples: int, batch: int, steps: list[int]
) -> None:
    plan = plan_of(num_samples, batch, epochs=1000)
    assert [step for step in range(1, steps[-1] + 1) if plan.is_time(step, every)] == steps


DECIMALS = st.decimals(min_value=0, max_value=300, places=4).filter(lambda number: number > 0)


@hypothesis.settings(max_examples=200, deadline=None)
@hypothesis.given(DECIMALS, DECIMALS, st.integers(2, 2000), st.integers(2, 64), st.integers(1, 500))
def test_steps_are_those_of_rational_arithmetic(
    epochs: Decimal, every: Decimal, num_samples: int, batch: int, step: int
) -> None:
    per_epoch = Fraction(num_samples, batch)
    plan = Plan(num_samples=num_samples, images_per_step=batch, total_steps=10**9, warmup_steps=0)
    assert math.floor(exact(float(epochs)) * per_epoch) == math.floor(Fraction(epochs) * per_epoch)
    passed = [math.floor(Fraction(at) / (Fraction(every) * per_epoch)) for at in (step - 1, step)]
    assert plan.periods(step, float(every)) == passed[1]
    assert plan.is_time(step, float(every)) == (passed[1] > passed[0])


@pytest.mark.parametrize("number", [0.29, 1e-7, 123456.789, 20 / 17, 100 / 9, 1 / 3, 2**-40, 3, 10 * 12 / 51])
def test_a_float_is_the_number_that_was_written(number: float) -> None:
    found = exact(number)
    assert float(found) == number
    assert found == Fraction(str(number)) or found.denominator < 60


def test_the_epochs_that_a_message_asks_for_are_enough() -> None:
    for num_samples, batch in ((51, 12), (100, 29), (7, 3), (1000, 999), (10**6, 7)):
        with pytest.raises(ConfigError, match="raise epochs to ") as caught:
            plan_of(num_samples, batch, epochs=1e-9)
        enough = str(caught.value).split("raise epochs to ")[1].split()[0]
        assert plan_of(num_samples, batch, epochs=float(enough)).total_steps == 1


def test_the_learning_rate_warms_up_and_falls_along_half_a_cosine() -> None:
    optim = load(optim__lr=0.1, optim__lr_scaling="linear").optim
    rates = [optim.learning_rate(step, batch_size=512, warmup_steps=4, total_steps=12) for step in range(12)]
    assert rates[:4] == pytest.approx([0.05, 0.1, 0.15, 0.2])
    assert rates[4:] == pytest.approx([0.1 * (1 + math.cos(math.pi * k / 8)) for k in range(8)])
    assert load(optim__lr=0.1, optim__lr_scaling="sqrt").optim.peak_lr(1024) == pytest.approx(0.2)
    constant = load(optim__lr=0.1, optim__schedule="constant").optim
    assert constant.learning_rate(11, batch_size=512, warmup_steps=4, total_steps=12) == 0.1


def test_the_fingerprint_changes_with_every_setting_and_fact() -> None:
    changes: list[dict[str, Any]] = [
        {},
        {"seed": 1},
        {"method__temperature": 0.3},
        {"cluster__workers": 3},
        {"probe": None},
    ]
    configs = [*(with_facts(load(**change), 51) for change in changes), with_facts(load(), 52)]
    assert len({config.fingerprint() for config in configs}) == len(configs)


OLD_LAYOUT = {
    "data": {
        **{"store": "/photos", "label_file": "/labels.npy", "order": "shards", "num_images": 60, "num_samples": 51},
        **{"image_shape": [16, 16, 3], "label_digest": "e1b2", "shards_digest": "77aa"},
    },
    "backbone": {"name": "resnet8", "weights": "/model.safetensors", "weights_digest": "0f0f"},
    "method": {"name": "supervised", "num_classes": 3},
    "augment": {"recipe": "weak"},
    "cluster": {"workers": 2},
}


def test_facts_among_the_settings_as_they_were_once_written_are_read() -> None:
    config = ResolvedConfig.from_tree(OLD_LAYOUT, "config.json")
    facts = {"num_images": 60, "num_samples": 51, "image_shape": (16, 16, 3), "label_digest": "e1b2"}
    assert config.facts == DataFacts(**facts, shards_digest="77aa", weights_digest="0f0f")
    assert config.fingerprint() == "3ae7b498cdff", "an earlier version named a trial's directory so"
    assert ResolvedConfig.from_tree(config.model_dump(mode="json"), "config.json") == config
    for tree in (OLD_LAYOUT, config.model_dump(mode="json")):
        assert RunConfig.from_tree(tree, "a recipe").model_dump() == config.model_dump(exclude={"facts"})


def test_a_config_survives_its_own_json() -> None:
    config = load(augment__size_px=24)
    assert RunConfig.from_tree(config.model_dump(mode="json"), "here") == config
    assert config.flat()["method.temperature"] == 0.2
    assert {view.size_px for view in config.augment.views()} == {24}


def test_only_the_named_operations_happen_whatever_their_order() -> None:
    config = load(augment={"recipe": "simclr", "only": ["rotation", "crop"], "crop_scale": [0.2, 1.0]})
    for view in config.augment.views():
        happens = {name for name, (key, _) in OPERATIONS.items() if getattr(view, key)}
        assert (happens, view.rotation_p, view.crop_scale) == ({"crop", "rotation"}, 0.75, (0.2, 1.0))
    assert load(augment={**config.augment.model_dump(), "only": ["crop", "rotation"]}) == config
    assert load(augment={"recipe": "simclr", "only": []}).augment.views() == POLICIES["none"] * 2


def test_a_backbone_is_made_for_the_size_of_its_views() -> None:
    config = with_facts(load(backbone={"name": "vit_b_16"}), 51, size_px=48)
    assert (config.view_sizes, config.initial_method().backbone.image_size) == ((48, 48), 48)
    config = with_facts(load(backbone={"name": "vit_b_16"}, augment__size_px=32), 51, size_px=48)
    assert (config.view_sizes, config.initial_method().backbone.image_size) == ((32, 32), 32)
    with pytest.raises(ConfigError, match="backbone vit_b_16 takes images of a multiple of 16 px: these have 40"):
        with_facts(load(backbone={"name": "vit_b_16"}), 51, size_px=40)
    assert load().view_sizes == (), "no store was opened"


@pytest.mark.parametrize(
    "text", ["gpu: !!bool maybe", "a: !!timestamp x", "&a [*a]", "a: !!int x", "a: !!float x", "a: !!binary x"]
)
def test_a_value_that_its_tag_cannot_be_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="here cannot be read as YAML"):
        parse(text, "here")


@pytest.mark.parametrize("text", ["5", "resnet8", "[1]"])
def test_a_key_of_what_is_no_section_is_refused(text: str) -> None:
    """An override must not turn an earlier mistake into defaults."""
    with pytest.raises(ConfigError, match=f"--set backbone={re.escape(text)}: it is a section"):
        put_override({"backbone": Written(text)}, "backbone.width", 3)


@pytest.mark.parametrize(("text", "kept"), [("", {}), ("null", {}), ("{name: resnet8}", {"name": "resnet8"})])
def test_a_key_is_put_into_a_section_that_was_given_whole(text: str, kept: dict[str, str]) -> None:
    tree: dict[str, Any] = {"backbone": Written(text)}
    put_override(tree, "backbone.width", 3)
    assert tree == {"backbone": {**kept, "width": 3}}
