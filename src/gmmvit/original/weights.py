"""Loads weights trained with the original code into our models, with a table of names per family.

Left in the tables: prefixes of the original's tensors; right: ours. `{i}` counts layers, `{s}` stages (PiT numbers its
stages 0, 2, 4 and the poolings between them 1, 3).
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from gmmvit.checks import one_of
from gmmvit.models import FAMILIES
from gmmvit.models.base import VisionTransformer
from gmmvit.original.sizes import check_sizes, is_distance_table, model_arguments
from gmmvit.weight_files import unwrapped

_ENDS = {"mlp_head.0.": "norm.", "mlp_head.1.": "head.", "cls_token": "cls_token", "pos_embedding": "pos_embed"}


def _layers(theirs: str, ours: str) -> dict[str, str]:
    """The names of a pre-norm block in the original's ViT and PiT."""
    return {
        f"{theirs}.0.norm.": f"{ours}.norm1.",
        f"{theirs}.0.fn.to_qkv.": f"{ours}.attn.qkv.",
        f"{theirs}.0.fn.to_out.0.": f"{ours}.attn.proj.",
        f"{theirs}.0.fn.mask.": f"{ours}.attn.mask.",
        f"{theirs}.1.norm.": f"{ours}.norm2.",
        f"{theirs}.1.fn.net.0.": f"{ours}.mlp.fc1.",
        f"{theirs}.1.fn.net.3.": f"{ours}.mlp.fc2.",
    }


def _talking_layers(theirs: str, ours: str) -> dict[str, str]:
    """The names of a block with layer scale and talking heads in the original's CaiT, except its queries."""
    return {
        f"{theirs}.0.scale": f"{ours}.scale1",
        f"{theirs}.0.fn.norm.": f"{ours}.norm1.",
        f"{theirs}.0.fn.fn.to_q.": f"{ours}.attn.q.",
        f"{theirs}.0.fn.fn.to_kv.": f"{ours}.attn.kv.",
        f"{theirs}.0.fn.fn.mix_heads_pre_attn": f"{ours}.attn.talk.before",
        f"{theirs}.0.fn.fn.mix_heads_post_attn": f"{ours}.attn.talk.after",
        f"{theirs}.0.fn.fn.to_out.0.": f"{ours}.attn.proj.",
        f"{theirs}.0.fn.fn.mask.": f"{ours}.attn.mask.",
        f"{theirs}.1.scale": f"{ours}.scale2",
        f"{theirs}.1.fn.norm.": f"{ours}.norm2.",
        f"{theirs}.1.fn.fn.net.0.": f"{ours}.mlp.fc1.",
        f"{theirs}.1.fn.fn.net.3.": f"{ours}.mlp.fc2.",
    }


NAMES: dict[str, dict[str, str]] = {
    "vit": {"to_patch_embedding.1.": "patch_embed.proj.", **_layers("transformer.layers.{i}", "blocks.{i}"), **_ENDS},
    "cait": {
        "to_patch_embedding.1.": "patch_embed.proj.",
        **_talking_layers("patch_transformer.layers.{i}", "blocks.{i}"),
        **_talking_layers("cls_transformer.layers.{i}", "class_blocks.{i}"),
        **_ENDS,
    },
    "pit": {
        "to_patch_embedding.0.": "patch_embed.proj.",
        **_layers("layers.{s}.layers.{i}", "stages.{s}.blocks.{i}"),
        "layers.{s}.downsample.net.0.": "stages.{s}.reduction.depthwise.",
        "layers.{s}.downsample.net.1.": "stages.{s}.reduction.pointwise.",
        "layers.{s}.cls_ff.": "stages.{s}.reduction.prefix.",
        **_ENDS,
    },
    "swin": {
        "patch_embed.": "patch_embed.",
        "absolute_pos_embed": "pos_embed",
        "layers.{s}.blocks.{i}.attn.relative_position_bias_table": "stages.{s}.blocks.{i}.attn.relative_position_bias",
        "layers.{s}.blocks.{i}.": "stages.{s}.blocks.{i}.",
        "layers.{s}.downsample.norm.": "stages.{s}.reduction.norm.",
        "layers.{s}.downsample.reduction.": "stages.{s}.reduction.proj.",
        "norm.": "norm.",
        "head.": "head.",
    },
    "t2t": {
        "tokens_to_token.attention{i}.": "patch_embed.transformers.{i}.",
        "tokens_to_token.project.": "patch_embed.proj.",
        "blocks.{i}.": "blocks.{i}.",
        "norm.": "norm.",
        "head.": "head.",
    },
}

# What the original stores besides weights: tables that can be computed, and unused parameters.
UNUSED: dict[str, tuple[str, ...]] = {
    "vit": (),
    "cait": (),
    "pit": (),
    "swin": (r"layers\.\d+\.blocks\.\d+\.(attn_mask|attn\.relative_position_index)",),
    "t2t": (r"cls_token", r"pos_embed", r"tokens_to_token\.norm\.(weight|bias)"),
}


# The tensor that shows each mask, by our names.
MASK_TENSORS = {"none": "", "elm": ".mask.weight", "gmm": ".mask.alpha"}


def _weights(state_dict: Mapping[str, Any], family: str) -> dict[str, Tensor]:
    """The tensors that the forward pass uses."""
    unused = [re.compile(pattern) for pattern in UNUSED[family]]
    return {
        name: tensor
        for name, tensor in unwrapped(state_dict, "the state_dict").items()
        if not is_distance_table(name, tensor) and not any(pattern.fullmatch(name) for pattern in unused)
    }


def is_named(name: str, family: str) -> bool:
    """Whether the original has a tensor of that name in this family."""
    try:
        return bool(our_name(name, family))
    except ValueError:
        return False


def our_name(name: str, family: str) -> str:
    """Our name for one of the original's tensors. Raises ValueError if the family has no such tensor."""
    for theirs, ours in NAMES[family].items():
        pattern = re.escape(theirs).replace(r"\{i\}", r"(?P<i>\d+)").replace(r"\{s\}", r"(?P<s>\d+)")
        match = re.match(pattern if theirs.endswith(".") else pattern + "$", name)
        if match is None:
            continue
        index = {key: int(value) for key, value in match.groupdict().items()}
        if family == "pit" and "s" in index:
            index["s"] //= 2
        if family == "t2t" and "attention" in theirs:
            index["i"] -= 1
        tail = name[match.end() :]
        return ours.format(**index) + ("weight" if tail == "mask" else tail.replace("mask.mask", "mask.weight"))
    raise ValueError(f"tensor {name!r} does not belong to a {family} of the original code; is the family right?")


def convert_tensors(state_dict: Mapping[str, Any], family: str) -> dict[str, Tensor]:
    """The original's tensors (weights or their gradients, maybe incomplete) with our names and shapes."""
    converted = {}
    for name, tensor in _weights(state_dict, family).items():
        ours = our_name(name, family)
        if tensor.is_meta or tensor.layout is not torch.strided or not tensor.is_floating_point():
            kind = f"{tensor.dtype}, {tensor.layout}, {tensor.device}"
            raise ValueError(f"tensor {name!r} must hold floating-point numbers, got {kind}")
        try:
            converted[ours] = _reshaped(name, tensor)
        except (RuntimeError, IndexError):
            raise ValueError(
                f"tensor {name!r} has a shape that does not exist in the original: {tuple(tensor.shape)}"
            ) from None
    for name in [name for name in converted if re.fullmatch(r"blocks\.\d+\.attn\.q\.weight", name)]:
        q, kv = converted.pop(name), converted.pop(name.replace(".q.", ".kv."), None)
        if kv is None:
            raise ValueError(f"the tensor to_kv.weight that goes with {name!r} is missing")
        if not q.dim() == kv.dim() == 2:
            raise ValueError(f"tensor {name!r} (our name) and that of to_kv must be matrices")
        converted[name.replace(".q.", ".qkv.")] = torch.cat([q, kv])
    return converted


def _reshaped(name: str, tensor: Tensor) -> Tensor:
    if name.endswith(("mask.sigma", "mask.alpha")):
        return tensor.flatten(1).t().contiguous()  # [K, H, 1, 1] -> [H, K]
    if name.endswith("relative_position_bias_table"):
        side = math.isqrt(tensor.shape[0])  # theirs: query - key, ours: key - query
        return tensor.unflatten(0, (side, side)).permute(2, 0, 1).flip(1, 2).contiguous()
    if name.endswith(".scale"):
        return tensor.flatten()
    if tensor.dim() == 4 and "patch_embed" in name:
        return tensor.permute(0, 2, 3, 1).flatten(1)  # a convolution over patches -> our linear layer
    return tensor


def load_reference(
    state_dict: Mapping[str, Any], *, family: str, mask: str = "none", **sizes: Any
) -> VisionTransformer:
    """Our model with weights trained with the original code.

    Args:
        state_dict: tensors by the original's names, or a checkpoint with a `model_state_dict`. `module.` prefixes,
            distance tables and unused parameters are dropped.
        family, mask: of the model.
        sizes: img_size, patch_size, num_classes, dim, num_kernels, and the family's own in `SIZE_NAMES`. Missing ones
            and None are inferred from the tensors.

    Returns:
        The model in float32 and evaluation mode.

    Raises:
        ValueError: names a tensor that is missing, unexpected or of the wrong shape; a size cannot be inferred; the
            weights already have our names.
        TypeError: a size is unknown or not a number, or state_dict is not a mapping.
    """
    one_of("family", family, NAMES)
    one_of("mask", mask, MASK_TENSORS)
    sizes = {name: value for name, value in sizes.items() if value is not None}
    check_sizes(family, sizes)
    if _is_ours(unwrapped(state_dict, "the state_dict")):
        raise ValueError(
            "these weights already have our names, not the original's: make the model with create_model(...) and call "
            "load_state_dict on it, or read their folder with load_run or from_pretrained"
        )
    tensors = convert_tensors(state_dict, family)
    own = MASK_TENSORS[mask]
    if not any(name.endswith(own) for name in tensors):
        raise ValueError(f"tensor '*.attn{own}' (our name) is missing from the checkpoint: is mask={mask!r} right?")
    arguments = model_arguments(tensors, unwrapped(state_dict, "the state_dict"), family, mask, sizes)
    with torch.device("meta"):  # wrong sizes may exceed any memory
        _check_complete(tensors, FAMILIES[family](mask=mask, **arguments))
    model = FAMILIES[family](mask=mask, **arguments)
    model.load_state_dict(tensors)
    return model.eval()


def _is_ours(tensors: Mapping[str, Tensor]) -> bool:
    """Whether these are our models' weights: unlike other libraries' they have a linear patch embedding."""
    embedding = tensors.get("patch_embed.proj.weight")
    blocks = any(name.startswith(("blocks.", "stages.")) for name in tensors)
    return blocks and embedding is not None and embedding.dim() == 2


def _check_complete(tensors: dict[str, Tensor], model: VisionTransformer) -> None:
    wanted = model.state_dict()
    for name in wanted:
        if name not in tensors:
            raise ValueError(f"tensor {name!r} (our name) is missing from the checkpoint; are family and mask right?")
        if tensors[name].shape != wanted[name].shape:
            raise ValueError(
                f"tensor {name!r} (our name) is {tuple(tensors[name].shape)} in the checkpoint, "
                f"{tuple(wanted[name].shape)} in a model of these sizes"
            )
    for name in tensors:
        if name not in wanted:
            raise ValueError(f"tensor {name!r} (our name) is not expected; are family, mask and sizes right?")
