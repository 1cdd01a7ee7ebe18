"""Small instances of other libraries' models with random weights: what `attach` is held to, one row a model.

`layers` are the grids of the attentions that must carry a mask, in the order in which they run.
"""

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class Donor:
    name: str
    library: str
    build: Callable[[], nn.Module]
    layers: list[tuple[int, int]]
    prefix: int = 0
    image: tuple[int, int] = (32, 32)
    text: bool = False  # takes words beside the image

    def make(self, seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Module:
        """The model in eval mode, with weights large enough for the logits of its attentions to matter."""
        torch.manual_seed(seed)
        model = self.build()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
        return model.to(dtype).eval()

    def images(self, seed: int = 1, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.randn(2, 3, *self.image, generator=torch.Generator().manual_seed(seed)).to(dtype)

    def missing(self) -> str | None:
        return None if importlib.util.find_spec(self.library) else f"{self.library} is not installed"


def logits(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """The main output of a model of any of the libraries."""
    out = model(images)
    for name in ("logits", "image_embeds", "last_hidden_state"):
        if hasattr(out, name):
            return getattr(out, name)
    return out[0] if isinstance(out, tuple) else out


def _timm(name: str, **sizes: Any) -> Callable[[], nn.Module]:
    return lambda: importlib.import_module("timm").create_model(name, num_classes=5, **sizes)


def _hf(cls: str, config: str, **sizes: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        library = importlib.import_module("transformers")
        return getattr(library, cls)(getattr(library, config)(**sizes))

    return build


def _tv(cls: str, **sizes: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        module = importlib.import_module(f"torchvision.models.{'swin_transformer' if 'Swin' in cls else 'vision_transformer'}")
        options = {k: getattr(module, v) if k == "block" else v for k, v in sizes.items()}
        return getattr(module, cls)(**options)

    return build


_WIDE = {"img_size": (32, 48), "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}
_GRID = [(4, 6)] * 2
_HF = {
    "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 64, "image_size": 32,
    "patch_size": 8, "num_labels": 5,
}  # fmt: skip
_SQUARE = [(4, 4)] * 2


def _vit(name: str, prefix: int, **sizes: Any) -> Donor:
    return Donor(name.split(".")[0], "timm", _timm(name, **{**_WIDE, **sizes}), _GRID, prefix, (32, 48))


DONORS = [
    _vit("vit_tiny_patch16_224", 1),
    _vit("deit_tiny_distilled_patch16_224", 2),
    _vit("deit3_small_patch16_224", 1),
    _vit("vit_small_patch14_reg4_dinov2", 5),
    _vit("vit_relpos_small_patch16_224", 0),
    _vit("vit_relpos_base_patch32_plus_rpn_256", 0),
    _vit("beit_base_patch16_224", 1),
    _vit("beitv2_base_patch16_224", 1),
    _vit("eva_giant_patch14_224", 1, mlp_ratio=2),
    _vit("eva02_tiny_patch14_224", 1),
    _vit("vit_small_patch16_dinov3", 5),
    Donor("vit_b_16", "torchvision", _tv("VisionTransformer", image_size=32, patch_size=8, num_layers=2, num_heads=3, hidden_dim=48, mlp_dim=64, num_classes=5), _SQUARE, 1),
    Donor("vit", "transformers", _hf("ViTForImageClassification", "ViTConfig", **_HF), _SQUARE, 1),
    Donor("deit", "transformers", _hf("DeiTForImageClassification", "DeiTConfig", **_HF), _SQUARE, 2),
    Donor("dinov2", "transformers", _hf("Dinov2ForImageClassification", "Dinov2Config", **_HF), _SQUARE, 1),
    Donor("dinov2_with_registers", "transformers", _hf("Dinov2WithRegistersForImageClassification", "Dinov2WithRegistersConfig", **_HF), _SQUARE, 5),
]  # fmt: skip
