"""torchvision's models."""

from .donor import Donor, Named, from_class

TORCHVISION = [
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
        [(4, 4)] * 2,
        1,
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
]
