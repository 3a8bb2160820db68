"""A reader of pickled dictionaries, lists, texts, numbers and arrays, as in CIFAR's files, that does not unpickle.

A pickle is a program. Python's unpickler runs it, and can be made to crash or to fill the memory even by a pickle that
calls nothing. This reader carries out the few operations that CIFAR's files need, on plain values, and refuses all
others. It calls nothing that a file names, follows no nested value, and bounds its memory by the size of the file.
"""

from __future__ import annotations

import enum
import pickletools
from collections.abc import Callable
from typing import Any

import numpy as np

_MAX_OPERATIONS = 600_000  # CIFAR's files have up to 300,000


class _Global(enum.Enum):
    """The functions and classes that a pickle may name."""

    ARRAY = enum.auto()
    DTYPE = enum.auto()
    ENCODE = enum.auto()  # Python 3 writes bytes, in protocol 2, as a call that encodes a text in Latin-1


class _NumpyValue:
    """A stand-in for a NumPy array or dtype: the function that makes it, its arguments, and its state."""

    def __init__(self, function: _Global, arguments: tuple[Any, ...]) -> None:
        self.function, self.arguments = function, arguments
        self.state: Any = None


_GLOBALS = {
    "numpy ndarray": _Global.ARRAY,
    "numpy dtype": _Global.DTYPE,
    "numpy.core.multiarray _reconstruct": _Global.ARRAY,
    "numpy._core.multiarray _reconstruct": _Global.ARRAY,
    "_codecs encode": _Global.ENCODE,
}
_NEW_VALUES: dict[str, Callable[[], Any]] = {  # operations that put a new value on the stack
    **{"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple},
    **{"NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False},
}
_ARGUMENTS = frozenset(  # operations that put their argument on the stack
    {"BINSTRING", "SHORT_BINSTRING", "BINUNICODE", "SHORT_BINUNICODE", "BINBYTES", "SHORT_BINBYTES"}
    | {"BININT", "BININT1", "BININT2", "LONG1"}
)
_IGNORED = frozenset({"PROTO", "FRAME", "STOP"})


class _Machine:
    """The stack machine that a pickle is a program for."""

    def __init__(self, num_bytes: int) -> None:
        self.stack: list[Any] = []
        self._marks: list[int] = []  # positions on the stack
        self._memo: dict[int, Any] = {}
        self._bytes_left = num_bytes  # for encoded texts: one in the memo could be encoded again and again

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
                stack.append(self._call(*self._pop(2)))
            case "BUILD":
                [state] = self._pop(1)
                self._top(_NumpyValue).state = state
            case _ if name in _NEW_VALUES:
                stack.append(_NEW_VALUES[name]())
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

    def _call(self, function: Any, arguments: Any) -> Any:
        if not (isinstance(function, _Global) and isinstance(arguments, tuple)):
            raise ValueError("it calls something that makes no array")
        if function is not _Global.ENCODE:
            return _NumpyValue(function, arguments)
        text, _ = arguments
        self._bytes_left -= len(text)
        if self._bytes_left < 0:
            raise ValueError("its encoded texts are longer than the file")
        return text.encode("latin1")


def _find_global(name: str) -> _Global:
    if name not in _GLOBALS:
        raise ValueError(f"it asks for {name.replace(' ', '.')}")
    return _GLOBALS[name]


def load(content: bytes) -> Any:
    """Return the value of a pickle: Python 2's bytes and texts as str, and arrays as values for ``uint8_rows``.

    Raises:
        Exception: of any kind: the content is no pickle, or one that needs other operations or too many.
    """
    machine = _Machine(len(content))
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
        case _NumpyValue(
            function=_Global.ARRAY,
            state=(
                _,
                shape,
                _NumpyValue(function=_Global.DTYPE, arguments=("u1", *_)),
                is_fortran,
                (bytes() | str()) as data,
            ),
        ):
            content = data if isinstance(data, bytes) else data.encode("latin1", "ignore")
            count, rest = divmod(len(content), length)
            if rest or shape != (count, length):
                return None
            flat = np.frombuffer(content, dtype=np.uint8)
            return flat.reshape(length, count).T if is_fortran else flat.reshape(count, length)
    return None
