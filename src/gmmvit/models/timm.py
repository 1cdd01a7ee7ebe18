"""The families under timm's names, arguments and interface: importing this registers them in timm's model registry.

`gmmvit_FAMILY_SIZE` is the model without a mask; `_elm` and `_gmm` are appended for masks: `gmmvit_vit_tiny_gmm`.
Weights have the same names as in `gmmvit.models`, so files fit both ways.

Letters: B batch, T tokens (prefix first), C channels.
"""

import inspect
import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

from gmmvit.masks import MASKS, Mask
from gmmvit.models import FAMILIES, SIZES
from gmmvit.models.base import VisionTransformer
from gmmvit.models.cait import CaiT
from gmmvit.models.layers import one_of, pair, resample_position

_OUR_POOL = {"avg": "mean", "token": "cls"}
_LAST = (99999,)  # timm's code for "belongs to the previous group"


class TimmModel(VisionTransformer):
    """Adds the interface that timm expects to a family; list it before the family among a class's bases.

    Args:
        img_size: int or (height, width) in pixels.
        in_chans: channels of the images.
        num_classes: width of the head; with 0 there is no head and the model returns its features [B, C].
        global_pool: one of the class's `pools`, default the first: "avg" mean of the patches, "token" class token,
            "" no pooling (normed tokens [B, T, C], prefix first).
        drop_rate: dropout before the classifier.
        drop_path_rate: `drop_path` of the family.
        device, dtype: of the parameters.
        options: further arguments of the family's class. Its `pool` decides whether there is a class token; default: as
            `global_pool` needs it.

    Raises ValueError for invalid values, TypeError for unknown arguments.
    """

    pools: ClassVar[tuple[str, ...]]
    pretrained_cfg: dict[str, Any]  # set by timm

    def __init__(
        self,
        *,
        img_size: int | Sequence[int] = 32,
        in_chans: int = 3,
        num_classes: int = 10,
        global_pool: str | None = None,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> None:
        size = pair(img_size, "img_size")
        default = next((name for name, ours in _OUR_POOL.items() if ours == options.get("pool")), self.pools[0])
        global_pool = default if global_pool is None else global_pool
        one_of("global_pool", global_pool, self.pools)
        if set(_OUR_POOL) <= set(self.pools):
            options.setdefault("pool", _OUR_POOL[global_pool or default])
        with nullcontext() if device is None else torch.device(device):
            super().__init__(  # type: ignore[call-arg]
                image_size=size, channels=in_chans, num_classes=num_classes or 2, drop_path=drop_path_rate, **options
            )
        self.in_chans = in_chans
        self.head_drop = nn.Dropout(drop_rate)
        self.feature_info = self._feature_info(size)
        self._set_pool(global_pool)
        if num_classes == 0:
            self.reset_classifier(0)
        if dtype is not None:
            self.to(dtype=dtype)
        # Save what was chosen for this image size with the model, so that its weights fit at another size.
        self._model_args = {name: options[name] for name in ("pool", "stem") if name in options} | {
            name: getattr(self.patch_embed, name) for name in ("patch_size", "strides") if name in self.config
        }

    def _feature_info(self, size: tuple[int, int]) -> list[dict[str, Any]]:
        names = {id(module): name for name, module in self.named_modules()}
        first = max(math.ceil(side / cells) for side, cells in zip(size, self.grid, strict=True))
        steps = self.steps()
        return [
            {
                "num_chs": getattr(steps[step], "norm1", self.norm).normalized_shape[0],
                "reduction": first * (2**index if self.hierarchical else 1),
                "module": names[id(steps[step])],
            }
            for index, step in enumerate(self.feature_steps())
        ]

    @property
    def head_hidden_size(self) -> int:
        """The width of the classifier's input."""
        return self.num_features

    @property
    def num_prefix_tokens(self) -> int:
        """The number of class tokens before the patches."""
        return self.prefix_tokens

    def pool(self, x: Tensor) -> Tensor:
        """Tokens [B, T, C] -> one normed vector per image [B, C], or all normed tokens if `global_pool` is ""."""
        if self.global_pool == "":
            return self.norm(x)
        if self.global_pool == "avg" and self.prefix_tokens:
            return self.norm(x[:, self.prefix_tokens :].mean(1))
        return super().pool(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Tokens [B, T, C] -> logits [B, num_classes], or the classifier's input [B, C] with `pre_logits`."""
        x = self.head_drop(self.pool(x))
        return x if pre_logits else self.head(x)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Makes a new classifier with random weights, none for 0 classes, and optionally sets another pooling.

        Raises ValueError for 1 class, a negative number, or a pooling that this model does not have.
        """
        if global_pool is not None:
            self._set_pool(global_pool)
        super().reset_classifier(num_classes)

    def _set_pool(self, global_pool: str) -> None:
        one_of("global_pool", global_pool, self.pools)
        if global_pool == "token" and self.cls_token is None:
            raise ValueError("global_pool='token' needs a class token: create the model with global_pool='token'")
        self.global_pool = global_pool

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Removes what the features `indices` (as in `forward_intermediates`) do not need; returns them counted from 0.

        The final norm and the head stay on request; in a family with stages only if its last stage stays.
        """
        wanted = self._wanted_steps(indices)
        taken = [index for index, step in enumerate(self.feature_steps()) if step in wanted]
        last = taken[-1]
        if self.hierarchical:
            self.stages = self.stages[: last + 1]
            self.stages[-1].reduction = None  # type: ignore[assignment]
            self.num_features = self.feature_info[last]["num_chs"]
            cut = last < len(self.feature_info) - 1
            prune_norm, prune_head = prune_norm or cut, prune_head or cut
        else:
            self.blocks = self.blocks[: last + 1]
        if prune_norm:
            self.norm = nn.Identity()  # type: ignore[assignment]
        if prune_head:
            self.reset_classifier(0, "")
        return taken

    @classmethod
    def from_pretrained(cls, source: str | Path) -> Self:
        """Not supported: raises a TypeError that says what reads which folder."""
        raise TypeError(
            f"{cls.__bases__[-1].__name__}.from_pretrained reads a folder of save_pretrained, "
            "timm.create_model('local-dir:FOLDER', pretrained=True) one that timm saved"
        )

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns of parameter names from input to output, for layer-wise learning rates; `coarse`: by stage."""
        block = r"^stages\.(\d+)\.blocks\.(\d+)" if self.hierarchical else r"^blocks\.(\d+)"
        blocks: list[tuple[str, tuple[int] | None]] = [(block, None), (r"^stages\.(\d+)\.reduction", _LAST)]
        if coarse:
            blocks = [(r"^(?:stages|blocks)\.(\d+)", None)]
        return {
            "stem": r"^(?:cls_token|pos_embed|patch_embed)",
            "blocks": [*blocks, (r"^(?:norm|class_blocks)", _LAST)],
        }


class TimmCaiT(TimmModel, CaiT):
    """`CaiT` with timm's interface; its class token is not a prefix, it joins after the patch layers."""

    pools = ("token", "")

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """As in `TimmModel`; removes the class token and its layers with the head."""
        taken = super().prune_intermediate_layers(indices, prune_norm, prune_head)
        if prune_head:
            self.class_blocks = nn.ModuleList()
            self.cls_token = None  # type: ignore[assignment]
        return taken


def _with_timms_interface(family: type[Any]) -> type[TimmModel]:
    """The timm class of a family, unless this file defines one for it."""
    name = f"Timm{family.__name__}"
    if name not in globals():
        pool = inspect.signature(family).parameters.get("pool")
        pools = ("avg", "") if pool is None else ("token", "avg", "") if pool.default == "cls" else ("avg", "token", "")
        body = {"pools": pools, "__module__": __name__, "__doc__": f"`{family.__name__}` with timm's interface."}
        globals()[name] = type(name, (TimmModel, family), body)
    return globals()[name]


CLASSES: dict[str, type[TimmModel]] = {name: _with_timms_interface(family) for name, family in FAMILIES.items()}


def checkpoint_filter_fn(state_dict: dict[str, Tensor], model: TimmModel) -> dict[str, Tensor]:
    """Adapts weights of another image size or number of channels to `model`; timm calls it on loading.

    Position embeddings and element-wise masks are interpolated. One channel gets the sum of all weights; more channels
    repeat them, scaled. `model.pretrained_cfg` gives the image size of the weights.

    Raises ValueError for T2T weights with another number of channels.
    """
    own = model.state_dict()
    others = [name for name, tensor in state_dict.items() if name in own and own[name].shape != tensor.shape]
    if not others:
        return state_dict
    channels, *size = model.pretrained_cfg["input_size"]
    with torch.device("meta"):
        source = FAMILIES[model.family](
            **{**model.config, "image_size": size, "channels": channels, "num_classes": max(2, model.num_classes)}
        )
    known = source.state_dict()
    if channels != model.in_chans and model.family == "t2t":
        raise ValueError(f"T2T weights for {channels} channels do not fit images of {model.in_chans} channels")
    fitted = dict(state_dict)
    for name in others:
        if name not in known or known[name].shape != state_dict[name].shape:
            continue  # another model's weight: loading reports it
        if name == "pos_embed":
            fitted[name] = resample_position(state_dict[name], source.grid, model.grid, model.prefix_tokens)
        elif isinstance(mask := model.get_submodule(name.rpartition(".")[0]), Mask):
            fitted[name] = mask.fitted(state_dict[name], source.get_submodule(name.rpartition(".")[0]).grid)
        elif name == "patch_embed.proj.weight":
            fitted[name] = _fit_channels(state_dict[name], channels, model.in_chans)
    return fitted


def _fit_channels(weight: Tensor, old: int, new: int) -> Tensor:
    pixels = weight.unflatten(1, (-1, old))  # a patch is flattened in the order (row, column, channel)
    if new == 1:
        return pixels.sum(-1)
    return (pixels[..., [channel % old for channel in range(new)]] * (old / new)).flatten(1)


def _create(family: str, size: str, mask: str, name: str) -> Callable[..., nn.Module]:
    def create(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        return build_model_with_cfg(
            CLASSES[family],
            name,
            pretrained,
            pretrained_filter_fn=checkpoint_filter_fn,
            feature_cfg={"out_indices": kwargs.pop("out_indices", 3), "feature_cls": "getter"},
            **{**SIZES[family][size], "mask": mask, **kwargs},
        )

    create.__name__ = create.__qualname__ = name
    create.__doc__ = f"{CLASSES[family].__name__} of size {size!r} with mask {mask!r}."
    return create


_CFG = {
    "input_size": (3, 32, 32),
    "fixed_input_size": True,  # makes timm pass `img_size` to the model
    "num_classes": 10,
    "crop_pct": 1.0,
    "mean": (0.5, 0.5, 0.5),
    "std": (0.5, 0.5, 0.5),
    "first_conv": (),  # none: `checkpoint_filter_fn` adapts the linear patch embedding to other channels
    "classifier": "head",
    "license": "apache-2.0",
    "paper_ids": "arXiv:2309.05375",
}
MODELS: dict[str, tuple[str, str, str]] = {
    f"gmmvit_{family}_{size.replace('-', '_')}" + ("" if mask == "none" else f"_{mask}"): (family, size, mask)
    for family in CLASSES
    for size in SIZES[family]
    for mask in MASKS
}
default_cfgs = generate_default_cfgs(dict.fromkeys(MODELS, _CFG))
__all__ = ["CLASSES", "MODELS", "TimmModel", "checkpoint_filter_fn"]
globals().update({name: register_model(_create(*entry, name)) for name, entry in MODELS.items()})
