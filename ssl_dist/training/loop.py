"""Pretraining as one worker runs it: the loop reads as the algorithm. Knows nothing of who started it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from ssl_dist.checkpoint import Checkpoints, Writer, pretrained
from ssl_dist.collectives import RowCounts, World
from ssl_dist.config import Plan, RunConfig
from ssl_dist.data.batches import Batch, Batches
from ssl_dist.data.sample_plan import open_data
from ssl_dist.errors import Diverged, Preempted, RunError
from ssl_dist.evaluate import collapsed, embedding_statistics
from ssl_dist.evaluate.probe import Probe
from ssl_dist.training.engine import Engine, StepResult
from ssl_dist.training.monitor import Monitor, Stopwatch

FLAT_SHARE = 0.99  # of the loss of a collapsed network, after warm-up: runs that learn are at 0.96 after 40 steps

log = logging.getLogger(__name__)


def _never() -> bool:
    return False


@dataclass(frozen=True)
class StopRequests:
    """Who started the workers, as seen from inside, asked on every worker after each step; true on any worker:
    ``stop()`` ends the run with a checkpoint, ``save()`` writes one, ``leave()`` writes one and raises Preempted."""

    stop: Callable[[], bool] = _never
    save: Callable[[], bool] = _never
    leave: Callable[[], bool] = _never


@dataclass
class _Run:
    """What the loop holds; monitor and writer on rank 0 only."""

    config: RunConfig
    directory: Path
    world: World
    launcher: StopRequests
    plan: Plan
    engine: Engine
    probe: Probe | None
    monitor: Monitor | None
    writer: Writer | None
    watch: Stopwatch = field(default_factory=Stopwatch)
    metrics: dict[str, float] = field(default_factory=dict)
    warned: bool = False


def pretrain(config: RunConfig, directory: Path, world: World, launcher: StopRequests) -> dict[str, float]:
    """Train from the newest valid checkpoint of the run (or from the start) to the end; every worker calls.

    Returns:
        The last metrics and ``step``; fewer steps than planned where ``launcher.stop`` ended it.

    Raises:
        Preempted: on every worker, where one has to leave.
    """
    store, found = open_data(config)
    config.data.expect(found)
    assert found.num_samples is not None
    plan = config.plan(found.num_samples)
    first_step, engine = _restore(config, directory, world)
    monitor = Monitor(directory, config, plan, first_step) if world.rank == 0 else None
    writer = Writer(Checkpoints.configured(directory, config), config) if world.rank == 0 else None
    probe = Probe(config, store) if config.probe else None
    run = _Run(config, directory, world, launcher, plan, engine, probe, monitor, writer)
    batches = Batches(store, config, world, first_step, plan.total_steps)
    step, preempted = first_step, False
    run.watch.start(step)
    try:
        for batch in batches:
            if step == first_step:
                _begin(run, step, batch)
            learning_rate = config.optim.learning_rate(
                step, batch_size=config.batch.size, warmup_steps=plan.warmup_steps, total_steps=plan.total_steps
            )
            result = engine.step(batch, learning_rate)
            step += 1
            stop, save, leave = _vote(run, launcher.stop(), launcher.save(), launcher.leave())
            ending = stop or step == plan.total_steps
            preempted = leave and not ending
            if ending or step % config.monitor.every_steps == 0:
                _log(run, step, learning_rate, result, batches.waited_s)
            score = None
            if config.probe and plan.is_time(step, config.probe.every_epochs):
                score = _probe(run, step)
            if ending or save or leave or plan.is_time(step, config.checkpoint.every_epochs):
                _save(run, step, score)
            if ending or preempted:
                break
    except Diverged:  # raised by all: who leaves first ends the others, and the checkpoint that is still being written
        if run.writer:
            run.writer.close()
        world.any(False)
        raise
    finally:
        _close(run)
    _vote(run)
    if preempted:
        raise Preempted(f"a worker was told to go after step {step}")
    return {**run.metrics, "step": step}


def _vote(run: _Run, *wishes: bool) -> tuple[bool, ...]:
    """Each wish true where a worker has it.

    Raises:
        RunError: on every rank alike, where a checkpoint could not be written behind the steps.
    """
    failed = run.writer is not None and run.writer.failed
    failed, *granted = run.world.any(failed, *wishes)
    if failed:  # all leave together: none is left waiting in a collective
        if run.writer:
            run.writer.wait()
        raise RunError("worker 0 could not write a checkpoint")
    return tuple(granted)


def _restore(config: RunConfig, directory: Path, world: World) -> tuple[int, Engine]:
    """The engine at the newest checkpoint that rank 0 finds valid, the same on all ranks."""
    checkpoints = Checkpoints.configured(directory, config)
    found = checkpoints.newest() if world.rank == 0 else None
    step = world.from_first(found.step if found else 0)
    log.info("going on from step %d", step)
    if step and found is None:
        found = checkpoints.fetch(step)
    method = config.initial_method(None if found else pretrained.read(config))
    return step, Engine(method, config, world, found.load() if found else None)


def _begin(run: _Run, step: int, batch: Batch) -> None:
    """Before the first step: the plan, a picture of the views, and kNN of the weights as they are."""
    if run.monitor:
        run.monitor.scalars(step, {"plan/total_steps": run.plan.total_steps})
        run.monitor.views(step, batch.views(0, run.world.device).crops[0])
    if step == 0:
        _probe(run, step)


def _log(run: _Run, step: int, learning_rate: float, result: StepResult, waited_s: float) -> None:
    pairs = run.engine.method.pairs(result.outputs)
    pairs = None if pairs is None else RowCounts.of(pairs).gather(pairs)
    rates = run.watch.lap(step, run.config.batch.size, waited_s)
    if run.monitor:
        run.metrics |= {
            "train/loss": result.loss,
            "train/learning_rate": learning_rate,
            "train/gradient_norm": result.grad_norm,
        }
        health = {} if pairs is None else embedding_statistics(pairs)
        if (flat := run.engine.method.collapsed_loss) is not None:
            run.metrics["train/loss_if_collapsed"] = flat
        if not run.warned and (
            reason := _collapse(health, result.loss, flat if step > run.plan.warmup_steps else None)
        ):
            run.warned = True
            log.warning("step %d: %s: this is collapse", step, reason)
        run.metrics |= {f"embedding/{name}": value for name, value in health.items()} | rates
        run.monitor.scalars(step, {tag: value for tag, value in run.metrics.items() if not tag.startswith("probe/")})


def _collapse(health: dict[str, float], loss: float, flat: float | None) -> str | None:
    """Why training looks as if it had collapsed, if it does. At first a loss is near ``flat`` as weights are random."""
    if health and collapsed(health):
        return "embeddings are in one place, or views of an image as unlike as different images"
    if flat is not None and loss > FLAT_SHARE * flat:
        return f"the loss is {loss:.3f}, and {flat:.3f} is what it is where all images are embedded alike"
    return None


def _probe(run: _Run, step: int) -> float | None:
    if not (run.probe and run.config.probe):
        return None
    with run.watch:
        value = run.probe.score(run.engine.method.backbone, run.world)
        if value is not None:
            run.metrics[run.config.probe.tag] = value
            if run.monitor:
                run.monitor.scalars(step, {run.config.probe.tag: value})
    return value


def _save(run: _Run, step: int, score: float | None) -> None:
    """Take a snapshot; it is written behind the next steps."""
    with run.watch:
        if run.writer:
            run.writer.write(step, run.engine.state, score)
        else:
            run.engine.state()  # gathers with rank 0


def _close(run: _Run) -> None:
    """Wait for the last checkpoint, and close the files."""
    if run.writer:
        run.writer.close()
    if run.monitor:
        run.monitor.close()
