"""Models of transformers whose attention calls a function of the library."""

from .donor import Donor, from_config

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

TRANSFORMERS = [
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
]
