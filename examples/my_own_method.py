"""A pretraining method of your own, outside the package: SimSiam (arXiv 2011.10566) in forty lines.

    python examples/my_own_method.py STORE

Each view predicts the other view's embedding, through which no gradient flows. ``embed`` sees one micro-batch; ``loss``
sees this worker's outputs of the global batch and adds up over all workers, with an exact gradient for its own rows.
Put the same class into a file of ``ssl_dist/methods``, and recipes and the command line find it by its name.
"""

import sys
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from ssl_dist.collectives import RowCounts, World, sum_over_ranks
from ssl_dist.config import RunConfig
from ssl_dist.data import resolve
from ssl_dist.data.batches import Batches
from ssl_dist.methods import Method, MethodConfig, Views
from ssl_dist.methods.base import embed_views, projection_head
from ssl_dist.training.engine import Engine


class SimSiam(Method):
    """Backbone, projection head and predictor."""

    class Config(MethodConfig):
        name: Literal["simsiam"] = "simsiam"
        dim: int = 64

    def __init__(self, backbone: nn.Module, config: Config) -> None:
        super().__init__(backbone, config)
        self.projector = projection_head(backbone.dim, config.dim, config.dim, 2)
        self.predictor = projection_head(config.dim, config.dim, config.dim, 2)

    def embed(self, views: Views) -> Tensor:
        """Return predictions of both views, then their embeddings: ``[N, 4, D]``."""
        z = embed_views(nn.Sequential(self.backbone, self.projector), views.stacked)  # [N, 2, D]
        predictions = self.predictor(z.flatten(0, 1)).view_as(z)
        return torch.cat([predictions, z.detach()], dim=1)

    @property
    def num_targets(self) -> int:
        return 2  # the last two outputs are targets, without a gradient

    def loss(self, outputs: Tensor, group=None) -> Tensor:
        """Return minus the mean cosine of each view's prediction with the other view's embedding."""
        predictions, targets = outputs.chunk(2, dim=1)
        cosines = cosine_similarity(predictions, targets.flip(1), dim=2)  # [N, 2]
        return -sum_over_ranks(cosines.sum(), group) / (2 * RowCounts.of(outputs, group).total)


def main(store: str, steps: int = 20) -> None:
    settings = {"data.store": store, "batch": {"size": 16, "micro": 8}, "engine.zero_stage": 0, "epochs": 1000}
    settings |= {"backbone.width": 16, "engine.precision": "fp32"}
    data = resolve(RunConfig.load("simclr-cifar10", settings))
    method = SimSiam(data.config.initial_backbone(), SimSiam.Config())
    engine = Engine(method, data.config, World.current())
    for batch in Batches(data.sample_plan, World.current(), 0, steps):
        result = engine.step(batch, learning_rate=1e-3)
        print(f"step {batch.step + 1}: loss {result.loss:.4f}")


if __name__ == "__main__":
    main(sys.argv[1])
