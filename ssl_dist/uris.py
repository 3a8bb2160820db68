"""URIs of buckets and the like, and how messages show them: without a user's secrets."""

from __future__ import annotations

import os


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Is it a URI, and not a folder?"""
    return "://" in os.fspath(path)


def without_secrets(uri: str) -> str:
    """A URI as messages show it, without a user's key and without options; a path as it is. Also of a URI that is none,
    since a key with a ``/`` that is not escaped makes it so."""
    if not is_remote(uri):
        return uri
    scheme, _, rest = uri.partition("://")
    place = rest.partition("?")[0]
    user, found, after = place.rpartition("@")
    is_user = found and (":" in user or "/" not in user)  # else it is of a folder's name
    return f"{scheme}://{after if is_user else place}"


def reason_of(error: Exception, uri: str) -> str:
    """What Arrow says, which repeats the URI, without what is secret in that."""
    return str(error).replace(uri, without_secrets(uri))
