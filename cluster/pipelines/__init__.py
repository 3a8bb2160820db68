"""Pretraining methods that need several runs, one after another; each can be resumed by the same command."""
