"""Fine-tuning: frozen layers stay to the last bit, cost no gradient, and do not change what several workers compute."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ssl_dist import backbones
from ssl_dist.checkpoint.room import checkpoint_bytes
from ssl_dist.errors import ConfigError
from ssl_dist.methods import Method, Views
from tests.gloo import GlooPool
from tests.helpers import resolved_config, small_config, smooth_method, train

Pools = Callable[[int], GlooPool]
STEPS = 4


def finetuning(unfreeze: str, **more: Any) -> dict[str, Any]:
    method = {"name": "supervised", "num_classes": 3, "unfreeze": unfreeze, **more}
    return {"method": method, "augment": {"recipe": "weak"}, "optim__lr": 0.05}


def is_trained(name: str, unfreeze: str) -> bool:
    """Tell whether a tensor of resnet8 moves; body.4 and body.5 are its last two stages."""
    stages = {"head": (), "last:2": ("backbone.body.5",), "last:3": ("backbone.body.4", "backbone.body.5")}
    return name.startswith(("classifier", *stages[unfreeze]))


@pytest.mark.parametrize("unfreeze", ["head", "last:2", "last:3"])
def test_frozen_layers_and_their_statistics_stay_bit_for_bit(gloo: Pools, small_store: Path, unfreeze: str) -> None:
    """With 1 to 3 workers, which share three micro-batches out, and at every ZeRO stage, all else moves alike."""
    start = smooth_method(small_config(small_store, **finetuning(unfreeze))).state_dict()
    alone: list[float] = []
    ways = ((1, 0), (1, 1), (2, 2), (2, 3), (3, 0)) if unfreeze == "last:2" else ((1, 0), (3, 3))
    for workers, stage in ways:
        config = small_config(small_store, engine__zero_stage=stage, **finetuning(unfreeze))
        trace = gloo(workers).run(train, config, 0, STEPS)[0]
        alone = alone or trace.losses
        assert trace.losses == pytest.approx(alone, rel=1e-5)  # sums in another order, as in test_engine.py
        for name, tensor in trace.state.model.items():
            counts = name.endswith("num_batches_tracked")
            assert torch.equal(tensor, start[name]) == (counts or not is_trained(name, unfreeze)), name
        assert {key.rpartition("/")[0] for key in trace.state.optimizer} == {
            name
            for name in start
            if is_trained(name, unfreeze) and "running" not in name and not name.endswith("num_batches_tracked")
        }


def some_views() -> Views:
    crops = torch.rand(1, 6, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    return Views((crops,), torch.tensor([0, 1, 2, 2, 1, 0]))


def made(store: Path, unfreeze: str, **more: Any) -> Method:
    return small_config(store, **finetuning(unfreeze, **more)).initial_method()


@pytest.mark.parametrize(("unfreeze", "first"), [("head", None), ("last:2", "5"), ("last:3", "4")])
def test_no_graph_goes_through_frozen_layers(small_store: Path, unfreeze: str, first: str | None) -> None:
    method, graphs = made(small_store, unfreeze).train(), dict[str, bool]()
    for name, part in method.backbone.body.named_children():
        part.register_forward_hook(lambda _, inputs, output, name=name: graphs.update({name: output.requires_grad}))
    method(some_views()).mean().backward()
    assert graphs == {name: first is not None and int(name) >= int(first) for name in graphs}
    trained = {name for name, parameter in method.named_parameters() if parameter.grad is not None}
    assert trained == {name for name, _ in method.named_parameters() if is_trained(name, unfreeze)}


def test_a_frozen_backbone_gives_the_features_of_an_evaluation(small_store: Path) -> None:
    """A batch's own statistics would give others."""
    method, images = made(small_store, "head"), some_views().stacked[0]
    expected = method.eval().backbone(images)
    assert torch.equal(method.train().backbone(images), expected)
    assert not torch.allclose(made(small_store, "all").train().backbone(images), expected, atol=0.01)


def test_a_hidden_layer_is_followed_by_a_relu(small_store: Path) -> None:
    method, views = made(small_store, "head", hidden=5), some_views()
    first, second = (method.get_submodule(f"classifier.{number}") for number in (0, 2))
    hidden = method.train().backbone(views.stacked[0]) @ first.weight.T + first.bias
    logits = hidden * (hidden > 0) @ second.weight.T + second.bias
    expected = torch.stack([-row.softmax(0)[label].log() for row, label in zip(logits, views.labels, strict=True)])
    assert first.weight.shape == (5, method.backbone.dim)
    assert (hidden < 0).any()
    torch.testing.assert_close(method(views)[:, 0, 0], expected, rtol=1e-5, atol=1e-6)


def test_layers_are_made_anew_beside_others_that_keep_their_weights(small_store: Path) -> None:
    weights = {name: torch.full_like(t, 2) for name, t in made(small_store, "all").backbone.state_dict().items()}

    def started(**more: Any) -> dict[str, Tensor]:
        return small_config(small_store, **finetuning("last:2", **more)).initial_method(weights).state_dict()

    kept, anew, random = started(), started(anew=True), made(small_store, "all").state_dict()
    for name, tensor in anew.items():
        assert torch.equal(tensor, random[name] if is_trained(name, "last:2") else kept[name]), name
    assert (kept["backbone.body.5.conv1.weight"] == 2).all()


@pytest.mark.parametrize(
    ("name", "number", "last", "before"),
    [
        ("resnet8", 4, "body.6", "body.5"),
        ("resnet20", 4, "body.10", "body.7"),
        ("wrn45-2", 5, "body.17", "body.12"),
        ("convnet", 4, "body.9", "body.6"),
        ("autoencoder", 3, "body.8", "body.4"),
        ("resnet18", 5, "body.layer4", "body.layer3"),
        ("vgg11", 10, "body.classifier.3", "body.classifier.0"),
        ("vit_b_16", 13, "body.encoder.layers.encoder_layer_11", "body.encoder.layers.encoder_layer_10"),
        ("swin_t", 8, "body.features.7", "body.features.6"),
        ("densenet121", 8, "body.features.denseblock4", "body.features.transition3"),
    ],
)
def test_layers_are_counted_from_the_features(name: str, number: int, last: str, before: str) -> None:
    with torch.device("meta"):
        backbone = backbones.build(name)
    layers, depths = backbone.layers(), backbone.depths()
    assert len(layers) == number
    assert [layer[0] for layer in layers[-2:]] == [before, last]
    assert set(depths.values()) == set(range(1, number + 1))
    assert {depth for key, depth in depths.items() if key.startswith(f"{last}.")} == {1}
    assert {depth for key, depth in depths.items() if key.startswith(f"{before}.")} == {2}
    everything = [part for layer in layers for part in layer]
    modules = {key for key, module in backbone.named_modules() if not list(module.children())}
    assert all(any(f"{key}.".startswith(f"{part}.") for part in everything) for key in modules if "dropout" not in key)


def test_more_layers_than_there_are_are_refused(small_store: Path) -> None:
    everything = made(small_store, "last:5")
    assert all(parameter.requires_grad for parameter in everything.parameters())
    with pytest.raises(
        ConfigError, match=r"last:6: the backbone has 4 layers, 5 with the classifier: set it to last:5"
    ):
        made(small_store, "last:6")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"unfreeze": "last"}, r"method\.unfreeze 'last': it is head, all, or last:N with N of 1 or more"),
        ({"unfreeze": "last:0"}, r"method\.unfreeze 'last:0': it is head"),
        (
            {"unfreeze": "head", "anew": True},
            r"method\.anew with method\.unfreeze head: .* set method\.unfreeze to last:N",
        ),
        ({"unfreeze": "all", "anew": True}, r"method\.anew with method\.unfreeze all"),
        ({"unfreeze": "all", "hidden": 0}, r"method\.hidden: .*greater than or equal to 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(small_store: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        small_config(small_store, **finetuning(**settings))


def test_a_checkpoint_keeps_no_optimizer_state_of_frozen_layers(small_store: Path) -> None:
    head, everything = (resolved_config(small_store, **finetuning(unfreeze)) for unfreeze in ("head", "all"))
    weights = sum(parameter.nbytes for parameter in everything.initial_method().backbone.parameters())
    assert checkpoint_bytes(everything) - checkpoint_bytes(head) == weights, "one momentum of each"
