"""The rules of settings: what a run's settings say about its health before its first step."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ssl_dist.config import ResolvedConfig
from ssl_dist.methods.settings import MoCoConfig, SimCLRConfig

_BF16_ERROR = 0.005  # of a cosine, rms over pairs of a ResNet-8's embeddings of CIFAR-10 (measured; at most 0.02)
_LARGEST_ERROR = 0.1  # of a similarity in the exponent of the loss: its terms are then off by a tenth
_LEAST_MOVE = 1e-3  # of a weight, in the whole run; a layer's initial weights are about 0.05


def lars_without_decay(config: ResolvedConfig) -> str | None:
    """Name LARS without decay: a step is a share of the weights' length, whatever the gradient, so they only grow.

    Source: the trust ratio of ``lars.LARS``. The gradient of weights before BatchNorm is orthogonal to them, so each
    step makes them longer, and only weight decay makes them shorter.
    """
    if config.optim.name != "lars" or config.optim.weight_decay > 0:
        return None
    return (
        "LARS without weight decay: each step is a fixed share of a layer's weights, so they grow without end. Try"
        " optim.weight_decay=1e-6, as SimCLR's authors have it"
    )


def low_temperature_in_bf16(config: ResolvedConfig) -> str | None:
    """Name a temperature so low that the loss, which divides cosines by it, sees how bfloat16 rounds them."""
    temperature = temperature_of(config)
    if config.engine.precision != "bf16" or temperature is None:
        return None
    if (error := _BF16_ERROR / temperature) <= _LARGEST_ERROR:
        return None
    return (
        f"low temperature in half precision: bfloat16 rounds a cosine by about {_BF16_ERROR}, which temperature"
        f" {temperature:g} makes {error:.2g} in the loss's exponent. Try method.temperature 0.1 to 0.5, or"
        " engine.precision=fp32"
    )


def small_rate(config: ResolvedConfig) -> str | None:
    """Name a rate at which nothing is learnt: Adam moves a weight by about the learning rate each step."""
    if not config.optim.name.startswith("adam"):
        return None
    move = config.optim.peak_lr(config.batch.size) * config.plan().total_steps
    if move >= _LEAST_MOVE:
        return None
    return (
        f"the learning rate is so low that no weight moves by more than about {move:.1g} in the whole run: set optim.lr"
        " to 0.001 or so"
    )


def temperature_of(config: ResolvedConfig) -> float | None:
    """Return the temperature by which a method divides cosines of embeddings; None where it does not."""
    method = config.method
    if isinstance(method, MoCoConfig) or (isinstance(method, SimCLRConfig) and method.similarity == "cosine"):
        return method.temperature
    return None


RULES: Mapping[str, Callable[[ResolvedConfig], str | None]] = {
    "lars-without-decay": lars_without_decay,
    "low-temperature-in-bf16": low_temperature_in_bf16,
    "small-learning-rate": small_rate,
}
