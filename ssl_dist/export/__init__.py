"""A trained encoder as files for other code: each format is written, loaded by its own loader, and compared.

``exporting`` writes a folder, ``formats`` knows what is in it and how it is loaded, ``standalone`` writes the source of
a network, and ``card`` the page that says where the encoder comes from.
"""

from ssl_dist.export.exporting import Exported, export

__all__ = ["Exported", "export"]
