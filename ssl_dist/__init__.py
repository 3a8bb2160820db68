"""Self-supervised pretraining of image encoders: the science. Never imports Ray."""

__version__ = "0.1.0"
