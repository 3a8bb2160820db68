"""The settings of a run, section by section; each section checks what it can know by itself."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Any, Literal

import pydantic

from ssl_dist import backbones
from ssl_dist.augment import OPERATIONS, POLICIES, Policy, View, with_only
from ssl_dist.errors import ConfigError
from ssl_dist.reading import settle
from ssl_dist.store.remote import DEFAULT_CACHE_GB

CheckpointChoice = Literal["newest", "best"] | Annotated[int, pydantic.Field(ge=0)]
"""Which of a run's checkpoints: the newest, the one with the best online probe, or that of a step."""


class Section(pydantic.BaseModel):
    """Base of all sections: a section is frozen, and an unknown key is an error."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    @pydantic.field_validator("*", mode="before")
    @classmethod
    def _settle(cls, value: Any, info: pydantic.ValidationInfo) -> Any:
        """Interpret a value that stands in a recipe or in ``--set`` by the setting's type."""
        try:
            return settle(value, cls.model_fields[str(info.field_name)].annotation)
        except ConfigError as error:
            raise ValueError(str(error)) from None


class DataConfig(Section):
    """The images to pretrain on, and their order."""

    store: str
    """Folder of the image store, or its URI (`s3://bucket/store`)."""
    label_file: str | None = None
    """A `.npy` file of one whole number for each image (-1: no label; -2: a method that learns from labels does not see
    the image at all); `None`: the labels in the store."""
    stratified: bool = False
    """Balance each batch over the labels: no label has more than 2 images more than another. Images without a label are
    left out. Where the method sees some labels only, this holds for the labelled images of the batch."""
    damaged: Literal["refuse", "skip"] = "refuse"
    """Response to images that differ from their checksum: end the run, or train on
    others in their place (not in a remote store)."""
    order: Literal["full", "shards"] = "full"
    """Order of an epoch: a permutation of all images (full), or of the shards, and of the images within windows of
    shards (shards), for a remote store that is larger than the cache."""
    window: int = pydantic.Field(2**18, ge=1)
    """Approximate number of images in a window, where `order` is shards."""
    cache: str | None = None
    """Folder on this machine for shards of a remote store; `None`: in the user's cache directory."""
    cache_gb: float = pydantic.Field(DEFAULT_CACHE_GB, gt=0, le=1e6)
    """Largest size of that folder in GB; two windows should fit."""

    @pydantic.model_validator(mode="after")
    def _check_order(self) -> DataConfig:
        if self.stratified and self.order == "shards":
            raise ValueError(
                "data.stratified with data.order shards: a batch with images of each label needs them from anywhere in"
                " the store, not from a window of it: set data.order=full or data.stratified=false"
            )
        return self


START_SHARE = 0.7
"""Share of a run's steps with small views, where a recipe names their side alone."""


class AugmentConfig(Section):
    """The random views of an image: a named augmentation policy, and settings that replace its own in all views."""

    recipe: str = "simclr"
    """Name of the augmentation policy: simclr, simclr-small, mocov2, byol, byol-small, weak-strong, weak, strong, none,
    swav, swav-96 or swav-small."""
    only: tuple[str, ...] | None = None
    """Names of the operations that happen: crop, flip, rotation, colour, grey, blur, solarise; an empty list gives
    whole images, resized. `None`: the policy's operations."""
    size_px: int | None = None
    """Side of the views in pixels, 1 or more; `None`: the policy's, or else the stored images' height."""
    start_px: int | None = pydantic.Field(None, ge=1)
    """Side of the views in pixels in the first part of a run, smaller than later: small views cost less time
    (progressive resizing, arXiv 2104.00298). It takes a policy whose views have one size. `None`: the same side
    throughout."""
    start_share: float | None = pydantic.Field(None, gt=0, lt=1)
    """Share of the run's steps whose views have the side `start_px`, 0 < share < 1; `None`: 0.7."""
    crop_p: float | None = None
    """Probability of a crop; `None`: the policy's."""
    crop_scale: tuple[float, float] | None = None
    """Range of the crop's share of the image's area, 0 < low <= high <= 1; `None`: the policy's."""
    crop_ratio: tuple[float, float] | None = None
    """Range of the crop's width divided by its height, 0 < low <= high; `None`: the policy's."""
    flip_p: float | None = None
    """Probability of a horizontal flip; `None`: the policy's."""
    rotation_p: float | None = None
    """Probability of a rotation by 90, 180 or 270 degrees; `None`: the policy's."""
    jitter_p: float | None = None
    """Probability of colour jitter; `None`: the policy's."""
    jitter_strength: float | None = None
    """Strength of the colour jitter, 0 to 1.25; `None`: the policy's."""
    grey_p: float | None = None
    """Probability of a grey view; `None`: the policy's."""
    blur_p: float | None = None
    """Probability of a Gaussian blur; `None`: the policy's."""
    blur_sigma: tuple[float, float] | None = None
    """Range of the blur's standard deviation in pixels of the view, 0 < low <= high; `None`: the policy's."""
    solarise_p: float | None = None
    """Probability of solarising (values of 0.5 and more are inverted); `None`: the policy's."""
    jitter_saturation: float | None = None
    """Largest change of saturation, 0 to 1; `None`: the policy's."""

    @pydantic.field_validator("only")
    @classmethod
    def _sort_operations(cls, names: tuple[str, ...] | None) -> tuple[str, ...] | None:
        unknown = sorted(set(names or ()) - set(OPERATIONS))
        if unknown:
            raise ValueError(f"augment.only {', '.join(map(repr, unknown))}: each is one of {', '.join(OPERATIONS)}")
        return None if names is None else tuple(name for name in OPERATIONS if name in names)

    @pydantic.model_validator(mode="after")
    def _check_policy(self) -> AugmentConfig:
        if self.recipe not in POLICIES:
            raise ValueError(f"augment.recipe {self.recipe!r}: it is one of {', '.join(POLICIES)}")
        for name in self.only or ():
            key, usual = OPERATIONS[name]
            if getattr(self, key) == 0:
                raise ValueError(f"augment.only names {name} and augment.{key} is 0: leave one out, or try {usual}")
        if self.start_share is not None and self.start_px is None:
            raise ValueError(f"augment.start_share {self.start_share:g} without augment.start_px: set both, or neither")
        views = self.views()
        if self.start_px is not None and len({view.size_px for view in views}) > 1:
            raise ValueError(
                f"augment.start_px with augment.recipe {self.recipe}, whose views have several sizes: leave it out"
            )
        return self

    def is_small(self, done: float) -> bool:
        """Return whether views have the side ``start_px`` in a step before which ``done`` (a share) are done."""
        return self.start_px is not None and done < (self.start_share or START_SHARE)

    def without_small_views(self) -> AugmentConfig:
        """Return the settings of a run whose views have the last side throughout."""
        return self.model_copy(update={"start_px": None, "start_share": None})

    def views(self, done: float = 1.0) -> Policy:
        """Return the policy with the replacements in it, of a step before which ``done`` of the run's steps are done.

        Args:
            done: a share; 1: the policy of the last step, and of all evaluation.
        """
        given = self.model_dump(exclude={"recipe", "only", "start_px", "start_share"}, exclude_none=True)
        if self.is_small(done):
            given["size_px"] = self.start_px
        views = tuple(View.model_validate({**view.model_dump(), **given}) for view in POLICIES[self.recipe])
        return views if self.only is None else with_only(views, self.only)


class Normalisation(Section):
    """Mean and standard deviation of each channel, for pixels in [0, 1]."""

    mean: tuple[float, float, float]
    """Means that are subtracted from red, green and blue, for pixels in [0, 1]."""
    std: tuple[pydantic.PositiveFloat, pydantic.PositiveFloat, pydantic.PositiveFloat]
    """Standard deviations by which these are divided, each greater than 0."""


class BackboneConfig(Section):
    """The network that is pretrained, and the weights it starts from."""

    name: str = "resnet50"
    """Name of the backbone: convnet, autoencoder, resnet8, resnet20, wrn45-2, a torchvision classification model, or
    timm/NAME, where timm is installed."""
    stem: backbones.Stem = "standard"
    """First layers of a ResNet: 7x7 with stride 2 and pooling (standard), 3x3 (small), or 3x3 with stride 2 (half).
    Other backbones take standard only."""
    width: int | None = pydantic.Field(None, ge=1)
    """Channels of the first stage of resnet8 and resnet20; `None`: 16. Other backbones take no width."""
    dropout: float = pydantic.Field(0.0, ge=0, lt=1)
    """Dropout after each ReLU of the convnet; other backbones take none."""
    options: dict[str, Any] = pydantic.Field({})
    """Options of a network of timm, which `timm.create_model` takes: `{patch_size: 4, drop_path_rate: 0.1}`. Others
    take none."""
    weights: str | None = None
    """Weights to start from: the directory of a run, of its checkpoints or of one checkpoint; or a file of safetensors
    or of `torch.save`, from torchvision, timm, transformers or a method's authors (docs/weights.md); `None`: random
    weights."""
    allow_missing: tuple[Annotated[str, pydantic.Field(min_length=1)], ...] = ()
    """Names of tensors, or how their names begin, that only the file `weights` or only the network may have: they are
    left out of the one, and stay random in the other. All others have to match."""
    position_embeddings: Literal["same", "interpolate"] = "same"
    """Position embeddings of a ViT's `weights` for images of another size: refused (same), or resized (interpolate)."""
    checkpoint: CheckpointChoice = "newest"
    """The checkpoint of the run that `weights` names: the newest, the one with the best online probe, or that of a
    step."""
    normalisation: Literal["none", "imagenet", "inception"] | Normalisation | None = None
    """Normalisation of images before the first layer, by ImageNet's mean and standard deviation, to [-1, 1]
    (inception), by others, or none: pixels in [0, 1]. Weights need the one that they learned with. `None`: the one of
    the weights that training starts from, where they tell it, and none for random weights."""

    @pydantic.field_validator("options", mode="before")
    @classmethod
    def _settle_options(cls, value: Any) -> Any:
        return settle(value)  # no types are known for them

    def build(self, image_size: int | None = None, other_sizes: backbones.Sizes = ()) -> backbones.Backbone:
        """Build the backbone with random weights, as ``backbones.build`` does."""
        backbone = backbones.build(image_size=image_size, other_sizes=other_sizes, **self._network)
        if isinstance(self.normalisation, Normalisation):
            backbone.normalisation = (self.normalisation.mean, self.normalisation.std)
        else:
            backbone.normalisation = backbones.KNOWN_INPUTS.get(self.normalisation or "none")
        return backbone

    @property
    def _network(self) -> dict[str, Any]:
        return self.model_dump(include={"name", "stem", "width", "dropout", "options"})

    def check(self, image_sizes: Collection[int]) -> None:
        """Check that the backbone exists and takes images of these sizes.

        Raises:
            ConfigError: it does not.
        """
        backbones.check(image_sizes=image_sizes, **self._network)

    def expect_features(self, image_sizes: Collection[int]) -> None:
        """Check what is only known once the backbone is built, see ``backbones.expect_features``."""
        backbones.expect_features(self.name, image_sizes, self.options)


class BatchConfig(Section):
    """The images of a training step."""

    size: int = pydantic.Field(256, ge=2)
    """Images of the global batch, over all workers; a multiple of `micro`."""
    micro: int = pydantic.Field(256, ge=1)
    """Images of a micro-batch, which are embedded together and have BatchNorm statistics of their own."""
    labelled: int = pydantic.Field(0, ge=0)
    """Labelled images of the batch, for methods that learn from some labels."""
    keep_graphs: Literal["auto"] | Annotated[int, pydantic.Field(ge=0)] = "auto"
    """Micro-batches that a worker embeds once, because it keeps their activations until the loss of the whole batch is
    known. The others are embedded a second time after that; if it is all of them, a step takes a third longer. auto: as
    many as fit into half of the free memory, shared by as many workers as the cores are for, or into 0.9 of a GPU's;
    none at ZeRO stage 3. The result is the same, to the last bit unless the backbone is compiled."""

    @pydantic.model_validator(mode="after")
    def _check_multiples(self) -> BatchConfig:
        if self.size % self.micro:
            size, micro = self.size - self.size % self.micro, math.gcd(self.size, self.micro)
            tries = (f"batch.size={size} or " if size else "") + f"batch.micro={micro}"
            raise ValueError(f"batch.size {self.size} is not a multiple of batch.micro {self.micro}: try {tries}")
        if self.labelled * self.micro % self.size:
            raise ValueError(
                f"batch.labelled {self.labelled} must be a multiple of {self.num_micro}: each of the {self.num_micro}"
                " micro-batches gets equally many labelled images"
            )
        return self

    @property
    def num_micro(self) -> int:
        """Micro-batches of the global batch."""
        return self.size // self.micro


class EngineConfig(Section):
    """Computation of a step. Up to rounding, these settings do not change the trained model."""

    precision: Literal["fp32", "bf16"] = "bf16"
    """Numbers of the forward and backward passes; weights and optimizer state stay fp32."""
    zero_stage: Literal[0, 1, 2, 3] = 1
    """DeepSpeed's ZeRO: workers divide nothing (0), the optimizer state (1), also gradients (2), also weights (3)."""
    memory_format: Literal["auto", "channels_last", "contiguous"] = "auto"
    """Order of an image's values in memory, which a convolution's speed depends on: channel by channel (contiguous) or
    pixel by pixel (channels_last); auto: channels_last on a GPU in bf16, otherwise contiguous."""
    compile: Literal["off", "default", "max-autotune"] = "off"
    """Mode in which torch.compile compiles the backbone's training pass at the start of a run, and again where views
    become larger, which takes time; off: not. Where there is no compiler, the log says so and nothing is compiled."""
    deterministic: bool = False
    """Whether a GPU computes the same bits each time, by slower algorithms where it must. A CPU always does."""


class ProbeConfig(Section):
    """The online probe: a measure of the encoder while training continues."""

    kind: Literal["knn", "linear", "rankme", "lidar", "validation"] = "knn"
    """Accuracy of a kNN or linear classifier on held-out labels, or (without labels) the effective rank of embeddings
    by RankMe or LiDAR; or accuracy and loss of the method's own classifier on the images of `label_file`
    (validation)."""
    every_epochs: float = pydantic.Field(1, gt=0)
    """Epochs between two measurements."""
    bank: int = pydantic.Field(4096, ge=1)
    """Images that the classifier learns from, or whose rank is measured."""
    queries: int = pydantic.Field(1024, ge=1)
    """Other images that it classifies (knn, linear)."""
    k: int = pydantic.Field(20, ge=1)
    """Neighbours that vote (knn)."""
    label_file: str | None = None
    """A `.npy` file like `data.label_file`, with the labels of images that the method is validated on and learns no
    label of (validation)."""
    patience: int | None = pydantic.Field(None, ge=1)
    """Measurements in succession without a lower loss, after which the run ends early (validation); `None`: it does
    not."""

    @pydantic.model_validator(mode="after")
    def _check_validation(self) -> ProbeConfig:
        if self.kind == "validation" and self.label_file is None:
            raise ValueError("probe.kind validation needs labels of its own: name their file in probe.label_file")
        if self.kind != "validation" and (self.label_file is not None or self.patience is not None):
            key = "patience" if self.label_file is None else "label_file"
            raise ValueError(f"probe.{key} is for probe.kind validation, and it is {self.kind}: leave it out")
        return self

    def gives_up(self, losses: Sequence[float]) -> bool:
        """Tell whether the run ends after these validation losses, because none of the last ones was lower."""
        if self.patience is None or not losses:
            return False
        return len(losses) - 1 - losses.index(min(losses)) >= self.patience

    @property
    def tag(self) -> str:
        """Name of the probe's values in metrics.jsonl and TensorBoard."""
        return f"probe/{self.kind}"


class CheckpointConfig(Section):
    """Checkpoints of the whole training state."""

    every_epochs: float = pydantic.Field(1, gt=0)
    """Epochs between two checkpoints; there is one more at the end."""
    keep: int = pydantic.Field(2, ge=1)
    """Number of newest checkpoints that are kept."""
    keep_best: int = pydantic.Field(1, ge=0)
    """Number of checkpoints with the best online probe that are kept, whether or not they are among the newest."""
    mirror: str | None = None
    """URI of a folder (`s3://bucket/folder`) for copies of the checkpoints, under the run's name; `None`: no copies."""


class ProjectorConfig(Section):
    """Embeddings of some images, with thumbnails and labels, for the projector of TensorBoard."""

    every_epochs: float = pydantic.Field(10, gt=0)
    """Epochs between two sets of embeddings; one more is of the initial weights, and one of the last ones."""
    images: int = pydantic.Field(2000, ge=10, le=10_000)
    """Images of the store that are embedded, spread over it; the projector becomes slow with more than 5,000."""


class MonitorConfig(Section):
    """Metrics in metrics.jsonl, TensorBoard and other boards."""

    every_steps: int = pydantic.Field(10, ge=1)
    """Steps between two lines of metrics."""
    hparams: tuple[str, ...] | None = None
    """Dotted keys that TensorBoard's HParams tab and other boards show; `None`: all."""
    projector: ProjectorConfig | None = None
    """Embeddings for TensorBoard's projector; `None`: none."""
    also: tuple[Literal["wandb", "mlflow"], ...] = ()
    """Boards beside TensorBoard that get the same numbers: Weights & Biases (wandb) and MLflow (mlflow), each an extra
    to install."""
    profile_steps: int = pydantic.Field(0, ge=0)
    """Steps after the first five of a start that are profiled, into RUN/profile; `pretrain --profile` shows them."""


class Workers(Section):
    """The number of workers; a plain number stands for both bounds."""

    min: int = pydantic.Field(1, ge=1)
    """Fewest workers with which a run starts or continues."""
    max: int = pydantic.Field(1, ge=1)
    """Most workers; if `min` is smaller, a run continues with as many as there is room for."""

    @pydantic.model_validator(mode="before")
    @classmethod
    def _expand_number(cls, value: Any) -> Any:
        return value if isinstance(value, (Mapping, Workers)) else {"min": value, "max": value}

    @pydantic.model_validator(mode="after")
    def _check_bounds(self) -> Workers:
        if self.max < self.min:
            raise ValueError(f"cluster.workers {{min: {self.min}, max: {self.max}}}: max must not be below min")
        return self


class ClusterConfig(Section):
    """Ray resources of a run. These settings decide how fast a run is, not which model is trained."""

    workers: Workers = Workers()
    """Number of workers: a plain number, or `{min: 1, max: 4}`. With two bounds, a run that loses a worker or gains a
    node continues from its newest checkpoint with as many workers as there is room for."""
    cpus_per_worker: float = pydantic.Field(1, gt=0)
    """CPU cores of each worker."""
    gpu: bool = False
    """Give each worker a GPU."""
    max_failures: int = pydantic.Field(3, ge=0)
    """Restarts of the workers before the run gives up."""
    resize_every_s: float = pydantic.Field(60, gt=0)
    """Seconds between two checks for room for more workers."""
    dashboard_port: int | None = pydantic.Field(None, ge=1, le=65535)
    """Port of the dashboard of a Ray that is started here; `None`: no dashboard."""
