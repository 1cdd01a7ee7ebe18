"""The learned masks by name. A kind is a class and its line in `KINDS`; `Recipe` has its name, starts and options."""

import inspect
from collections.abc import Iterable

from gmmvit.attention.reference import EVERY_PATCH, MODES, Steps
from gmmvit.checks import known_options, one_of
from gmmvit.masks.base import Drawing, Grid, Mask, Picture
from gmmvit.masks.elementwise import ElementwiseMask
from gmmvit.masks.gaussian import COVARIANCES, INITS, GaussianMixtureMask, stencil
from gmmvit.masks.together import tables_together

__all__ = [
    "COVARIANCES", "INITS", "KINDS", "MASKS", "Drawing", "ElementwiseMask", "GaussianMixtureMask", "Mask", "Picture",
    "check_mask_options", "create_mask", "is_mask_parameter", "stencil", "tables_together",
]  # fmt: skip

KINDS: dict[str, type[Mask]] = {cls.kind: cls for cls in (ElementwiseMask, GaussianMixtureMask)}
MASKS = ("none", *KINDS)
_DECIDED = ("grid", "num_heads", "depth", "positive", "steps")  # by the layer that a mask sits in


def is_mask_parameter(name: str) -> bool:
    """Whether a parameter, by its name in the model, belongs to a learned mask."""
    return not {"mask", "gmm_mask"}.isdisjoint(name.split(".")[:-1])  # of our families, and attached ones


def _arguments(mask: str) -> list[str]:
    return list(inspect.signature(KINDS[mask]).parameters)


def check_mask_options(mask: str, options: Iterable[str]) -> None:
    """Raises ValueError unless `mask` names a mask, TypeError for an option that it does not have."""
    one_of("mask", mask, MASKS)
    if mask != "none":
        known_options(f"the {mask} mask", options, [name for name in _arguments(mask) if name not in _DECIDED])


def create_mask(
    mask: str,
    grid: Grid,
    num_heads: int,
    *,
    mode: str = "multiply",
    depth: float = 0.5,
    steps: Steps = EVERY_PATCH,
    **options: object,
) -> Mask | None:
    """The mask of one attention layer by name, None for "none"; its constructor takes `options`.

    Raises as `check_mask_options`, and ValueError for an unknown mode or a start that does not suit the mode.
    """
    check_mask_options(mask, options)
    one_of("mode", mode, MODES)
    if mask == "none":
        return None
    if str(options.get("init")) == "conv" and mode != "log":
        raise ValueError(
            f"init='conv' of the mask needs mode='log', got mode={mode!r}: a factor on logits near zero moves no "
            "attention, its logarithm does"
        )
    place = {"depth": depth, "positive": MODES[mode].positive, "steps": steps}
    taken = {name: value for name, value in place.items() if name in _arguments(mask)}
    return KINDS[mask](grid, num_heads, **taken, **options)
