"""The table of strategies: their names, what each needs, and the function that chooses."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, NamedTuple

from ssl_dist.errors import ConfigError, StoreError

if TYPE_CHECKING:
    import numpy as np

    from ssl_dist.selection.pool import Pool, Selection


class Strategy(NamedTuple):
    """``module`` of this room holds a function with the strategy's name: (pool, count, seed) -> ``Selection``.

    Attributes:
        module: its name.
        needs_probe: it asks a classifier, which needs labels of two classes.
        rule: which images it chooses, in a few words.
    """

    module: str
    needs_probe: bool
    rule: str


STRATEGIES = {
    "random": Strategy("uniform", False, "any image"),
    "representative": Strategy("uncertain", False, "images of low and of high energy alike"),
    "energy": Strategy("uncertain", True, "images of the highest energy of a linear probe"),
    "margin": Strategy("uncertain", True, "images between two classes of a linear probe"),
    "entropy": Strategy("uncertain", True, "images between many classes of a linear probe"),
    "badge": Strategy("badge", True, "images that would change a linear probe most, and differently"),
    "typical": Strategy("typical", False, "the densest image of each cluster"),
    "coverage": Strategy("coverage", False, "images whose neighbourhoods hold most images"),
    "coreset": Strategy("coreset", False, "the image farthest from all labelled ones, again and again"),
}


def without_probe() -> list[str]:
    """Return the names of the strategies that need no probe."""
    return [name for name, strategy in STRATEGIES.items() if not strategy.needs_probe]


def expect_known(name: str) -> None:
    """Expect the name of a strategy.

    Raises:
        ConfigError: it is none.
    """
    if name not in STRATEGIES:
        raise ConfigError(f"--strategy {name}: it is one of {', '.join(STRATEGIES)}")


def expect_possible(name: str, count: int, num_unlabelled: int, num_classes: int, store: str) -> None:
    """Expect enough images without a label, and the labels that the strategy needs.

    Args:
        num_classes: classes that have labelled images.
        store: its name, for messages.

    Raises:
        StoreError: there are not.
    """
    if count > num_unlabelled:
        mend = f"ask for {num_unlabelled:,} at most" if num_unlabelled else "all of it is labelled"
        raise StoreError(f"--count {count}: {store} has {num_unlabelled:,} images without a label to request: {mend}")
    if STRATEGIES[name].needs_probe and num_classes < 2:
        have = "labels of one class only" if num_classes else "no labels"
        raise StoreError(
            f"--strategy {name} learns from labels of two classes or more, and {store} has {have}: take one of"
            f" {', '.join(without_probe())}"
        )


def select(name: str, pool: Pool, count: int, seed: int = 0) -> Selection:
    """Choose ``count`` unlabelled rows of a pool, a pure function of its arguments.

    Raises:
        ConfigError, StoreError: as ``expect_known`` and ``expect_possible``.
    """
    expect_known(name)
    expect_possible(name, count, len(pool.unlabelled), num_classes_in(pool.labels), "the pool")
    found: Selection = getattr(importlib.import_module(f"{__package__}.{STRATEGIES[name].module}"), name)(
        pool, count, seed
    )
    return found


def num_classes_in(labels: np.ndarray) -> int:
    """Return how many classes have labelled images."""
    return len(set(labels[labels >= 0].tolist()))
