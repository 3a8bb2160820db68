"""Pretraining as each worker runs it, from its start or from a checkpoint that any number of workers have written.

This module knows nothing of Ray or of the command line.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ssl_dist.checkpoint import Checkpoints, Writer, pretrained
from ssl_dist.collectives import RowCounts, World
from ssl_dist.config import ResolvedConfig
from ssl_dist.data import resolve
from ssl_dist.data.batches import Batch, Batches
from ssl_dist.errors import Diverged, Preempted, RunError
from ssl_dist.evaluate.probe import Probe
from ssl_dist.evaluate.validation import Validation
from ssl_dist.timing import mark, section
from ssl_dist.training.engine import Engine, StepResult
from ssl_dist.training.health.embedding import embedding_statistics
from ssl_dist.training.memory import within_memory
from ssl_dist.training.monitor import Monitor, Stopwatch
from ssl_dist.training.profiling import StepProfile
from ssl_dist.training.projector import Projector
from ssl_dist.training.starts import noted

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StopRequests:
    """Requests from outside the run, asked for on every worker after each step. One worker's yes is enough.

    Attributes:
        stop: end the run, with a checkpoint.
        save: write a checkpoint.
        preempted: write a checkpoint and raise ``Preempted``, because a worker loses its place.
    """

    stop: Callable[[], bool] = lambda: False
    save: Callable[[], bool] = lambda: False
    preempted: Callable[[], bool] = lambda: False


def pretrain(config: ResolvedConfig, directory: Path, world: World, requests: StopRequests) -> dict[str, float]:
    """Train from the newest valid checkpoint of the run, or from its start, to its end; every worker calls.

    Returns:
        The last metrics and ``step``; fewer steps than planned where ``requests.stop`` ended the run.

    Raises:
        Diverged, RunError, Preempted: on every worker; but RunError on those alone whose device ran out of memory, and
            on the first where a board of ``monitor.also`` cannot begin.
    """
    with noted(directory, world), within_memory(config, world.device), _Run(config, directory, world) as run:
        step, preempted = run.first_step, False
        for batch in run.batches:
            if step == run.first_step:
                run.begin(batch)
            learning_rate = run.learning_rate(step)
            result = run.engine.step(batch, learning_rate)
            if step == 0:
                run.log_start(result)
            step += 1
            stop, save, preempt = run.agree(requests.stop(), requests.save(), requests.preempted())
            score = None
            if config.probe and run.plan.is_time(step, config.probe.every_epochs):
                score = run.probe(step)
            ending = stop or run.is_over(step)
            run.project(step, ending=ending)
            preempted = preempt and not ending
            if ending or step % config.monitor.every_steps == 0:
                run.log(step, learning_rate, result)
            if ending or save or preempt or run.plan.is_time(step, config.checkpoint.every_epochs):
                run.save(step, score)
            run.profile.after(step, is_last=ending or preempted)
            if ending or preempted:
                break
    run.agree()
    if preempted:
        raise Preempted(f"a worker was told to leave after step {step}")
    return {**run.metrics, "step": step}


class _Run:
    """The parts of a run that the loop uses; only rank 0 has a monitor and a checkpoint writer."""

    def __init__(self, config: ResolvedConfig, directory: Path, world: World) -> None:
        data = resolve(config)
        config.expect_same_data(data.config)
        mark("store opened")
        self.world, self.plan = world, config.plan()
        self.metrics: dict[str, float] = {}
        self._config = config
        checkpoints = Checkpoints.from_config(directory, config)
        self.first_step, self.engine, self._losses = _restore(config, checkpoints, world)
        mark("network and DeepSpeed made")
        is_first = world.rank == 0
        self._writer = Writer(checkpoints, config) if is_first else None
        validated = config.probe is not None and config.probe.kind == "validation"
        self._validation = Validation(config, data.store) if validated else None
        self._probe = Probe(config, data.store) if config.probe and not validated else None
        measures = self._validation or self._probe
        probe_images = measures.num_queries if measures else 0
        self._monitor = (
            Monitor(directory, config, self.plan, self.first_step, probe_images=probe_images) if is_first else None
        )
        self._projector = (
            Projector(directory, config, data.store, world, self.first_step) if config.monitor.projector else None
        )
        stop = self.first_step if self.is_over(self.first_step) else self.plan.total_steps
        self.batches = Batches(data.sample_plan, world, self.first_step, stop)
        self.profile = StepProfile(directory, self.first_step, config.monitor.profile_steps if is_first else 0)
        self._watch = Stopwatch(self.first_step)

    def __enter__(self) -> _Run:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        """Wait for the last checkpoint, and close the files."""
        if self._writer:
            self._writer.close()
        if self._monitor:
            self._monitor.close(failed=kind is not None and not issubclass(kind, Preempted))
        if isinstance(error, Diverged):  # raised on every rank: wait for all, since Ray kills the others when one ends
            self.world.any(False)

    def begin(self, batch: Batch) -> None:
        """Log the run's length and a picture of some views, before the first step; at step 0 also probe and embed."""
        mark("monitor and probe made, first batch read")
        if self._monitor:
            self._monitor.scalars(self.first_step, {"plan/total_steps": self.plan.total_steps})
            self._monitor.views(self.first_step, batch.views(0, self.world.device).crops[0])
        if self.first_step == 0:
            self.probe(0)
            self.project(0, ending=False)
            mark("first weights probed")

    def log_start(self, result: StepResult) -> None:
        """Write the initial weights' loss and statistics of their embeddings, which the first step's ``result`` has."""
        statistics = self._statistics(result)
        if self._monitor:
            self._monitor.scalars(0, {"train/loss_at_start": result.loss, **statistics})

    def _statistics(self, result: StepResult) -> dict[str, float]:
        """Return statistics of the embedding by tag; none where the method has no pairs of views.

        Every rank calls; only rank 0 computes.
        """
        pairs = self.engine.method.pairs(result.outputs)
        pairs = None if pairs is None else RowCounts.of(pairs).gather(pairs)
        if pairs is None or not self._monitor:
            return {}
        return {f"embedding/{name}": value for name, value in embedding_statistics(pairs).items()}

    def learning_rate(self, step: int) -> float:
        """Return the rate of a step."""
        warmup, total = self.plan.warmup_steps, self.plan.total_steps
        size = self._config.batch.size
        return self._config.optim.learning_rate(
            step, batch_size=size, warmup_steps=warmup, total_steps=total, losses=self._losses
        )

    def is_over(self, step: int) -> bool:
        """Return whether the run ends after ``step`` steps: with its last one, or early by its validation losses."""
        return self._config.is_over(step, self._losses)

    def agree(self, *wishes: bool) -> tuple[bool, ...]:
        """Return for each wish, on every rank, whether any worker has it.

        Raises:
            RunError: on every rank, if a checkpoint could not be written; together, so that none waits for another.
        """
        with section("vote"):
            failed, *granted = self.world.any(self._writer is not None and self._writer.failed, *wishes)
        if failed:
            if self._writer:
                self._writer.wait()
            raise RunError("worker 0 could not write a checkpoint")
        return tuple(granted)

    @section("log")
    def log(self, step: int, learning_rate: float, result: StepResult) -> None:
        """Write the step's metrics, of which the monitor says so where they look unhealthy."""
        statistics = self._statistics(result)
        rates = self._watch.lap(step, self._config.batch.size, self.batches.waited_s)
        if not self._monitor:
            return
        collapsed_loss = self.engine.method.collapsed_loss
        values = {
            "train/loss": result.loss,
            "train/learning_rate": learning_rate,
            "train/gradient_norm": result.grad_norm,
            **({} if collapsed_loss is None else {"train/loss_if_collapsed": collapsed_loss}),
            **statistics,
            **rates,
        }
        self.metrics |= values
        self._monitor.scalars(step, values)

    @section("probe")
    def probe(self, step: int) -> float | None:
        """Measure the encoder with the online probe, or validate; return the value, None where there is none."""
        if not self._config.probe:
            return None
        values, tag = dict[str, float](), self._config.probe.tag
        with self._watch.paused():
            if self._validation:
                values[tag], values["validation/loss"] = self._validation.measure(self.engine.method, self.world)
                self._losses += [values["validation/loss"]] if step else []  # training has made none of step 0's
            elif self._probe and (score := self._probe.score(self.engine.method.backbone, self.world)) is not None:
                values[tag] = score
            if step < self.plan.total_steps and step and self.is_over(step):
                values["plan/total_steps"] = step
                log.info("step %d: the validation loss no longer falls: the run ends early", step)
            self.metrics |= values
            if self._monitor and values:
                self._monitor.scalars(step, values)
        return values.get(tag)

    def project(self, step: int, *, ending: bool) -> None:
        """Write embeddings of some images, at the end of a run and where it is time for them; every rank calls."""
        settings = self._config.monitor.projector
        if self._projector and settings and (ending or not step or self.plan.is_time(step, settings.every_epochs)):
            with self._watch.paused(), section("projector"):
                self._projector.write(step, self.engine.method.backbone)

    @section("checkpoint")
    def save(self, step: int, score: float | None) -> None:
        """Take a snapshot, which is written while the next steps run; every rank calls."""
        with self._watch.paused():
            if self._writer:
                self._writer.write(step, self.engine.state, score, tuple(self._losses))
            else:
                self.engine.state()  # takes part in rank 0's collectives


def _restore(config: ResolvedConfig, checkpoints: Checkpoints, world: World) -> tuple[int, Engine, list[float]]:
    """Build the engine of every rank at the newest checkpoint that rank 0 finds valid, or with initial weights.

    Returns:
        (steps done, engine, validation losses so far).
    """
    found = checkpoints.newest() if world.rank == 0 else None
    step = world.from_first(found.step if found else 0)
    log.info("continuing from step %d", step)
    if step and found is None:
        found = checkpoints.fetch(checkpoints.path(step).name)
    method = config.initial_method(None if found else pretrained.read(config))
    losses = list(found.losses) if found else []
    return step, Engine(method, config, world, found.load() if found else None), losses
