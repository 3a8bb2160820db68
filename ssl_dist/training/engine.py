"""One exact training step from micro-batches. The only module that imports DeepSpeed.

Gradients are cached (GradCache, arXiv 2101.06983): a worker with several micro-batches embeds them all without a graph,
takes the loss of the global batch and its gradient at the embeddings, then embeds each again with a graph and pushes
that gradient through. A worker with one micro-batch keeps its first graph. Either way the parameter gradient is

    sum over workers, sum over micro-batches  (dL/dz_micro) (dz_micro/dparameters)

where L is the loss of the global batch: gradients are summed over workers, never averaged.
"""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ssl_dist.checkpoint.state import State
from ssl_dist.collectives import World
from ssl_dist.config import RunConfig
from ssl_dist.data.batches import Batch
from ssl_dist.errors import Diverged
from ssl_dist.methods import Method
from ssl_dist.optim import LARS, ParameterSlice
from ssl_dist.training.batch_norm import RunningStatistics


class StepResult(NamedTuple):
    """``loss`` of the global batch; ``grad_norm`` of the summed gradient before clipping; this worker's outputs
    ``[n, V, D]``, detached."""

    loss: float
    grad_norm: float
    outputs: Tensor


class Engine:
    """A method, its optimizer and DeepSpeed around them.

    Args:
        method: with the same weights on every rank.
        config: of the run.
        world: this worker; a process group of that size must exist, unless it is alone.
        state: to go on from, of a run with any number of workers and any ZeRO stage.
    """

    def __init__(self, method: Method, config: RunConfig, world: World, state: State | None = None) -> None:
        deepspeed = _import_deepspeed(world)
        self._world = world
        self.method = method.to(world.device)
        if state is not None:
            self.method.load_state_dict(state.model)
        self._statistics = RunningStatistics(self.method)
        self._names = {parameter: name for name, parameter in self.method.named_parameters()}
        self._stage = config.engine.zero_stage
        self._deepspeed, *_ = deepspeed.initialize(
            model=self.method, optimizer=config.optim.build(self.method), config=_deepspeed_config(config, world)
        )
        # What DeepSpeed does to a gradient, undone here and nowhere else. Stages 0 to 2 sum over workers, as they are
        # told (gradient_allreduce_op). Stage 3 can only average: 1/W, so the loss is multiplied by W. The division by
        # accumulation steps is never asked for (gradient_accumulation_steps 1, scale_wrt_gas False).
        self._undo_average = world.size if self._stage == 3 else 1
        if isinstance(self._torch_optimizer, LARS) and self._stage:
            self._torch_optimizer.shard(self._slices(), world.sum_)
        if state is not None:
            self._load_optimizer(state.optimizer)

    def step(self, batch: Batch, learning_rate: float) -> StepResult:
        """One update from the global batch, of which ``batch`` is this worker's share.

        Raises:
            Diverged: on every rank alike, before the update, where the loss or the gradient is not finite.
        """
        for group in self._deepspeed.optimizer.param_groups:
            group["lr"] = learning_rate
        self.method.train()
        self.method.before_step(batch.progress)
        cached = batch.num_slots > 1
        with torch.set_grad_enabled(not cached):
            embedded = [self._embed(batch, slot, collect=True) for slot in range(batch.num_slots)]
        z = torch.cat([one.detach() for one in embedded])[: len(batch.ids)].requires_grad_()
        loss = self.method.loss(z)
        if not torch.isfinite(loss):
            raise Diverged(f"step {batch.step}: the loss is {loss.item()}; nothing was updated")
        [grad] = torch.autograd.grad(loss, z)
        slots = range(batch.num_slots)
        with self._reduce_once():
            for slot in slots:
                with self._boundary(slot == slots[-1]):
                    one = self._embed(batch, slot) if cached else embedded[slot]
                    self._push(one, grad[slot * batch.size : (slot + 1) * batch.size])
        grad_norm = self._update(batch.step)
        self._statistics.update(self._world)
        with self._whole_parameters():
            self.method.after_step(z.detach(), batch.progress)
        return StepResult(loss.item(), grad_norm, z.detach())

    def _embed(self, batch: Batch, slot: int, collect: bool = False) -> Tensor:
        """[m, V, D] of one slot; noise is a function of (seed, step, micro-batch)."""
        real = slot < len(batch.micro_batches)
        torch.manual_seed(batch.noise_seed(slot))
        with self._statistics.collecting(collect and real):
            z: Tensor = self._deepspeed(batch.views(slot, self._world.device))
        return z

    def _push(self, z: Tensor, grad: Tensor) -> None:
        """Send dL/dz through the graph of z; a slot without a micro-batch has no rows in grad and weight 0."""
        weight = grad if len(grad) else torch.zeros_like(z)
        self._deepspeed.backward((z * weight).sum() * self._undo_average, scale_wrt_gas=False)

    @contextlib.contextmanager
    def _reduce_once(self) -> Iterator[None]:
        """One reduction a step instead of one a micro-batch; stage 0 has that by ``_boundary``."""
        with self._deepspeed.coalesce_grad_reduction() if self._stage else contextlib.nullcontext():
            yield

    @contextlib.contextmanager
    def _boundary(self, last: bool) -> Iterator[None]:
        if self._stage == 0:
            self._deepspeed.set_gradient_accumulation_boundary(last)
        yield

    def _update(self, step: int) -> float:
        """Clip, update; returns the gradient's norm."""
        norm: float | None = None
        if self._stage == 0:
            grads = [p.grad for p in self.method.parameters() if p.grad is not None]
            norm = float(nn.utils.get_total_norm(grads))
            if not torch.isfinite(torch.tensor(norm)):
                raise Diverged(f"step {step}: the gradient's norm is {norm}; nothing was updated")
        self._deepspeed.step()
        if not self._deepspeed.was_step_applied():
            raise Diverged(f"step {step}: the gradient is not finite; nothing was updated")
        return float(self._deepspeed.get_global_grad_norm()) if norm is None else norm

    def state(self, into: State | None = None) -> State:
        """Whole tensors on the CPU, complete on rank 0; every rank calls.

        Args:
            into: what an earlier call returned, to be written over: new memory takes longer than the copy.
        """
        from deepspeed.utils import safe_get_full_optimizer_state

        with self._whole_parameters():
            held = into.model if into else {}
            model = {name: _copy(tensor, held.get(name)) for name, tensor in self.method.state_dict().items()}
        held = into.optimizer if into else {}
        optimizer = {}
        self._link_state()
        for flat, parameters in self._partitions():
            state = self._torch_optimizer.state[flat]
            for parameter in parameters:
                for key in sorted(state):
                    value = state[key]
                    if value.dim() and self._stage:
                        value = safe_get_full_optimizer_state(parameter, key)
                    name = f"{self._names[parameter]}/{key}"
                    optimizer[name] = _copy(value, held.get(name))
        return State(model, optimizer)

    def _whole_parameters(self) -> contextlib.AbstractContextManager[Any]:
        """Stage 3 keeps parameters in parts, but for this block."""
        from deepspeed.runtime.zero import GatheredParameters

        return cast(
            "contextlib.AbstractContextManager[Any]",
            GatheredParameters(list(self.method.parameters()), enabled=self._stage == 3),
        )

    def _load_optimizer(self, saved: dict[str, Tensor]) -> None:
        from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

        partitions = list(self._partitions())
        for flat, parameters in partitions:
            first = self._names[parameters[0]]
            keys = [name.rpartition("/")[2] for name in saved if name.rpartition("/")[0] == first]
            values = {key: saved[f"{first}/{key}"] for key in keys}
            self._torch_optimizer.state[flat] = {
                key: torch.zeros_like(flat) if value.dim() else value.clone() for key, value in values.items()
            }
        self._link_state()
        for flat, parameters in partitions:
            for parameter in parameters:
                for key, value in self._torch_optimizer.state[flat].items():
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
        """Stages 1 and 2: point parameters at their slices of the flat state; DeepSpeed does so for one group only."""
        if self._stage in (1, 2):
            self._deepspeed.optimizer._hp_optimizer_states_linked = False
            self._deepspeed.optimizer._lazy_init_hp_params_optimizer_state()

    @property
    def _torch_optimizer(self) -> torch.optim.Optimizer:
        optimizer: torch.optim.Optimizer = (
            self._deepspeed.optimizer if self._stage == 0 else self._deepspeed.optimizer.optimizer
        )
        return optimizer

    def _slices(self) -> dict[Tensor, list[ParameterSlice]]:
        """Which slice of which parameter this rank's flat tensors hold, at stages 1 and 2."""
        slices: dict[Tensor, list[ParameterSlice]] = {}
        for flat, parameters in self._partitions():
            mappings = [(number, cast(Any, p)._hp_mapping) for number, p in enumerate(parameters)]
            addresses = [(number, held.get_hp_fragment_address()) for number, held in mappings if held is not None]
            slices[flat] = [ParameterSlice(number, address.start, address.numel) for number, address in addresses]
        return slices

    def _partitions(self) -> Iterator[tuple[Tensor, list[nn.Parameter]]]:
        """What the torch optimizer holds as one tensor, and the parameters that it has (parts of)."""
        zero = self._deepspeed.optimizer
        if self._stage == 0:
            yield from ((p, [p]) for group in zero.param_groups for p in group["params"])
        elif self._stage == 3:
            yield from zip(zero.fp32_partitioned_groups_flat, zero.fp16_groups, strict=True)
        else:
            yield from zip(zero.single_partition_of_fp32_groups, zero.bit16_groups, strict=True)


def _copy(tensor: Tensor, into: Tensor | None) -> Tensor:
    if into is None:
        return tensor.detach().to("cpu", copy=True).contiguous()
    return into.copy_(tensor.detach())


def _slice(whole: Tensor, parameter: Any, world: World) -> Tensor:
    """This rank's part of a tensor as ZeRO-3 cuts it: equal parts of the flat tensor, zeros behind the end."""
    length = parameter.ds_tensor.numel()
    part = whole.flatten()[world.rank * length : (world.rank + 1) * length]
    return nn.functional.pad(part, (0, length - len(part)))


def _import_deepspeed(world: World) -> Any:
    if world.device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ.setdefault("LOCAL_RANK", "0")
    import deepspeed
    import deepspeed.ops

    # Without this DeepSpeed compiles a shared-memory all-reduce at start, which needs a compiler and up to minutes.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)  # it warns of every optimizer but its own
    # DeepSpeed calls collectives by names that torch 2.14 deprecates
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed\.c10d_logger")
    if not dist.is_initialized():
        assert world.size == 1, "a world of several workers has a process group"
        dist.init_process_group("gloo", init_method="tcp://127.0.0.1:0", rank=0, world_size=1)
    return deepspeed


def _deepspeed_config(config: RunConfig, world: World) -> dict[str, Any]:
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
