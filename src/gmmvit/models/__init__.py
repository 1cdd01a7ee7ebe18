"""The model families by name. A family is one file with one class; this table is all that another one needs."""

import difflib
import inspect
from typing import Any

from torch import nn

from gmmvit.models.vit import ViT

FAMILIES: dict[str, type[nn.Module]] = {"vit": ViT}


def create_model(
    family: str = "vit",
    *,
    mask: str = "none",
    image_size: int | tuple[int, int] = 32,
    num_classes: int = 10,
    **options: Any,
) -> nn.Module:
    """A model of one family with random weights.

    Args:
        family: a key of `FAMILIES`.
        mask: "none", "elm" or "gmm".
        image_size: int or (height, width) in pixels.
        num_classes: width of the head.
        options: further arguments of the family's class (`ViT`: patch_size, channels, dim, depth, pool, ...).

    Raises:
        ValueError, TypeError: for an unknown family or option (with the nearest name), or a value that does not fit.
    """
    if family not in FAMILIES:
        raise ValueError(f"family must be one of {list(FAMILIES)}, got {family!r}")
    allowed = [name for name in inspect.signature(FAMILIES[family]).parameters]
    for name in options:
        if name not in allowed:
            near = difflib.get_close_matches(name, allowed, 1)
            hint = f"; the nearest is {near[0]!r}" if near else f"; allowed are {allowed}"
            raise TypeError(f"{family} has no option {name!r}{hint}")
    if num_classes < 2:
        raise ValueError(f"num_classes must be at least 2, got {num_classes}")
    return FAMILIES[family](mask=mask, image_size=image_size, num_classes=num_classes, **options)
