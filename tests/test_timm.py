"""Networks of timm as backbones: their options, sizes and noise, and what is said where they do not fit."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import ssl_dist
from ssl_dist import backbones
from ssl_dist.backbones import catalogue
from ssl_dist.checkpoint import State, pretrained
from ssl_dist.checkpoint.room import checkpoint_bytes
from ssl_dist.collectives import World
from ssl_dist.errors import ConfigError, ExportError
from ssl_dist.evaluate.features import Levels
from ssl_dist.evaluate.levels import LAYER
from ssl_dist.export import export
from ssl_dist.training.loop import StopRequests, pretrain
from tests.command import Command
from tests.gloo import GlooPool
from tests.helpers import differences, resolved_config, save, small_config, train
from tune.sweep import Sweep

Pools = Callable[[int], GlooPool]
extras = pytest.mark.extras
OPTIONS = {"patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2}
VIT = {"name": "timm/vit_tiny_patch16_224", "options": OPTIONS}
NETWORKS: dict[str, dict[str, Any]] = {
    "vit": VIT,
    "resnet": {"name": "timm/resnet10t", "normalisation": "imagenet"},
    "convnext": {"name": "timm/convnext_atto", "options": {"depths": [1, 1, 1, 1], "dims": [8, 8, 16, 16]}},
    "swin": {
        "name": "timm/swin_tiny_patch4_window7_224",
        "options": {"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 1], "window_size": 4},
    },
}
each_network = pytest.mark.parametrize("network", NETWORKS)


def test_without_timm_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "timm" else find(name))
    catalogue.timm_names.cache_clear()
    with pytest.raises(ConfigError, match=r"networks of timm need timm: pip install 'ssl_dist\[timm\]'$"):
        backbones.check("timm/resnet10t")
    catalogue.timm_names.cache_clear()


def test_other_networks_refuse_options() -> None:
    with pytest.raises(ConfigError, match=r"resnet18 has no options \(given patch_size\): networks of timm have"):
        backbones.check("resnet18", options={"patch_size": 4})


@extras
def test_names_are_timms() -> None:
    import timm

    assert list(catalogue.timm_names()) == sorted(timm.list_models())


@extras
@pytest.mark.parametrize(
    ("given", "match"),
    [
        (
            {"name": "timm/vit_tiny_patch16_225"},
            "timm has no network vit_tiny_patch16_225; did you mean timm/vit_tiny_pa",
        ),
        ({"name": "timm/resnet10t.tag"}, r"backbone timm/resnet10t.*Invalid pretrained tag \(tag\)"),
        (
            {**VIT, "options": {"patch_sizes": 4}},
            r"backbone\.options\.patch_sizes: timm/vit_tiny_\S+ has no such option",
        ),
        (
            {**VIT, "options": {"img_size": 32}},
            r"backbone\.options\.img_size is not for you to set: it follows the size",
        ),
        ({**VIT, "options": {**OPTIONS, "patch_size": "four"}}, r"cannot be made .*'patch_size': 'four'"),
        ({**VIT, "options": {"num_classes": 3}}, r"options\.num_classes is not for you to set"),
        (
            {**VIT, "options": {**OPTIONS, "patch_size": 5}},
            r"vit_tiny_\S+ takes images of a multiple of 5 px: these have 16",
        ),
        (
            {**VIT, "options": {**OPTIONS, "num_heads": 5}},
            r"cannot be made for images of 16 px with options \{'patch_size",
        ),
        ({**VIT, "options": {**OPTIONS, "global_pool": ""}}, r"gives \[2, 17, 24\] for 2 images, and not a vector"),
        ({"name": "timm/vit_tiny_patch16_224", "stem": "small"}, "has no stem to choose"),
        ({"name": "timm/inception_v3"}, "inception_v3 does not take images of 16 px"),
    ],
)
def test_what_does_not_fit_is_refused_before_a_run(
    command: Command, small_store: Path, tmp_path: Path, given: dict[str, Any], match: str
) -> None:
    from cluster.prepare import resolve_settings

    with pytest.raises(ConfigError, match=match) as refused:
        resolve_settings(small_config(small_store, backbone=given))
    assert "\n" not in str(refused.value)


@extras
def test_a_dry_run_answers_in_one_line(command: Command, small_store: Path, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(small_config(small_store, backbone=VIT, probe=None).to_yaml())
    given = ("pretrain", tmp_path / "r.yaml", "--out", tmp_path / "runs", "--dry-run", "--json")
    done = command(*given, "--set", "backbone.options.drop_path_rate=0.1")
    assert done.code == 0, done.err
    wrong = command(*given, "--set", "backbone.options.drop_paths=0.1")
    assert (wrong.code, wrong.err.count("\n")) == (2, 1)
    assert "backbone.options.drop_paths: timm/vit_tiny_patch16_224 has no such option" in wrong.json["error"]
    assert not (tmp_path / "runs").exists()


@extras
@each_network
def test_features_have_dim_and_every_weight_takes_part(network: str) -> None:
    torch.manual_seed(0)
    given = {key: value for key, value in NETWORKS[network].items() if key != "normalisation"}
    backbone = backbones.build(**given, image_size=32).train()
    features = backbone(torch.rand(2, 3, 32, 32))
    assert features.shape == (2, backbone.dim)
    features.square().sum().backward()
    assert [name for name, p in backbone.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []
    parts = [name for layer in backbone.layers() for name in layer]
    assert len(backbone.layers()) > 2
    assert all(backbone.get_submodule(name) is not None for name in parts)


@extras
@each_network
def test_random_weights_depend_on_the_seed_alone_and_need_no_values(small_store: Path, network: str) -> None:
    first, again, other = (
        resolved_config(small_store, backbone=NETWORKS[network], augment__size_px=32, seed=seed) for seed in (1, 1, 2)
    )
    torch.rand(3)
    weights = first.initial_backbone().state_dict()
    torch.rand(5)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in again.initial_backbone().state_dict().items())
    assert any(not torch.equal(tensor, weights[name]) for name, tensor in other.initial_backbone().state_dict().items())
    shapes = {name: tensor.shape for name, tensor in first.initial_method().state_dict().items()}
    assert {name: tensor.shape for name, tensor in first.method_without_values().state_dict().items()} == shapes
    assert checkpoint_bytes(first) > 0


@extras
def test_views_of_several_sizes_need_a_network_that_takes_them(small_store: Path) -> None:
    crops = {"recipe": "swav-small"}
    method = {"name": "swav", "projection_hidden": 16, "projection_dim": 8, "prototypes": 8, "queue": 0}
    config = resolved_config(small_store, backbone=VIT, augment=crops, method=method)
    assert set(config.view_sizes) == {16, 32}
    config.backbone.expect_features(config.view_sizes)
    backbone = config.initial_backbone()
    assert backbone.image_size is None
    for size in config.view_sizes:
        assert backbone(torch.rand(1, 3, size, size)).shape == (1, 24)
    for name in ("timm/cait_xxs24_224", "timm/test_vit_relpos"):
        with pytest.raises(
            ConfigError, match=rf"{name} takes images of one size: give all views one .augment\.size_px"
        ):
            small_config(small_store, backbone={"name": name}).backbone.expect_features((32, 16))
    one = resolved_config(small_store, backbone=VIT).initial_backbone()
    with pytest.raises(ConfigError, match="made for images of 16 px was given 8 x 8"):
        one(torch.rand(1, 3, 8, 8))


@extras
def test_a_sweep_searches_options_and_refuses_unknown_ones(small_store: Path) -> None:
    recipe = resolved_config(small_store, backbone=VIT)
    given: dict[str, Any] = {"recipe": recipe, "search": "grid", "scheduler": "none"}
    sweep = Sweep.make(space={"backbone.options.drop_path_rate": {"choice": [0.0, 0.2]}}, **given)
    sweep.check()
    rates = [sweep.config(sample).backbone.options["drop_path_rate"] for sample in sweep.known_samples]
    assert sorted(rates) == [0.0, 0.2]
    wrong = Sweep.make(space={"backbone.options.drop_paths": {"choice": [0.0, 0.2]}}, **given)
    with pytest.raises(
        ConfigError, match=r"backbone\.options\.drop_paths: timm/vit_tiny_patch16_224 has no such option"
    ):
        wrong.check()


NOISY = {**VIT, "options": {**OPTIONS, "drop_path_rate": 0.4, "proj_drop_rate": 0.2}}


@extras
def test_drop_path_and_dropout_do_not_depend_on_workers(gloo: Pools, small_store: Path) -> None:
    """Share out three micro-batches to one, two and three workers; each draws its noise by its number."""
    config = resolved_config(small_store, backbone=NOISY)
    alone, *others = (gloo(workers).run(train, config, 0, 4)[0] for workers in (1, 2, 3))
    plain = gloo(1).run(train, resolved_config(small_store, backbone=VIT), 0, 4)[0]
    assert abs(alone.losses[0] - plain.losses[0]) > 1e-3
    for trace in others:
        # the tolerances of tests/training/test_engine.py: float32 sums in another order
        assert trace.losses == pytest.approx(alone.losses, rel=1e-5)
        assert trace.grad_norms == pytest.approx(alone.grad_norms, rel=1e-4)
        for name, tensor in alone.state.model.items():
            torch.testing.assert_close(trace.state.model[name], tensor, rtol=1e-3, atol=1e-5)


@extras
@pytest.mark.parametrize("zero_stage", [0, 2, 3])
def test_a_zero_stage_changes_nothing(gloo: Pools, small_store: Path, zero_stage: int) -> None:
    one, other = (
        gloo(2).run(train, resolved_config(small_store, backbone=NOISY, engine__zero_stage=stage), 0, 2)[0]
        for stage in (1, zero_stage)
    )
    assert other.losses == pytest.approx(one.losses, rel=1e-5)


@extras
def test_a_noisy_run_resumes_bit_for_bit(small_store: Path, tmp_path: Path) -> None:
    config = resolved_config(small_store, backbone=NOISY)
    whole = train(0, 1, config, 0, 4)
    save(train(0, 1, config, 0, 2, None, 4).state, tmp_path, 2, config)
    second = train(0, 1, config, 2, 4, tmp_path)
    assert second.losses == whole.losses[2:]
    assert not differences(second.state.model, whole.state.model)
    assert config.fingerprint() != resolved_config(small_store, backbone=VIT).fingerprint()


@extras
@each_network
def test_a_run_is_evaluated_exported_and_continued(
    command: Command, small_store: Path, tmp_path: Path, network: str
) -> None:
    """Its features are the run's in timm's own loader, in the file that stands alone, and in a run from its weights."""
    config = resolved_config(
        small_store, backbone=NETWORKS[network], augment__size_px=32, probe=None, epochs=0.5, optim__lr=0.05
    )
    run = tmp_path / "run"
    run.mkdir()
    pretrain(config, run, World(), StopRequests())
    encoder = ssl_dist.load_encoder(run, device="cpu")
    features = encoder.embed(small_store)
    assert features.shape == (51, config.initial_backbone().dim)
    for format_ in ("timm", "safetensors", "torchscript", "onnx"):
        done = export(run, tmp_path / format_, format_)
        assert done.difference <= 1e-5
        print(network, format_, f"{done.difference:.1e}")
    loaded = ssl_dist.load_encoder(tmp_path / "safetensors", device="cpu")
    assert torch.equal(loaded.embed(small_store), features)
    card = (tmp_path / "timm" / "README.md").read_text()
    name = re.escape(NETWORKS[network]["name"].removeprefix("timm/"))
    assert re.search(rf"timm\.create_model\('{name}', num_classes=0", card)
    assert re.search(r"timm \d", card)
    for weights in (run, tmp_path / "timm", tmp_path / "safetensors"):
        backbone = {**NETWORKS[network], "weights": str(weights), "normalisation": None}
        again = pretrained.resolve(resolved_config(small_store, backbone=backbone, augment__size_px=32))
        assert again.backbone.normalisation in (NETWORKS[network].get("normalisation"), "none")
        method = again.initial_method(pretrained.read(again))
        assert all(
            torch.equal(tensor, encoder.backbone.state_dict()[key])
            for key, tensor in method.backbone.state_dict().items()
        )
    knn = ("evaluate", "knn", run, "--train", small_store, "--test", small_store, "--k", 3, "--json")
    assert command(*knn).code == 0


@extras
def test_a_vit_is_exported_for_other_libraries_and_with_its_head_and_its_classifier(
    small_store: Path, tmp_path: Path
) -> None:
    supervised = {"method": {"name": "supervised"}, "augment": {"recipe": "weak"}}
    for part, given in (("head", {}), ("classifier", supervised)):
        run = tmp_path / part
        run.mkdir()
        config = resolved_config(small_store, backbone=VIT, probe=None, epochs=0.5, **given)
        pretrain(config, run, World(), StopRequests())
        of_part = ("safetensors",) if given == {} else ("timm", "torchvision", "hf", "onnx")
        parts = {"backbone": ("hf", "torchvision", "safetensors"), part: of_part}
        for exported, formats in parts.items():
            for format_ in formats:
                done = export(run, tmp_path / f"{part}-{exported}-{format_}", format_, part=exported)
                assert done.difference <= 1e-5
                print(exported, format_, f"{done.difference:.1e}")
    card = (tmp_path / "classifier-classifier-timm" / "README.md").read_text()
    assert "timm.create_model('vit_tiny_patch16_224', num_classes=3, patch_size=4" in card
    encoder = ssl_dist.load_encoder(tmp_path / "head", device="cpu")
    for folder in ("head-backbone-torchvision", "head-backbone-safetensors"):
        loaded = ssl_dist.load_encoder(tmp_path / folder, device="cpu")
        assert torch.equal(loaded.embed(small_store), encoder.embed(small_store))
    trained = encoder.backbone.state_dict()
    for folder in ("head-head-safetensors", "head-backbone-hf", "head-backbone-torchvision"):
        again = pretrained.resolve(
            resolved_config(small_store, backbone={**VIT, "weights": str(tmp_path / folder)}, probe=None)
        )
        found = pretrained.read(again)
        assert all(torch.equal(tensor, found[name]) for name, tensor in trained.items())


@extras
@pytest.mark.parametrize("format_", ["torchvision", "hf"])
def test_a_vit_with_other_layers_is_refused_by_its_tensors(small_store: Path, tmp_path: Path, format_: str) -> None:
    scaled = {**VIT, "options": {**OPTIONS, "init_values": 0.1}}
    config = resolved_config(small_store, backbone=scaled)
    save(State(config.initial_method().state_dict(), {}), tmp_path / "run", 1, config)
    with pytest.raises(ExportError, match=r"ls1\.gamma"):
        export(tmp_path / "run", tmp_path / "out", format_)
    assert not (tmp_path / "out").exists()


@extras
def test_layers_of_tokens_and_of_maps_with_channels_last_are_pooled(small_store: Path) -> None:
    for network, layer in (("vit", "blocks.0"), ("swin", "layers.0")):
        config = resolved_config(small_store, backbone=NETWORKS[network], augment__size_px=32)
        method, images = config.initial_method().eval(), torch.rand(3, 3, 32, 32)
        body = method.backbone.body
        seen: list[torch.Tensor] = []
        body.get_submodule(layer).register_forward_hook(lambda _, __, out, seen=seen: seen.append(out))
        with torch.no_grad():
            found = Levels(method, [f"{LAYER}{layer}"])(images)
        expected = seen[0][:, 1:].mean(1) if network == "vit" else seen[0].mean((1, 2))
        torch.testing.assert_close(found, expected)
