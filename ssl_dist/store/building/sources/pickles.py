"""The values in CIFAR's pickled files: dictionaries, lists, texts, numbers and arrays."""

from __future__ import annotations

from typing import Any

import numpy as np

from ssl_dist.pickles import Machine, Made, Named, run

_MAX_OPERATIONS = 600_000  # CIFAR's files have up to 300,000
_ENCODE = "_codecs encode"  # Python 3 writes bytes, in protocol 2, as a call that encodes a text in Latin-1
_ARRAY, _DTYPE = "numpy ndarray", "numpy dtype"
_NAMES = {name: name for name in (_ARRAY, _DTYPE, _ENCODE)}
_NAMES |= dict.fromkeys(("numpy.core.multiarray _reconstruct", "numpy._core.multiarray _reconstruct"), _ARRAY)


class _Machine(Machine):
    """The machine for files that have arrays."""

    def named(self, name: str) -> Named:
        return Named(_NAMES[name]) if name in _NAMES else super().named(name)

    def called(self, function: Named, arguments: tuple[Any, ...]) -> Any:
        """Return what stands for the result; an encoded text stays a text, like the bytes of Python 2."""
        return arguments[0] if function.name == _ENCODE else super().called(function, arguments)


def load(content: bytes) -> Any:
    """Return the value of a pickle: Python 2's bytes and texts as str, and arrays as values for ``uint8_rows``.

    Raises:
        Exception: of any kind: the content is no pickle, or one that needs other operations or too many.
    """
    return run(_Machine(), content, _MAX_OPERATIONS)


def uint8_rows(value: Any, length: int) -> np.ndarray | None:
    """Return a loaded value as an array if it is uint8 ``[n, length]``; otherwise None."""
    match value:
        case Made("numpy ndarray", _, (_, shape, Made("numpy dtype", ("u1", *_)), fortran, bytes() | str() as raw)):
            content = raw if isinstance(raw, bytes) else raw.encode("latin1", "ignore")
            count, rest = divmod(len(content), length)
            if not rest and shape == (count, length):
                flat = np.frombuffer(content, dtype=np.uint8)
                return flat.reshape(length, count).T if fortran else flat.reshape(count, length)
    return None
