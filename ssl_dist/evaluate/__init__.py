"""Measures of frozen features: kNN and a linear probe beside baselines, measures without labels, maps, pseudo-labels.

This is the part that most callers need; ``features``, ``rank``, ``maps`` and ``pseudo_labels`` hold more.
"""

from typing import TYPE_CHECKING

from ssl_dist.evaluate.compare import Comparison, Options, compare
from ssl_dist.evaluate.protocols import Knn, Linear
from ssl_dist.lazy import importer

if TYPE_CHECKING:
    from ssl_dist.evaluate.features import encoder_of, extract, fastest_device
    from ssl_dist.evaluate.knn import knn_accuracy
    from ssl_dist.evaluate.linear import linear_accuracy

__all__ = [
    "Comparison",
    "Knn",
    "Linear",
    "Options",
    "compare",
    "encoder_of",
    "extract",
    "fastest_device",
    "knn_accuracy",
    "linear_accuracy",
]
__getattr__ = importer(
    __name__,
    features=("encoder_of", "extract", "fastest_device"),
    knn=("knn_accuracy",),
    linear=("linear_accuracy",),
)
