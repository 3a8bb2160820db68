"""Training: the loop, one exact step of all workers, and the metrics that a run writes."""
