"""Models of transformers in stages, each with its own grid."""

import importlib
from typing import Any

from torch import nn

from .donor import Donor, from_config

_PYRAMID: dict[str, Any] = {
    "num_encoder_blocks": 3,
    "depths": [1, 2, 1],
    "hidden_sizes": [12, 24, 40],  # so that tests can distinguish head widths from numbers of keys
    "num_attention_heads": [1, 2, 4],
    "mlp_ratios": [2, 2, 2],
    "num_labels": 5,
}
_REDUCED = {
    "sr_ratios": [4, 2, 1],
    "strides": [4, 2, 2],
    "patch_sizes": [7, 3, 3],
    "decoder_hidden_size": 16,
    "image_size": [68, 92],
}
_CVT: dict[str, Any] = {
    "embed_dim": [16, 24, 32],
    "num_heads": [1, 2, 4],
    "depth": [1, 2, 3],
    "image_size": [68, 92],
    "mlp_ratio": [2.0, 2.0, 2.0],
    "num_labels": 5,
}
_LEVIT: dict[str, Any] = {
    "image_size": 128,
    "hidden_sizes": [16, 24, 32],
    "num_attention_heads": [2, 3, 4],
    "depths": [1, 1, 1],
    "key_dim": [8, 8, 8],
    "num_labels": 5,
}


def _sam2() -> nn.Module:
    module = importlib.import_module("transformers.models.sam2.modeling_sam2")
    config = importlib.import_module("transformers").Sam2HieraDetConfig(
        hidden_size=16,
        num_attention_heads=1,
        image_size=[64, 96],
        blocks_per_stage=[1, 2, 1],
        embed_dim_per_stage=[16, 32, 64],
        num_attention_heads_per_stage=[1, 2, 4],
        window_size_per_stage=[4, 4, 2],
        num_query_pool_stages=2,
        global_attention_blocks=[2],
        window_positional_embedding_background_size=[4, 4],
    )
    return module.Sam2HieraDetModel(config)


def _levit() -> nn.Module:
    model: Any = from_config("LevitForImageClassification", "LevitConfig", **_LEVIT)()
    for module in (m for m in model.modules() if hasattr(m, "drop_rate")):
        module.drop_rate = 0.0  # its configuration takes only whole numbers
    return model


def _segformer(**options: Any) -> Any:
    return from_config("SegformerForImageClassification", "SegformerConfig", **_PYRAMID, **_REDUCED, **options)


STAGES = [
    Donor("segformer", "transformers", _segformer(), [(17, 23), (9, 12), (9, 12), (5, 6)], image=(68, 92)),
    Donor(
        "segformer, eager",
        "transformers",
        _segformer(attn_implementation="eager"),
        [(17, 23), (9, 12), (9, 12), (5, 6)],
        image=(68, 92),
    ),
    Donor(
        "pvt",
        "transformers",
        from_config(
            "PvtForImageClassification",
            "PvtConfig",
            **_PYRAMID,
            image_size=64,
            patch_sizes=[4, 2, 2],
            strides=[4, 2, 2],
            sequence_reduction_ratios=[4, 2, 1],
        ),
        [(16, 16), (8, 8), (8, 8), (4, 4)],
        [0, 0, 0, 1],
        (64, 64),
    ),
    Donor(
        "pvt_v2",
        "transformers",
        from_config(
            "PvtV2ForImageClassification",
            "PvtV2Config",
            **_PYRAMID,
            image_size=[64, 96],
            sr_ratios=[4, 2, 1],
            patch_sizes=[7, 3, 3],
            strides=[4, 2, 2],
        ),
        [(16, 24), (8, 12), (8, 12), (4, 6)],
        image=(64, 96),
    ),
    Donor(
        "cvt",
        "transformers",
        from_config("CvtForImageClassification", "CvtConfig", **_CVT),
        [(17, 23), (9, 12), (9, 12), (5, 6), (5, 6), (5, 6)],
        [0, 0, 0, 1, 1, 1],
        (68, 92),
    ),
    Donor("levit", "transformers", _levit, [(8, 8), (8, 8), (4, 4), (4, 4), (2, 2)], image=(128, 128)),
    Donor("sam2_hiera_det_model", "transformers", _sam2, [(4, 4), (4, 4), (8, 12), (4, 4)], image=(64, 96)),
]
