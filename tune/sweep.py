"""A sweep as data: what is searched, by what rule trials compete, where they lie. Knows nothing of Ray.

Trials compete at equal numbers of images seen. Each trial's schedule is stretched to its own ``epochs``; its objective
is measured every ``rung_epochs``, and ASHA's first rung is there, the next ones ``reduction`` times further on. The
winner is the best objective among trials that came to their end. In a population (pbt) none ends early: one that falls
behind goes on from a better one's checkpoint with its settings moved, in a run directory of its own.

SWEEP/
  sweep.json      this
  trials/         a run directory a trial, named by the fingerprint of its whole config, with outcome.json at its end
                  (and origin.json in a population)
  ray/            Ray Tune's own state (pickled: resume only sweeps of your own)
  best            link to the winner's run directory;   best.yaml  its recipe
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import pydantic

from ssl_dist.config import RunConfig
from ssl_dist.config.overrides import explain
from ssl_dist.errors import ConfigError, RunError
from ssl_dist.settings import ProbeConfig
from ssl_dist.uris import without_secrets
from tune import space as spaces
from tune.space import Sample, Space

_FIXED = ("optim.name", "method.name")  # in a population: the optimizer's state must fit

Objective = Literal["knn", "linear", "rankme", "lidar"]


class Sweep(pydantic.BaseModel):
    """Everything that decides a sweep.

    Attributes:
        recipe: what trials have in common, with its store resolved.
        samples: number of trials; a grid has as many as it has.
        objective: ``knn`` or ``linear`` on held-out labels of the store, ``rankme`` or ``lidar`` without labels.
        rung_epochs: the objective is measured every so many epochs; None: the largest ``epochs`` / reduction^2, or the
            smallest ``epochs`` where that is less.
        reduction: of ASHA; one in so many goes on at a rung.
    """

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    recipe: RunConfig
    space: Space
    search: Literal["random", "grid", "optuna"] = "random"
    scheduler: Literal["asha", "median", "pbt", "none"] = "asha"
    samples: int = pydantic.Field(16, ge=1)
    objective: Objective = "knn"
    rung_epochs: float | None = pydantic.Field(None, gt=0)
    reduction: int = pydantic.Field(3, ge=2)
    seed: int = pydantic.Field(0, ge=0)

    @classmethod
    def make(cls, **options: Any) -> Sweep:
        """From options as a person gives them.

        Raises:
            ConfigError: one of them is out of range; asked for the training loss, it says why not.
        """
        if str(options.get("objective")) in ("loss", "train/loss"):
            raise ConfigError(
                "--objective loss: NT-Xent depends on temperature and batch size, so it ranks settings by how easy they"
                " make the task: choose knn or linear, or rankme or lidar without labels"
            )
        try:
            return cls(**options)
        except pydantic.ValidationError as error:
            raise ConfigError(explain(error, [])) from None

    @property
    def known_samples(self) -> list[Sample]:
        """All samples in their order; of Optuna none, for it makes the next one from the last results."""
        if self.search == "grid":
            return spaces.grid(self.space)
        return spaces.draw(self.space, self.samples, self.seed) if self.search == "random" else []

    @property
    def num_trials(self) -> int:
        return self.samples if self.search == "optuna" else len(self.known_samples)

    @property
    def every_epochs(self) -> float:
        """Between two measurements of the objective."""
        return self.rung_epochs or min(self.longest_epochs / self.reduction**2, *self._epochs)

    def rung(self, number: int) -> int:
        """Images at the ``number``-th measurement."""
        return round(number * self.every_epochs * self.num_images)

    def num_rungs(self, images: int) -> int:
        """Measurements until then."""
        return round(images / (self.every_epochs * self.num_images))

    @property
    def longest_epochs(self) -> float:
        """Of any trial."""
        return max(self._epochs)

    @property
    def _epochs(self) -> tuple[float, ...]:
        """Those of trials, or their bounds."""
        domain = self.space.get("epochs")
        return (domain.values or domain.uniform or domain.log_uniform or ()) if domain else (self.recipe.epochs,)

    def config(self, sample: Sample) -> RunConfig:
        """A trial's run: the sample over the recipe, measured at the rungs, with a checkpoint at each.

        Raises:
            ConfigError: no run could be so.
        """
        config = self.recipe_of(sample)
        probe = (config.probe or ProbeConfig()).model_copy(
            update={"kind": self.objective, "every_epochs": self.every_epochs}
        )
        often = min(config.checkpoint.every_epochs, self.every_epochs)
        if self.scheduler == "pbt":  # at a point, others go on from its checkpoint
            often = self.every_epochs
        checkpoint = config.checkpoint.model_copy(update={"every_epochs": often})
        monitor = config.monitor.model_copy(update={"hparams": tuple(self.space)})
        config = config.model_copy(update={"probe": probe, "checkpoint": checkpoint, "monitor": monitor})
        config.plan(self.num_images)
        return config

    def recipe_of(self, sample: Sample) -> RunConfig:
        """The recipe with a sample in it, as a run of its own would have it.

        Raises:
            ConfigError: no run could be so.
        """
        return spaces.apply(self.recipe, sample)

    @property
    def num_images(self) -> int:
        """Of the store."""
        assert self.recipe.data.num_samples, "the store was opened before"
        return self.recipe.data.num_samples

    def check(self) -> None:
        """Refuse what cannot run, before it costs anything.

        Raises:
            ConfigError: a sample (or, with Optuna, one of a hundred tried ones) that no run could have.
        """
        configs = [self.config(sample) for sample in self.known_samples or spaces.draw(self.space, 100, self.seed)]
        if self.recipe.cluster.workers.min < self.recipe.cluster.workers.max:
            raise ConfigError("a sweep shares the cluster out evenly: set cluster.workers to a number")
        if self.scheduler == "pbt":
            self._check_population(configs)
        if self.objective in ("knn", "linear") and not self._labelled():
            raise ConfigError(
                f"--objective {self.objective} needs labels, and {without_secrets(self.recipe.data.store)} has none:"
                " choose rankme or lidar, or a store built from class folders"
            )

    def _check_population(self, configs: list[RunConfig]) -> None:
        """Every member must be able to go on from any other's checkpoint."""
        if self.search == "optuna":
            raise ConfigError("--scheduler pbt changes settings by itself: take it with --search random or grid")
        if len(configs) < 2:
            raise ConfigError("--scheduler pbt needs a population: --samples 2 or more")
        for key in self.space:
            if key in _FIXED or key.partition(".")[0] not in ("optim", "method", "augment"):
                raise ConfigError(
                    f"--scheduler pbt cannot search {key}: it changes settings while training goes on from another's"
                    " checkpoint, so only optim.*, method.* and augment.* that leave the weights' shapes alone"
                )
        for config in configs[1:]:
            if _shapes(config) != _shapes(configs[0]):
                raise ConfigError("--scheduler pbt: some samples have weights of other shapes than others")

    def _labelled(self) -> bool:
        from ssl_dist.data.sample_plan import open_store

        return bool((open_store(self.recipe.data).labels >= 0).any())

    def budget(self, config: RunConfig) -> int:
        """Images that a trial sees if nothing stops it."""
        return round(config.epochs * self.num_images)

    def expected(self, config: RunConfig) -> float:
        """Images that the scheduler will let a trial see, before anything is known of it."""
        budget = self.budget(config)
        if self.scheduler != "asha":
            return float(budget)  # what median stopping saves is seen as it goes
        first = self.every_epochs * self.num_images
        seen, rung, share = 0.0, first, 1.0
        while rung < budget:
            seen, rung, share = (
                seen + share * (rung - (0 if rung == first else rung / self.reduction)),
                (rung * self.reduction),
                share / self.reduction,
            )
        last = 0.0 if rung == first else rung / self.reduction
        return seen + share * (budget - last)

    def write(self, directory: Path) -> None:
        """To ``directory``/sweep.json."""
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "sweep.json").write_text(self.model_dump_json(indent=1), encoding="utf-8")

    @classmethod
    def read(cls, directory: Path) -> Sweep:
        """Of a sweep's directory.

        Raises:
            RunError: it is none.
        """
        try:
            tree: dict[str, Any] = json.loads((directory / "sweep.json").read_text(encoding="utf-8"))
            tree["recipe"] = RunConfig.from_tree(tree["recipe"], str(directory / "sweep.json"))
            return cls.model_validate(tree)
        except (OSError, ValueError, KeyError) as error:
            raise RunError(
                f"{directory} is not a sweep ({error}): give the directory that `ssl-dist tune` printed"
            ) from None


def _shapes(config: RunConfig) -> dict[str, Any]:
    import torch

    with torch.device("meta"):
        return {name: tensor.shape for name, tensor in config.initial_method().state_dict().items()}
