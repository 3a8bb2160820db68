"""Protocols by which features are measured: kNN and a linear probe, with settings that are checked without torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from ssl_dist.errors import ConfigError
from ssl_dist.evaluate.classifier_settings import (
    DISTANCES,
    HELD_OUT,
    PENALTIES,
    Distance,
    expect_two_classes,
    expect_voters,
)

if TYPE_CHECKING:
    from torch import Tensor

    from ssl_dist.evaluate.scores import Answers

BASELINES = ("random", "pixels", "pca")
"""Features to stand beside a run's: of random weights, raw pixels, and their first principal components."""
ProgressCallback = Callable[[int, int], None]
"""(images done, images in all) -> None."""


class EvaluationProtocol(Protocol):
    """A classifier of frozen features, with its settings.

    Attributes:
        name: of the table.
        is_random: whether its answers depend on a seed.
    """

    @property
    def name(self) -> str: ...

    @property
    def is_random(self) -> bool: ...

    def check(self, labels: np.ndarray) -> None:
        """Refuse training labels, int64 ``[n]``, with which no answer can be had; nothing has been embedded yet.

        Raises:
            ConfigError: a setting does not fit.
        """

    def answer(self, train: Tensor, labels: np.ndarray, test: Tensor, seed: int) -> tuple[Answers, dict[str, Any]]:
        """Learn from training features ``[n, D]`` and their labels, and classify test features ``[q, D]``.

        Returns:
            (answers about the test images, what was chosen on the training images).
        """

    def sentence(self) -> str:
        """Say in words what is done, and what is chosen on what."""


class Knn(NamedTuple):
    """k nearest neighbours vote, see ``knn.knn_answers``."""

    k: int = 20
    temperature: float | None = 0.1
    distance: Distance = "cosine"

    @property
    def name(self) -> str:
        return f"kNN, k = {self.k}"

    @property
    def is_random(self) -> bool:
        return False

    def check(self, labels: np.ndarray) -> None:
        if self.distance not in DISTANCES:
            raise ConfigError(f"--distance {self.distance}: it is one of {', '.join(DISTANCES)}")
        expect_voters(labels, self.k, self.temperature)

    def answer(self, train: Tensor, labels: np.ndarray, test: Tensor, seed: int) -> tuple[Answers, dict[str, Any]]:
        import torch

        from ssl_dist.evaluate.features import fastest_device
        from ssl_dist.evaluate.knn import knn_answers

        bank, numbers, asked = (
            x.to(fastest_device()) for x in (train, torch.from_numpy(labels), test)
        )  # GPU: untested
        options: dict[str, Any] = {"temperature": self.temperature, "distance": self.distance}
        return knn_answers(bank, numbers, asked, k=self.k, **options), {}

    def sentence(self) -> str:
        similarity = "cosine similarity s" if self.distance == "cosine" else "s = -(distance squared) / 2"
        if self.k == 1:
            return f"the class of the nearest by {similarity}; nothing was chosen"
        weights = "all alike" if self.temperature is None else f"with weights exp(s / {self.temperature:g})"
        return f"the {self.k} nearest by {similarity} vote, {weights}; nothing was chosen"


class Linear(NamedTuple):
    """Logistic regression, see ``linear.linear_probe``."""

    l2: float | None = None
    standardise: bool = True

    @property
    def name(self) -> str:
        return "linear probe"

    @property
    def is_random(self) -> bool:
        return self.l2 is None

    def check(self, labels: np.ndarray) -> None:
        expect_two_classes(labels, self.l2)

    def answer(self, train: Tensor, labels: np.ndarray, test: Tensor, seed: int) -> tuple[Answers, dict[str, Any]]:
        import torch

        from ssl_dist.evaluate.linear import linear_probe

        found = linear_probe(train, torch.from_numpy(labels), test, l2=self.l2, standardise=self.standardise, seed=seed)
        return found.answers, {"l2": found.l2} if self.l2 is None else {}

    def sentence(self) -> str:
        scale = "standardised features" if self.standardise else "features as they are"
        if self.l2 is not None:
            return f"logistic regression on {scale} with penalty {self.l2:g}; nothing was chosen"
        tried = ", ".join(f"{penalty:g}" for penalty in PENALTIES)
        return (
            f"logistic regression on {scale}; each row's penalty was chosen of {tried} on training images that were"
            f" held out ({HELD_OUT:.0%} of each class, at least one where a class has two or more)"
        )
