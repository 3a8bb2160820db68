"""Tensors of a file that ``torch.save`` wrote, read without unpickling it: nothing that the file names is called.

Two formats exist. Since torch 1.6 the file is a zip archive (``data.pkl``, and a member for each storage); before, it
is five pickles and then the storages. Source: torch/serialization.py, ``_save`` and ``_legacy_save``.
"""

from __future__ import annotations

import mmap
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ssl_dist.pickles import Machine, Made, Named, run

_MAX_OPERATIONS = 5_000_000  # a ViT-g with its optimizer has about 100,000
_ARCHIVE, _PICKLE = b"PK\3\4", b"\x80\2"  # how the two formats begin
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_DTYPES = {
    **{"Float": torch.float32, "Double": torch.float64, "Half": torch.float16, "BFloat16": torch.bfloat16},
    **{"Long": torch.int64, "Int": torch.int32, "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8},
    "Bool": torch.bool,
}
_REBUILDERS = ("torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_tensor")
_PARAMETER = "torch._utils _rebuild_parameter"
_REBUILD = "torch._utils _rebuild"  # begins the names of what makes tensors, also those that are not read here

Tables = dict[str, dict[str, Tensor]]
"""Tensors by name, in each dictionary of a file by its key; "" is the outermost one."""


class _Storage(NamedTuple):
    """Placeholder of a storage, whose numbers are in another place of the file."""

    dtype: torch.dtype
    key: str
    numel: int


class _Machine(Machine):
    """The machine for files of torch: what they name is only described, whatever it is."""

    def __init__(self) -> None:
        super().__init__()
        self.storages: dict[str, _Storage] = {}

    def named(self, name: str) -> Named:
        return Named(name)

    def called(self, function: Named, arguments: tuple[Any, ...]) -> Any:
        return (
            {} if function.name == "collections OrderedDict" and not arguments else super().called(function, arguments)
        )

    def step(self, name: str, argument: Any) -> None:
        """Carry out one operation; beside those of plain data, those by which objects and storages are saved."""
        match name:
            case "BINFLOAT" | "BINUNICODE8" | "BINBYTES8":
                self.stack.append(argument)
            case "EMPTY_SET":
                self.stack.append([])
            case "ADDITEMS":
                self.top(list).extend(self.pop(None))
            case "BINPERSID":
                storage = _storage(*self.pop(1))
                self.stack.append(self.storages.setdefault(storage.key, storage))
            case "NEWOBJ":
                super().step("REDUCE", None)
            case _:
                super().step(name, argument)

    def build(self, state: Any) -> None:
        """Put a state into an object; that of a dictionary of tensors, the versions of modules, is left out."""
        if not isinstance(self.stack[-1], dict):
            super().build(state)

    def set_items(self, values: list[Any]) -> None:
        """Put items into a dictionary; those of an object that is only described are left out."""
        if not isinstance(self.stack[-1], Made):
            super().set_items(values)


def _storage(identity: Any) -> _Storage:
    match identity:
        case ("storage", Named(kind), str(key), str(), int(count), *view) if view in ([], [None]) and count >= 0:
            name = kind.removeprefix("torch ").removesuffix("Storage")
            if name in _DTYPES:
                return _Storage(_DTYPES[name], key, count)
            raise ValueError(f"it has a storage of the type {kind.replace(' ', '.')}, which is not read")
    raise ValueError("it refers to something outside that is no storage")


def is_one(file: Path) -> bool:
    """Tell by its first bytes whether a file is of ``torch.save``, or pretends to be."""
    with file.open("rb") as stream:
        start = stream.read(len(_ARCHIVE))
    return start == _ARCHIVE or start.startswith(_PICKLE)


def read(file: Path) -> Tables:
    """Read the tensors of the outermost dictionary, and of each dictionary in it.

    What else the file holds, such as settings and optimizer states, is left out.

    Raises:
        Exception: of any kind: this is no such file, it is damaged, or a tensor in it is of a kind that is not read.
    """
    with file.open("rb") as stream:
        is_archive = stream.read(len(_ARCHIVE)) == _ARCHIVE
        return _tables(*_archived(file) if is_archive else _legacy(stream.fileno()))


def _tables(content: Any, numbers: Callable[[_Storage], Tensor]) -> Tables:
    if not isinstance(content, dict):
        kind = content.function.replace(" ", ".") if isinstance(content, Made) else type(content).__name__
        raise ValueError(f"it holds one {kind}, and no dictionary of tensors: save network.state_dict()")
    known: dict[str, Tensor] = {}

    def once(storage: _Storage) -> Tensor:
        if storage.key not in known:
            known[storage.key] = numbers(storage)
        return known[storage.key]

    tables = {"": content, **{key: value for key, value in content.items() if isinstance(value, dict)}}
    return {
        str(key): dict(_tensors(str(key), table, once))
        for key, table in tables.items()
        if any(_makes_tensor(value) for value in table.values())
    }


def _makes_tensor(value: Any) -> bool:
    return isinstance(value, Made) and value.function.startswith(_REBUILD)


def _tensors(key: str, table: Mapping[Any, Any], numbers: Callable[[_Storage], Tensor]) -> Iterator[tuple[str, Tensor]]:
    for name, value in table.items():
        if _makes_tensor(value):
            try:
                yield str(name), _tensor(value, numbers)
            except ValueError as error:
                raise ValueError(f"tensor {f'{key}: ' if key else ''}{name}: {error}") from None


def _tensor(made: Made, numbers: Callable[[_Storage], Tensor]) -> Tensor:
    """Return a tensor as a view of its storage; none of its numbers is copied.

    Raises:
        ValueError: it is of another kind, or larger than its storage.
    """
    if made.function == _PARAMETER and made.arguments and isinstance(made.arguments[0], Made):
        made = made.arguments[0]
    if made.function not in _REBUILDERS:
        raise ValueError(f"it is made by {made.function.replace(' ', '.')}, which is not read")
    match made.arguments:
        case (_Storage() as storage, int(offset), tuple(shape), tuple(strides), *_):
            sides = (offset, *shape, *strides)
            if len(shape) == len(strides) and all(type(side) is int and 0 <= side < 2**48 for side in sides):
                if 0 in shape:
                    return torch.empty(shape, dtype=storage.dtype)
                if offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True)) < storage.numel:
                    return numbers(storage).as_strided(shape, strides, offset)
    raise ValueError("its shape does not fit into its numbers")


def _archived(file: Path) -> tuple[Any, Callable[[_Storage], Tensor]]:
    archive = zipfile.ZipFile(file)
    try:
        [pickled] = [name for name in archive.namelist() if name.endswith("/data.pkl") and name.count("/") == 1]
    except ValueError:
        raise ValueError("it is an archive without one data.pkl, as torch.save writes it") from None
    folder = pickled.removesuffix("data.pkl")

    def member(name: str) -> bytes:
        info = archive.getinfo(f"{folder}{name}")
        if info.compress_type != zipfile.ZIP_STORED:  # a few bytes could become many
            raise ValueError(f"{name} is compressed, which torch.save does not do")
        return archive.read(info)

    if f"{folder}byteorder" in archive.namelist() and member("byteorder") != b"little":
        raise ValueError("its numbers are big-endian, which is not read")
    content = run(_Machine(), member("data.pkl"), _MAX_OPERATIONS)
    return content, lambda storage: _numbers(storage, member(f"data/{storage.key}"))


def _legacy(descriptor: int) -> tuple[Any, Callable[[_Storage], Tensor]]:
    stream = mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)  # bounds each length that the file claims
    if run(_Machine(), stream, 10) != _LEGACY_MAGIC:
        raise ValueError("it is no file that torch.save wrote")
    version, system = run(_Machine(), stream, 10), run(_Machine(), stream, 1000)
    if version != 1001 or not isinstance(system, dict) or system.get("little_endian") is not True:
        raise ValueError("it was written by a big-endian machine, or in another version of torch.save's old format")
    machine = _Machine()
    content = run(machine, stream, _MAX_OPERATIONS)
    keys, position, starts = run(_Machine(), stream, _MAX_OPERATIONS), stream.tell(), dict[str, int]()
    for key in keys:
        storage = machine.storages[key]
        starts[key] = position + 8  # before the numbers stands how many they are
        position = starts[key] + storage.numel * storage.dtype.itemsize
        if int.from_bytes(stream[starts[key] - 8 : starts[key]], "little") != storage.numel or position > len(stream):
            raise ValueError("it is cut off, or its storages have other sizes than its tensors")

    def numbers(storage: _Storage) -> Tensor:
        start = starts[storage.key]
        return _numbers(storage, stream[start : start + storage.numel * storage.dtype.itemsize])

    return content, numbers


def _numbers(storage: _Storage, content: bytes) -> Tensor:
    if len(content) != storage.numel * storage.dtype.itemsize:
        raise ValueError(f"a storage of {storage.numel} numbers has {len(content)} bytes")
    return torch.frombuffer(bytearray(content), dtype=storage.dtype)  # a copy: the file may change
