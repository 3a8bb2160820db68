"""Measures of frozen features: kNN, a linear probe, effective ranks without labels, pseudo-labels.

This is the part that most callers need; ``features``, ``rank`` and ``pseudo_labels`` hold more.
"""

from typing import TYPE_CHECKING

from ssl_dist.evaluate.compare import compare
from ssl_dist.lazy import importer

if TYPE_CHECKING:
    from ssl_dist.evaluate.classifiers import knn_accuracy, linear_accuracy
    from ssl_dist.evaluate.features import encoder_of, extract, fastest_device

__all__ = ["compare", "encoder_of", "extract", "fastest_device", "knn_accuracy", "linear_accuracy"]
__getattr__ = importer(
    __name__, classifiers=("knn_accuracy", "linear_accuracy"), features=("encoder_of", "extract", "fastest_device")
)
