"""``ssl_dist.load_encoder``: a run's encoder in a person's own code, with the features that evaluation has."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn

import ssl_dist
from ssl_dist import store as stores
from ssl_dist.backbones import Backbone
from ssl_dist.checkpoint import Checkpoints, State
from ssl_dist.checkpoint.mirror import Mirror
from ssl_dist.errors import ConfigError, SslDistError, StoreError, Unreadable
from ssl_dist.evaluate.features import encoder_of, extract
from ssl_dist.store import ImageStore
from ssl_dist.uris import join_uri
from tests.helpers import resolved_config, save_scored

PAGE = Path(__file__).parent.parent / "docs" / "encoder.md"
SCORES = {2: 0.25, 4: 0.75, 6: 0.5}


@pytest.fixture(scope="module")
def run(small_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a run's checkpoints of three steps, each with weights of its own."""
    run = tmp_path_factory.mktemp("encoder") / "run"
    save_scored(run, small_store, SCORES)
    return run


@pytest.fixture(scope="module")
def encoder(run: Path) -> ssl_dist.Encoder:
    return ssl_dist.load_encoder(run)


@pytest.fixture(scope="module")
def pixels(small_store: Path) -> np.ndarray:
    """Return the store's images, uint8 ``[51, 16, 16, 3]``."""
    return ImageStore(small_store).gather(np.arange(51))


@pytest.fixture(scope="module")
def features(run: Path, small_store: Path) -> Tensor:
    """Return the features of the store's images as evaluation computes them."""
    backbone, config, _ = encoder_of(run)
    return extract(backbone, ImageStore(small_store), np.arange(51), torch.device("cpu"), config)


def png(image: Image.Image, file: Path, **options: Any) -> Path:
    image.save(file, **options)
    return file


FORMS: dict[str, Callable[[np.ndarray, Path], Any]] = {
    "pictures": lambda pixels, _: [Image.fromarray(image) for image in pixels],
    "arrays": lambda pixels, _: list(pixels),
    "one array": lambda pixels, _: pixels,
    "floats": lambda pixels, _: pixels.astype(np.float64) / 255,
    "tensors": lambda pixels, _: torch.from_numpy(pixels).permute(0, 3, 1, 2),
    "float tensors": lambda pixels, _: (torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255).requires_grad_(),
    "an iterator": lambda pixels, _: (image for image in pixels),
    "paths": lambda pixels, folder: [
        png(Image.fromarray(image), folder / f"{number}.png") for number, image in enumerate(pixels)
    ],
    "paths as text": lambda pixels, folder: [
        str(png(Image.fromarray(image), folder / f"{number}.png")) for number, image in enumerate(pixels)
    ],
}


@pytest.mark.parametrize("form", FORMS)
def test_images_in_any_form_have_evaluations_features(
    encoder: ssl_dist.Encoder, pixels: np.ndarray, features: Tensor, tmp_path: Path, form: str
) -> None:
    counted: list[int] = []
    found = encoder.embed(FORMS[form](pixels, tmp_path), counted.append)
    assert torch.equal(found, features)
    assert sum(counted) == 51
    assert len(counted) > 1


def test_a_store_has_evaluations_features(encoder: ssl_dist.Encoder, small_store: Path, features: Tensor) -> None:
    for given in (small_store, str(small_store), ImageStore(small_store)):
        assert torch.equal(encoder.embed(given), features)


def test_it_is_a_module_in_evaluation_mode(encoder: ssl_dist.Encoder, pixels: np.ndarray, features: Tensor) -> None:
    assert isinstance(encoder, nn.Module)
    assert not any(module.training for module in encoder.modules())
    assert (encoder.dim, encoder.image_size) == (features.shape[1], 16)
    inputs = torch.stack([encoder.transform(image) for image in pixels[:12]])
    assert inputs.shape == (12, 3, 16, 16)
    assert inputs.dtype == torch.float32
    out = encoder(inputs)
    assert torch.equal(out, features[:12])
    out.square().sum().backward()
    assert all(parameter.grad is not None for parameter in encoder.parameters())
    encoder.zero_grad(set_to_none=True)


def test_embedding_leaves_a_module_in_training_as_it_was(run: Path, pixels: np.ndarray, features: Tensor) -> None:
    encoder = ssl_dist.load_encoder(run).train()
    found = encoder.embed(pixels)
    assert torch.equal(found, features)
    assert not found.requires_grad
    assert all(module.training for module in encoder.modules())


def test_images_of_another_size_are_resized_as_stores_are(encoder: ssl_dist.Encoder, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    folder = tmp_path / "images"
    folder.mkdir()
    for number, (width, height) in enumerate(((40, 30), (16, 50), (9, 11))):
        image = random.integers(64, 192, (height, width, 3), dtype=np.uint8)  # so that no pass cuts an overshoot off
        Image.fromarray(image).save(folder / f"{number}.png")
    stores.build(folder, tmp_path / "store", size_px=16, workers=1)
    files, store = sorted(folder.iterdir()), ImageStore(tmp_path / "store")
    stored = torch.from_numpy(store.gather(np.arange(3))).permute(0, 3, 1, 2).float() / 255
    for row, file in enumerate(files):
        picture = Image.open(file)
        array = np.array(picture)
        for image in (file, picture, array, torch.from_numpy(array).permute(2, 0, 1)):
            assert torch.equal(encoder.transform(image), stored[row])
        # bytes are rounded after each of the two passes, by half each; the second's weights sum to at most 1.5
        assert (encoder.transform(array / 255) - stored[row]).abs().max() < 1.3 / 255
    assert torch.equal(encoder.embed(files), encoder.embed(store))


def test_the_size_of_the_views_counts(small_store: Path, tmp_path: Path) -> None:
    """A run whose views are smaller than its stored images learned from the smaller ones."""
    config = resolved_config(small_store, probe=None, augment__size_px=8)
    Checkpoints(tmp_path).save(1, config, State(config.initial_method().state_dict(), {}))
    encoder, store = ssl_dist.load_encoder(tmp_path), ImageStore(small_store)
    assert encoder.image_size == 8
    wanted = extract(encoder.backbone, store, np.arange(51), torch.device("cpu"), config)
    assert torch.equal(encoder.embed(store), wanted)
    assert torch.equal(encoder.embed(store.gather(np.arange(51))), wanted)


def test_pictures_are_turned_and_composited_as_their_files_are(encoder: ssl_dist.Encoder, tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    colours = Image.fromarray(random.integers(0, 256, (20, 30, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    clear = colours.convert("RGBA")
    clear.putalpha(Image.fromarray(random.integers(0, 256, (20, 30), dtype=np.uint8)))
    files = [
        png(colours, tmp_path / "turned.jpg", exif=exif),
        png(clear, tmp_path / "clear.png"),
        png(colours.quantize(16), tmp_path / "palette.png", transparency=3),
        png(colours.convert("L"), tmp_path / "grey.png"),
        png(colours.convert("CMYK"), tmp_path / "cmyk.jpg"),
    ]
    for file in files:
        assert torch.equal(encoder.transform(Image.open(file)), encoder.transform(file)), file
    upright = ImageOps.exif_transpose(Image.open(files[0]))
    assert upright is not None
    assert torch.equal(encoder.transform(np.asarray(upright)), encoder.transform(files[0]))


def test_grey_arrays_are_grey_pictures(encoder: ssl_dist.Encoder) -> None:
    grey = np.random.default_rng(2).integers(0, 256, (16, 16), dtype=np.uint8)
    wanted = encoder.transform(Image.fromarray(grey))
    for image in (grey, grey[..., None], torch.from_numpy(grey), torch.from_numpy(grey)[None], grey / 255):
        assert torch.equal(encoder.transform(image), wanted)
    half = torch.full((3, 16, 16), 0.5, dtype=torch.bfloat16)
    assert torch.equal(encoder.transform(half), torch.full((3, 16, 16), 0.5))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((3, 16, 17), np.uint8), r"an image \[3, 16, 17\]: an array is \[H, W\], \[H, W, 1\] or \[H, W, 3\]"),
        (torch.zeros(16, 17, 3), r"an image \[16, 17, 3\]: a tensor is \[H, W\], \[1, H, W\] or \[3, H, W\]"),
        (torch.zeros(4, 16, 16), r"an image \[4, 16, 16\]"),
        (np.zeros((0, 5, 3), np.uint8), r"an image \[0, 5, 3\]"),
        (np.zeros((16, 16, 3), np.int64), "an image of int64: it is uint8, or floating-point"),
        (np.full((16, 16, 3), 200.0), "floating-point numbers from 200 to 200: they are in"),
        (torch.randn(3, 16, 16), "floating-point numbers from -.*: they are in"),
        (np.full((16, 16, 3), np.nan), "floating-point numbers from nan to nan"),
        ([1, 2], "a list is no image"),
        (None, "a NoneType is no image"),
    ],
)
def test_what_is_no_image_is_refused(encoder: ssl_dist.Encoder, image: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        encoder.transform(image)


def test_files_that_are_no_images_are_named(encoder: ssl_dist.Encoder, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    for file, message in (("text.png", "is a file that does not begin as an image"), ("none.png", "cannot be read")):
        with pytest.raises(Unreadable, match=f"{file} {message}"):
            encoder.embed([tmp_path / file])
    with pytest.raises(Unreadable, match="more than 8 bits a channel: pixel format I;16"):
        encoder.transform(Image.fromarray(np.zeros((16, 16), np.uint16)))
    with pytest.raises(StoreError, match="is not a store"):
        encoder.embed(tmp_path)
    with pytest.raises(ConfigError, match=r"text.png is one file: give a store, or a list"):
        encoder.embed(tmp_path / "text.png")
    with pytest.raises(ConfigError, match="one picture was given"):
        encoder.embed(Image.new("RGB", (16, 16)))
    for one in (np.zeros((16, 16, 3), np.uint8), torch.zeros(3, 16, 16), torch.zeros(16, 16), np.zeros((5, 16, 16))):
        with pytest.raises(ConfigError, match=r"may be one image or several"):
            encoder.embed(one)
    assert encoder.embed([]).shape == (0, encoder.dim)


def weights(encoder: ssl_dist.Encoder) -> Tensor:
    return next(encoder.parameters()).detach()


def of_step(small_store: Path, step: int) -> Tensor:
    backbone: Backbone = resolved_config(small_store).model_copy(update={"seed": step}).initial_method().backbone
    return next(backbone.parameters()).detach()


CHOICES: list[tuple[Any, int]] = [("newest", 6), ("best", 4), (2, 2)]


@pytest.mark.parametrize(("choice", "step"), CHOICES)
def test_a_checkpoint_is_chosen(run: Path, small_store: Path, choice: Any, step: int) -> None:
    wanted = of_step(small_store, step)
    assert torch.equal(weights(ssl_dist.load_encoder(run, choice)), wanted)
    one = ssl_dist.load_encoder(run / "checkpoints" / f"step-{step:08d}", device="cpu")
    assert torch.equal(weights(one), wanted)


@pytest.fixture(scope="module")
def mirror(run: Path, bucket: str) -> str:
    """Copy the run's checkpoints into a bucket; return the run's URI there."""
    uri = join_uri(bucket, "encoder")
    for path in Checkpoints(run).list():
        Mirror(uri).put(path, last="checkpoint.json")
    return uri


@pytest.mark.parametrize(("choice", "step"), CHOICES)
def test_a_mirror_is_read(mirror: str, small_store: Path, choice: Any, step: int) -> None:
    wanted = of_step(small_store, step)
    assert torch.equal(weights(ssl_dist.load_encoder(mirror, choice)), wanted)
    assert torch.equal(weights(ssl_dist.load_encoder(join_uri(mirror, f"step-{step:08d}"))), wanted)


def test_the_copy_of_a_mirror_is_deleted(mirror: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    ssl_dist.load_encoder(mirror)
    assert not list(tmp_path.iterdir())


def test_what_is_no_run_is_said(run: Path, mirror: str, bucket: str, tmp_path: Path) -> None:
    wrong: list[tuple[Any, Any, str]] = [
        (tmp_path / "nowhere", "newest", "is not a run directory"),
        (run, 3, "has no checkpoint of step 3; the steps are: 6, 4, 2"),
        (mirror, 3, r"encoder has no checkpoint of step 3; the steps are: 6, 4, 2"),
        (join_uri(bucket, "nothing"), "newest", "nothing holds no checkpoint"),
        (join_uri(bucket, "nothing"), "best", "nothing has the online probe's score"),
        (join_uri(mirror, "step-00000002"), "best", "is one checkpoint, and best chooses among a run's"),
        (join_uri(mirror, "step-00000003"), "newest", "step-00000003 cannot be read"),
        ("ftp://host/run", "newest", "cannot hold checkpoints"),
    ]
    for place, choice, message in wrong:
        with pytest.raises(SslDistError, match=message) as caught:
            ssl_dist.load_encoder(place, choice)
        assert "secret" not in str(caught.value)


def test_a_users_script_imports_what_it_needs(run: Path, small_store: Path, tmp_path: Path) -> None:
    content = io.BytesIO()
    Image.new("RGB", (30, 20), "red").save(content, "JPEG")
    (tmp_path / "red.jpg").write_bytes(content.getvalue())
    code = f"""
import sys
import ssl_dist
encoder = ssl_dist.load_encoder({str(run)!r})
features = encoder.embed(["red.jpg"])
heavy = ("ray", "deepspeed", "cluster", "torchvision", "torch._dynamo")
print(tuple(features.shape), [name for name in heavy if name in sys.modules])
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path).stdout
    assert out == f"(1, {ssl_dist.load_encoder(run).dim}) []\n"


def test_the_pages_lines_run(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "cifar10").symlink_to(run)
    (tmp_path / "photos").mkdir()
    for file in ("cat.jpg", "dog.png"):
        Image.new("RGB", (30, 20), "red").save(tmp_path / "photos" / file)
    here: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL):
        exec(block, here)
    assert here["features"].shape == (2, here["encoder"].dim)
    assert here["classifier"](torch.rand(2, 3, 16, 16)).shape == (2, 10)
