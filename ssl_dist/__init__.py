"""Self-supervised pretraining of image encoders: the science. Never imports Ray."""

from typing import TYPE_CHECKING

from ssl_dist.lazy import importer

if TYPE_CHECKING:
    from ssl_dist.encoder import Encoder, load_encoder

__version__ = "0.1.0"
__all__ = ["Encoder", "load_encoder"]
__getattr__ = importer(__name__, encoder=("Encoder", "load_encoder"))
