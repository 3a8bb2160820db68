"""The commands that need Ray: pretrain, demo and doctor, added to those that make stores and that need no cluster."""

from __future__ import annotations

import shlex
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from cluster.store_cli import app
from ssl_dist.commands.cli import comparison
from ssl_dist.commands.console import Json, console, print_json, show
from ssl_dist.errors import ClusterError, ConfigError, RunError

if TYPE_CHECKING:
    from cluster.run_directory import RunDirectory
    from ssl_dist.config import RunConfig

__all__ = ["app"]

Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Replace one setting, e.g. optim.lr=0.3.")
]


@app.command()
def pretrain(
    recipe: Annotated[
        str | None, typer.Argument(help="Recipe file, or the name of one that comes with the package.")
    ] = None,
    settings: Set = None,
    out: Annotated[Path, typer.Option(help="Folder in which the run gets a directory of its own.")] = Path("runs"),
    run_dir: Annotated[Path | None, typer.Option(help="The run's directory itself; must be new or empty.")] = None,
    resume: Annotated[
        str | None,
        typer.Option(
            metavar="RUN_DIR",
            help="Go on with this run from its newest valid checkpoint; or with what s3://.../RUN has, a run's mirror.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Pretrain an encoder with Ray Train and DeepSpeed, on this machine or on the cluster of RAY_ADDRESS."""
    from cluster.run_directory import RunDirectory
    from ssl_dist.config.overrides import parse_override

    overrides = dict(parse_override(text) for text in settings or [])
    if (recipe is None) == (resume is None):
        raise ConfigError("give either a recipe, or --resume RUN_DIR")
    if resume is not None:
        if run_dir:
            raise ConfigError("--run-dir is for a new run: a resumed one has its directory")
        directory = _restored(resume, out) if "://" in resume else Path(resume)
        run, config = _reopen(directory, overrides)
    else:
        assert recipe is not None, "checked above"
        config = resolve(recipe, overrides)
        name = f"{Path(recipe).stem}-{datetime.now():%Y%m%d-%H%M%S}-{config.fingerprint()[:6]}"
        run = RunDirectory.create(run_dir or out / name, config)
    _train(run, config, as_json)


def resolve(recipe: str, overrides: dict[str, Any]) -> RunConfig:
    """The recipe with its store opened once: what is wrong with it is said before anything starts."""
    from ssl_dist.config import RunConfig

    return _with_store(RunConfig.load(recipe, overrides), recipe)


def _with_store(config: RunConfig, origin: str) -> RunConfig:
    """The config with its store's absolute path, number and size of images, and with the file of weights."""
    from ssl_dist.checkpoint import pretrained
    from ssl_dist.checkpoint.mirror import Mirror
    from ssl_dist.config import RunConfig
    from ssl_dist.data.sample_plan import open_data

    _, found = open_data(config)
    assert found.num_samples is not None
    config.plan(found.num_samples)
    if config.checkpoint.mirror:
        Mirror(config.checkpoint.mirror).expect_writable()
    config = RunConfig.from_tree({**config.model_dump(), "data": found.model_dump()}, origin)
    return config.model_copy(update={"backbone": pretrained.resolve(config)})


def _restored(uri: str, out: Path) -> Path:
    """The directory, made anew, of a run of which a mirror is all that is left."""
    from cluster.run_directory import RunDirectory
    from ssl_dist import checkpoint
    from ssl_dist.checkpoint.mirror import Mirror
    from ssl_dist.config import RunConfig
    from ssl_dist.config.overrides import put_override
    from ssl_dist.uris import split_uri, without_secrets

    place, name = split_uri(uri)
    directory = out / name
    if directory.exists():
        raise RunError(f"{directory} is there: go on with it by --resume {directory}, or choose another --out")
    found = checkpoint.newest(directory, Mirror(uri))
    if found is None:
        raise RunError(f"{without_secrets(uri)} holds no checkpoint: give RUN of checkpoint.mirror/RUN")
    tree = found.config.model_dump()
    put_override(tree, "checkpoint.mirror", place)
    RunDirectory.enter(directory, RunConfig.from_tree(tree, uri)).leave()
    return directory


def _reopen(directory: Path, overrides: dict[str, Any]) -> tuple[RunDirectory, RunConfig]:
    """A run to go on with; settings that may change are kept for the resume after this one."""
    from cluster.run_directory import FREE_ON_RESUME, RunDirectory, is_free
    from ssl_dist import checkpoint
    from ssl_dist.config import RunConfig
    from ssl_dist.config.overrides import put_override

    for key in overrides:
        if not is_free(key):
            free = ", ".join(FREE_ON_RESUME)
            raise ConfigError(f"--set {key}: a run goes on as it began; with --resume only {free} may change")
    run, before = RunDirectory.reopen(directory)
    tree = before.model_dump()
    for key, value in overrides.items():
        put_override(tree, key, value)
    config = _with_store(RunConfig.from_tree(tree, str(directory)), str(directory))
    before.data.expect(config.data)
    found = checkpoint.newest(run.path, checkpoint.mirror_of(run.path, config))
    _say(f"going on from step {found.step}" if found else "no checkpoint yet: starting from step 0")
    run.update(config)
    return run, config


def _say(text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _train(run: RunDirectory, config: RunConfig, as_json: bool) -> dict[str, Any]:
    from cluster.launch import launch

    _say(f"run directory {run.path}")
    _say(f"watch it with: tensorboard --logdir {shlex.quote(str(run.path))}")
    try:
        metrics = launch(config, run, console)
    except ClusterError:
        run.discard()
        raise
    result = {"run": str(run.path), **metrics}
    rows = {tag: f"{value:.6g}" if isinstance(value, float) else value for tag, value in metrics.items()}
    show(f"{run.path.name}", rows.items(), result, as_json)
    return result


@app.command("g-simclr")
def g_simclr(
    recipe: Annotated[str, typer.Argument(help="Recipe of SimCLR.")] = "gsimclr-cifar10",
    autoencoder: Annotated[str, typer.Option(help="Recipe of the autoencoder.")] = "denoising-cifar10",
    clusters: Annotated[
        int | None,
        typer.Option(
            min=2,
            help="Clusters of the autoencoder's latents. Default: batch.size, so a batch has one image of each.",
        ),
    ] = None,
    settings: Set = None,
    autoencoder_settings: Annotated[
        list[str] | None, typer.Option("--set-autoencoder", metavar="KEY=VALUE", help="As --set, of the autoencoder.")
    ] = None,
    run_dir: Annotated[Path, typer.Option(help="Folder of the stages; given again, each goes on where it was.")] = Path(
        "runs/g-simclr"
    ),
    as_json: Json = False,
) -> None:
    """G-SimCLR in one command: train an autoencoder, cluster its latents, train SimCLR on batches across clusters."""
    from cluster.pipelines.g_simclr import GSimCLR
    from ssl_dist.config.overrides import parse_override

    given = dict(parse_override(text) for text in settings or [])
    others = dict(parse_override(text) for text in autoencoder_settings or [])
    later = resolve(recipe, {**given, "data.stratified": False, "data.label_file": None})
    first = resolve(autoencoder, {"data.store": later.data.store, **others})
    last = GSimCLR(run_dir.absolute(), first, later, clusters or later.batch.size).run(console)
    rows = {tag: f"{value:.6g}" if isinstance(value, float) else value for tag, value in last.items()}
    show("g-simclr", rows.items(), {"run": str(run_dir.absolute() / "simclr"), **last}, as_json)


@app.command("self-train")
def self_train(
    test: Annotated[str, typer.Option(help="Labelled store that each round is measured on, a folder or a URI.")],
    recipe: Annotated[str, typer.Argument(help="Recipe of a method that classifies.")] = "supervised-cifar10",
    share: Annotated[
        float, typer.Option(help="Of the images without a label: how many get one in a round; more than 0, 1 at most.")
    ] = 0.1,
    margin: Annotated[float, typer.Option(help="A round that gains less accuracy than this is the last.")] = 0.002,
    rounds: Annotated[int, typer.Option(min=1, help="After the first, at most.")] = 5,
    settings: Set = None,
    run_dir: Annotated[
        Path, typer.Option(help="Folder of the rounds; given again, they go on where they were.")
    ] = Path("runs/self-train"),
    as_json: Json = False,
) -> None:
    """Pseudo-labels in rounds: train, label what is surest, add it, train again."""
    from cluster.pipelines.self_training import SelfTraining
    from ssl_dist.config.overrides import parse_override

    config = resolve(recipe, dict(parse_override(text) for text in settings or []))
    found = SelfTraining(run_dir.absolute(), config, test, share, margin, rounds).run(console)
    table = Table("round", "labels", "added", "right of these", "accuracy")
    for number, one in enumerate(found):
        right = "" if one.right is None else f"{one.right:.1%}"
        table.add_row(str(number), f"{one.labelled:,}", f"{one.added:,}", right, f"{one.accuracy:.1%}")
    console.print(table)
    if as_json:
        print_json({"run": str(run_dir), "rounds": [one._asdict() for one in found]})


@app.command()
def doctor(
    recipe: Annotated[
        str | None, typer.Argument(help="Recipe for a dry run of 20 steps; without one, only the cluster is checked.")
    ] = None,
    settings: Set = None,
    storage: Annotated[Path, typer.Option(help="Folder that all nodes share, for stores and runs.")] = Path("runs"),
    hosts: Annotated[str, typer.Option(help="Addresses or names that should be in the cluster, with commas.")] = "",
    exact: Annotated[
        bool,
        typer.Option(
            "--exact", help="Compare the recipe's method's gradient, or without one every method's, with one process's."
        ),
    ] = False,
    workers: Annotated[int | None, typer.Option(min=1, help="Workers. Default: the recipe's, or 2.")] = None,
    gpu: Annotated[bool, typer.Option("--gpu", help="One GPU each.")] = False,
    as_json: Json = False,
) -> None:
    """Check this machine, or the cluster of RAY_ADDRESS, before it costs money; exit code 1 where it is not well."""
    from cluster.doctor.checks import check
    from cluster.doctor.tables import show_checks
    from ssl_dist.config.overrides import parse_override
    from ssl_dist.settings import ClusterConfig

    overrides = dict(parse_override(text) for text in settings or [])
    if workers is not None:
        overrides["cluster.workers"] = workers
    if gpu:
        overrides["cluster.gpu"] = True
    config = resolve(recipe, overrides) if recipe else None
    cluster = config.cluster if config else ClusterConfig.model_validate({"workers": workers or 2, "gpu": gpu})
    expected = [host for host in hosts.split(",") if host]
    with console.status("reaching Ray") as status:
        found = check(cluster, storage.absolute(), expected, exact=exact, config=config, say=status.update)
    show_checks(console, found)
    if as_json:
        print_json({"healthy": found.healthy, **{key: _plain(value) for key, value in found._asdict().items()}})
    if not found.healthy:
        raise typer.Exit(1)


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [one._asdict() for one in value]
    return value._asdict() if value else None


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the stores and the run.")] = Path("runs/demo"),
    settings: Set = None,
    as_json: Json = False,
) -> None:
    """Scikit-learn's 1,797 digits: store, pretraining with 2 workers, kNN before and after. Downloads nothing."""
    import tempfile

    from cluster import digits
    from cluster.run_directory import RunDirectory
    from ssl_dist.config.overrides import parse_override
    from ssl_dist.evaluate import knn_accuracy
    from ssl_dist.store import build

    out = out / f"{datetime.now():%Y%m%d-%H%M%S}"
    train, test = out / "store-train", out / "store-test"
    with tempfile.TemporaryDirectory() as folder:
        digits.write_folders(Path(folder))
        for split, store in (("train", train), ("test", test)):
            build(Path(folder) / split, store, split=split, workers=1)
    overrides = {"data.store": str(train), **dict(parse_override(text) for text in settings or [])}
    config = resolve("simclr-digits", overrides)
    run = RunDirectory.create(out / "run", config)
    _train(run, config, False)
    result = comparison("kNN, k = 20", knn_accuracy, run.path, train, test, needs=20)
    _say(f"TensorBoard's logs: {run.path / 'tensorboard'}")
    if as_json:
        print_json({"run": str(run.path), **result._asdict()})
