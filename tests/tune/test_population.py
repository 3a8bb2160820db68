"""The members of a population hand whole checkpoints to each other, optimizer included."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from ray.tune import Checkpoint

from ssl_dist.checkpoint import Checkpoints
from ssl_dist.config import ResolvedConfig
from ssl_dist.errors import CheckpointError, ConfigError
from tests.helpers import differences, save, train
from tests.tune.test_sweep import make
from tune.population import PopulationScheduler, claim_run, exported_checkpoint, member_samples
from tune.space import Domain
from tune.sweep import Sweep
from tune.trial_files import Point, path_of, read_origin, read_outcome, write_outcome

SPACE = {"method.temperature": Domain(uniform=(0.1, 0.5)), "optim.lr": Domain(choice=(0.001, 0.002, 0.004))}


def population(store: Path, **options: Any) -> Sweep:
    return make(store, **{"space": SPACE, "scheduler": "pbt", "rung_epochs": 1, **options})


@pytest.fixture
def members(small_store: Path, tmp_path: Path) -> tuple[Sweep, ResolvedConfig, ResolvedConfig]:
    """Make two members: the first has run for three steps with AdamW, and the second has begun."""
    recipe = make(small_store).recipe
    optim = recipe.optim.model_copy(update={"name": "adamw"})
    sweep = population(small_store, recipe=recipe.model_copy(update={"optim": optim}))
    good, bad = (sweep.config({"method.temperature": t, "optim.lr": 0.002}) for t in (0.2, 0.4))
    claim_run(sweep, good, tmp_path, "good", None).release()
    claim_run(sweep, bad, tmp_path, "bad", None).release()
    save(train(0, 1, good, 0, 3).state, path_of(tmp_path, good), 3, good)
    return sweep, good, bad


def test_a_member_continues_from_anothers_weights_and_optimizer(
    members: tuple[Sweep, ResolvedConfig, ResolvedConfig], tmp_path: Path
) -> None:
    sweep, good, bad = members
    with exported_checkpoint(path_of(tmp_path, good), Point(51, 0.5, 3), "good") as handed:
        assert isinstance(handed, Checkpoint)
        (tmp_path / "kept" / "step-00000001").mkdir(parents=True)  # what was handed over before
        kept = shutil.copytree(handed.path, tmp_path / "kept", dirs_exist_ok=True)  # as Tune does
    shutil.rmtree(path_of(tmp_path, good) / "checkpoints")  # the giver has trained on and deleted it
    run = claim_run(sweep, bad, tmp_path, "bad", Checkpoint.from_directory(str(kept)))
    run.release()
    assert run.path not in (path_of(tmp_path, good), path_of(tmp_path, bad))
    assert read_origin(run.path) == {"trial": "bad", "run": path_of(tmp_path, good).name, "step": 3}
    assert (read_outcome(path_of(tmp_path, bad)) or {})["status"] == "replaced"
    assert read_outcome(path_of(tmp_path, good)) is None
    went_on, undisturbed = train(0, 1, good, 3, 5, resume=run.path), train(0, 1, good, 0, 5)
    assert went_on.losses == undisturbed.losses[3:]
    assert not differences(went_on.state.model, undisturbed.state.model)
    assert not differences(went_on.state.optimizer, undisturbed.state.optimizer)
    again = claim_run(sweep, bad, tmp_path, "bad", Checkpoint.from_directory(str(kept)))
    again.release()
    assert again.path == run.path


def test_a_member_continues_in_its_own_run(
    members: tuple[Sweep, ResolvedConfig, ResolvedConfig], tmp_path: Path
) -> None:
    """A member does so after a pause or a kill, also where its run was recorded as replaced before the kill."""
    sweep, good, _ = members
    own = path_of(tmp_path, good)
    with exported_checkpoint(own, Point(51, 0.5, 3), "good") as handed:
        write_outcome(own, "replaced", Point(51, 0.5, 3))
        run = claim_run(sweep, good, tmp_path, "good", handed)
    run.release()
    assert run.path == own
    assert read_outcome(own) is None
    with exported_checkpoint(own, Point(102, 0.5, 7), "good") as handed:
        assert handed is None, "there is no such checkpoint"


def test_a_new_start_finds_every_member_in_its_current_run(small_store: Path, tmp_path: Path) -> None:
    """Ray Tune gives the members other names at each start, which end with the same number."""
    sweep = population(small_store, samples=3)
    first, second, third = sweep.known_samples
    for member, sample in (("old_00000", first), ("old_00001", second)):
        claim_run(sweep, sweep.config(sample), tmp_path, member, None).release()
    own = path_of(tmp_path, sweep.config(first))
    save(train(0, 1, sweep.config(first), 0, 3).state, own, 3, sweep.config(first))
    moved = {**first, "method.temperature": 0.3}
    with exported_checkpoint(own, Point(51, 0.5, 3), "old_00000") as handed:
        run = claim_run(sweep, sweep.config(moved), tmp_path, "old_00001", handed)
    run.release()
    assert member_samples(sweep, tmp_path) == [first, moved, third]
    again = claim_run(sweep, sweep.config(moved), tmp_path, "new_00001", None)
    again.release()
    assert again.path == run.path
    assert read_origin(run.path) == {"trial": "new_00001", "run": own.name, "step": 3}


def test_settings_move_within_their_domains(small_store: Path) -> None:
    rule = PopulationScheduler(population(small_store))
    moved = rule._custom_explore_fn({"sample": {"method.temperature": 0.6, "optim.lr": 0.004}})
    assert moved == {"sample": {"method.temperature": 0.5, "optim.lr": 0.004}}


@pytest.mark.parametrize(
    ("key", "domain", "message"),
    [
        ("batch.size", Domain(powers_of_two=(4, 8)), "cannot search batch.size"),
        ("epochs", Domain(choice=(2, 4)), "cannot search epochs"),
        ("optim.name", Domain(choice=("sgd", "adamw")), "cannot search optim.name"),
        ("optim", Domain(choice=({"name": "sgd"}, {"name": "adamw"})), "cannot search optim"),
        ("method.projection_dim", Domain(choice=(8, 16)), "differ in their weights' shapes"),
    ],
)
def test_settings_that_cannot_change_during_a_run_are_refused(
    small_store: Path, key: str, domain: Domain, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        population(small_store, space={key: domain}).check()


def test_a_population_has_members_and_no_other_search(small_store: Path) -> None:
    with pytest.raises(ConfigError, match="--samples 2 or more"):
        population(small_store, samples=1).check()
    with pytest.raises(ConfigError, match="--search random or grid"):
        population(small_store, search="optuna").check()
    sweep = population(small_store, recipe=make(small_store, rung_epochs=None).recipe, rung_epochs=0.5)
    assert sweep.config({}).checkpoint.every_epochs == 0.5, "a checkpoint at each point"


def test_adopting_a_damaged_checkpoint_is_refused(
    members: tuple[Sweep, ResolvedConfig, ResolvedConfig], tmp_path: Path
) -> None:
    _, good, bad = members
    source = Checkpoints(path_of(tmp_path, good)).path(3)
    (source / "optimizer.safetensors").write_bytes(b"rubbish")
    with pytest.raises(CheckpointError, match="differs from its checksum"):
        Checkpoints(path_of(tmp_path, bad)).adopt(source)
    assert Checkpoints(path_of(tmp_path, bad)).newest() is None
