"""The model families by name. A family is one file with one class, and its name in `FAMILIES`."""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gmmvit.checks import integer, known_options, one_of, pair
from gmmvit.masks import MASKS, is_mask_parameter
from gmmvit.models.base import VisionTransformer
from gmmvit.models.cait import CaiT
from gmmvit.models.pit import PiT
from gmmvit.models.resnet import ResNet
from gmmvit.models.swin import Swin
from gmmvit.models.t2t import T2T
from gmmvit.models.vit import ViT

__all__ = ["CONVNETS", "FAMILIES", "SIZES", "create_model", "list_models", "markdown_table", "text_table"]

#: The families that take masks, by name.
FAMILIES: dict[str, type[Any]] = {cls.family: cls for cls in (ViT, Swin, CaiT, PiT, T2T)}
#: Convnets for comparison, by name. They have no attention to mask.
CONVNETS: dict[str, type[Any]] = {cls.family: cls for cls in (ResNet,)}
_ALL = FAMILIES | CONVNETS
#: The sizes of each family by name, as arguments of its class.
SIZES: dict[str, dict[str, dict[str, Any]]] = {name: cls.sizes for name, cls in _ALL.items()}


def create_model(
    family: str = "vit",
    *,
    size: str = "tiny",
    mask: str = "none",
    image_size: int | Sequence[int] = 32,
    num_classes: int = 10,
    **options: Any,
) -> VisionTransformer:
    """A model of one family with random weights.

    Args:
        family: a key of `FAMILIES` or `CONVNETS`.
        size: a key of `SIZES[family]`; "tiny" is the paper's.
        mask: "none", "elm" or "gmm".
        image_size: int or (height, width) in pixels.
        num_classes: width of the head, at least 2.
        options: further arguments of the family's class (`ViT`: patch_size, channels, dim, depth, pool, ...), which
            override those of `size`.

    Raises:
        ValueError, TypeError: a family, size or option is unknown (names the nearest), or a value is invalid.
    """
    one_of("family", family, _ALL)
    one_of(f"size of {family}", size, SIZES[family])
    known_options(family, options, list(inspect.signature(_ALL[family]).parameters))
    arguments = {**SIZES[family][size], **options}
    return _ALL[family](mask=mask, image_size=image_size, num_classes=num_classes, **arguments)


def list_models(
    image_size: int | Sequence[int] = 32,
    num_classes: int = 10,
    channels: int = 3,
    *,
    families: Sequence[str] | None = None,
    sizes: Sequence[str] | None = None,
) -> list[dict[str, Any]]:
    """The cost of families, sizes and masks (all or the named ones) at an image size: one row each.

    Rows have family, size, mask, parameters (trainable), mask_parameters, macs (multiply-accumulates of matrix products
    and convolutions for one image, counted on the meta device) and note. If a size cannot take such images, the counts
    are None and the note says why.

    Raises TypeError or ValueError for an image size, classes or channels that no model takes.
    """
    integer("num_classes", num_classes, 2)
    integer("channels", channels)
    shape = (channels, *pair(image_size, "image_size"))
    return [
        {"family": family, "size": size, "mask": mask, **_cost(family, size, mask, shape, num_classes)}
        for family in SIZES
        if families is None or family in families
        for size in SIZES[family]
        if sizes is None or size in sizes
        for mask in (MASKS if family in FAMILIES else ("none",))
    ]


def _cost(family: str, size: str, mask: str, shape: tuple[int, int, int], num_classes: int) -> dict[str, Any]:
    channels, *image_size = shape
    try:
        with torch.device("meta"):
            model = create_model(
                family, size=size, mask=mask, image_size=image_size, num_classes=num_classes, channels=channels
            ).eval()
            images = torch.empty(1, *shape)
        trainable = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
        macs = _macs(model, images)
    except (ValueError, RuntimeError) as error:
        note = str(error)
        if not isinstance(error, ValueError):
            if "overflow" not in note:
                raise
            note = "its tensors for images of this size are larger than any memory"
        return {"parameters": None, "mask_parameters": None, "macs": None, "note": note}
    return {
        "parameters": sum(trainable.values()),
        "mask_parameters": sum(count for name, count in trainable.items() if is_mask_parameter(name)),
        "macs": macs,
        "note": _ALL[family].note,
    }


def _macs(model: VisionTransformer, images: Tensor) -> int:
    """Multiply-accumulates of a forward pass. Blocks of the same kind and size run once: meta outputs have no
    values, so one serves for all."""
    from torch.utils.flop_counter import FlopCounterMode

    model.requires_grad_(False)  # the counter would hook the backward pass
    with FlopCounterMode(display=False) as counter:
        x, grid = model.embed(images)
    total = counter.get_total_flops()
    known: dict[Any, tuple[int, Tensor]] = {}
    for step in model.steps():
        kind = (type(step), tuple(p.shape for p in step.parameters()), x.shape, grid)
        if kind not in known:
            with FlopCounterMode(display=False) as counter:
                out = step(x, grid)
            known[kind] = counter.get_total_flops(), out
        cost, x = known[kind]
        total, grid = total + cost, step.next_grid(grid)
    with FlopCounterMode(display=False) as counter:
        model.forward_head(x)
    return (total + counter.get_total_flops()) // 2


def text_table(rows: list[dict[str, Any]]) -> str:
    """The rows of `list_models` as aligned text, with notes."""
    lines = [f"{'family':<7} {'size':<9} {'mask':<5} {'parameters':>12} {'of the mask':>12} {'MACs':>9}  note"]
    for row in rows:
        counts = f"{'-':>12} {'-':>12} {'-':>9}"
        if row["parameters"] is not None:
            counts = f"{row['parameters']:>12,} {row['mask_parameters']:>12,} {row['macs'] / 1e6:>8,.0f}M"
        lines.append(f"{row['family']:<7} {row['size']:<9} {row['mask']:<5} {counts}  {row['note']}".rstrip())
    return "\n".join(lines)


def markdown_table(rows: list[dict[str, Any]]) -> str:
    """The "tiny" rows of `list_models` as markdown, one line per family with masks."""
    lines = [
        "| family | plain | ELM | GMM | of which the mask | multiply-accumulates |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    tiny = {(row["family"], row["mask"]): row for row in rows if row["size"] == "tiny" and row["parameters"]}
    for family in dict.fromkeys(family for family, mask in tiny if mask == "gmm"):
        counts = [f"{tiny[family, mask]['parameters']:,}" for mask in ("none", "elm", "gmm")]
        gmm = tiny[family, "gmm"]
        cells = [family, *counts, f"{gmm['mask_parameters']:,}", f"{gmm['macs'] / 1e6:,.0f} M"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
