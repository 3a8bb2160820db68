"""A reader of pickles that does not unpickle: it gives plain values, and says of all others what would make them.

A pickle is a program. Python's unpickler runs it, and can be made to crash or to fill the memory even by a pickle that
calls nothing. This reader carries out the few operations that data needs, on plain values, and refuses all others. It
calls nothing that a file names, follows no nested value, and bounds its memory by the size of the file.
"""

from __future__ import annotations

import copy
import pickletools
from dataclasses import dataclass
from typing import Any, NamedTuple

# operations that put their argument on the stack, or a value
_ARGUMENTS = {"BINSTRING", "SHORT_BINSTRING", "BINUNICODE", "SHORT_BINUNICODE", "BINBYTES", "SHORT_BINBYTES"}
_ARGUMENTS |= {"BININT", "BININT1", "BININT2", "LONG1"}
_VALUES: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_VALUES |= {"EMPTY_TUPLE": (), "EMPTY_LIST": [], "EMPTY_DICT": {}}
_IGNORED = {"PROTO", "FRAME", "STOP"}


class Named(NamedTuple):
    """A function or class that a file names, such as "numpy ndarray": nothing but its name."""

    name: str


@dataclass(eq=False)
class Made:
    """What stands for the result of a call: the function's name, its arguments, and the state that was put into it."""

    function: str
    arguments: tuple[Any, ...]
    state: Any = None


class Machine:
    """The stack machine that a pickle is a program for; a kind of files has one of its own, which knows its names."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self._marks: list[int] = []  # positions on the stack
        self._memo: dict[int, Any] = {}

    def named(self, name: str) -> Named:
        """Return what stands for a module's function or class, whose name is "module name".

        Raises:
            ValueError: no such file has it.
        """
        raise ValueError(f"it asks for {name.replace(' ', '.')}")

    def called(self, function: Named, arguments: tuple[Any, ...]) -> Any:
        """Return what stands for the result of a call."""
        return Made(function.name, arguments)

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
                stack.append(tuple(self.pop(int(name[5:]) if name[5:] else None)))
            case "APPEND" | "APPENDS":
                values = self.pop(1 if name == "APPEND" else None)
                self.top(list).extend(values)
            case "SETITEM" | "SETITEMS":
                self.set_items(self.pop(2 if name == "SETITEM" else None))
            case "GLOBAL" | "STACK_GLOBAL":
                stack.append(self.named(argument or " ".join(self.pop(2))))
            case "REDUCE":
                stack.append(self._call(*self.pop(2)))
            case "BUILD":
                [state] = self.pop(1)
                self.build(state)
            case _ if name in _VALUES:
                stack.append(copy.copy(_VALUES[name]))  # a list or dictionary of its own
            case _:
                raise ValueError(f"it has the operation {name}")

    def pop(self, count: int | None) -> list[Any]:
        """Remove this many values from the stack and return them; None: those above the last mark."""
        start = self._marks.pop() if count is None else len(self.stack) - count
        if not 0 <= start <= len(self.stack):
            raise ValueError("it takes more values than it has")
        values = self.stack[start:]
        del self.stack[start:]
        return values

    def top(self, kind: type) -> Any:
        """Return the value on top of the stack, which must be of this type."""
        if not (self.stack and isinstance(self.stack[-1], kind)):
            raise ValueError("it puts something into a value that cannot hold it")
        return self.stack[-1]

    def build(self, state: Any) -> None:
        """Put a state into the value on top of the stack."""
        self.top(Made).state = state

    def set_items(self, values: list[Any]) -> None:
        """Put keys and values, which take turns, into the dictionary on top of the stack."""
        keys = values[::2]
        if not all(isinstance(key, (str, bytes, int)) for key in keys):  # hashing a tuple would follow its values
            raise ValueError("it has a dictionary with keys that are not texts or whole numbers")
        self.top(dict).update(zip(keys, values[1::2], strict=True))

    def _call(self, function: Any, arguments: Any) -> Any:
        if not (isinstance(function, Named) and isinstance(arguments, tuple)):
            raise ValueError("it calls something that is no function of a module")
        return self.called(function, arguments)


def run(machine: Machine, content: Any, max_operations: int) -> Any:
    """Return the value of a pickle, whose machine is new.

    Args:
        content: bytes of the pickle, or a mapped file (mmap) that is read from its position to the end of the pickle.

    Raises:
        Exception: of any kind: the content is no pickle, or one that needs other operations or too many.
    """
    for steps, (opcode, argument, _) in enumerate(pickletools.genops(content)):
        if steps >= max_operations:
            raise ValueError(f"it has more than {max_operations:,} operations")
        if opcode.name not in _IGNORED:
            machine.step(opcode.name, argument)
    [value] = machine.stack
    return value
