"""Files of torch.save: their tensors are read to the bit, and nothing in them is run, in both of the formats."""

from __future__ import annotations

import collections
import io
import os
import pickle
import random
import resource
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ssl_dist.checkpoint import pretrained, torch_files
from ssl_dist.errors import ConfigError

pytestmark = pytest.mark.filterwarnings("ignore:TypedStorage is deprecated", "ignore:torch.quantize_per_tensor")
both_formats = pytest.mark.parametrize("zipped", [True, False])


def saved(content: Any, file: Path, zipped: bool = True) -> Path:
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    return file


@both_formats
def test_tensors_of_every_kind_are_read_to_the_bit(tmp_path: Path, zipped: bool) -> None:
    torch.manual_seed(0)
    base = torch.rand(6, 8)
    table: dict[str, Any] = {str(dtype): (100 * torch.rand(3, 2)).to(dtype) for dtype in torch_files._DTYPES.values()}
    table |= {"view": base[1:5:2, 3:], "transposed": base.T, "same storage": base, "scalar": torch.tensor(2.5)}
    table |= {"empty": torch.empty(0, 3), "expanded": torch.rand(1, 4).expand(3, 4), "parameter": nn.Parameter(base[0])}
    table |= {
        "a number": 3,
        "a list": [base],
        "None": None,
        "a size": base.shape,
        "a set": {1, 2},
        "a device": base.device,
    }
    ordered = collections.OrderedDict({"weight": base, "bias": base[0]})
    content = {**table, "state_dict": ordered, "optimizer": {"state": {0: {"step": torch.tensor(1.0)}}}}
    found = torch_files.read(saved(content, tmp_path / "w.pth", zipped))
    assert found.keys() == {"", "state_dict"}
    assert found[""].keys() == {name for name, value in table.items() if isinstance(value, torch.Tensor)}
    for name, tensor in found[""].items():
        assert (tensor.dtype, tensor.shape) == (table[name].dtype, table[name].shape), name
        assert torch.equal(tensor, table[name]), name
    assert torch.equal(found["state_dict"]["weight"], base)


def test_a_state_dict_with_its_modules_versions_and_other_protocols_is_read(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    for protocol in (2, 3, 4, 5):
        torch.save(network.state_dict(), tmp_path / "w.pth", pickle_protocol=protocol)
        [found] = torch_files.read(tmp_path / "w.pth").values()
        assert {name: tensor.tolist() for name, tensor in found.items()} == {
            name: tensor.tolist() for name, tensor in network.state_dict().items()
        }


class Payload:
    """An object whose pickle, when it is unpickled, makes a file."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self._file),)


@both_formats
@pytest.mark.parametrize("place", ["the whole", "a value", "a state", "beside"])
def test_a_pickle_that_would_run_code_runs_none(tmp_path: Path, zipped: bool, place: str) -> None:
    made, table = tmp_path / "made", {"weight": torch.ones(2)}
    content: Any = {
        "the whole": Payload(made),
        "a value": {**table, "bias": Payload(made)},
        "a state": {"state_dict": table, "args": Payload(made)},
        "beside": {"state_dict": {"weight": torch.ones(2), "x": [Payload(made)]}},
    }[place]
    file = saved(content, tmp_path / "w.pth", zipped)
    torch.load(file, weights_only=False)
    assert made.is_dir(), "the payload works"
    made.rmdir()
    if place == "the whole":
        with pytest.raises(
            ConfigError, match=r"cannot be read as a file of torch.save: it holds one posix\.mkdir, and"
        ):
            pretrained._tables(file)
    else:
        tables = pretrained._tables(file)
        assert [list(table) for table in tables.values()] == [["weight"]]
    assert not made.exists()


@pytest.mark.parametrize("name", ["w.pth", "model.safetensors", "w.bin"])
def test_a_bare_pickle_of_any_name_runs_nothing(tmp_path: Path, name: str) -> None:
    for protocol in (0, 2, 4):
        (tmp_path / name).write_bytes(pickle.dumps(Payload(tmp_path / "made"), protocol))
        with pytest.raises(ConfigError, match="cannot be read"):
            pretrained._tables(tmp_path / name)
    assert not (tmp_path / "made").exists()


def archive(file: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(file, "w", compression) as out:
        for name, content in members.items():
            out.writestr(name, content)
    return file


def members_of(content: Any) -> dict[str, bytes]:
    file = io.BytesIO()
    torch.save(content, file)
    with zipfile.ZipFile(file) as opened:
        return {name: opened.read(name) for name in opened.namelist()}


class Described:
    """An object that is pickled as a call of a function by its name, with arguments."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self._made = function, arguments

    def __reduce__(self) -> Any:
        return self._made


def rebuilt(size: Any, stride: Any, offset: Any = 0) -> dict[str, bytes]:
    """Return the archive of a tensor of two numbers with another size, stride and offset."""
    storage = torch.ones(2).storage()
    return members_of({"w": Described(torch._utils._rebuild_tensor_v2, storage, offset, size, stride, False, {})})


HOSTILE = {
    "a network": (
        lambda: members_of(nn.Linear(1, 1)),
        "it holds one torch.nn.modules.linear.Linear, and no dictionary",
    ),
    "a list": (lambda: members_of([torch.ones(2)]), "it holds one list, and no dictionary"),
    "quantised": (
        lambda: members_of({"w": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)}),
        "QInt8Storage, which is not read",
    ),
    "sparse": (
        lambda: members_of({"w": torch.eye(2).to_sparse()}),
        "tensor w: it is made by torch._utils._rebuild_sparse_tensor, which is not read",
    ),
    "too large": (lambda: rebuilt((3,), (1,)), "tensor w: its shape does not fit into its numbers"),
    "offset": (lambda: rebuilt((2,), (1,), 1), "its shape does not fit into its numbers"),
    "negative stride": (lambda: rebuilt((2,), (-1,), 1), "its shape does not fit into its numbers"),
    "huge": (lambda: rebuilt((2**62,), (2**62,)), "its shape does not fit into its numbers"),
    "unequal": (lambda: rebuilt((1, 2), (1,)), "its shape does not fit into its numbers"),
    "big-endian": (
        lambda: members_of({"w": torch.ones(2)}) | {"archive/byteorder": b"big"},
        "its numbers are big-endian",
    ),
    "short storage": (
        lambda: members_of({"w": torch.ones(2)}) | {"archive/data/0": bytes(7)},
        "a storage of 2 numbers has 7 bytes",
    ),
    "no storage": (
        lambda: {name: part for name, part in members_of({"w": torch.ones(2)}).items() if "data/" not in name},
        "no item named",
    ),
    "no pickle": (lambda: {"archive/code.py": b""}, "an archive without one data.pkl"),
    "two pickles": (lambda: {"a/data.pkl": b"", "b/data.pkl": b""}, "an archive without one data.pkl"),
    "itself": (lambda: {"a/data.pkl": b"\x80\x02}q\x00X\x01\x00\x00\x00ah\x00s."}, None),
    "deep": (lambda: {"a/data.pkl": b"\x80\x02" + 100_000 * b"]" + 99_999 * b"a" + b"."}, "it holds one list"),
    "a tuple as key": (lambda: {"a/data.pkl": b"\x80\x02})Ns."}, "keys that are not texts or whole numbers"),
    "a module's source": (lambda: {"a/data.pkl": b"\x80\x02X\x06\x00\x00\x00module\x85Q."}, "that is no storage"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_what_is_not_read_is_refused_in_words(tmp_path: Path, kind: str) -> None:
    make, match = HOSTILE[kind]
    file = archive(tmp_path / "w.pth", make())
    if match is None:
        assert pretrained._tables(file) == {}
        return
    with pytest.raises(ConfigError, match=match) as refused:
        pretrained._tables(file)
    assert "\n" not in str(refused.value)


def test_a_compressed_archive_and_a_claim_of_gigabytes_fill_no_memory(tmp_path: Path) -> None:
    members = members_of({"w": torch.zeros(10_000_000)})
    archive(tmp_path / "w.pth", members, zipfile.ZIP_DEFLATED)
    (tmp_path / "claim.pth").write_bytes(b"\x80\x02X" + struct.pack("<I", 2**32 - 1) + bytes(1000))
    archive(tmp_path / "view.pth", rebuilt((2**40,), (0,)))
    del members
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ConfigError, match="compressed, which torch"):
        pretrained._tables(tmp_path / "w.pth")
    with pytest.raises(ConfigError, match="cannot be read"):
        pretrained._tables(tmp_path / "claim.pth")
    assert pretrained._tables(tmp_path / "view.pth")[""]["w"].shape == (2**40,)  # two numbers, seen many times
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000  # KB; the member has 40 MB


@both_formats
def test_a_file_that_is_cut_off_or_changed_is_read_or_refused_in_one_line(tmp_path: Path, zipped: bool) -> None:
    state = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).state_dict()
    whole, choose = saved({"state_dict": state}, tmp_path / "w.pth", zipped).read_bytes(), random.Random(0)
    file = tmp_path / "w.pth"
    for length in (0, 1, 4, 100, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:length])
        with pytest.raises(ConfigError, match="cannot be read"):
            pretrained._tables(file)
    messages = []
    for _ in range(200):
        changed = bytearray(whole)
        for _ in range(choose.randrange(1, 4)):
            changed[choose.randrange(len(changed))] = choose.randrange(256)
        file.write_bytes(changed)
        try:
            pretrained._tables(file)
        except ConfigError as error:
            messages.append(str(error))
    assert len(messages) > 50
    assert not any("\n" in message for message in messages)
