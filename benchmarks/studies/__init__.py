"""Replay of the five studies on CIFAR-10: cells of the product's own commands, and our figures beside theirs."""
