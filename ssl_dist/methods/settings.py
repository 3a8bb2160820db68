"""The settings of each pretraining method, and what it needs of a run. Torch is not needed to check them."""

from __future__ import annotations

import re
from typing import Annotated, ClassVar, Literal

import pydantic

from ssl_dist.augment import Policy
from ssl_dist.settings import BatchConfig, Section


class MethodConfig(Section):
    """Base of all methods' settings.

    Attributes:
        uses_labels: which images' labels the method sees: none, all, or those of ``batch.labelled`` images ("some").
        needs_map: whether the backbone must be a ``ConvolutionalBackbone``.
        num_views: fewest and most views of an image that the method takes; None: no upper bound.
        multi_crop: whether views may differ in size.
        least_micro: fewest images of a micro-batch; BatchNorm needs two values or more.
    """

    uses_labels: ClassVar[Literal["none", "some", "all"]] = "none"
    needs_map: ClassVar[bool] = False
    num_views: ClassVar[tuple[int, int | None]] = (2, 2)
    multi_crop: ClassVar[bool] = False
    least_micro: ClassVar[int] = 1

    name: str
    """Name of the method."""

    @classmethod
    def takes(cls, policy: Policy) -> bool:
        """Tell whether the method takes the policy's views, by their number and sizes."""
        fewest, most = cls.num_views
        one_size = len({view.size_px for view in policy}) == 1
        return (cls.multi_crop or one_size) and fewest <= len(policy) <= (most or len(policy))

    def check(self, epochs: float, batch: BatchConfig) -> None:
        """Check the settings against the run's length and batch.

        Raises:
            ValueError: a setting makes no sense in such a run.
        """


# The descriptions stand in the types, so that a method may change a default and keep them.
HeadLayers = Annotated[int, pydantic.Field(ge=1, le=3, description="Number of linear layers of the projection head.")]
HeadHidden = Annotated[
    Annotated[int, pydantic.Field(ge=1)] | None,
    pydantic.Field(description="Features of the projection head's hidden layers; `None`: as many as the backbone has."),
]
HeadDim = Annotated[int, pydantic.Field(ge=1, description="Features that the projection head gives.")]


class ProjectionConfig(MethodConfig):
    """Settings of a method with a projection head."""

    projection_layers: HeadLayers = 2
    projection_hidden: HeadHidden = None
    projection_dim: HeadDim = 128


class BarlowTwinsConfig(ProjectionConfig):
    """Settings of Barlow Twins.

    Defaults are those of the authors' code for ImageNet (the paper, section 2.2, rounds the weight to 5e-3).
    """

    least_micro = 2  # BatchNorm sees each view by itself

    name: Literal["barlow_twins"] = "barlow_twins"
    redundancy_weight: float = pydantic.Field(0.0051, ge=0)
    """Weight of the correlations between different features (lambda), 0 or more."""
    projection_layers: HeadLayers = 3
    projection_hidden: HeadHidden = 8192
    projection_dim: HeadDim = 8192


class BYOLConfig(ProjectionConfig):
    """Settings of BYOL. Defaults are the paper's for ImageNet (section 3, "Implementation details")."""

    least_micro = 2  # BatchNorm sees each view by itself

    name: Literal["byol"] = "byol"
    momentum: float = pydantic.Field(0.996, ge=0, le=1)
    """Share of its weights that the slow copy keeps in the first step, 0 to 1; it rises to 1 over the run."""
    projection_hidden: HeadHidden = 4096
    projection_dim: HeadDim = 256


class DenoisingConfig(MethodConfig):
    """Settings of the denoising autoencoder. Defaults are those of G-SimCLR's code."""

    num_views = (1, None)
    needs_map = True

    name: Literal["denoising"] = "denoising"
    noise: float = pydantic.Field(0.01, ge=0)
    """Standard deviation of the noise, for pixels in [0, 1]; 0: no noise."""


class FixMatchConfig(MethodConfig):
    """Settings of FixMatch. Defaults are the paper's, except the threshold (the paper has 0.95)."""

    uses_labels = "some"

    name: Literal["fixmatch"] = "fixmatch"
    num_classes: int | None = pydantic.Field(None, ge=2)
    """Number of classes, 2 or more; `None`: as many as the store and its labels have."""
    threshold: float | None = pydantic.Field(None, gt=0, lt=1)
    """Least probability, between 0 and 1, at which a predicted class becomes a label; `None`: every one does."""
    unlabelled_weight: float = pydantic.Field(1.0, ge=0)
    """Weight of the unlabelled images' loss, 0 or more."""


class MoCoConfig(ProjectionConfig):
    """Settings of MoCo v2. Defaults are its for ImageNet."""

    name: Literal["moco"] = "moco"
    temperature: float = pydantic.Field(0.2, gt=0)
    """Temperature by which similarities are divided, greater than 0."""
    queue: int = pydantic.Field(65536, ge=1)
    """Number of earlier keys that a query repels, 1 or more."""
    momentum: float = pydantic.Field(0.999, ge=0, le=1)
    """Share of its weights that the slow encoder keeps in a step, 0 to 1."""
    symmetric: bool = False
    """Whether each of the two views is a query once; otherwise the first view is the query."""
    batch_norm_groups: int = pydantic.Field(4, ge=1)
    """Groups of a micro-batch that have BatchNorm statistics of their own; 1: no shuffling."""

    def check(self, epochs: float, batch: BatchConfig) -> None:
        groups = self.batch_norm_groups
        if batch.micro < 2 * groups:
            raise ValueError(
                f"batch.micro {batch.micro}: method moco needs two images for each of its {groups}"
                f" batch_norm_groups, and {groups**2} images so that a query and its key share one: set batch.micro"
                f" to {groups**2} or more, or method.batch_norm_groups lower"
            )


class SelfClassifierConfig(ProjectionConfig):
    """Settings of Self-Classifier.

    Defaults are the paper's for ImageNet, except ``classes`` (the paper has 1000, 2000, 4000 and 8000).
    """

    num_views = (2, None)
    multi_crop = True

    name: Literal["self_classifier"] = "self_classifier"
    classes: tuple[Annotated[int, pydantic.Field(ge=2)], ...] = pydantic.Field((800,), min_length=1)
    """Number of classes of each classifier, 2 or more; one entry is one classifier."""
    row_temperature: float = pydantic.Field(0.1, gt=0)
    """Temperature of p(class | image), greater than 0."""
    column_temperature: float = pydantic.Field(0.05, gt=0)
    """Temperature of p(image | class), greater than 0."""
    projection_hidden: HeadHidden = 4096


class SimCLRConfig(ProjectionConfig):
    """Settings of SimCLR.

    Defaults are the paper's for ImageNet, except the temperature (the paper takes 0.5 for CIFAR-10).
    """

    name: Literal["simclr"] = "simclr"
    temperature: float = pydantic.Field(0.1, gt=0)
    """Temperature by which similarities are divided, greater than 0."""
    similarity: Literal["cosine", "dot"] = "cosine"
    """Similarity of two embeddings: their cosine, or their dot product."""


class SupervisedConfig(MethodConfig):
    """Settings of supervised learning, and of fine-tuning where training starts from weights (`backbone.weights`)."""

    num_views = (1, None)
    uses_labels = "all"

    name: Literal["supervised"] = "supervised"
    num_classes: int | None = pydantic.Field(None, ge=2)
    """Number of classes, 2 or more; `None`: as many as the store and its labels have."""
    label_smoothing: float = pydantic.Field(0.0, ge=0, lt=1)
    """Share of a label's probability that is spread evenly over all classes, 0 <= share < 1."""
    unfreeze: str = "all"
    """The layers that are trained: head (the classifier alone), all, or last:N for the last N, of which the classifier
    is the first and the backbone's last stage the second. The others stay as they are, BatchNorm's statistics too."""
    hidden: int | None = pydantic.Field(None, ge=1)
    """Features of the classifier's hidden layer, which a ReLU follows; `None`: a linear classifier."""
    anew: bool = False
    """Whether the backbone's trained layers start from random weights and not from `backbone.weights`, with
    `unfreeze` last:N."""

    @pydantic.field_validator("unfreeze")
    @classmethod
    def _check_unfreeze(cls, value: str) -> str:
        if not re.fullmatch(r"head|all|last:[1-9]\d{0,5}", value):
            raise ValueError(f"method.unfreeze {value!r}: it is head, all, or last:N with N of 1 or more, as last:2")
        return value

    @property
    def num_trained(self) -> int | None:
        """Number of layers that are trained, of which the classifier is one; None: all."""
        return {"head": 1, "all": None}.get(self.unfreeze, int(self.unfreeze.partition(":")[2] or 0))

    def check(self, epochs: float, batch: BatchConfig) -> None:
        if self.anew and (self.num_trained or 1) < 2:
            raise ValueError(
                f"method.anew with method.unfreeze {self.unfreeze}: the backbone's last layers start anew, and others"
                " keep their weights: set method.unfreeze to last:N, as last:2"
            )


class SwAVConfig(ProjectionConfig):
    """Settings of SwAV.

    Defaults are the paper's for ImageNet with a batch of 4,096; for a batch of 256 it has a queue of 3,840.
    """

    num_views = (2, None)
    multi_crop = True

    name: Literal["swav"] = "swav"
    temperature: float = pydantic.Field(0.1, gt=0)
    """Temperature by which scores are divided, greater than 0."""
    prototypes: int = pydantic.Field(3000, ge=2)
    """Number of prototypes, 2 or more."""
    epsilon: float = pydantic.Field(0.05, gt=0)
    """Temperature of the codes (Sinkhorn-Knopp), greater than 0; the smaller, the harder the codes."""
    sinkhorn_iterations: int = pydantic.Field(3, ge=1)
    """Iterations of Sinkhorn-Knopp, 1 or more."""
    freeze_prototypes_epochs: float = pydantic.Field(1, ge=0)
    """Epochs at the start in which prototypes are not trained, 0 or more."""
    queue: int = pydantic.Field(0, ge=0)
    """Number of earlier embeddings that take part in the assignment; 0: none."""
    queue_from_epoch: float = pydantic.Field(15, ge=0)
    """Epoch from which on the queue is used, 0 or more; a queue that is not full is never used."""

    def check(self, epochs: float, batch: BatchConfig) -> None:
        if self.freeze_prototypes_epochs >= epochs:
            raise ValueError(
                f"method.freeze_prototypes_epochs {self.freeze_prototypes_epochs:g}: prototypes would learn nothing"
                f" in a run of {epochs:g} epochs: set it lower"
            )
        if self.queue and self.queue_from_epoch >= epochs:
            raise ValueError(
                f"method.queue_from_epoch {self.queue_from_epoch:g}: the queue would never be used in a run of"
                f" {epochs:g} epochs: set it lower, or method.queue=0"
            )


class VICRegConfig(ProjectionConfig):
    """Settings of VICReg. Defaults are the paper's for ImageNet (section 4.2)."""

    least_micro = 2  # BatchNorm sees each view by itself

    name: Literal["vicreg"] = "vicreg"
    invariance_weight: float = pydantic.Field(25.0, ge=0)
    """Weight of the distance between two views of an image (lambda), 0 or more."""
    variance_weight: float = pydantic.Field(25.0, ge=0)
    """Weight of features that vary too little over the batch (mu), 0 or more."""
    covariance_weight: float = pydantic.Field(1.0, ge=0)
    """Weight of features that vary together (nu), 0 or more."""
    projection_layers: HeadLayers = 3
    projection_hidden: HeadHidden = 8192
    projection_dim: HeadDim = 8192
