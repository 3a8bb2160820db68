"""Boards: the places beside metrics.jsonl where a run's numbers are drawn: TensorBoard, Weights & Biases, MLflow."""

from ssl_dist.training.boards.opening import Boards, expect_libraries

__all__ = ["Boards", "expect_libraries"]
