"""Pretrained weights: a run starts from exactly these, or is refused with the reason."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors.torch import save_file

from ssl_dist.checkpoint import Checkpoints, State, pretrained
from ssl_dist.collectives import World
from ssl_dist.config import ResolvedConfig
from ssl_dist.errors import ConfigError
from ssl_dist.evaluate import encoder_of
from ssl_dist.training.loop import StopRequests, pretrain
from tests.helpers import resolved_config

BYOL = {"name": "byol", "projection_hidden": 16, "projection_dim": 8}


@pytest.fixture
def run(small_store: Path, tmp_path: Path) -> Path:
    """Pretrain SimCLR for two steps."""
    (tmp_path / "first").mkdir()
    pretrain(resolved_config(small_store, probe=None, epochs=0.5), tmp_path / "first", World(), StopRequests())
    return tmp_path / "first"


def from_weights(store: Path, weights: Path, **overrides: Any) -> ResolvedConfig:
    """Resolve a config with pretrained weights, as the command line does."""
    return pretrained.resolve(
        resolved_config(store, probe=None, epochs=0.5, **overrides, backbone__weights=str(weights))
    )


def test_another_method_starts_from_exactly_these_weights(small_store: Path, run: Path) -> None:
    trained, _, _ = encoder_of(run)
    config = from_weights(small_store, run, method=BYOL, augment={"recipe": "byol-small"})
    method = config.initial_method(pretrained.read(config))
    for ours in (method.backbone, method.slow.module[0]):  # the slow copy is of these weights
        for name, tensor in trained.state_dict().items():
            assert torch.equal(ours.state_dict()[name], tensor), name
    random = config.initial_method()
    assert torch.equal(method.predictor[0].weight, random.predictor[0].weight), "heads are as ever"
    assert not torch.equal(method.backbone.body[0].weight, random.backbone.body[0].weight)


def test_a_run_starts_from_the_weights_and_resumes_without_their_file(
    small_store: Path, run: Path, tmp_path: Path
) -> None:
    config = from_weights(small_store, run, seed=1, optim__lr=1e-9, optim__weight_decay=0.0)
    (tmp_path / "second").mkdir()
    pretrain(config, tmp_path / "second", World(), StopRequests(stop=lambda: True))
    before, after = encoder_of(run)[0], encoder_of(tmp_path / "second")[0]
    for name, parameter in before.named_parameters():
        torch.testing.assert_close(after.get_parameter(name), parameter, rtol=0, atol=1e-7)  # one step of 1e-9
    assert encoder_of(tmp_path / "second")[2] == 1
    shutil.rmtree(run)
    assert pretrain(config, tmp_path / "second", World(), StopRequests())["step"] == 2


def test_a_torchvision_file_is_read_without_its_classifier(small_store: Path, tmp_path: Path) -> None:
    torch.manual_seed(3)
    network = torchvision.models.resnet18()
    save_file(network.state_dict(), tmp_path / "resnet18.safetensors")
    config = from_weights(small_store, tmp_path / "resnet18.safetensors", backbone={"name": "resnet18"})
    made = config.initial_method(pretrained.read(config)).backbone.body.state_dict()
    for name, tensor in made.items():
        assert torch.equal(tensor, network.state_dict()[name]), name
    assert network.state_dict().keys() - made.keys() == {"fc.weight", "fc.bias"}


def test_weights_that_do_not_fit_are_refused_by_name(small_store: Path, run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has a tensor body\.0\.weight of \[4, 3, 3, 3\], the file one of"):
        from_weights(small_store, run, backbone__width=4)
    save_file({"conv1.weight": torch.zeros(64, 3, 7, 7)}, tmp_path / "part.safetensors")
    with pytest.raises(
        ConfigError, match=r"a tensor body\.bn1\.weight of \[64\], the file none: give weights of the same"
    ):
        from_weights(small_store, tmp_path / "part.safetensors", backbone={"name": "resnet18"})
    with pytest.raises(ConfigError, match=r"a run.s directory, a checkpoint.s, or a \.safetensors or \.pth file"):
        from_weights(small_store, tmp_path / "nowhere")
    (tmp_path / "rubbish.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(ConfigError, match="cannot be read as safetensors"):
        from_weights(small_store, tmp_path / "rubbish.safetensors")
    (tmp_path / "empty" / "checkpoints").mkdir(parents=True)
    with pytest.raises(ConfigError, match="holds no checkpoint"):
        from_weights(small_store, tmp_path / "empty")


def test_a_file_that_has_changed_since_the_run_began_is_refused(small_store: Path, tmp_path: Path) -> None:
    config = resolved_config(small_store)
    Checkpoints(tmp_path).save(1, config, State(config.initial_method().state_dict(), {}))
    resolved = from_weights(small_store, tmp_path)
    assert resolved.backbone.weights == str(Checkpoints(tmp_path).path(1) / "model.safetensors")
    other = config.model_copy(update={"seed": 5})
    Checkpoints(tmp_path).save(1, other, State(other.initial_method().state_dict(), {}))
    with pytest.raises(ConfigError, match="has changed since this run was begun"):
        pretrained.read(resolved)
