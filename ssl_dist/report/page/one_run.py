"""What the page of one run shows."""

from __future__ import annotations

import base64
import shlex
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ssl_dist.config.comparing import as_recipe, base_of
from ssl_dist.report.maps import palette
from ssl_dist.report.page import words
from ssl_dist.report.page.evaluated import MapOfFeatures
from ssl_dist.report.page.panels import charts_of
from ssl_dist.report.page.run_files import RunFiles
from ssl_dist.report.page.views import views_of

_MAP_WIDTH = 400
_LAYERS = 8  # in which a map's groups are drawn by turns: else the last group would hide the others
_RANKS = {"rankme": "RankMe", "lidar": "LiDAR", "alpha": "alpha", "alignment": "align", "uniformity": "uniform"}


def content_of(run: RunFiles, price_per_hour: float | None) -> dict[str, Any]:
    """Return what the template ``run.html`` is filled with."""
    config = run.config
    base = base_of(config, run.recipe) if config else None
    views = views_of(config) if config else "the settings are not here"
    recipe = as_recipe(config) if config else ""
    where, method = shlex.quote(str(run.path)), config.method.name if config else ""
    test = shlex.quote(run.evaluated.stores[1]) if run.evaluated and run.evaluated.stores else "TEST_STORE"
    file_name = f"{run.name.replace('/', '-')}.yaml"
    return {
        "title": run.name,
        "subtitle": ", ".join(filter(None, [method, words.status(run)])),
        "sentence": words.in_a_sentence(run),
        "headlines": words.headlines(run),
        "warnings": words.warnings_of(run),
        "rows": words.what_ran(run, price_per_hour),
        "has_config": config is not None,
        "problems": run.problems,
        "base": base,
        "base_known": base is not None and base.recipe == run.recipe,
        "charts": charts_of(run),
        "views": None if isinstance(views, str) else views,
        "no_views": views if isinstance(views, str) else "",
        "policy": config.augment.recipe if config else "",
        "step": run.step,
        "evaluated": run.evaluated,
        "evaluate_command": words.evaluate_command(run),
        "rank_columns": _RANKS,
        "per_class": run.per_class,
        "gallery": run.gallery,
        "map": run.gallery and run.gallery.map and DrawnMap.of(run.gallery.map),
        "map_command": f"ssl-dist evaluate map {where} --store {test} --out {where}/map.html",
        "recipe_text": recipe,
        "recipe_base64": base64.b64encode(recipe.encode()).decode("ascii"),
        "file_name": file_name,
        "report_command": f"ssl-dist report {where}",
    }


class DrawnMap(NamedTuple):
    """A map as SVG: groups with their colours, and paths of dots in the order in which they are drawn."""

    title: str
    groups: Sequence[tuple[str, str]]
    paths: Sequence[tuple[str, str]]
    width: int
    height: int

    @classmethod
    def of(cls, given: MapOfFeatures) -> DrawnMap:
        """Place a map's points in a frame that is as wide as ``_MAP_WIDTH`` and as high as its points need."""
        colours = palette(given.groups)
        scale = (_MAP_WIDTH - 10) / given.side
        low, high = min(given.y), max(given.y)
        places = [(5 + scale * x, 5 + scale * (y - low)) for x, y in zip(given.x, given.y, strict=True)]
        layers = np.random.default_rng(0).integers(_LAYERS, size=len(places)).tolist()
        dots: dict[tuple[int, int], list[str]] = {}
        for layer, group, (x, y) in zip(layers, given.group, places, strict=True):
            dots.setdefault((layer, group), []).append(f"M{x:.1f} {y:.1f}h0")
        paths = [(colours[group], "".join(found)) for (_, group), found in sorted(dots.items())]
        height = round(10 + scale * (high - low))
        return cls(given.title, list(zip(given.groups, colours, strict=True)), paths, _MAP_WIDTH, height)
