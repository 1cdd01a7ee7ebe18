"""Infers the sizes of an original model from its tensors, as arguments for our families' constructors.

Tensors have our names and shapes. Sizes from the caller take precedence; a wrong one shows when the tensors are loaded
into the model.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from gmmvit.checks import above_zero, integer, is_integer, per_stage
from gmmvit.models import SIZES

Tensors = Mapping[str, Tensor]


def model_arguments(tensors: Tensors, raw: Tensors, family: str, mask: str, sizes: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of the family's constructor, without `mask`.

    Args:
        tensors: converted.
        raw: as in the checkpoint, including what the conversion drops.
        family, mask: of the model.
        sizes: known sizes, by the original's names.

    Raises:
        ValueError: names the tensor that is missing or the size that cannot be inferred.
    """
    arguments = {
        "num_classes": sizes.get("num_classes") or _shape(tensors, "head.weight", 2)[0],
        "dim": sizes.get("dim") or _shape(tensors, "patch_embed.proj.weight", 2)[0],
    }
    if mask == "gmm":
        alpha = next(name for name in tensors if name.endswith(".mask.alpha"))
        kernels = sizes.get("num_kernels") or _shape(tensors, alpha, 2)[1]
        # If the original's table underflows to zeros, masks learned with it are cut off there too.
        cut = any(bool((tensor == 0).any()) for name, tensor in raw.items() if is_distance_table(name, tensor))
        arguments["mask_options"] = {"num_kernels": kernels} | ({"float32_table": True} if cut else {})
    return arguments | _BY_FAMILY[family](tensors, raw, mask, sizes, arguments["dim"])


SIZE_NAMES: dict[str, tuple[str, ...]] = {
    "vit": ("depth", "heads", "head_dim", "mlp_ratio"),
    "cait": ("depth", "cls_depth", "heads", "head_dim", "mlp_dim"),
    "pit": ("depths", "heads", "head_dim", "mlp_ratio"),
    "swin": ("depths", "heads", "window_size", "mlp_ratio"),
    "t2t": ("depth", "heads", "mlp_ratio", "token_dim"),
}
_COMMON = ("img_size", "patch_size", "num_classes", "dim", "num_kernels")
_LARGEST = 2**16  # of any size


def check_sizes(family: str, sizes: Mapping[str, Any]) -> None:
    """Raises TypeError for an unknown size or one of the wrong type, ValueError for one out of range."""
    staged = "depths" in SIZE_NAMES[family]
    for name, value in sizes.items():
        if name not in (*_COMMON, *SIZE_NAMES[family]):
            raise TypeError(f"{family} has no size {name!r}; allowed are {[*_COMMON, *SIZE_NAMES[family]]}")
        if name == "mlp_ratio":
            above_zero(name, value)
        elif name == "depths" or (name == "heads" and staged and not is_integer(value)):
            per_stage(value, name, example=(2, 6, 4))
        else:
            integer(name, value, 2 if name == "num_classes" else 1, _LARGEST)


def is_distance_table(name: str, tensor: Tensor) -> bool:
    """Whether it is the original's frozen exp(-d2 / 2), [1, 1, N, N], which shares a name with the [N, N] ELM mask."""
    return (name == "mask" or name.endswith(".mask")) and tensor.dim() == 4 and tensor.shape[:2] == (1, 1)


def _shape(tensors: Tensors, name: str, dims: int) -> tuple[int, ...]:
    if name not in tensors:
        raise ValueError(f"tensor {name!r} (our name) is missing from the checkpoint; are family and mask right?")
    shape = tuple(tensors[name].shape)
    if len(shape) != dims or 0 in shape:
        raise ValueError(f"tensor {name!r} (our name) must have {dims} dimensions, each at least 1, got shape {shape}")
    return shape


def _count(tensors: Tensors, prefix: str) -> int:
    """The number of modules in a list."""
    indices = {name.removeprefix(prefix + ".").split(".")[0] for name in tensors if name.startswith(prefix + ".")}
    return len(indices)


def _depth(tensors: Tensors, prefix: str, name: str, given: int | None) -> int:
    """The number of modules in a list; raises ValueError if the caller gave another as size `name`."""
    count = _count(tensors, prefix)
    if given not in (None, count):
        raise ValueError(
            f"{name} must be {count}, as the checkpoint has tensors '{prefix}.0.*' (our names) to "
            f"'{prefix}.{count - 1}.*', got {given}"
        )
    return count


def _unknown(size: str) -> ValueError:
    return ValueError(f"the size {size!r} of this model cannot be inferred from the tensors: give {size}=...")


def _root(value: int) -> int | None:
    root = math.isqrt(value)
    return root if root * root == value else None


def _patches(tensors: Tensors, sizes: Mapping[str, Any], conv: Tensor | None, prefix: int) -> dict[str, Any]:
    """image_size, patch_size and channels for square images and patches. Without a convolution the shape leaves the
    channels open: three if that fits, else one."""
    pixels = _shape(tensors, "patch_embed.proj.weight", 2)[1]
    patch = sizes.get("patch_size") or (conv.shape[-1] if conv is not None and conv.dim() == 4 else None)
    patch = patch or next((root for c in (3, 1) if pixels % c == 0 and (root := _root(pixels // c))), None)
    if patch is None:
        raise _unknown("patch_size")
    side = _root(_shape(tensors, "pos_embed", 3)[1] - prefix)
    image_size = sizes.get("img_size") or (side and side * patch)
    if image_size is None:
        raise _unknown("img_size")
    return {"image_size": image_size, "patch_size": patch, "channels": pixels // patch**2}


def _width(tensors: Tensors, block: str) -> int:
    """Heads times head width of an attention layer."""
    return _shape(tensors, f"{block}.attn.proj.weight", 2)[1]


def _mlp_ratio(tensors: Tensors, block: str, sizes: Mapping[str, Any]) -> float:
    hidden, dim = _shape(tensors, f"{block}.mlp.fc1.weight", 2)
    return sizes.get("mlp_ratio") or (sizes["mlp_dim"] / dim if "mlp_dim" in sizes else hidden / dim)


def _heads(tensors: Tensors, block: str, guess: Callable[[], int | None]) -> int:
    alpha = f"{block}.attn.mask.alpha"
    heads = _shape(tensors, alpha, 2)[0] if alpha in tensors else guess()
    if heads is None:
        raise _unknown("heads")
    return heads


def _vit(tensors: Tensors, raw: Tensors, mask: str, sizes: Mapping[str, Any], dim: int) -> dict[str, Any]:
    depth = _depth(tensors, "blocks", "depth", sizes.get("depth"))

    def known_size() -> int | None:
        """The heads of the original's model of this width and depth."""
        for options in SIZES["vit"].values():
            size = {"dim": 192, "depth": 9, "num_heads": 12, **options}
            if (size["dim"], size["depth"]) == (dim, depth):
                return size["num_heads"]
        return None

    heads = sizes.get("heads") or _heads(tensors, "blocks.0", known_size)
    class_token = "cls_token" in tensors
    return {
        **_patches(tensors, sizes, None, int(class_token)),
        "depth": depth,
        "num_heads": heads,
        "head_dim": sizes.get("head_dim") or _width(tensors, "blocks.0") // heads,
        "mlp_ratio": _mlp_ratio(tensors, "blocks.0", sizes),
        "pool": "cls" if class_token else "mean",
    }


def _cait(tensors: Tensors, raw: Tensors, mask: str, sizes: Mapping[str, Any], dim: int) -> dict[str, Any]:
    heads = sizes.get("heads") or _shape(tensors, "blocks.0.attn.talk.before", 2)[0]
    return {
        **_patches(tensors, sizes, None, 0),
        "depth": _depth(tensors, "blocks", "depth", sizes.get("depth")),
        "class_depth": _depth(tensors, "class_blocks", "cls_depth", sizes.get("cls_depth")),
        "num_heads": heads,
        "head_dim": sizes.get("head_dim") or _width(tensors, "blocks.0") // heads,
        "mlp_ratio": _mlp_ratio(tensors, "blocks.0", sizes),
    }


def _depths(tensors: Tensors, sizes: Mapping[str, Any]) -> list[int]:
    stages = range(_count(tensors, "stages"))
    given = sizes.get("depths", [None] * len(stages))
    if len(given) != len(stages):
        raise ValueError(f"depths must be {len(stages)} numbers, one per stage of the checkpoint, got {given}")
    return [_depth(tensors, f"stages.{stage}.blocks", f"depths[{stage}]", given[stage]) for stage in stages]


def _pit(tensors: Tensors, raw: Tensors, mask: str, sizes: Mapping[str, Any], dim: int) -> dict[str, Any]:
    depths = _depths(tensors, sizes)
    blocks = [f"stages.{stage}.blocks.0" for stage in range(len(depths))]
    head_dim = sizes.get("head_dim") or (48 if dim == 96 else None)  # the original's only size

    def of_width(block: str) -> int | None:
        return head_dim and _width(tensors, block) // head_dim

    heads = (
        per_stage(sizes["heads"], "heads", stages=len(depths))
        if "heads" in sizes
        else [_heads(tensors, block, lambda block=block: of_width(block)) for block in blocks]  # type: ignore[misc]
    )
    return {
        **_patches(tensors, sizes, raw.get("to_patch_embedding.0.weight"), 1),
        "depth": depths,
        "num_heads": heads,
        "head_dim": sizes.get("head_dim") or _width(tensors, blocks[0]) // heads[0],
        "mlp_ratio": _mlp_ratio(tensors, blocks[0], sizes),
    }


def _swin(tensors: Tensors, raw: Tensors, mask: str, sizes: Mapping[str, Any], dim: int) -> dict[str, Any]:
    depths = _depths(tensors, sizes)
    biases = [_shape(tensors, f"stages.{s}.blocks.0.attn.relative_position_bias", 3) for s in range(len(depths))]
    return {
        **_patches(tensors, sizes, raw.get("patch_embed.proj.weight"), 0),
        "depth": depths,
        "num_heads": sizes.get("heads") or [shape[0] for shape in biases],
        "window_size": sizes.get("window_size") or (biases[0][1] + 1) // 2,
        "mlp_ratio": _mlp_ratio(tensors, "stages.0.blocks.0", sizes),
    }


def _t2t(tensors: Tensors, raw: Tensors, mask: str, sizes: Mapping[str, Any], dim: int) -> dict[str, Any]:
    splits = _count(tensors, "patch_embed.transformers") + 1
    first = "patch_embed.transformers.0"
    if "img_size" not in sizes and "pos_embed" not in raw:
        raise _unknown("img_size")
    image_size = sizes.get("img_size") or math.isqrt(_shape(raw, "pos_embed", 3)[1]) * 2**splits
    return {
        "image_size": image_size,
        "strides": [2] * splits,
        "channels": _shape(tensors, f"{first}.norm1.weight", 1)[0] // 9,
        "token_dim": sizes.get("token_dim") or _shape(tensors, f"{first}.norm2.weight", 1)[0],
        "depth": _depth(tensors, "blocks", "depth", sizes.get("depth")),
        "num_heads": sizes.get("heads") or _heads(tensors, "blocks.0", lambda: 4 if dim == 256 else None),
        "mlp_ratio": _mlp_ratio(tensors, "blocks.0", sizes),
    }


_BY_FAMILY: dict[str, Callable[..., dict[str, Any]]] = {
    "vit": _vit,
    "cait": _cait,
    "pit": _pit,
    "swin": _swin,
    "t2t": _t2t,
}
