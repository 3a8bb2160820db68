"""Where a method's settings stand: with the package's, which need no torch, or in a file of one's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from ssl_dist import methods
from ssl_dist.errors import ConfigError

MINE = """
from typing import Literal
from ssl_dist.methods.base import LossMethod, MethodConfig

class Mine(LossMethod):
    class Config(MethodConfig):
        name: Literal["mine_alone"] = "mine_alone"
        uses_labels = "all"

    def embed(self, views):
        raise NotImplementedError
"""


@pytest.mark.parametrize("name", methods.names())
def test_a_methods_class_and_its_settings_belong_together(name: str) -> None:
    assert methods.load(name).Config is methods.config_of(name)
    assert methods.config_of(name).model_fields["name"].default == name


def test_a_method_of_ones_own_is_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine_alone.py").write_text(MINE)
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(tmp_path)])
    assert "mine_alone" in methods.names()
    assert methods.config_of("mine_alone") is methods.load("mine_alone").Config
    assert methods.config_of("mine_alone").uses_labels == "all"
    with pytest.raises(ConfigError, match="mine_too"):
        methods.config_of("mine_too")
