"""The commands that train: pretrain and demo, added to those that need no cluster."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ssl_dist.cli import Json, app, console, print_json, show, show_comparison
from ssl_dist.errors import ConfigError

if TYPE_CHECKING:
    from cluster.run_directory import RunDirectory
    from ssl_dist.config import RunConfig

__all__ = ["app"]

Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Replace one setting, e.g. optim.lr=0.3.")
]

# What may change when a run goes on: it decides how fast and where, not which model comes out.
_FREE_ON_RESUME = ("cluster", "checkpoint", "monitor", "engine.zero_stage", "data.store")


@app.command()
def pretrain(
    recipe: Annotated[
        str | None, typer.Argument(help="Recipe file, or the name of one that comes with the package.")
    ] = None,
    settings: Set = None,
    out: Annotated[Path, typer.Option(help="Folder in which the run gets a directory of its own.")] = Path("runs"),
    run_dir: Annotated[Path | None, typer.Option(help="The run's directory itself; must be new or empty.")] = None,
    resume: Annotated[
        Path | None, typer.Option(metavar="RUN_DIR", help="Go on with this run from its newest valid checkpoint.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Pretrain an encoder with Ray Train and DeepSpeed, on this machine or on the cluster of RAY_ADDRESS."""
    from ssl_dist.config import parse_override

    overrides = dict(parse_override(text) for text in settings or [])
    if (recipe is None) == (resume is None):
        raise ConfigError("give either a recipe, or --resume RUN_DIR")
    if resume is not None:
        run, config = _reopen(resume, overrides)
    else:
        assert recipe is not None, "checked above"
        config = _resolve(recipe, overrides)
        name = f"{Path(recipe).stem}-{datetime.now():%Y%m%d-%H%M%S}-{config.fingerprint()[:6]}"
        run = _create(run_dir or out / name, config)
    _train(run, config, as_json)


def _resolve(recipe: str, overrides: dict[str, Any]) -> RunConfig:
    """The recipe with its store opened once: what is wrong with it is said before anything starts."""
    from ssl_dist.config import RunConfig
    from ssl_dist.store import ImageStore

    config = RunConfig.load(recipe, overrides)
    store = ImageStore(config.data.store)
    config.plan(len(store))
    data = {"store": str(store.path.absolute()), "num_images": len(store), "image_shape": store.image_shape}
    return RunConfig.from_tree({**config.model_dump(), "data": data}, recipe)


def _create(directory: Path, config: RunConfig) -> RunDirectory:
    from cluster.run_directory import RunDirectory

    return RunDirectory.create(directory, config)


def _reopen(directory: Path, overrides: dict[str, Any]) -> tuple[RunDirectory, RunConfig]:
    from cluster.run_directory import RunDirectory
    from ssl_dist.config import RunConfig, put_override

    for key in overrides:
        if not any(key == free or key.startswith(f"{free}.") for free in _FREE_ON_RESUME):
            raise ConfigError(
                f"--set {key}: a run goes on as it began; with --resume only {', '.join(_FREE_ON_RESUME)} may change"
            )
    run, config = RunDirectory.reopen(directory)
    tree = config.model_dump()
    for key, value in overrides.items():
        put_override(tree, key, value)
    return run, RunConfig.from_tree(tree, str(directory))


def _train(run: RunDirectory, config: RunConfig, as_json: bool) -> dict[str, Any]:
    from cluster.launch import launch

    console.print(f"run directory {run.path}", highlight=False, soft_wrap=True)
    console.print(f"watch it with: tensorboard --logdir {run.path}", highlight=False, soft_wrap=True)
    metrics = launch(config, run, console)
    result = {"run": str(run.path), **metrics}
    rows = {tag: f"{value:.6g}" if isinstance(value, float) else value for tag, value in metrics.items()}
    show(f"{run.path.name}", rows.items(), result, as_json)
    return result


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the stores and the run.")] = Path("runs/demo"),
    settings: Set = None,
    as_json: Json = False,
) -> None:
    """Scikit-learn's 1,797 digits: store, pretraining with 2 workers, kNN before and after. Downloads nothing."""
    import tempfile

    from cluster import digits
    from ssl_dist.config import parse_override
    from ssl_dist.evaluate import compare, knn_accuracy
    from ssl_dist.store import build

    out = out / f"{datetime.now():%Y%m%d-%H%M%S}"
    train, test = out / "store-train", out / "store-test"
    with tempfile.TemporaryDirectory() as folder:
        digits.write_folders(Path(folder))
        for split, store in (("train", train), ("test", test)):
            build(Path(folder) / split, store, split=split, workers=1)
    overrides = {"data.store": str(train), **dict(parse_override(text) for text in settings or [])}
    config = _resolve("simclr-digits", overrides)
    run = _create(out / "run", config)
    _train(run, config, False)
    result = compare(run.path, train, test, knn_accuracy)
    show_comparison("kNN, k = 20", result, False)
    console.print(f"TensorBoard's logs: {run.path / 'tensorboard'}", highlight=False, soft_wrap=True)
    if as_json:
        print_json({"run": str(run.path), **result._asdict()})
