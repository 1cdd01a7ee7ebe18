"""Models of transformers in no table of `attach`, recognised by the rule of `measured.py`."""

import importlib
from typing import Any

from .donor import Donor, from_config

_SIZES: dict[str, Any] = {
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
}
_PAIRS = {"image_size": [32, 32], "patch_size": [8, 8]}


def _like_vit(name: str, cls: str, config: str, prefix: int, **sizes: Any) -> Donor:
    options = {**_SIZES, **sizes}
    rows, cols = (side // 8 for side in options["image_size"]) if "image_size" in sizes else (4, 4)
    return Donor(
        name, "transformers", from_config(cls, config, **options), [(rows, cols)] * 2, prefix, (8 * rows, 8 * cols)
    )


def _idefics2() -> Any:
    transformers = importlib.import_module("transformers")
    module = importlib.import_module("transformers.models.idefics2.modeling_idefics2")
    return module.Idefics2VisionTransformer(transformers.Idefics2VisionConfig(**_SIZES))


def _vitpose() -> Any:
    transformers = importlib.import_module("transformers")
    backbone = transformers.VitPoseBackboneConfig(**{**_SIZES, "image_size": [32, 48], "patch_size": [8, 8]})
    return transformers.VitPoseForPoseEstimation(transformers.VitPoseConfig(backbone_config=backbone, num_labels=5))


MEASURED = [
    _like_vit("vit_msn", "ViTMSNModel", "ViTMSNConfig", 1),
    _like_vit("ijepa", "IJepaModel", "IJepaConfig", 0),
    _like_vit("dpt", "DPTModel", "DPTConfig", 1),
    _like_vit("aimv2", "Aimv2VisionModel", "Aimv2VisionConfig", 0),
    _like_vit("metaclip_2", "MetaClip2VisionModel", "MetaClip2VisionConfig", 1),
    _like_vit("internvl", "InternVLVisionModel", "InternVLVisionConfig", 1, **_PAIRS),
    _like_vit("qianfan_ocr", "QianfanOCRVisionModel", "QianfanOCRVisionConfig", 1, **_PAIRS),
    _like_vit("idefics3", "Idefics3VisionTransformer", "Idefics3VisionConfig", 0),
    _like_vit("smolvlm", "SmolVLMVisionTransformer", "SmolVLMVisionConfig", 0),
    _like_vit("owlvit", "OwlViTVisionModel", "OwlViTVisionConfig", 1),
    _like_vit("owlv2", "Owlv2VisionModel", "Owlv2VisionConfig", 1),
    _like_vit("blip_2", "Blip2VisionModel", "Blip2VisionConfig", 1),
    _like_vit("instructblip", "InstructBlipVisionModel", "InstructBlipVisionConfig", 1),
    _like_vit("clipseg", "CLIPSegVisionModel", "CLIPSegVisionConfig", 1),
    _like_vit("altclip", "AltCLIPVisionModel", "AltCLIPVisionConfig", 1),
    _like_vit("chinese_clip", "ChineseCLIPVisionModel", "ChineseCLIPVisionConfig", 1),
    _like_vit("janus", "JanusVisionModel", "JanusVisionConfig", 0),
    _like_vit("mlcd", "MLCDVisionModel", "MLCDVisionConfig", 1),
    _like_vit("tipsv2", "Tipsv2VisionModel", "Tipsv2VisionConfig", 2),
    _like_vit("step3p7", "Step3p7VisionModel", "Step3p7VisionConfig", 0),
    Donor("idefics2", "transformers", _idefics2, [(4, 4)] * 2),
    Donor("vitpose_backbone", "transformers", _vitpose, [(4, 6)] * 2, 0, (32, 48)),
]
