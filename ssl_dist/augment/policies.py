"""Augmentation policies: the settings of one view, and the papers' sets of views by name."""

from __future__ import annotations

from collections.abc import Collection

import pydantic


class View(pydantic.BaseModel):
    """Settings of one view's random operations. Ranges are those of torchvision's parameters."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    size_px: int | None = pydantic.Field(None, ge=1)
    """Side of the view in pixels; `None`: the stored images' height."""
    crop_p: float = pydantic.Field(1.0, ge=0, le=1)
    """Probability of a crop; an image that is not cropped is resized as a whole."""
    crop_scale: tuple[float, float] = (0.08, 1.0)
    """Range of the crop's share of the image's area, 0 < low <= high <= 1."""
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Range of the crop's width divided by its height, 0 < low <= high."""
    flip_p: float = pydantic.Field(0.5, ge=0, le=1)
    """Probability of a horizontal flip."""
    rotation_p: float = pydantic.Field(0.0, ge=0, le=1)
    """Probability of a rotation by 90, 180 or 270 degrees, each equally likely."""
    jitter_p: float = pydantic.Field(0.8, ge=0, le=1)
    """Probability of colour jitter (brightness, contrast, saturation, hue)."""
    jitter_strength: float = pydantic.Field(1.0, ge=0, le=1.25)
    """Strength of the colour jitter, 0 to 1.25: times 0.8 for brightness, contrast and saturation, 0.2 for hue."""
    jitter_saturation: float | None = pydantic.Field(None, ge=0, le=1)
    """Largest change of saturation, 0 to 1; `None`: 0.8 times `jitter_strength`."""
    grey_p: float = pydantic.Field(0.2, ge=0, le=1)
    """Probability of a grey view."""
    blur_p: float = pydantic.Field(0.5, ge=0, le=1)
    """Probability of a Gaussian blur."""
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    """Range of the blur's standard deviation in pixels of the view, 0 < low <= high."""
    solarise_p: float = pydantic.Field(0.0, ge=0, le=1)
    """Probability of solarising: values of 0.5 and more are inverted."""

    @pydantic.model_validator(mode="after")
    def _check_ranges(self) -> View:
        low, high = self.crop_scale
        if not 0 < low <= high <= 1:
            raise ValueError(f"crop_scale {self.crop_scale}: two shares of the area, 0 < low <= high <= 1")
        for name, (low, high) in {"crop_ratio": self.crop_ratio, "blur_sigma": self.blur_sigma}.items():
            if not 0 < low <= high:
                raise ValueError(f"{name} {(low, high)}: 0 < low <= high")
        return self


Policy = tuple[View, ...]  # one entry for each view of an image

# Each operation's setting, and the value that ``with_only`` gives it in a policy that does not have the operation.
OPERATIONS: dict[str, tuple[str, float]] = {
    "crop": ("crop_p", 1.0),
    "flip": ("flip_p", 0.5),
    "rotation": ("rotation_p", 0.75),  # 0, 90, 180 and 270 degrees are equally likely
    "colour": ("jitter_p", 0.8),
    "grey": ("grey_p", 0.2),
    "blur": ("blur_p", 0.5),
    "solarise": ("solarise_p", 0.2),
}


def with_only(policy: Policy, operations: Collection[str]) -> Policy:
    """Return the policy with only these of OPERATIONS, as for the pairs of SimCLR's figure 5.

    An operation that no view of the policy has gets its usual probability. Without any operation, views are whole
    images, resized.
    """
    update: dict[str, float] = {}
    for operation, (key, usual) in OPERATIONS.items():
        if operation not in operations:
            update[key] = 0.0
        elif not any(getattr(view, key) for view in policy):
            update[key] = usual
    return tuple(view.model_copy(update=update) for view in policy)


def _swav(
    size: int,
    small: int,
    num_small: int,
    *,
    scale: tuple[float, float] = (0.14, 1.0),
    small_scale: tuple[float, float] = (0.05, 0.14),
    strength: float = 1.0,
    blur_p: float = 0.5,
) -> Policy:
    """Build SwAV's multi-crop (arXiv 2006.09882, section 4.1): two large views and ``num_small`` small ones."""
    large = View(size_px=size, crop_scale=scale, jitter_strength=strength, blur_p=blur_p)
    return (large,) * 2 + (large.model_copy(update={"size_px": small, "crop_scale": small_scale}),) * num_small


# After FixMatch, arXiv 2001.07685: its translation is a crop here, and RandAugment and Cutout are left out.
_WEAK = View(crop_scale=(0.75, 1.0), crop_ratio=(1.0, 1.0), jitter_p=0.0, grey_p=0.0, blur_p=0.0)
_STRONG = View(crop_scale=(0.5, 1.0), jitter_p=0.8, solarise_p=0.2)

POLICIES: dict[str, Policy] = {
    "simclr": (View(), View()),
    "simclr-small": (View(jitter_strength=0.5, blur_p=0.0),) * 2,  # google-research/simclr's setting for CIFAR-10
    "mocov2": (View(crop_scale=(0.2, 1.0), jitter_strength=0.5),) * 2,  # arXiv 2003.04297 and its code
    # BYOL, arXiv 2006.07733, table 6; Barlow Twins has the same
    "byol": (
        View(jitter_strength=0.5, jitter_saturation=0.2, blur_p=1.0),
        View(jitter_strength=0.5, jitter_saturation=0.2, blur_p=0.1, solarise_p=0.2),
    ),
    # for 32 px: BYOL's without blur
    "byol-small": (
        View(jitter_strength=0.5, jitter_saturation=0.2, blur_p=0.0),
        View(jitter_strength=0.5, jitter_saturation=0.2, blur_p=0.0, solarise_p=0.2),
    ),
    "weak-strong": (_WEAK, _STRONG),
    "weak": (_WEAK,),
    "strong": (_STRONG,),
    "none": with_only((View(),), ()),
    "swav": _swav(224, 96, 6),
    "swav-96": _swav(96, 48, 4),
    # for 32 px, where 5 % of an image would be 7 x 7 pixels: the shares that IMC-SwAV (arXiv 2103.07368) has for CIFAR
    "swav-small": _swav(32, 16, 4, scale=(0.2, 1.0), small_scale=(0.08, 0.4), strength=0.5, blur_p=0.0),
}
