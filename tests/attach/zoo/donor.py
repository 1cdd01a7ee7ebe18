"""A small instance of another library's model with random weights, and how to build one."""

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class Donor:
    """`layers`: the grids of the attentions that must carry a mask, in the order in which they run."""

    name: str
    library: str
    build: Callable[[], nn.Module]
    layers: list[tuple[int, int]]
    prefix: int | list[int] = 0  # the same in all layers, or one per layer
    image: tuple[int, int] = (32, 32)
    patches: list[tuple[int, int]] | None = None  # instead of images: grids of patches, one per sample (NaFlex)

    @property
    def prefixes(self) -> list[int]:
        return self.prefix if isinstance(self.prefix, list) else [self.prefix] * len(self.layers)

    def make(self, seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Module:
        """The model in eval mode, with weights large enough for the logits of its attentions to matter."""
        torch.manual_seed(seed)
        model = self.build()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
        return model.to(dtype).eval()

    def images(self, seed: int = 1, dtype: torch.dtype = torch.float32) -> Any:
        generator = torch.Generator().manual_seed(seed)
        if self.patches is not None:
            return naflex_batch(self.patches, generator, dtype)
        return torch.randn(2, 3, *self.image, generator=generator).to(dtype)

    def missing(self) -> str | None:
        return None if importlib.util.find_spec(self.library) else f"{self.library} is not installed"


def naflex_batch(grids: list[tuple[int, int]], generator: torch.Generator, dtype: torch.dtype) -> dict[str, Any]:
    """Patches of 8 x 8 as timm's NaFlex collator makes them: padded to one more than the longest sample."""
    longest = max(rows * cols for rows, cols in grids) + 1
    coord, valid = torch.zeros(len(grids), longest, 2, dtype=torch.long), torch.zeros(len(grids), longest).bool()
    for i, (rows, cols) in enumerate(grids):
        coord[i, : rows * cols] = torch.cartesian_prod(torch.arange(rows), torch.arange(cols))
        valid[i, : rows * cols] = True
    patches = torch.randn(len(grids), longest, 8 * 8 * 3, generator=generator).to(dtype)
    return {"patches": patches, "patch_coord": coord, "patch_valid": valid}


def with_dropout(model: nn.Module) -> nn.Module:
    """The model with every dropout and drop path of its library on, whatever the name of the rate."""
    rates = ("attention_dropout", "attn_dropout", "dropout", "dropout_prob", "drop_prob", "drop_rate", "p")
    for module in list(model.modules()):
        for name in rates:
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.25)
        for name, child in module.named_children():
            if name.startswith("drop_path") and isinstance(child, nn.Identity):
                setattr(module, name, importlib.import_module("timm.layers").DropPath(0.25))
    return model


def logits(model: nn.Module, images: Any) -> torch.Tensor:
    """The main output of a model of any of the libraries."""
    out = model(images)
    for name in ("logits", "image_embeds", "last_hidden_state", "heatmaps"):
        if getattr(out, name, None) is not None:
            return getattr(out, name)
    return out[0] if isinstance(out, tuple) else out


def from_timm(name: str, **sizes: Any) -> Callable[[], nn.Module]:
    return lambda: importlib.import_module("timm").create_model(name, num_classes=5, **sizes)


def from_config(cls: str, config: str, **sizes: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        library = importlib.import_module("transformers")
        return getattr(library, cls)(getattr(library, config)(**sizes))

    return build


def from_class(path: str, **sizes: Any) -> Callable[[], nn.Module]:
    """An instance of the class at that path; options in `Named` are looked up beside it."""

    def build() -> nn.Module:
        module_name, _, cls = path.rpartition(".")
        module = importlib.import_module(module_name)
        return getattr(module, cls)(**{k: getattr(module, v) if isinstance(v, Named) else v for k, v in sizes.items()})

    return build


def small_vit(**options: Any) -> nn.Module:
    """A plain ViT of timm with two blocks, in eval mode."""
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 5}
    torch.manual_seed(0)
    return importlib.import_module("timm").create_model("vit_tiny_patch16_224", **{**sizes, **options}).eval()


def mvit(size: Any, **options: Any) -> Callable[[], nn.Module]:
    """An MViTv2 of two stages; queries keep or halve the grid, keys have a quarter or a half of it."""

    def build() -> nn.Module:
        timm = importlib.import_module("timm.models.mvitv2")
        sizes = {"depths": (1, 2), "embed_dim": (16, 24), "num_heads": (1, 2), "stride_q": ((1, 1), (2, 2))}
        return timm.MultiScaleVit(timm.MultiScaleVitCfg(**sizes, **options), img_size=size, num_classes=5)

    return build


def mobilevit(height: int, width: int) -> nn.Module:
    """timm's MobileViT for images of that size, normalised so that random weights keep its logits small."""
    size = {"input_size": (3, height, width)}
    model = importlib.import_module("timm").create_model("mobilevit_xxs", num_classes=5, pretrained_cfg_overlay=size)
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.constant_(norm.running_var, 4.0)
    return model


class Named(str):
    """A name in the donor's module."""
