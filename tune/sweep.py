"""The definition of a sweep: what is searched, how trials compete, and where their files lie. It needs no Ray.

Trials compete at equal numbers of images seen. Each trial's schedule is stretched to its own ``epochs``. Its objective
is measured every ``rung_epochs``: ASHA's first rung is there, and each next one ``reduction`` times further on. The
winner has the best objective among the trials that finished. In a population (pbt) no trial ends early: one that falls
behind continues from a better one's checkpoint with changed settings, in a run directory of its own.

SWEEP/
  sweep.json      the sweep's definition
  trials/         a run directory for each trial, named by the fingerprint of its whole config, with outcome.json when
                  it has ended (and origin.json in a population)
  ray/            Ray Tune's working files, which every start makes anew
  best/           links to what the winner's run directory holds;   best.yaml  its recipe
  parallel.png    a picture of all trials;   results.json  the importance of each setting
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import pydantic

from ssl_dist.config import ResolvedConfig
from ssl_dist.config.overrides import explain
from ssl_dist.errors import ConfigError, RunError
from ssl_dist.files import write_text
from ssl_dist.reading import exact, value_at
from ssl_dist.settings import ProbeConfig
from ssl_dist.uris import without_secrets
from tune import space as spaces
from tune.space import Sample, Space

MAX_TRIALS = 10_000
_NOT_SEARCHED = ("probe", "checkpoint", "monitor")  # sections that judge a run, or write it down
_FIXED_IN_POPULATION = ("optim", "optim.name", "method", "method.name")  # the optimizer's state must fit


class Sweep(pydantic.BaseModel):
    """Everything that decides a sweep.

    Attributes:
        recipe: the settings that all trials share, with the store's facts.
        samples: number of trials; a grid's number follows from its space.
        objective: ``knn`` or ``linear`` on held-out labels of the store, ``rankme`` or ``lidar`` without labels.
        rung_epochs: epochs between two measurements of the objective; None: the largest ``epochs`` / reduction^2, or
            the smallest ``epochs`` where that is less.
        reduction: ASHA lets one trial in this many continue at a rung.
    """

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    recipe: ResolvedConfig
    space: Space
    search: Literal["random", "grid", "optuna"] = "random"
    scheduler: Literal["asha", "median", "pbt", "none"] = "asha"
    samples: int = pydantic.Field(16, ge=1, le=MAX_TRIALS)
    objective: Literal["knn", "linear", "rankme", "lidar"] = "knn"
    rung_epochs: float | None = pydantic.Field(None, gt=0)
    reduction: int = pydantic.Field(3, ge=2)
    seed: int = pydantic.Field(0, ge=0)

    @classmethod
    def make(cls, **options: Any) -> Sweep:
        """Make a sweep from options as a person gives them.

        Raises:
            ConfigError: an option is out of range, the objective is the training loss, or the recipe has a probe of
                its own by which its runs would end.
        """
        if str(options.get("objective")) in ("loss", "train/loss"):
            raise ConfigError(
                "--objective loss: NT-Xent depends on temperature and batch size, so it ranks settings by how easy they"
                " make the task: choose knn or linear, or rankme or lidar without labels"
            )
        probe = options["recipe"].probe
        if probe and probe.kind == "validation":
            raise ConfigError(
                "probe.kind validation: a sweep measures its trials by --objective, and its scheduler ends them: give a"
                " recipe without probe.kind, probe.label_file and probe.patience, or --set probe=null"
            )
        try:
            return cls(**options)
        except pydantic.ValidationError as error:
            raise ConfigError(explain(error, [])) from None

    @property
    def known_samples(self) -> list[Sample]:
        """All samples in their order; none with Optuna, which makes the next one from the last results."""
        if self.search == "grid":
            return spaces.grid(self.space)
        return spaces.draw(self.space, self.samples, self.seed) if self.search == "random" else []

    @property
    def num_trials(self) -> int:
        if self.search != "optuna":
            return len(self.known_samples)
        return min(self.samples, spaces.size(self.space) or self.samples)

    @property
    def probe_every_epochs(self) -> float:
        """Epochs between two measurements of the objective."""
        return self.rung_epochs or min(self.longest_epochs / self.reduction**2, *self._epochs)

    def rung_images(self, number: int) -> int:
        """Return the images that a trial has seen at its ``number``-th measurement."""
        return round(number * exact(self.probe_every_epochs) * self.num_images)

    def num_rungs(self, images: int) -> int:
        """Return the number of measurements up to this many images."""
        return round(images / (exact(self.probe_every_epochs) * self.num_images))

    @property
    def longest_epochs(self) -> float:
        """The largest ``epochs`` that a trial can have."""
        return max(self._epochs)

    @property
    def _epochs(self) -> tuple[float, ...]:
        """The values of ``epochs`` that trials can have, or their bounds."""
        domain = self.space.get("epochs")
        found = (domain.values or domain.uniform or domain.log_uniform or ()) if domain else (self.recipe.epochs,)
        try:
            return tuple(one if isinstance(one, (int, float)) else float(one) for one in found)  # it may be in quotes
        except (TypeError, ValueError):
            raise ConfigError(f"space: epochs: {list(found)}: each choice must be a number") from None

    def config(self, sample: Sample) -> ResolvedConfig:
        """Return a trial's config: the recipe with the sample's settings, and a probe and a checkpoint at each rung.

        Raises:
            ConfigError: the settings do not fit together.
        """
        return self._measured(spaces.apply(self.recipe, sample))

    def _measured(self, config: ResolvedConfig) -> ResolvedConfig:
        measured = {"kind": self.objective, "every_epochs": self.probe_every_epochs}
        probe = (config.probe or ProbeConfig()).model_copy(update=measured)
        often = min(config.checkpoint.every_epochs, self.probe_every_epochs)
        if self.scheduler == "pbt":  # others may continue from the checkpoint of any point
            often = self.probe_every_epochs
        checkpoint = config.checkpoint.model_copy(update={"every_epochs": often})
        monitor = config.monitor.model_copy(update={"hparams": tuple(self.space)})
        config = config.model_copy(update={"probe": probe, "checkpoint": checkpoint, "monitor": monitor})
        config.plan()
        return config

    def sample_of(self, config: ResolvedConfig) -> Sample:
        """Return the searched settings of a trial's config, each as its domain has it."""
        tree = config.model_dump(mode="json")
        return {key: self._value_of(key, config, tree) for key in self.space}

    def _value_of(self, key: str, config: ResolvedConfig, tree: dict[str, Any]) -> Any:
        found, choices = value_at(tree, key), self.space[key].values or ()
        # the config completes sections, turns text into numbers and sorts names
        return next((one for one in choices if one == found or self._gives(config, key, one, found)), found)

    def _gives(self, config: ResolvedConfig, key: str, choice: Any, found: Any) -> bool:
        """Return whether a choice of one setting becomes this value in a trial's config."""
        try:
            made = self._measured(spaces.apply(config, {key: choice}))
        except ConfigError:
            return False
        return bool(value_at(made.model_dump(mode="json"), key) == found)

    def sample_from(self, values: dict[str, Any]) -> Sample:
        """Return the sample in the values that Ray Tune hands to a trial."""
        return values["sample"] if "sample" in values else spaces.decode(self.space, values)

    @property
    def num_images(self) -> int:
        """Number of images that the recipe trains on in one epoch."""
        return self.recipe.facts.num_samples

    def check(self) -> None:
        """Refuse a sweep of which some trial could not run, before any trial starts.

        Raises:
            ConfigError: two settings of a sample do not fit together, two samples give the same run, or a sample has
                other data (with Optuna, a hundred samples are tried); or the number of workers is not fixed; or the
                objective needs labels, or more images, than the store has.
        """
        from cluster.guards import check_data
        from ssl_dist.data import open_store

        if self.search == "grid" and (number := spaces.size(self.space) or 0) > MAX_TRIALS:
            raise ConfigError(
                f"space: a grid of {number:,} trials: search at random with --samples, or give fewer values"
            )
        for key in self.space:
            if key.partition(".")[0] in _NOT_SEARCHED:
                raise ConfigError(f"space: {key} does not change what a trial learns: set it by --set, for all trials")
        samples = self.known_samples or spaces.draw(self.space, 100, self.seed)
        configs = [self.config(sample) for sample in samples]
        if self.recipe.cluster.workers.min < self.recipe.cluster.workers.max:
            raise ConfigError("the trials of a sweep share the cluster evenly: set cluster.workers to a number")
        self._expect_comparable_trials(samples, configs)
        if self.scheduler == "pbt":
            self._check_population(configs)
        store = open_store(self.recipe.data)
        if self.objective in ("knn", "linear") and (store.labels < 0).all():
            raise ConfigError(
                f"--objective {self.objective} needs labels, and {without_secrets(self.recipe.data.store)} has none:"
                " choose rankme or lidar, or a store built from class folders"
            )
        for config in configs:
            check_data(config, store)
        self._expect_features(configs)

    def _expect_comparable_trials(self, samples: list[Sample], configs: list[ResolvedConfig]) -> None:
        """Refuse samples that are the same run, and settings that all trials share."""
        from ssl_dist.data import resolve

        runs: dict[str, Sample] = {}
        data: dict[str, bool] = {}
        for sample, config in zip(samples, configs, strict=True):
            other = runs.setdefault(config.fingerprint(), sample)
            if other is not sample:
                pair = f"{spaces.show(other)} and {spaces.show(sample)}"
                raise ConfigError(f"space: {pair} are the same run: give each value once, and in one way")
            if (config.cluster, config.backbone.weights) != (self.recipe.cluster, self.recipe.backbone.weights):
                raise ConfigError(
                    f"space: {spaces.show(sample)}: all trials share the recipe's cluster and backbone.weights: set"
                    " them by --set"
                )
            decisive = repr((config.data, config.batch.labelled, config.method.name))
            if decisive not in data:
                data[decisive] = resolve(config).config.facts == self.recipe.facts
            if not data[decisive]:
                raise ConfigError(
                    f"space: {spaces.show(sample)}: this trial would have other images or labels than the recipe, and"
                    " trials are compared on the same: make a sweep for each"
                )

    def _expect_features(self, configs: list[ResolvedConfig]) -> None:
        """Refuse options of a network, or sizes of views, that it does not take."""
        known = set()
        for config in configs:
            # a number such as a rate of drop path changes no shape, so one of a continuous range stands for all
            options = {
                key: float if isinstance(value, float) else value for key, value in config.backbone.options.items()
            }
            kind = repr((config.backbone.name, options, config.view_sizes))
            if kind not in known:
                known.add(kind)
                config.backbone.expect_features(config.view_sizes)

    def _check_population(self, configs: list[ResolvedConfig]) -> None:
        """Refuse a population in which a member could not continue from every other's checkpoint."""
        if self.search == "optuna":
            raise ConfigError("--scheduler pbt changes settings by itself: use it with --search random or grid")
        if len(configs) < 2:
            raise ConfigError("--scheduler pbt needs a population: --samples 2 or more")
        for key in self.space:
            if key in _FIXED_IN_POPULATION or key.partition(".")[0] not in ("optim", "method", "augment"):
                raise ConfigError(
                    f"--scheduler pbt cannot search {key}: it changes settings between checkpoints, so it searches only"
                    " optim.*, method.* and augment.* that do not change the weights' shapes"
                )
        first, *others = map(_shapes, configs)
        if any(shapes != first for shapes in others):
            raise ConfigError("--scheduler pbt: the samples differ in their weights' shapes")

    def budget_images(self, config: ResolvedConfig) -> int:
        """Return the number of images that a trial sees if nothing stops it."""
        return round(exact(config.epochs) * self.num_images)

    def expected_images(self, config: ResolvedConfig) -> float:
        """Return the number of images that a trial sees on average, before anything is known of it."""
        budget = self.budget_images(config)
        if self.scheduler != "asha":
            return float(budget)  # nobody knows beforehand how much median stopping saves
        seen, share, last, rung = 0.0, 1.0, 0.0, self.probe_every_epochs * self.num_images
        while rung < budget:  # a share of the trials trains from the last rung to this one
            seen += share * (rung - last)
            share, last, rung = share / self.reduction, rung, rung * self.reduction
        return seen + share * (budget - last)

    def write(self, directory: Path) -> None:
        """Write ``directory``/sweep.json.

        Raises:
            RunError: the directory cannot be written, or is not empty.
        """
        try:
            directory.mkdir(parents=True, exist_ok=True)
            if any(directory.iterdir()):
                raise RunError(f"{directory} is not empty: resume it by --resume {directory}, or choose another")
            write_text(directory / "sweep.json", self.model_dump_json(indent=1))
        except OSError as error:
            raise RunError(f"sweep directory {directory} cannot be written: {error.strerror}") from None

    @classmethod
    def read(cls, directory: Path) -> Sweep:
        """Read the sweep of a directory.

        Raises:
            RunError: the directory holds no sweep.
        """
        try:
            tree: dict[str, Any] = json.loads((directory / "sweep.json").read_text(encoding="utf-8"))
            tree["recipe"] = ResolvedConfig.from_tree(tree["recipe"], str(directory / "sweep.json"))
            return cls.model_validate(tree)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunError(
                f"{directory} is not a sweep ({error}): give the directory that `ssl-dist tune` printed"
            ) from None


def _shapes(config: ResolvedConfig) -> dict[str, Any]:
    return {name: tensor.shape for name, tensor in config.method_without_values().state_dict().items()}
