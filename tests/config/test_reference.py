"""The reference of settings: it lists every key of every method once, and docs/settings.md is its page."""

from __future__ import annotations

import re
from pathlib import Path

from ssl_dist import methods
from ssl_dist.augment import OPERATIONS, POLICIES
from ssl_dist.config import RunConfig
from ssl_dist.config.overrides import flatten, read_recipe
from ssl_dist.config.reference import markdown, settings_rows
from ssl_dist.reading import RECIPE_FOLDER

PAGE = Path(__file__).parent.parent.parent / "docs" / "settings.md"


def test_every_setting_is_described() -> None:
    assert [row.key for row in settings_rows() if not row.description or not row.values] == []


def test_every_key_of_a_recipe_is_listed() -> None:
    for method in methods.names():
        config = RunConfig.load(f"{method.replace('_', '-')}-cifar10")
        listed = {row.key for row in settings_rows() if method in row.methods or not row.methods}
        assert set(config.flat()) <= listed
    for recipe in RECIPE_FOLDER.glob("*.yaml"):
        assert {key for key, _ in flatten(read_recipe(recipe))} <= {row.key for row in settings_rows()}


def test_every_name_is_listed() -> None:
    for key, names in (("augment.recipe", POLICIES), ("augment.only", OPERATIONS)):
        [row] = settings_rows(key)
        assert set(names) <= set(re.findall(r"[\w-]+", row.description))


def test_a_prefix_chooses_a_setting_or_a_section() -> None:
    [window] = settings_rows("data.window")
    assert (window.values, window.default) == ("int ≥ 1", "262144")
    assert {row.key.partition(".")[0] for row in settings_rows("data")} == {"data"}
    assert {row.default for row in settings_rows("method.temperature")} >= {"0.2", "0.1"}
    assert settings_rows("dat") == []


def test_the_page_is_up_to_date() -> None:
    """Write it with: python -m ssl_dist.config.reference > docs/settings.md."""
    assert PAGE.read_text(encoding="utf-8") == markdown()
