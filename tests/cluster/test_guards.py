"""What cannot work is refused before Ray starts; a finished run says so, and a run is made longer by a rule."""

from __future__ import annotations

import inspect
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from cluster import guards
from cluster.prepare import expect_same_past, how_to_train_longer
from cluster.run_directory import RunDirectory
from ssl_dist import machine, methods, store
from ssl_dist.checkpoint import Checkpoints
from ssl_dist.checkpoint.room import checkpoint_bytes
from ssl_dist.config import ResolvedConfig, RunConfig
from ssl_dist.errors import ClusterError, ConfigError, StoreError
from ssl_dist.evaluate import compare
from ssl_dist.settings import ClusterConfig
from ssl_dist.store.building.writer_pool import make_writers
from tests.command import Command
from tests.conftest import write_images
from tests.helpers import RECIPE, resolved_config, save, small_config, train, with_facts

CONSTANT = {"name": "sgd", "lr": 0.005, "warmup_epochs": 0, "schedule": "constant"}
CLASSIFIER = {"augment": {"recipe": "weak"}, "method": {"name": "supervised"}}


@pytest.fixture(autouse=True)
def _no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(*_: object, **__: object) -> None:
        raise AssertionError("Ray was started")

    monkeypatch.setattr("cluster.connect.ray_connection", start)


@pytest.fixture
def recipe(tmp_path: Path, small_store: Path) -> Path:
    """Write a recipe of the store of 51 images in three classes."""
    file = tmp_path / "mine.yaml"
    file.write_text(f"{RECIPE}data: {{store: {small_store}}}\n")
    return file


def build(folder: Path, num_classes: int, per_class: int) -> Path:
    """Build a store; where it has one class, the first image stands above the class's folder and has no label."""
    write_images(folder / "images", num_classes=num_classes, per_class=per_class)
    if num_classes == 1 and per_class > 1:
        (folder / "images" / "class0" / "000.png").rename(folder / "images" / "000.png")
    store.build(folder / "images", folder / "store", workers=1)
    return folder / "store"


@pytest.mark.parametrize(
    ("images", "settings", "message"),
    [
        ((1, 6), [], "batch.size 12 is larger than the 6 images of"),
        ((1, 6), ["batch={size: 24, micro: 12}"], "try --set batch.size=6 --set batch.micro=6"),
        ((2, 5), ["batch={size: 12, micro: 4}"], "try --set batch.size=8 --set batch.micro=4"),
        ((1, 1), ["batch={size: 2, micro: 2}"], "has 1 image, and pretraining needs 2 or more"),
        ((1, 20), [], "has one class, class0, so that every answer is right: try --set probe.kind=rankme"),
        ((1, 20), ["probe.kind=linear"], "probe.kind linear: "),
        ((1, 20), ["method={name: supervised}", "augment.recipe=weak", "probe=null"], "every label is 0"),
        ((2, 10), [], "probe.k 20: the probe learns from 16 images"),
        ((2, 20), ["probe={bank: 8, k: 9}"], "probe.k 9: the probe learns from 8 images"),
        (None, ["backbone.width=1000000000"], "backbone resnet8 with method simclr: a layer is too large"),
        (None, ["method.projection_dim=1" + 18 * "0"], "backbone resnet8 with method simclr: a layer is too large"),
        (None, ["method.projection_hidden=1" + 30 * "0"], "backbone resnet8 with method simclr: a layer is too large"),
        (None, ["cluster.workers=9999"], "cluster.workers 9999 of 1 CPU each are more than this machine's "),
        (None, ["cluster.workers={min: 9998, max: 9999}"], "cluster.workers 9998 of 1 CPU each"),
        (None, ["cluster.cpus_per_worker=9999"], "cluster.workers 1 of 9999 CPU each"),
        (None, ["cluster.gpu=true", "cluster.workers=9999"], "no GPU found on this machine: --set cluster.gpu=false"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(
    command: Command,
    recipe: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    images: tuple[int, int] | None,
    settings: list[str],
    message: str,
) -> None:
    monkeypatch.setattr(guards, "num_gpus", lambda: 0)
    given = [f"data.store={build(tmp_path, *images)}"] if images else []
    options = [part for setting in [*given, *settings] for part in ("--set", setting)]
    for more in ([], ["--dry-run"]):
        outcome = command("pretrain", recipe, *options, "--run-dir", tmp_path / "run", *more)
        assert (outcome.code, outcome.err.count("\n"), outcome.err[:7]) == (2, 1, "error: "), outcome
        assert message in outcome.err
        assert not (tmp_path / "run").exists()


def test_a_store_without_labels_is_said_to_have_no_probe(
    command: Command, recipe: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_images(tmp_path / "images", num_classes=1, per_class=20)
    store.build(tmp_path / "images", tmp_path / "flat", workers=1)
    assert command("pretrain", recipe, "--set", f"data.store={tmp_path / 'flat'}", "--dry-run").code == 0
    assert "has no labels: no probe is shown; --set probe.kind=rankme needs none" in caplog.text


def test_labels_that_nothing_uses_are_read_and_named(
    command: Command, recipe: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number, code, said in ((51, 0, "is not used: method simclr"), (5, 2, "has int64")):
        np.save(tmp_path / "labels.npy", np.zeros(number, int))
        done = command("pretrain", recipe, "--set", f"data.label_file={tmp_path / 'labels.npy'}", "--print-config")
        assert (done.code, said in caplog.text + done.err) == (code, True)
        caplog.clear()


def test_an_evaluation_of_one_class_is_refused(two_steps: Path, tmp_path: Path) -> None:
    path = build(tmp_path / "one", 1, 6)
    with pytest.raises(StoreError, match="has labelled images of one class only"):
        compare(two_steps, path, path, lambda *_: 1.0)


def test_a_remote_cluster_is_not_measured_by_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    large = ClusterConfig.model_validate({"workers": 9999, "gpu": True})
    with pytest.raises(ClusterError):
        guards.check_machine(large)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    guards.check_machine(large)


def test_cores_are_those_that_the_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {5}, raising=False)  # as schedulers of clusters set it
    with pytest.raises(ClusterError, match=r"2 of 1 CPU each are more than this machine's 1: --set cluster\.workers=1"):
        guards.check_machine(ClusterConfig.model_validate({"workers": 2, "gpu": False}))
    guards.check_machine(ClusterConfig.model_validate({"workers": 1, "gpu": False}))
    assert type(make_writers(None)) is type(make_writers(1))


def test_workers_share_cores_where_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guards, "num_cores", lambda: 2)
    with pytest.raises(
        ClusterError, match=r"--set cluster\.workers=2, or let workers share a core by --set \S+=0\.5, or"
    ):
        guards.check_machine(ClusterConfig.model_validate({"workers": 4}))
    for workers in (3, 4, 7, 9999):
        with pytest.raises(ClusterError, match="let workers share a core by ") as caught:
            guards.check_machine(ClusterConfig.model_validate({"workers": workers}))
        share = float(str(caught.value).split("cpus_per_worker=")[1].split(",")[0])
        guards.check_machine(ClusterConfig.model_validate({"workers": workers, "cpus_per_worker": share}))
    guards.check_machine(ClusterConfig.model_validate({"workers": {"min": 1, "max": 4}}))
    monkeypatch.setattr(guards, "num_gpus", lambda: 1)
    with pytest.raises(ClusterError, match=r"one GPU each: this machine has 1: --set cluster\.workers=1"):
        guards.check_machine(ClusterConfig.model_validate({"workers": 2, "gpu": True}))


def test_a_batch_may_hold_a_few_labelled_images_again(small_store: Path, tmp_path: Path) -> None:
    """A classifier of few labels sees them again and again; they are no negatives of each other."""
    labels = store.ImageStore(small_store).labels.copy()
    labels[8:-2] = -1
    np.save(tmp_path / "few.npy", labels)
    config = resolved_config(small_store, data__label_file=str(tmp_path / "few.npy"), **CLASSIFIER)
    assert config.facts.num_samples < config.batch.size
    guards.check_data(config, store.ImageStore(small_store))


def test_the_number_of_classes_comes_from_the_labels(small_store: Path, tmp_path: Path) -> None:
    def classes(**settings: object) -> object:
        return getattr(resolved_config(small_store, **CLASSIFIER, **settings).method, "num_classes", None)

    assert classes() == 3
    assert classes(method__num_classes=7) == 7
    np.save(tmp_path / "more.npy", np.arange(51) % 5)
    assert classes(data__label_file=str(tmp_path / "more.npy")) == 5
    np.save(tmp_path / "fewer.npy", np.arange(51) % 2)
    assert classes(data__label_file=str(tmp_path / "fewer.npy")) == 3, "class names of the store count too"
    with pytest.raises(ConfigError, match=r"method\.num_classes is missing"):
        with_facts(small_config(small_store, **CLASSIFIER), 51)


@pytest.fixture
def two_steps(small_store: Path, tmp_path: Path) -> Path:
    """Make a finished run of two steps with a constant rate."""
    config = resolved_config(small_store, epochs=0.5, optim=CONSTANT)
    run = RunDirectory.create(tmp_path / "run", config)
    run.release()
    save(train(0, 1, config, 0, 2).state, run.path, 2, config)
    return run.path


def test_a_finished_run_says_so_at_once(command: Command, two_steps: Path) -> None:
    outcome = command("pretrain", "--resume", two_steps, "--json")
    assert (outcome.code, outcome.json) == (0, {"run": str(two_steps), "step": 2})
    assert "is finished: it has all 2 steps of 0.5 epochs" in outcome.out + outcome.err


def test_a_run_of_a_constant_rate_is_made_longer(
    command: Command, two_steps: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[ResolvedConfig] = []
    monkeypatch.setattr("cluster.commands.pretrain.train", lambda run, config, as_json: begun.append(config))
    assert command("pretrain", "--resume", two_steps, "--set", "epochs=1").code == 0
    assert [config.plan().total_steps for config in begun] == [4]
    assert json.loads((two_steps / "config.json").read_text())["epochs"] == 1
    shorter = command("pretrain", "--resume", two_steps, "--set", "epochs=0.25")
    assert (shorter.code, "that is 1 steps, and" in shorter.err) == (2, True)


@pytest.mark.parametrize(
    ("settings", "step", "reason"),
    [
        ({}, 2, r"the learning rate \(optim.schedule cosine\)"),
        ({"optim": {**CONSTANT, "warmup_epochs": 9}}, 30, r"the learning rate \(optim.schedule constant\)"),
        ({"optim": CONSTANT, "method": {"name": "byol"}}, 1, "method byol"),
        ({"method": {"name": "byol"}}, 2, r"method byol and the learning rate \(optim.schedule cosine\)"),
    ],
)
def test_a_run_whose_past_would_have_been_another_is_not_made_longer(
    settings: dict[str, object], step: int, reason: str
) -> None:
    before, now = (with_facts(small_config(Path("s"), epochs=epochs, **settings), 51) for epochs in (8, 16))
    with pytest.raises(ConfigError, match=f"in run {reason} followed the length of 8 epochs") as caught:
        expect_same_past(before, now, step, Path("run"))
    assert "ssl-dist pretrain run/config.json --set backbone.weights=run --set epochs=" in str(caught.value)
    expect_same_past(before, now, 0, Path("run"))
    assert how_to_train_longer(before, step, Path("my run")).endswith(
        "train on from its weights in a new run:"
        " ssl-dist pretrain 'my run'/config.json --set backbone.weights='my run' --set epochs=..."
    )


def test_a_run_that_can_be_made_longer_says_how() -> None:
    config = with_facts(small_config(Path("s"), epochs=2, optim=CONSTANT), 51)
    assert (
        how_to_train_longer(config, config.plan().total_steps, Path("run")) == "For a longer run add --set epochs=..."
    )


def test_in_its_warm_up_any_run_is_made_longer() -> None:
    optim = {"name": "sgd", "lr": 0.005, "warmup_epochs": 4}
    before, now = (with_facts(small_config(Path("s"), epochs=epochs, optim=optim), 51) for epochs in (8, 16))
    assert before.plan().warmup_steps == 17
    expect_same_past(before, now, 17, Path("run"))
    with pytest.raises(ConfigError):
        expect_same_past(before, now, 19, Path("run"))


@pytest.mark.parametrize("name", methods.names())
def test_a_method_that_uses_the_length_of_the_run_says_so(name: str) -> None:
    method = methods.load(name)
    assert method.follows_length == ("total_steps" in inspect.getsource(inspect.getmodule(method) or method))


def test_print_config_is_a_recipe_of_the_same_run(command: Command, recipe: Path, tmp_path: Path) -> None:
    outcome = command("pretrain", recipe, "--set", "optim.lr=1e-3", "--print-config")
    (tmp_path / "printed.yaml").write_text(outcome.out)
    printed = RunConfig.load(tmp_path / "printed.yaml")
    assert (outcome.code, printed.optim.lr, printed.probe and printed.probe.k) == (0, 0.001, 20)
    assert printed == RunConfig.load(recipe, {"optim.lr": 0.001, "data.store": printed.data.store})
    assert "facts" not in yaml.safe_load(outcome.out)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--resume", "run", "--out", "runs"], "--out, --run-dir, --print-config and --dry-run are for a new run"),
        (["--resume", "run", "--run-dir", "other"], "are for a new run, not for --resume"),
        (["simclr-digits", "--run-dir", "run", "--out", "runs"], "--out runs and --run-dir run: give one of them"),
        (["simclr-digits", "--print-config", "--dry-run"], "--print-config and --dry-run: give one of them"),
    ],
)
def test_options_of_which_one_would_not_be_followed_are_refused(
    command: Command, arguments: list[str], message: str
) -> None:
    outcome = command("pretrain", *arguments)
    assert (outcome.code, message in outcome.err) == (2, True), outcome.err


@pytest.mark.parametrize(("epochs", "warmup", "warns"), [(2, 10, True), (2, 2, True), (2, 1, False), (2, 0, False)])
def test_a_rate_that_never_falls_is_named(
    command: Command, recipe: Path, caplog: pytest.LogCaptureFixture, epochs: float, warmup: float, warns: bool
) -> None:
    outcome = command(
        "pretrain", recipe, "--dry-run", "--set", f"optim.warmup_epochs={warmup}", "--set", f"epochs={epochs}"
    )
    assert outcome.code == 0, outcome.err
    text = f"optim.warmup_epochs {warmup} is not shorter than epochs 2, so the learning rate rises until the run ends"
    assert (text in caplog.text) == warns


def test_a_run_from_the_config_of_another_has_its_name(command: Command, two_steps: Path, tmp_path: Path) -> None:
    outcome = command("pretrain", two_steps / "config.json", "--out", tmp_path, "--dry-run", "--json")
    assert (outcome.code, Path(outcome.json["run"]).name.startswith(f"{two_steps.name}-2")) == (0, True), outcome


def test_a_dry_run_of_what_the_disk_cannot_hold_is_refused(
    command: Command, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda folder: shutil._ntuple_diskusage(10**6, 10**6, 1000))
    outcome = command("pretrain", recipe, "--dry-run", "--run-dir", tmp_path / "run")
    assert (outcome.code, "and there is room for 1e-06 GB" in outcome.err) == (2, True), outcome.err


def test_a_dry_run_shows_steps_and_sizes(command: Command, recipe: Path, two_steps: Path, small_store: Path) -> None:
    outcome = command("pretrain", recipe, "--dry-run", "--set", "epochs=2.3", "--json")
    found = outcome.json
    assert (outcome.code, found["images"], found["steps"], found["batch"], found["micro_batches"]) == (0, 51, 9, 12, 3)
    written = Checkpoints(two_steps).describe()[0]["bytes"]
    # the files have some 11 kB of names and settings beside the tensors
    assert checkpoint_bytes(resolved_config(small_store, optim=CONSTANT)) == pytest.approx(written - 11_000, rel=0.02)


@pytest.mark.parametrize(
    ("flags", "settings", "warns"),
    [
        ("flags\t\t: fpu avx512f avx512_vnni", [], True),
        ("flags\t\t: fpu avx512f avx512_bf16", [], False),
        ("flags\t\t: fpu amx_bf16", [], False),
        ("Features\t: fp asimd bf16", [], False),
        ("Features\t: fp asimd", [], True),
        ("model name\t: one that tells nothing of bf16", [], False),
        ("flags\t\t: fpu avx512f", ["--set", "engine.precision=fp32"], False),
        (None, [], False),
    ],
)
def test_a_cpu_without_bfloat16_is_told_of(
    command: Command,
    recipe: Path,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    flags: str | None,
    settings: list[str],
    warns: bool,
) -> None:
    info = tmp_path / "cpuinfo"
    if flags:
        info.write_text(f"processor\t: 0\n{flags}\nbogomips\t: 1\n")
    monkeypatch.setattr(machine, "_CPU_INFO", info)
    bf16 = ["--set", "engine.precision=bf16", *settings]
    assert command("pretrain", recipe, "--dry-run", *bf16).code == 0
    assert ("try --set engine.precision=fp32" in caplog.text) == warns
    caplog.clear()
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")  # other machines' CPUs
    assert command("pretrain", recipe, "--dry-run", *bf16).code == 0
    assert "engine.precision" not in caplog.text
