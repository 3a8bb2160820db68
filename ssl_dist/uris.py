"""URIs of buckets and folders (``s3://bucket/store``): recognise, join, split, and show them without their secrets."""

from __future__ import annotations

import os
from urllib.parse import SplitResult, urlsplit

from ssl_dist.errors import ConfigError


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Return whether this is a URI, not a path of this machine."""
    return "://" in os.fspath(path)


def join_uri(uri: str, name: str) -> str:
    """Return the URI of ``name`` in the folder ``uri``. Options after a ``?`` (``endpoint_override=...``) stay last.

    Raises:
        ConfigError: ``uri`` cannot be parsed.
    """
    parts = _parse(uri)
    return parts._replace(path=f"{parts.path.rstrip('/')}/{name}").geturl()


def split_uri(uri: str) -> tuple[str, str]:
    """Return the URI of the parent folder, and the last name of the path: the inverse of ``join_uri``.

    Raises:
        ConfigError: ``uri`` cannot be parsed.
    """
    parts = _parse(uri)
    path, _, name = parts.path.rstrip("/").rpartition("/")
    return parts._replace(path=path).geturl(), name


def _parse(uri: str) -> SplitResult:
    try:
        return urlsplit(uri)
    except ValueError:  # its text may repeat the user's key
        raise ConfigError(f"{without_secrets(uri)} is not a URI: write it like s3://bucket/folder") from None


def without_secrets(uri: str) -> str:
    """Return a URI as messages show it: without the user's key and without options. A path is returned unchanged.

    A key that contains an unescaped ``/`` makes the URI invalid; it is removed all the same.
    """
    if not is_remote(uri):
        return uri
    scheme, _, rest = uri.partition("://")
    address = rest.partition("?")[0]
    user, found, after = address.rpartition("@")
    is_user = found and (":" in user or "/" not in user)  # otherwise the @ belongs to a folder's name
    return f"{scheme}://{after if is_user else address}"


def reason_of(error: Exception, uri: str) -> str:
    """Return the text of an Arrow error, which repeats the URI, with the secrets of the URI removed."""
    return str(error).replace(uri, without_secrets(uri))
