"""Features of all images of a source in one Parquet file, and the nearest images in such a file.

``making`` writes the file: it has its parts computed one after another, here or on a cluster, and puts them together.
``table`` opens the file, and ``search`` looks for the nearest images in it.
"""

from ssl_dist.embedding.making import Embedded, embed

__all__ = ["Embedded", "embed"]
