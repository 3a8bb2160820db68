"""The house: imports run one way, each heavy library has one door, no pickle on a data path."""

from __future__ import annotations

import ast
import functools
import graphlib
import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from ssl_dist.config import RunConfig
from ssl_dist.evaluate import encoder_of
from ssl_dist.store import ImageStore
from tests.helpers import save, small_config, train

ROOT = Path(__file__).parent.parent
PACKAGES = ("ssl_dist", "cluster", "tune")

# From the ground up: a line may import only lines above it (and its own).
FLOORS = [
    "ssl_dist",
    "ssl_dist.errors",
    "ssl_dist.uris",
    "ssl_dist.files",
    "ssl_dist.hashing",
    "ssl_dist.machine",
    "ssl_dist.timing",
    "ssl_dist.reading",
    "ssl_dist.pickles",
    "ssl_dist.store.image_files",
    "ssl_dist.progress",
    "ssl_dist.lazy",
    "ssl_dist.eager",
    "ssl_dist.store.decode",
    "ssl_dist.store.schema",
    "ssl_dist.store.remote.cache",
    "ssl_dist.store.remote.bucket",
    "ssl_dist.store.remote.prefetch",
    "ssl_dist.store.remote.fetcher",
    "ssl_dist.store.remote",
    "ssl_dist.store.gather",
    "ssl_dist.store.labels",
    "ssl_dist.store.shard_reader",
    "ssl_dist.store.record_batches",
    "ssl_dist.store.image_store",
    "ssl_dist.store.building",
    "ssl_dist.store",
    "ssl_dist.augment",
    "ssl_dist.collectives",
    "ssl_dist.losses",
    "ssl_dist.backbones",
    "ssl_dist.ema",
    "ssl_dist.settings",
    "ssl_dist.methods",
    "ssl_dist.lars",
    "ssl_dist.optim",
    "ssl_dist.config",
    "ssl_dist.data",
    "ssl_dist.checkpoint",
    "ssl_dist.evaluate",
    "ssl_dist.encoder",
    "ssl_dist.embedding",
    "ssl_dist.selection",
    "ssl_dist.training",
    "ssl_dist.report",
    "ssl_dist.export",
    "ssl_dist.commands",
    "ssl_dist.__main__",
    "cluster",
    "cluster.run_status",
    "cluster.run_directory",
    "cluster.guards",
    "cluster.preemption",
    "cluster.backend",
    "cluster.connect",
    "cluster.trainer",
    "cluster.tasks",
    "cluster.build",
    "cluster.embed",
    "cluster.worker",
    "cluster.lone",
    "cluster.launch",
    "cluster.doctor",
    "cluster.prepare",
    "cluster.pipelines",
    "cluster.commands",
    "tune",
    "tune.space",
    "tune.sweep",
    "tune.trial_files",
    "tune.stopping",
    "tune.population",
    "tune.optuna_search",
    "tune.trial",
    "tune.runner",
    "tune.results",
    "tune.commands",
]

# The package's own names, which are imported when they are first asked for, may lead upstairs.
FRONT_DOOR = {"ssl_dist": {"ssl_dist.encoder.Encoder", "ssl_dist.encoder.load_encoder", "ssl_dist.lazy.importer"}}

# Each library's only door.
DOORS = {
    "deepspeed": {"ssl_dist.training.zero"},
    "ray": {
        "cluster.preemption",
        "cluster.backend",
        "cluster.worker",
        "cluster.connect",
        "cluster.trainer",
        "cluster.tasks",
        "cluster.embed",
        "cluster.doctor.nodes",
        "tune.trial",
        "tune.stopping",
        "tune.population",
        "tune.optuna_search",
        "tune.runner",
    },
    "timm": {"ssl_dist.backbones.timm_models"},
    "optuna": {"tune.space", "tune.optuna_search", "tune.results"},
    "tensorboard": set(),
    "torch.utils.tensorboard": {"ssl_dist.training.boards.tensorboard"},
    "wandb": {"ssl_dist.training.boards.wandb"},
    "mlflow": {"ssl_dist.training.boards.mlflow"},
    "onnx": {"ssl_dist.export.formats.onnx"},
    "onnxruntime": {"ssl_dist.export.formats.onnx"},
    "transformers": {"ssl_dist.export.formats.hf"},
    "huggingface_hub": {"ssl_dist.export.hub"},
    "pyarrow": {
        "ssl_dist.store.building.sources.files",
        "ssl_dist.store.building.sources.tables",
        "ssl_dist.store.schema",
        "ssl_dist.store.shard_reader",
        "ssl_dist.store.remote.bucket",
        "ssl_dist.store.building.shard_writer",
        "ssl_dist.store.building.columns",
        "ssl_dist.checkpoint.mirror",
        "ssl_dist.embedding.making",
        "ssl_dist.embedding.parts",
        "ssl_dist.embedding.plane",
        "ssl_dist.embedding.table",
    },
}


@functools.cache
def modules() -> list[tuple[str, ast.Module]]:
    """Return the name and the tree of each module."""
    return [
        (".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"), ast.parse(file.read_text()))
        for package in PACKAGES
        for file in sorted((ROOT / package).rglob("*.py"))
    ]


@functools.cache
def imports(tree: ast.Module) -> list[str]:
    """Return the full names of what a file imports, also inside functions."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def floor(name: str) -> int:
    known = [known for known in FLOORS if name == known or name.startswith(f"{known}.")]
    return FLOORS.index(max(known, key=len))


def test_every_module_stands_on_a_floor() -> None:
    names = {name for name, _ in modules()}
    assert {name for name in names if name.count(".") == 1} <= set(FLOORS)
    assert set(FLOORS) <= names


def test_imports_run_one_way() -> None:
    breaches = [
        f"{name} imports {imported}"
        for name, tree in modules()
        for imported in imports(tree)
        if imported.split(".")[0] in PACKAGES and floor(imported) > floor(name)
        if imported not in FRONT_DOOR.get(name, ())
    ]
    assert breaches == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    trees = dict(modules())
    graph = {
        name: {one if one in trees else one.rpartition(".")[0] for one in imports(tree)} & trees.keys()
        for name, tree in trees.items()
    }
    assert list(graphlib.TopologicalSorter(graph).static_order())


def test_a_breach_would_be_seen() -> None:
    tree = ast.parse("def f():\n    from ssl_dist.training.engine import Engine")
    assert [floor(name) > floor("ssl_dist.data.permutation") for name in imports(tree)] == [True]


def test_only_the_table_of_commands_names_modules_above_its_package() -> None:
    target = re.compile(r"(cluster|tune)\.[a-z_.]+:[a-z_]+")
    named = {
        name
        for name, tree in modules()
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and target.fullmatch(node.value)
        if name.startswith("ssl_dist.")
    }
    assert named == {"ssl_dist.commands.table"}


@pytest.mark.parametrize("library", sorted(DOORS))
def test_each_heavy_library_has_one_door(library: str) -> None:
    found = {name for name, tree in modules() for one in imports(tree) if f"{one}.".startswith(f"{library}.")}
    assert found == DOORS[library]


def test_the_science_and_the_help_page_import_nothing_heavy() -> None:
    heavy = ("torch", "ray", "deepspeed", "pyarrow", "sklearn", "numpy")
    at_exit = "import atexit, sys; atexit.register(lambda: print([m for m in heavy if m in sys.modules]))"
    call = "from ssl_dist.commands.main import main; main()"
    code = f"heavy = {heavy}; {at_exit}; sys.argv = ['', 'pretrain', '--help']; {call}"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert "--resume" in out.stdout
    assert out.stdout.splitlines()[-1] == "[]"


def test_no_module_names_pickle_or_what_unpickles() -> None:
    forbidden = {"pickle", "cloudpickle", "dill", "shelve", "joblib", "marshal"}
    calls = {("torch", "load"), ("torch", "save"), ("dist", "broadcast_object_list"), ("dist", "all_gather_object")}
    for name, tree in modules():
        assert not forbidden & {found.split(".")[0] for found in imports(tree)}, name
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                assert (node.value.id, node.attr) not in calls, name
            if isinstance(node, ast.keyword):
                assert node.arg != "allow_pickle", name


def test_no_pickle_is_read_on_any_data_path(small_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Store, config, training, checkpoint, resume and encoder with every unpickler broken."""
    config = small_config(small_store)

    def refuse(*_: object, **__: object) -> object:
        raise AssertionError("something was unpickled")

    class Refusing(pickle.Unpickler):  # torch subclasses it when it is imported further
        __init__ = refuse  # type: ignore[assignment]

    monkeypatch.setattr(pickle, "Unpickler", Refusing)
    for module, names in ((pickle, ("load", "loads", "_load", "_loads")), (torch, ("load",))):
        for name in names:
            monkeypatch.setattr(module, name, refuse)
    with pytest.raises(AssertionError, match="unpickled"):
        pickle.loads(b"")
    store = ImageStore(small_store, verify="full")
    assert store.gather(np.arange(3)).shape[0] == len(store.labels[:3])
    save(train(0, 1, config, 0, 2).state, tmp_path, 2, config)
    assert len(train(0, 1, config, 2, 4, tmp_path).losses) == 2
    assert encoder_of(tmp_path)[2] == 2
    assert RunConfig.from_tree(config.model_dump(mode="json"), "") == config
