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
    prefix: int | list[int] = 0  # the same in all layers, or one each
    image: tuple[int, int] = (32, 32)

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


def _class(path: str, **sizes: Any) -> Callable[[], nn.Module]:
    """An instance of the class at that path; options in `Named` are looked up beside it."""

    def build() -> nn.Module:
        module_name, _, cls = path.rpartition(".")
        module = importlib.import_module(module_name)
        return getattr(module, cls)(**{k: getattr(module, v) if isinstance(v, Named) else v for k, v in sizes.items()})

    return build


class Named(str):
    """The name of something that lies in the donor's module."""


_WIDE = {"img_size": (32, 48), "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}
_GRID = [(4, 6)] * 2
_HF = {
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
    "num_labels": 5,
}
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
    Donor(
        "vit_b_16",
        "torchvision",
        _class(
            "torchvision.models.vision_transformer.VisionTransformer",
            image_size=32,
            patch_size=8,
            num_layers=2,
            num_heads=3,
            hidden_dim=48,
            mlp_dim=64,
            num_classes=5,
        ),
        _SQUARE,
        1,
    ),
    Donor("vit", "transformers", _hf("ViTForImageClassification", "ViTConfig", **_HF), _SQUARE, 1),
    Donor("deit", "transformers", _hf("DeiTForImageClassification", "DeiTConfig", **_HF), _SQUARE, 2),
    Donor("dinov2", "transformers", _hf("Dinov2ForImageClassification", "Dinov2Config", **_HF), _SQUARE, 1),
    Donor(
        "dinov2_with_registers",
        "transformers",
        _hf("Dinov2WithRegistersForImageClassification", "Dinov2WithRegistersConfig", **_HF),
        _SQUARE,
        5,
    ),
    Donor(
        "beit",
        "transformers",
        _hf("BeitForImageClassification", "BeitConfig", use_relative_position_bias=True, **_HF),
        _SQUARE,
        1,
    ),
    Donor(
        "clip",
        "transformers",
        _hf("CLIPVisionModelWithProjection", "CLIPVisionConfig", projection_dim=8, **_HF),
        _SQUARE,
        1,
    ),
    Donor("siglip", "transformers", _hf("SiglipVisionModel", "SiglipVisionConfig", **_HF), _SQUARE, 0),
    Donor(
        "dinov3_vit", "transformers", _hf("DINOv3ViTModel", "DINOv3ViTConfig", num_register_tokens=2, **_HF), _SQUARE, 3
    ),
    Donor(
        "swin",
        "transformers",
        _hf(
            "SwinForImageClassification",
            "SwinConfig",
            image_size=32,
            patch_size=2,
            embed_dim=24,
            depths=[2, 2],
            num_heads=[2, 3],
            window_size=4,
            num_labels=5,
        ),
        [(4, 4)] * 4,
    ),
    Donor(
        "swin_t",
        "torchvision",
        _class(
            "torchvision.models.swin_transformer.SwinTransformer",
            patch_size=[2, 2],
            embed_dim=24,
            depths=[2, 2],
            num_heads=[2, 3],
            window_size=[3, 5],
            num_classes=5,
        ),
        [(3, 5)] * 4,
        image=(30, 44),
    ),
    Donor(
        "swin_v2_t",
        "torchvision",
        _class(
            "torchvision.models.swin_transformer.SwinTransformer",
            patch_size=[2, 2],
            embed_dim=24,
            depths=[2, 2],
            num_heads=[2, 4],
            window_size=[4, 4],
            num_classes=5,
            block=Named("SwinTransformerBlockV2"),
            downsample_layer=Named("PatchMergingV2"),
        ),
        [(4, 4)] * 4,
        image=(32, 48),
    ),
    Donor(
        "swin_tiny_patch4_window7_224",
        "timm",
        _timm(
            "swin_tiny_patch4_window7_224",
            img_size=(32, 48),
            patch_size=2,
            window_size=(4, 6),
            embed_dim=24,
            depths=(2, 2),
            num_heads=(2, 3),
        ),
        [(4, 6)] * 4,
        image=(32, 48),
    ),
    Donor(
        "swinv2_tiny_window8_256",
        "timm",
        _timm(
            "swinv2_tiny_window8_256",
            img_size=32,
            patch_size=2,
            window_size=4,
            embed_dim=24,
            depths=(2, 2),
            num_heads=(2, 4),
        ),
        [(4, 4)] * 4,
    ),
    Donor(
        "cait_xxs24_224",
        "timm",
        _timm("cait_xxs24_224", img_size=(32, 48), patch_size=8, embed_dim=48, depth=2, num_heads=3),
        _GRID,
        0,
        (32, 48),
    ),
    Donor(
        "pit_ti_224",
        "timm",
        _timm("pit_ti_224", img_size=(32, 48), patch_size=8, stride=4, base_dims=(12, 12), depth=(1, 1), heads=(2, 4)),
        [(7, 11), (4, 6)],
        1,
        (32, 48),
    ),
    Donor(
        "swinv2_cr_tiny_224",
        "timm",
        _timm(
            "swinv2_cr_tiny_224",
            img_size=32,
            patch_size=2,
            window_size=4,
            embed_dim=24,
            depths=(2, 2),
            num_heads=(2, 4),
        ),
        [(4, 4)] * 4,
    ),
    Donor(
        "maxvit_tiny_tf_224",
        "timm",
        _timm(
            "maxvit_tiny_tf_224",
            img_size=64,
            transformer_partition_ratio=16,
            embed_dim=(32, 32),
            depths=(1, 1),
            stem_width=16,
        ),
        [(4, 4)] * 4,
        image=(64, 64),
    ),
    Donor(
        "maxvit_rmlp_pico_rw_256",
        "timm",
        _timm(
            "maxvit_rmlp_pico_rw_256",
            img_size=64,
            transformer_partition_ratio=16,
            embed_dim=(32, 32),
            depths=(1, 1),
            stem_width=16,
        ),
        [(4, 4)] * 4,
        image=(64, 64),
    ),
    Donor(
        "twins_svt_small",
        "timm",
        _timm(
            "twins_svt_small",
            img_size=(40, 48),
            patch_size=2,
            embed_dims=(16, 24),
            num_heads=(2, 3),
            mlp_ratios=(2, 2),
            depths=(2, 2),
            sr_ratios=(2, 2),
            wss=(4, 3),
        ),
        [(4, 4), (3, 3)],
        image=(40, 48),
    ),
    Donor(
        "nest_tiny",
        "timm",
        _class(
            "timm.models.nest.Nest",
            num_classes=5,
            img_size=32,
            patch_size=2,
            num_levels=2,
            embed_dims=(24, 24),
            num_heads=(2, 3),
            depths=(1, 1),
        ),
        [(8, 8)] * 2,
    ),
    Donor(
        "volo_d1_224",
        "timm",
        _class(
            "timm.models.volo.VOLO",
            num_classes=5,
            img_size=64,
            layers=(1, 1),
            embed_dims=(24, 24),
            num_heads=(2, 3),
            mlp_ratio=2,
            downsamples=(True, False),
            outlook_attention=(True, False),
        ),
        [(4, 4)],
        image=(64, 64),
    ),
    Donor(
        "levit_128s",
        "timm",
        _timm("levit_128s", img_size=64, embed_dim=(32, 48), key_dim=10, num_heads=(2, 3), depth=(1, 1)),
        [(4, 4), (4, 4), (2, 2)],
        image=(64, 64),
    ),
    Donor(
        "levit_conv_128s",
        "timm",
        _timm("levit_conv_128s", img_size=64, embed_dim=(32, 48), key_dim=10, num_heads=(2, 3), depth=(1, 1)),
        [(4, 4), (4, 4), (2, 2)],
        image=(64, 64),
    ),
    Donor(
        "tiny_vit_5m_224",
        "timm",
        _class(
            "timm.models.tiny_vit.TinyVit",
            num_classes=5,
            embed_dims=(16, 24),
            depths=(1, 2),
            num_heads=(2, 3),
            window_sizes=(4, 4),
        ),
        [(4, 4)] * 2,
        image=(64, 64),
    ),
    Donor(
        "convit_tiny",
        "timm",
        _timm("convit_tiny", img_size=32, patch_size=8, embed_dim=48, depth=2, num_heads=4, local_up_to_layer=1),
        _SQUARE,
        [0, 1],
    ),
]

# What issue and table name and `attach` refuses: library, model, reason.
NOT_YET = [
    ("timm", "naflexvit", "one batch holds images of several grids"),
    ("timm", "hiera", "its tokens lie in the order of its mask units"),
    ("timm", "mvitv2", "queries and keys are pooled to different grids"),
    ("torchvision", "maxvit_t", "its partition attention is not written yet"),
]
