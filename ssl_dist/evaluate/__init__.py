"""Measures of frozen features: kNN, a linear probe, effective ranks without labels, pseudo-labels."""

from ssl_dist.evaluate.clusters import cluster_labels
from ssl_dist.evaluate.compare import Comparison, ProgressCallback, Score, compare
from ssl_dist.evaluate.features import encoder_of, expect_same_classes, extract, fastest_device, open_labelled
from ssl_dist.evaluate.knn import knn_accuracy
from ssl_dist.evaluate.linear import linear_accuracy
from ssl_dist.evaluate.predictions import most_confident, predict
from ssl_dist.evaluate.rank import lidar, rankme

__all__ = [
    "Comparison",
    "ProgressCallback",
    "Score",
    "cluster_labels",
    "compare",
    "encoder_of",
    "expect_same_classes",
    "extract",
    "fastest_device",
    "knn_accuracy",
    "lidar",
    "linear_accuracy",
    "most_confident",
    "open_labelled",
    "predict",
    "rankme",
]
