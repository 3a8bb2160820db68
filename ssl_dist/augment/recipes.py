"""What views are drawn from: the settings of one view, and the papers' sets of views by name."""

from __future__ import annotations

from collections.abc import Collection

import pydantic


class View(pydantic.BaseModel):
    """What one view's random operations are drawn from. ``p``: probability; ranges are of torchvision's parameters."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    size_px: int | None = pydantic.Field(None, ge=1)  # side of the output; None: the stored height
    crop_p: float = pydantic.Field(1.0, ge=0, le=1)  # otherwise the whole image is resized
    crop_scale: tuple[float, float] = (0.08, 1.0)  # share of the image's area
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)  # width / height
    flip_p: float = pydantic.Field(0.5, ge=0, le=1)
    rotation_p: float = pydantic.Field(0.0, ge=0, le=1)  # by 90, 180 or 270 degrees, each as likely
    jitter_p: float = pydantic.Field(0.8, ge=0, le=1)
    jitter_strength: float = pydantic.Field(1.0, ge=0, le=1.25)  # times 0.8 brightness, contrast, saturation; 0.2 hue
    jitter_saturation: float | None = pydantic.Field(None, ge=0, le=1)  # in place of 0.8 times the strength
    grey_p: float = pydantic.Field(0.2, ge=0, le=1)
    blur_p: float = pydantic.Field(0.5, ge=0, le=1)
    blur_sigma: tuple[float, float] = (0.1, 2.0)  # pixels of the output
    solarise_p: float = pydantic.Field(0.0, ge=0, le=1)  # values of 0.5 and more are turned round

    @pydantic.model_validator(mode="after")
    def _ranges(self) -> View:
        low, high = self.crop_scale
        if not 0 < low <= high <= 1:
            raise ValueError(f"crop_scale {self.crop_scale}: two shares of the area, 0 < low <= high <= 1")
        for name, (low, high) in {"crop_ratio": self.crop_ratio, "blur_sigma": self.blur_sigma}.items():
            if not 0 < low <= high:
                raise ValueError(f"{name} {(low, high)}: 0 < low <= high")
        return self


Recipe = tuple[View, ...]

# Each operation's probability, and what it is where a recipe that has none of it is asked for it.
OPERATIONS: dict[str, tuple[str, float]] = {
    "crop": ("crop_p", 1.0),
    "flip": ("flip_p", 0.5),
    "rotation": ("rotation_p", 0.75),  # 0, 90, 180 and 270 degrees as likely
    "colour": ("jitter_p", 0.8),
    "grey": ("grey_p", 0.2),
    "blur": ("blur_p", 0.5),
    "solarise": ("solarise_p", 0.2),
}


def only(recipe: Recipe, operations: Collection[str]) -> Recipe:
    """The recipe with these of OPERATIONS alone, as for the pairs of SimCLR's figure 5; with none, whole images are
    resized. One that no view of the recipe has comes with its usual probability."""
    update: dict[str, float] = {}
    for operation, (key, usual) in OPERATIONS.items():
        if operation not in operations:
            update[key] = 0.0
        elif not any(getattr(view, key) for view in recipe):
            update[key] = usual
    return tuple(view.model_copy(update=update) for view in recipe)


def _swav(
    size: int,
    small: int,
    num_small: int,
    *,
    scale: tuple[float, float] = (0.14, 1.0),
    small_scale: tuple[float, float] = (0.05, 0.14),
    strength: float = 1.0,
    blur_p: float = 0.5,
) -> Recipe:
    """SwAV's multi-crop (arXiv 2006.09882, section 4.1): two large views and ``num_small`` small ones."""
    large = View(size_px=size, crop_scale=scale, jitter_strength=strength, blur_p=blur_p)
    return (large,) * 2 + (large.model_copy(update={"size_px": small, "crop_scale": small_scale}),) * num_small


# after FixMatch, arXiv 2001.07685: its translation is a crop here, and there is neither RandAugment nor Cutout
_WEAK = View(crop_scale=(0.75, 1.0), crop_ratio=(1.0, 1.0), jitter_p=0.0, grey_p=0.0, blur_p=0.0)
_STRONG = View(crop_scale=(0.5, 1.0), jitter_p=0.8, solarise_p=0.2)

RECIPES: dict[str, Recipe] = {
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
    "none": only((View(),), ()),
    "swav": _swav(224, 96, 6),
    "swav-96": _swav(96, 48, 4),
    # for 32 px, where 5 % of an image would be 7 x 7 pixels: the shares that IMC-SwAV (arXiv 2103.07368) has for CIFAR
    "swav-small": _swav(32, 16, 4, scale=(0.2, 1.0), small_scale=(0.08, 0.4), strength=0.5, blur_p=0.0),
}
