"""A reader of pickled dictionaries, lists, texts, numbers and arrays, as in CIFAR's files, that does not unpickle.

A pickle is a program. Python's unpickler runs it, and can be made to crash or to fill the memory even by a pickle that
calls nothing. This reader carries out the few operations that CIFAR's files need, on plain values, and refuses all
others. It calls nothing that a file names, follows no nested value, and bounds its memory by the size of the file.
"""

from __future__ import annotations

import copy
import pickletools
from dataclasses import dataclass
from typing import Any

import numpy as np

_MAX_OPERATIONS = 600_000  # CIFAR's files have up to 300,000

_GLOBALS: dict[str, Any] = {  # the names that a pickle may have; their values only mark what is meant
    "numpy ndarray": np.ndarray,
    "numpy dtype": np.dtype,
    "numpy.core.multiarray _reconstruct": np.ndarray,
    "numpy._core.multiarray _reconstruct": np.ndarray,
    "_codecs encode": str.encode,  # Python 3 writes bytes, in protocol 2, as a call that encodes a text in Latin-1
}
# operations that put their argument on the stack, or a value
_ARGUMENTS = {"BINSTRING", "SHORT_BINSTRING", "BINUNICODE", "SHORT_BINUNICODE", "BINBYTES", "SHORT_BINBYTES"}
_ARGUMENTS |= {"BININT", "BININT1", "BININT2", "LONG1"}
_VALUES: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_VALUES |= {"EMPTY_TUPLE": (), "EMPTY_LIST": [], "EMPTY_DICT": {}}
_IGNORED = {"PROTO", "FRAME", "STOP"}


@dataclass(eq=False)
class _NumpyValue:
    """A stand-in for a NumPy array or dtype: the function that makes it, its arguments, and its state."""

    function: Any
    arguments: tuple[Any, ...]
    state: Any = None


class _Machine:
    """The stack machine that a pickle is a program for."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self._marks: list[int] = []  # positions on the stack
        self._memo: dict[int, Any] = {}

    def step(self, name: str, argument: Any) -> None:
        """Carry out one operation.

        Raises:
            ValueError, LookupError, TypeError: the operation is unknown, or is not possible here.
        """
        stack = self.stack
        match name:
            case _ if name in _ARGUMENTS:  # first, since most operations are these
                stack.append(argument)
            case "BINPUT" | "LONG_BINPUT" | "MEMOIZE":
                self._memo[len(self._memo) if argument is None else argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(self._memo[argument])
            case "MARK":
                self._marks.append(len(stack))
            case "TUPLE" | "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(tuple(self._pop(int(name[5:]) if name[5:] else None)))
            case "APPEND" | "APPENDS":
                values = self._pop(1 if name == "APPEND" else None)
                self._top(list).extend(values)
            case "SETITEM" | "SETITEMS":
                self._set_items(self._pop(2 if name == "SETITEM" else None))
            case "GLOBAL" | "STACK_GLOBAL":
                stack.append(_find_global(argument or " ".join(self._pop(2))))
            case "REDUCE":
                stack.append(_call(*self._pop(2)))
            case "BUILD":
                [state] = self._pop(1)
                self._top(_NumpyValue).state = state
            case _ if name in _VALUES:
                stack.append(copy.copy(_VALUES[name]))  # a list or dictionary of its own
            case _:
                raise ValueError(f"it has the operation {name}")

    def _pop(self, count: int | None) -> list[Any]:
        """Remove this many values from the stack and return them; None: those above the last mark."""
        start = self._marks.pop() if count is None else len(self.stack) - count
        if not 0 <= start <= len(self.stack):
            raise ValueError("it takes more values than it has")
        values = self.stack[start:]
        del self.stack[start:]
        return values

    def _top(self, kind: type) -> Any:
        """Return the value on top of the stack, which must be of this type."""
        if not (self.stack and isinstance(self.stack[-1], kind)):
            raise ValueError("it puts something into a value that cannot hold it")
        return self.stack[-1]

    def _set_items(self, values: list[Any]) -> None:
        keys = values[::2]
        if not all(isinstance(key, (str, bytes)) for key in keys):  # hashing a tuple would follow its nested values
            raise ValueError("it has a dictionary with keys that are not texts")
        self._top(dict).update(zip(keys, values[1::2], strict=True))


def _call(function: Any, arguments: Any) -> Any:
    """Return what stands for the result of a call; an encoded text stays a text, like the bytes of Python 2."""
    if not (callable(function) and isinstance(arguments, tuple)):  # of all values, only the globals are callable
        raise ValueError("it calls something that makes no array")
    return arguments[0] if function is str.encode else _NumpyValue(function, arguments)


def _find_global(name: str) -> Any:
    if name not in _GLOBALS:
        raise ValueError(f"it asks for {name.replace(' ', '.')}")
    return _GLOBALS[name]


def load(content: bytes) -> Any:
    """Return the value of a pickle: Python 2's bytes and texts as str, and arrays as values for ``uint8_rows``.

    Raises:
        Exception: of any kind: the content is no pickle, or one that needs other operations or too many.
    """
    machine = _Machine()
    for steps, (opcode, argument, _) in enumerate(pickletools.genops(content)):
        if steps >= _MAX_OPERATIONS:
            raise ValueError(f"it has more than {_MAX_OPERATIONS:,} operations")
        if opcode.name not in _IGNORED:
            machine.step(opcode.name, argument)
    [value] = machine.stack
    return value


def uint8_rows(value: Any, length: int) -> np.ndarray | None:
    """Return a loaded value as an array if it is uint8 ``[n, length]``; otherwise None."""
    match value:
        case _NumpyValue(np.ndarray, _, (_, shape, _NumpyValue(np.dtype, ("u1", *_)), fortran, bytes() | str() as raw)):
            content = raw if isinstance(raw, bytes) else raw.encode("latin1", "ignore")
            count, rest = divmod(len(content), length)
            if not rest and shape == (count, length):
                flat = np.frombuffer(content, dtype=np.uint8)
                return flat.reshape(length, count).T if fortran else flat.reshape(count, length)
    return None
