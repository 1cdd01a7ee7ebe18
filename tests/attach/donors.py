"""What `attach` is held to: one row a model."""

from donor import Donor, Named, from_class, from_config
from donors_explicit import EXPLICIT
from donors_maps import MAPS
from donors_stages import STAGES
from donors_timm import TIMM

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

DONORS = [
    *TIMM,
    Donor(
        "vit_b_16",
        "torchvision",
        from_class(
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
    Donor("vit", "transformers", from_config("ViTForImageClassification", "ViTConfig", **_HF), _SQUARE, 1),
    Donor("deit", "transformers", from_config("DeiTForImageClassification", "DeiTConfig", **_HF), _SQUARE, 2),
    Donor("dinov2", "transformers", from_config("Dinov2ForImageClassification", "Dinov2Config", **_HF), _SQUARE, 1),
    Donor(
        "dinov2_with_registers",
        "transformers",
        from_config("Dinov2WithRegistersForImageClassification", "Dinov2WithRegistersConfig", **_HF),
        _SQUARE,
        5,
    ),
    Donor(
        "beit",
        "transformers",
        from_config("BeitForImageClassification", "BeitConfig", use_relative_position_bias=True, **_HF),
        _SQUARE,
        1,
    ),
    Donor(
        "clip",
        "transformers",
        from_config("CLIPVisionModelWithProjection", "CLIPVisionConfig", projection_dim=8, **_HF),
        _SQUARE,
        1,
    ),
    Donor("siglip", "transformers", from_config("SiglipVisionModel", "SiglipVisionConfig", **_HF), _SQUARE, 0),
    Donor(
        "dinov3_vit",
        "transformers",
        from_config("DINOv3ViTModel", "DINOv3ViTConfig", num_register_tokens=2, **_HF),
        _SQUARE,
        3,
    ),
    Donor(
        "swin",
        "transformers",
        from_config(
            "SwinForImageClassification",
            "SwinConfig",
            image_size=32,
            patch_size=2,
            embed_dim=24,
            depths=[2, 2],
            num_heads=[2, 4],
            window_size=4,
            num_labels=5,
        ),
        [(4, 4)] * 4,
    ),
    Donor(
        "swin_t",
        "torchvision",
        from_class(
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
        from_class(
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
        "maxvit_t",
        "torchvision",
        from_class(
            "torchvision.models.maxvit.MaxVit",
            input_size=(48, 48),
            stem_channels=8,
            partition_size=3,
            block_channels=[24],
            block_layers=[1],
            head_dim=12,
            stochastic_depth_prob=0.0,
            num_classes=5,
        ),
        [(3, 3)] * 2,
        image=(48, 48),
    ),
    *MAPS,
    *EXPLICIT,
    *STAGES,
]
