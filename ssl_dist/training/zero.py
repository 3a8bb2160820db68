"""DeepSpeed around a method: it sums gradients over workers, and hands ZeRO's divided optimizer state out whole.

This is the only module that imports DeepSpeed. ZeRO stage 0 divides nothing. Stage 1 divides the optimizer
state among the workers, stage 2 the gradients too: each worker holds one flat tensor for each parameter group. Stage 3
divides the parameters as well.
"""

from __future__ import annotations

import logging
import math
import os
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ssl_dist.collectives import World
from ssl_dist.config import RunConfig
from ssl_dist.errors import Diverged
from ssl_dist.lars import LARS, ParameterSlice
from ssl_dist.methods import Method, Views
from ssl_dist.timing import section
from ssl_dist.training.launchers import forget_launcher

# DeepSpeed's methods in which workers wait for each other's gradients: of stage 0, stages 1 and 2, stage 3.
_REDUCTIONS = {"allreduce_gradients", "_flush_coalesced_reduction_zero12", "_flush_coalesced_reduction_zero3"}


class Zero:
    """A method under DeepSpeed with its optimizer.

    Args:
        method: on the worker's device, with the same weights on every rank.
        world: this worker; a process group of that size must exist, unless it is alone.
    """

    def __init__(self, method: Method, config: RunConfig, world: World) -> None:
        deepspeed = _import_deepspeed(world)
        self._method, self._world, self._stage = method, world, config.engine.zero_stage
        self._names = {parameter: name for name, parameter in method.named_parameters()}
        depths = method.depths() if config.optim.layer_decay < 1 else {}
        optimizer, settings = config.optim.build(method, method.freezable, depths), _deepspeed_config(config)
        self._deepspeed, *_ = deepspeed.initialize(model=method, optimizer=optimizer, config=settings)
        for name in _REDUCTIONS & set(dir(self._deepspeed)):
            setattr(self._deepspeed, name, section("reduce")(getattr(self._deepspeed, name)))
        wrapped = self._deepspeed.optimizer
        self._optimizer: torch.optim.Optimizer = wrapped.optimizer if self._stage else wrapped
        if isinstance(self._optimizer, LARS) and self._stage:
            self._optimizer.use_flat_tensors(self._slices(), world.sum_)

    def forward(self, views: Views) -> Tensor:
        """Call the method; every rank calls equally often, because stage 3 gathers parameters."""
        outputs: Tensor = self._deepspeed(views)
        return outputs

    def accumulating(self) -> AbstractContextManager[Any]:
        """Return a context for a step's backward passes, in which stages 1 to 3 reduce gradients once, at its end.

        Stage 0 reduces them in the backward pass that is called with ``last``.
        """
        once: AbstractContextManager[Any] = self._deepspeed.coalesce_grad_reduction() if self._stage else nullcontext()
        return once

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Add the gradient of ``loss``, summed over workers, to the step's gradient; ``last``: the step's last call.

        DeepSpeed's averaging is undone here and nowhere else. Stages 0 to 2 sum over workers, because
        ``gradient_allreduce_op`` says so. Stage 3 can only average, which is a factor of 1/W, so the loss is multiplied
        by W. The division by accumulation steps never happens (``gradient_accumulation_steps`` 1, ``scale_wrt_gas``
        False).
        """
        if self._stage == 0:
            self._deepspeed.set_gradient_accumulation_boundary(last)
        factor = self._world.size if self._stage == 3 else 1
        with section("backward"):
            self._deepspeed.backward(loss * factor, scale_wrt_gas=False)

    def update(self, step: int, learning_rate: float, loss: Tensor) -> tuple[float, float]:
        """Clip the gradient and update the parameters; return the loss, and the gradient's norm before clipping.

        Both are read together: to read a number, the CPU waits for the GPU.

        Raises:
            Diverged: on every rank, before the update, if the loss or the gradient is not finite.
        """
        for group in self._deepspeed.optimizer.param_groups:
            group["lr"] = learning_rate * group["lr_factor"]
            group["frozen"] = group["freezable"] and self._method.frozen
        grads = [p.grad for p in self._method.parameters() if p.grad is not None] if self._stage == 0 else []
        found = [loss, *([nn.utils.get_total_norm(grads)] if grads else [])]
        value, *norms = torch.stack([one.double() for one in found]).tolist()
        if not math.isfinite(value):
            raise Diverged(f"step {step}: the loss is {value}; nothing was updated")
        if norms and not math.isfinite(norms[0]):
            raise Diverged(f"step {step}: the gradient's norm is {norms[0]}; nothing was updated")
        self._deepspeed.step()
        if not self._deepspeed.was_step_applied():
            raise Diverged(f"step {step}: the gradient is not finite; nothing was updated")
        return value, norms[0] if norms else float(self._deepspeed.get_global_grad_norm())

    def whole_parameters(self) -> AbstractContextManager[Any]:
        """Return a context in which every parameter is whole; only stage 3 keeps them cut up."""
        from deepspeed.runtime.zero import GatheredParameters

        whole: AbstractContextManager[Any]
        whole = GatheredParameters(list(self._method.parameters()), enabled=self._stage == 3)
        return whole

    def optimizer_state(self, into: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the whole optimizer state by ``parameter/key`` on the CPU, complete on rank 0; every rank calls.

        Args:
            into: an earlier result, which is written over; may be empty.
        """
        from deepspeed.utils import safe_get_full_optimizer_state

        found = {}
        self._link_state()
        for flat, parameters in self._partitions():
            state = self._optimizer.state[flat]
            for parameter in parameters:
                for key in sorted(state):
                    value = state[key]
                    if value.dim() and self._stage:
                        value = safe_get_full_optimizer_state(parameter, key)
                    name = f"{self._names[parameter]}/{key}"
                    found[name] = copy_to_cpu(value, into.get(name))
        return found

    def load_optimizer_state(self, saved: dict[str, Tensor]) -> None:
        """Set this worker's part of the optimizer state from whole tensors, of a run with any workers and any stage."""
        from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

        partitions = list(self._partitions())
        fused = bool(self._optimizer.defaults.get("fused"))  # its step numbers lie on the device
        for flat, parameters in partitions:
            numbers_at = flat.device if fused else torch.device("cpu")
            first = f"{self._names[parameters[0]]}/"
            values = {name.removeprefix(first): value for name, value in saved.items() if name.startswith(first)}
            state = {
                key: torch.zeros_like(flat) if value.dim() else value.to(numbers_at, copy=True)
                for key, value in values.items()
            }
            self._optimizer.state[flat] = state
        self._link_state()
        for flat, parameters in partitions:
            for parameter in parameters:
                for key, value in self._optimizer.state[flat].items():
                    if not value.dim():
                        continue
                    whole = saved[f"{self._names[parameter]}/{key}"].to(self._world.device)
                    if self._stage == 0:
                        value.copy_(whole)
                    elif self._stage == 3:
                        safe_set_local_optimizer_state(parameter, _slice(whole, parameter, self._world), key)
                    else:
                        safe_set_full_optimizer_state(parameter, whole, key)

    def _link_state(self) -> None:
        """At stages 1 and 2, point parameters at their slices of the flat state; DeepSpeed links one group only."""
        if self._stage in (1, 2):
            self._deepspeed.optimizer._hp_optimizer_states_linked = False
            self._deepspeed.optimizer._lazy_init_hp_params_optimizer_state()

    def _slices(self) -> dict[Tensor, list[ParameterSlice]]:
        """Return which slice of which parameter this rank's flat tensors hold, at stages 1 and 2."""
        slices: dict[Tensor, list[ParameterSlice]] = {}
        for flat, parameters in self._partitions():
            mappings = [(number, cast(Any, p)._hp_mapping) for number, p in enumerate(parameters)]
            addresses = [(number, held.get_hp_fragment_address()) for number, held in mappings if held is not None]
            slices[flat] = [ParameterSlice(number, address.start, address.numel) for number, address in addresses]
        return slices

    def _partitions(self) -> Iterator[tuple[Tensor, list[nn.Parameter]]]:
        """Yield each tensor of the torch optimizer, and the parameters that it holds whole or in part."""
        zero = self._deepspeed.optimizer
        if self._stage == 0:
            yield from ((p, [p]) for group in zero.param_groups for p in group["params"])
        elif self._stage == 3:
            yield from zip(zero.fp32_partitioned_groups_flat, zero.fp16_groups, strict=True)
        else:
            yield from zip(zero.single_partition_of_fp32_groups, zero.bit16_groups, strict=True)


def copy_to_cpu(tensor: Tensor, into: Tensor | None) -> Tensor:
    """Copy a tensor to the CPU, over ``into`` where it is given."""
    if into is None:
        return tensor.detach().to("cpu", copy=True).contiguous()
    return into.copy_(tensor.detach())


def _slice(whole: Tensor, parameter: Any, world: World) -> Tensor:
    """Return this rank's part of a tensor as ZeRO-3 cuts it: equal parts of the flat tensor, padded with zeros."""
    length = parameter.ds_tensor.numel()
    part = whole.flatten()[world.rank * length : (world.rank + 1) * length]
    return nn.functional.pad(part, (0, length - len(part)))


def _import_deepspeed(world: World) -> Any:
    if world.device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    if not dist.is_initialized():  # alone; whoever made a process group has numbered its workers
        forget_launcher()
    os.environ.setdefault("LOCAL_RANK", "0")
    import deepspeed
    import deepspeed.ops
    from deepspeed.runtime import compiler

    # An engine asks whether its optimizer is Muon, whose module decorates functions by torch.compile. That would import
    # torch's compiler, which nothing calls: 1.4 s of a worker's start on an Intel Xeon, and 45 MB of its memory.
    with mock.patch.object(compiler, "compile", return_value=lambda function: function):
        import deepspeed.runtime.zero.muon.muon_optimizer
    # Without this DeepSpeed compiles a shared-memory all-reduce at start, which needs a compiler and up to minutes.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)  # it warns of every optimizer but its own
    # DeepSpeed calls collectives by names that torch 2.14 deprecates
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed\.c10d_logger")
    if not dist.is_initialized():
        assert world.size == 1, "a world of several workers has a process group"
        backend = "nccl" if world.device.type == "cuda" else "gloo"  # gloo would copy gradients to the host
        dist.init_process_group(backend, init_method="tcp://127.0.0.1:0", rank=0, world_size=1)
    return deepspeed


def _deepspeed_config(config: RunConfig) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": config.batch.micro,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": config.optim.clip_norm or 0.0,  # its own default is 1.0
        "zero_optimization": {"stage": config.engine.zero_stage},
        "zero_allow_untested_optimizer": True,
        "gradient_allreduce_op": "sum" if config.engine.zero_stage < 3 else "mean",
        "steps_per_print": None,
    }
    if config.engine.precision == "bf16":
        # no "safe" modules: gradients are reduced in float32
        settings["torch_autocast"] = {"enabled": True, "dtype": "bfloat16", "lower_precision_safe_modules": []}
    return settings
