"""Training: the loop, one exact step of all workers, and what is written about them."""
