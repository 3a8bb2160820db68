"""One exact training step of all workers, whatever their number, from micro-batches.

Gradients are cached (GradCache, arXiv 2101.06983). A worker embeds its micro-batches, takes the loss of the global
batch and its gradient at the outputs, then pushes that gradient through the micro-batches' graphs, one after the other.
It keeps the graphs of as many micro-batches as memory allows; the others are embedded without one at first, and again
with one when it is their turn. Either way the parameter gradient is

    sum over workers, sum over micro-batches  (dL/dz_micro) (dz_micro/dparameters)

where z are the outputs and L is the loss of the global batch: gradients are summed over workers, never averaged.
Shapes: n samples of this worker, m of a micro-batch, V views, D dimensions of an output.
"""

from __future__ import annotations

import os
from typing import NamedTuple

import torch
from torch import Tensor

from ssl_dist.checkpoint import State
from ssl_dist.collectives import World
from ssl_dist.config import RunConfig
from ssl_dist.data.batches import Batch
from ssl_dist.methods import Method, Views
from ssl_dist.timing import section
from ssl_dist.training.batch_norm import RunningStatistics
from ssl_dist.training.compiling import compile_backbone
from ssl_dist.training.kept_graphs import KeptGraphs
from ssl_dist.training.zero import Zero, copy_to_cpu


class StepResult(NamedTuple):
    """The results of one step.

    Attributes:
        loss: of the global batch.
        grad_norm: norm of the summed gradient before clipping.
        outputs: ``[n, V, D]`` of this worker, detached.
    """

    loss: float
    grad_norm: float
    outputs: Tensor


class Engine:
    """A method and its optimizer, and the step that updates them.

    Args:
        method: with the same weights on every rank.
        world: this worker; a process group of that size must exist, unless it is alone.
        state: to continue from, of a run with any number of workers and any ZeRO stage.
    """

    def __init__(self, method: Method, config: RunConfig, world: World, state: State | None = None) -> None:
        self._world = world
        self._memory_format = _memory_format(config, world.device)
        if world.device.type == "cuda":
            _choose_kernels(deterministic=config.engine.deterministic)
        self.method = method.to(world.device)
        if state is not None:
            self.method.load_state_dict(state.model)
        compiled = self.method.backbone if compile_backbone(self.method.backbone, config, world.device) else None
        self._statistics = RunningStatistics(self.method, compiled)
        self._zero = Zero(self.method, config, world)
        self._graphs = KeptGraphs(self.method, config, world)
        if state is not None:
            self._zero.load_optimizer_state(state.optimizer)

    def step(self, batch: Batch, learning_rate: float) -> StepResult:
        """Update the parameters once, from the global batch of which ``batch`` is this worker's part.

        Raises:
            Diverged: on every rank, before the update, if the loss or the gradient is not finite.
        """
        self.method.train()
        self.method.before_step(batch.progress)
        slots = range(batch.num_slots)
        embedded = [self._embed_first(batch, slot) for slot in slots]
        outputs = torch.cat([z.detach() for z in embedded])[: len(batch.ids)].requires_grad_()  # [n, V, D]
        with section("loss"):
            loss = self.method.loss(outputs)
            [grad] = torch.autograd.grad(loss, outputs)
        with self._zero.accumulating():
            for slot in slots:
                kept, embedded[slot] = embedded[slot], torch.empty(0)  # its graph ends with its backward pass
                z = kept if kept.requires_grad else self._embed(batch, slot)
                self._push(z, grad[slot * batch.micro_size : (slot + 1) * batch.micro_size], last=slot == slots[-1])
        with section("optimizer"):
            value, grad_norm = self._zero.update(batch.step, learning_rate, loss.detach())
        with section("running statistics"):
            self._statistics.update(self._world)
        with section("after the step"), self._zero.whole_parameters():
            self.method.after_step(outputs.detach(), batch.progress)
        return StepResult(value, grad_norm, outputs.detach())

    def _embed_first(self, batch: Batch, slot: int) -> Tensor:
        """Return the outputs ``[m, V, D]`` of one slot, with their graph if there is one slot or the graph is kept."""
        if batch.num_slots == 1:
            return self._embed(batch, slot, collect=True)
        with torch.set_grad_enabled(self._graphs.keeps(slot)), self._graphs.counting(batch.num_slots, batch.growth):
            return self._embed(batch, slot, collect=True)

    def _embed(self, batch: Batch, slot: int, *, collect: bool = False) -> Tensor:
        """Return the outputs ``[m, V, D]`` of one slot, whose noise is a function of (seed, step, micro-batch).

        Args:
            collect: let this pass count for BatchNorm's running statistics.
        """
        is_real = slot < len(batch.micro_batches)
        torch.manual_seed(batch.noise_seed(slot))
        with self._statistics.collecting(collect and is_real):
            with section("views"):
                crops, labels = batch.views(slot, self._world.device)
                views = Views(tuple(map(self._in_format, crops)), labels)
            with section("forward"):
                return self._zero.forward(views)

    def _in_format(self, crops: Tensor) -> Tensor:
        """Lay views ``[V, N, 3, S, S]`` out in memory as ``engine.memory_format`` says; convolutions keep it."""
        images = crops.flatten(0, 1).contiguous(memory_format=self._memory_format)
        return images.view(*crops.shape[:2], *images.shape[1:])

    def _push(self, z: Tensor, grad: Tensor, *, last: bool) -> None:
        """Send dL/dz through the graph of z; a slot without a micro-batch has no rows in ``grad``, and weight 0."""
        weight = grad if len(grad) else torch.zeros_like(z)
        self._zero.backward((z * weight).sum(), last=last)

    def state(self, into: State | None = None) -> State:
        """Return whole tensors on the CPU, complete on rank 0; every rank calls.

        Args:
            into: an earlier result, which is written over: new memory takes longer than the copy.
        """
        into = into or State({}, {})
        with self._zero.whole_parameters():
            tensors = self.method.state_dict()
            model = {name: copy_to_cpu(tensor, into.model.get(name)) for name, tensor in tensors.items()}
        return State(model, self._zero.optimizer_state(into.optimizer))


def _memory_format(config: RunConfig, device: torch.device) -> torch.memory_format:
    """Return the memory format of a batch of images."""
    wanted = config.engine.memory_format
    if wanted == "auto":
        wanted = "channels_last" if device.type == "cuda" and config.engine.precision == "bf16" else "contiguous"
    return torch.channels_last if wanted == "channels_last" else torch.contiguous_format


def _choose_kernels(*, deterministic: bool) -> None:
    """Let this process compute the same bits each time, or by the algorithms that are fastest in a trial.

    Both are set, because an earlier run of this process may have chosen otherwise (not run on a GPU yet).
    """
    torch.backends.cudnn.benchmark = not deterministic
    torch.use_deterministic_algorithms(deterministic)
    # DeepSpeed allocates gigabytes that it never reads
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it starts
