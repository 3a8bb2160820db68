"""Pickles of dictionaries of lists, texts, numbers and arrays, as CIFAR's authors published them, read without pickle.

A pickle is a program. Unpickling runs it, and Python's own may be made to crash or to fill the memory even where it
calls nothing. Here the few operations that such files need are carried out on plain values, and all others refused:
nothing is called, nothing is followed into its depth, and memory is bounded by the size of the file.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

MOST_BYTES = 512 << 20  # of a file; the largest of CIFAR's has 155 MB
_MOST_STEPS = 600_000  # operations; the most of CIFAR's files take 300,000
_MOST_INTEGER = 1 << 63
_MOST_ARGUMENTS = 3  # of a call: the memo's tuples could be passed again and again


class Kind:
    """Stands in for a pickled numpy.dtype."""

    def __init__(self, code: Any = None, *_: object) -> None:
        self.code = code

    def build(self, state: Any) -> None:
        """What else NumPy keeps of a dtype says nothing of whole bytes."""


class Array:
    """Stands in for a pickled numpy.ndarray."""

    def __init__(self, *_: object) -> None:
        self._state: tuple[Any, ...] = (None,) * 4

    def build(self, state: Any) -> None:
        _, shape, kind, is_fortran, content = state
        self._state = shape, kind, is_fortran, content

    def rows(self, length: int) -> np.ndarray | None:
        """uint8 ``[n, length]``; None: it is something else."""
        shape, kind, is_fortran, content = self._state
        content = content.encode("latin1") if isinstance(content, str) else content
        if not (isinstance(kind, Kind) and kind.code == "u1" and isinstance(content, bytes)):
            return None
        count, rest = divmod(len(content), length)
        if rest or shape != (count, length):
            return None
        flat = np.frombuffer(content, dtype=np.uint8)
        return flat.reshape(length, count).T if is_fortran else flat.reshape(count, length)


def _encode() -> None:
    """Marks Python 3's way to put bytes into protocol 2: text, to be encoded in Latin-1."""


class _Machine:
    """The stack machine of a pickle, for what ``load`` reads."""

    _KNOWN: ClassVar[dict[str, Any]] = {
        "numpy ndarray": Array,
        "numpy dtype": Kind,
        "numpy.core.multiarray _reconstruct": Array,
        "numpy._core.multiarray _reconstruct": Array,
        "_codecs encode": _encode,
    }
    _CONSTANTS: ClassVar = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
    _NUMBERS = frozenset({"INT", "LONG", "BININT", "BININT1", "BININT2", "LONG1", "LONG4"})
    _TEXTS = frozenset(
        {"STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
        | {"BINBYTES", "SHORT_BINBYTES", "BINBYTES8"}
    )
    _EMPTY: ClassVar[dict[str, Callable[[], Any]]] = {"EMPTY_DICT": dict, "EMPTY_LIST": list}
    _TUPLES: ClassVar = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}

    def __init__(self, num_bytes: int) -> None:
        self._stack: list[Any] = []
        self._marks: list[int] = []  # where on the stack
        self._memo: dict[int, Any] = {}
        self._bytes_left = num_bytes  # that _encode may make: a text in the memo could be encoded again and again

    def result(self) -> Any:
        [value] = self._stack
        return value

    def step(self, name: str, argument: Any) -> None:
        """Carry out one operation.

        Raises:
            ValueError, LookupError, TypeError: it cannot be carried out here.
        """
        stack = self._stack
        if name in self._TEXTS:
            stack.append(argument)
        elif name in self._NUMBERS:
            if not -_MOST_INTEGER <= argument < _MOST_INTEGER:
                raise ValueError("it has a whole number of more than 64 bits")
            stack.append(argument)
        elif name in self._CONSTANTS:
            stack.append(self._CONSTANTS[name])
        elif name in self._EMPTY:
            stack.append(self._EMPTY[name]())
        elif name in self._TUPLES:
            stack.append(tuple(self._popped(len(stack) - self._TUPLES[name])))
        else:
            self._rarer(name, argument)

    def _rarer(self, name: str, argument: Any) -> None:
        stack = self._stack
        match name:
            case "BINPUT" | "LONG_BINPUT" | "MEMOIZE":
                self._memo[len(self._memo) if argument is None else argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(self._memo[argument])
            case "MARK":
                self._marks.append(len(stack))
            case "TUPLE":
                stack.append(tuple(self._popped(self._marks.pop())))
            case "APPEND" | "APPENDS":
                values = self._popped(len(stack) - 1 if name == "APPEND" else self._marks.pop())
                self._top(list).extend(values)
            case "SETITEM" | "SETITEMS":
                values = self._popped(len(stack) - 2 if name == "SETITEM" else self._marks.pop())
                self._set(self._top(dict), values)
            case "GLOBAL" | "STACK_GLOBAL":
                stack.append(self._known(argument or " ".join(self._popped(len(stack) - 2))))
            case "REDUCE":
                stack.append(self._made(*self._popped(len(stack) - 2)))
            case "BUILD":
                [state] = self._popped(len(stack) - 1)
                self._top(Array, Kind).build(state)
            case "PROTO" | "FRAME" | "STOP":
                pass
            case _:
                raise ValueError(f"it has the operation {name}")

    def _popped(self, start: int) -> list[Any]:
        if start < 0 or start > len(self._stack):
            raise ValueError("it takes more values than it has")
        values = self._stack[start:]
        del self._stack[start:]
        return values

    def _top(self, *kinds: type) -> Any:
        if not (self._stack and isinstance(self._stack[-1], kinds)):
            raise ValueError(f"it puts something into what is no {kinds[0].__name__.lower()}")
        return self._stack[-1]

    def _set(self, into: dict[Any, Any], values: list[Any]) -> None:
        keys = values[::2]
        if not all(isinstance(key, (str, bytes)) for key in keys):  # a tuple's hash would follow it into its depth
            raise ValueError("it has a dictionary with keys that are no text")
        into.update(zip(keys, values[1::2], strict=True))

    def _known(self, name: str) -> Any:
        if name not in self._KNOWN:
            raise ValueError(f"it asks for {name.replace(' ', '.')}")
        return self._KNOWN[name]

    def _made(self, kind: Any, arguments: Any) -> Any:
        known = any(kind is one for one in (Array, Kind, _encode))
        if not known or not isinstance(arguments, tuple) or len(arguments) > _MOST_ARGUMENTS:
            raise ValueError("it calls what is no array's")
        if kind is not _encode:
            return kind(*arguments)
        text, _ = arguments
        self._bytes_left -= len(text)
        if self._bytes_left < 0:
            raise ValueError("it makes more bytes than it has")
        return text.encode("latin1")


def load(content: bytes) -> Any:
    """The value that a pickle makes: bytes and text of Python 2 as str, arrays as ``Array``.

    Raises:
        Exception: of any kind; it is no such pickle, or one of more than these operations or values.
    """
    machine = _Machine(len(content))
    for steps, (opcode, argument, _) in enumerate(pickletools.genops(content)):
        if steps >= _MOST_STEPS:
            raise ValueError(f"it has more than {_MOST_STEPS:,} operations")
        machine.step(opcode.name, argument)
    return machine.result()
