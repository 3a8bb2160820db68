"""Pretraining methods that need several runs, one after another; each can be resumed by the same command."""

from cluster.pipelines.g_simclr import GSimCLR
from cluster.pipelines.self_training import SelfTraining

__all__ = ["GSimCLR", "SelfTraining"]
