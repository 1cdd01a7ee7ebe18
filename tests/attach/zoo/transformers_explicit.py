"""Models of transformers that compute attention in their own code."""

import importlib
from typing import Any

from torch import nn

from .donor import Donor, from_config

_SIZES: dict[str, Any] = {
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
}
_EAGER: dict[str, Any] = {"attn_implementation": "eager"}  # another class, chosen when the model is built
_SAM: dict[str, Any] = {"window_size": 3, "global_attn_indexes": [1], "output_channels": 16, **_SIZES}
_EAGER_SAM: dict[str, Any] = {
    **_SAM,
    **_EAGER,
    "num_attention_heads": 4,
}  # 12 wide, so that tests can distinguish widths from tokens
_SWIN: dict[str, Any] = {
    "image_size": 32,
    "patch_size": 2,
    "embed_dim": 24,
    "depths": [2, 2],
    "num_heads": [2, 4],
    "window_size": 4,
}


def _maskformer_swin() -> nn.Module:
    module = importlib.import_module("transformers.models.maskformer.modeling_maskformer_swin")
    return module.MaskFormerSwinModel(importlib.import_module("transformers").MaskFormerSwinConfig(**_SWIN))


EXPLICIT = [
    Donor(
        "data2vec-vision",
        "transformers",
        from_config("Data2VecVisionModel", "Data2VecVisionConfig", use_relative_position_bias=True, **_SIZES),
        [(4, 4)] * 2,
        1,
    ),
    Donor(
        "data2vec-vision, eager",
        "transformers",
        from_config("Data2VecVisionModel", "Data2VecVisionConfig", **_EAGER, **_SIZES),
        [(4, 4)] * 2,
        1,
    ),
    Donor("blip", "transformers", from_config("BlipVisionModel", "BlipVisionConfig", **_SIZES), [(4, 4)] * 2, 1),
    Donor("donut-swin", "transformers", from_config("DonutSwinModel", "DonutSwinConfig", **_SWIN), [(4, 4)] * 4),
    Donor("maskformer-swin", "transformers", _maskformer_swin, [(4, 4)] * 4),
    Donor("swinv2", "transformers", from_config("Swinv2Model", "Swinv2Config", **_SWIN), [(4, 4)] * 4),
    Donor("sam", "transformers", from_config("SamVisionModel", "SamVisionConfig", **_SAM), [(3, 3), (4, 4)]),
    Donor(
        "sam, eager", "transformers", from_config("SamVisionModel", "SamVisionConfig", **_EAGER_SAM), [(3, 3), (4, 4)]
    ),
    Donor("sam_hq", "transformers", from_config("SamHQVisionModel", "SamHQVisionConfig", **_SAM), [(3, 3), (4, 4)]),
    Donor(
        "sam_hq, eager",
        "transformers",
        from_config("SamHQVisionModel", "SamHQVisionConfig", **_EAGER_SAM),
        [(3, 3), (4, 4)],
    ),
    Donor(
        "vitdet",
        "transformers",
        from_config(
            "VitDetModel",
            "VitDetConfig",
            window_size=3,
            window_block_indices=[0],
            use_relative_position_embeddings=True,
            **{**_SIZES, "image_size": [32, 48]},
        ),
        [(3, 3), (4, 6)],
        image=(32, 48),
    ),
]
