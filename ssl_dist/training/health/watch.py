"""The health watch: it gives the lines of a run's metrics to all rules, and passes on what has not been said before."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from ssl_dist.config import Plan, ResolvedConfig
from ssl_dist.training.health import at_start
from ssl_dist.training.health.collapse import Collapse, FewDimensions, LowTemperature
from ssl_dist.training.health.curves import DeadRate, ExplodingGradient, FallingProbe, FlatLoss, RisingLoss
from ssl_dist.training.health.data_path import Starved
from ssl_dist.training.health.findings import Finding
from ssl_dist.training.health.rule import PATIENCE, Rule


def rules_of(config: ResolvedConfig, plan: Plan, *, loss_falls: bool, probe_images: int) -> list[Rule]:
    """Return the rules that are true for a run.

    Args:
        loss_falls: as in ``Method``.
        probe_images: number of images that the online probe classifies; 0: there is no probe.
    """
    warm, temperature = plan.warmup_steps, at_start.temperature_of(config)
    rules: list[Rule] = [
        Collapse(warm, config.batch.size),
        FewDimensions(warm),
        ExplodingGradient(warm, config.optim.clip_norm),
        DeadRate(config.optim.peak_lr(config.batch.size), warm, plan.total_steps),
        Starved(config.data.store),
    ]
    if temperature is not None:
        rules.append(LowTemperature(warm, temperature))
    if loss_falls and config.backbone.weights is None:  # else the run may begin where the loss falls no more
        rules += [FlatLoss(warm), RisingLoss(warm)]
    if config.probe and probe_images:
        rules.append(FallingProbe(config.probe.tag, probe_images, warm))
    return rules


class HealthWatch:
    """Judges a run by its settings and by each line of its metrics, and says each thing once.

    A sentence is said again where the run was well in between and has become twice as long, and ``PATIENCE`` steps
    longer, since the last time: a value that wavers around a threshold does not fill the log.

    Args:
        past: lines of metrics that were written before the run was resumed.
        said: what was said before.
    """

    def __init__(
        self, rules: Sequence[Rule], past: Iterable[Mapping[str, float]] = (), said: Collection[Finding] = ()
    ) -> None:
        self._rules = rules
        self._said = {one.rule: one.step for one in said}  # the last step of each
        self._well_since: set[str] = set()  # rules that were broken, and are not any more
        for line in past:
            for rule, text in self._judged(line):
                if text is None and line["step"] >= self._said.get(rule, line["step"] + 1):
                    self._well_since.add(rule)

    def begin(self, config: ResolvedConfig, step: int, epoch: float) -> list[Finding]:
        """Return what the settings of a run say, where it has not been said before."""
        found = ((name, rule(config)) for name, rule in at_start.RULES.items())
        return [self._say(step, epoch, name, text) for name, text in found if text and name not in self._said]

    def look(self, line: Mapping[str, float]) -> list[Finding]:
        """Take the next line, with ``step`` and ``epoch``; return what is new."""
        found, step = [], int(line["step"])
        for name, text in self._judged(line):
            if text is None:
                self._well_since.add(name)
            elif self._may_say(name, step):
                found.append(self._say(step, line["epoch"], name, text))
        return found

    def _judged(self, line: Mapping[str, float]) -> Iterator[tuple[str, str | None]]:
        for rule in self._rules:
            if any(tag in line for tag in rule.tags):
                yield rule.name, rule.judge(line)

    def _may_say(self, name: str, step: int) -> bool:
        if (before := self._said.get(name)) is None:
            return True
        return name in self._well_since and step >= max(2 * before, before + PATIENCE)

    def _say(self, step: int, epoch: float, name: str, text: str) -> Finding:
        self._said[name] = step
        self._well_since.discard(name)
        return Finding(step, epoch, name, text)
