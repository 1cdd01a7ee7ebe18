"""timm's models of `timm_maps.py`, and CoAtNet: whole maps, and windows that know their size."""

import importlib
from collections.abc import Callable

from torch import nn

from .donor import Donor, from_class, from_timm

_IMAGE = {"pretrained_cfg_overlay": {"input_size": (3, 64, 96)}}


def _calm(build: Callable[[], nn.Module], variance: float = 4.0) -> Callable[[], nn.Module]:
    """The model with batch norms that keep the logits of random weights small."""

    def built() -> nn.Module:
        model = build()
        for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d) and m.running_var is not None):
            nn.init.constant_(norm.running_var, variance)
        return model

    return built


def _caformer() -> nn.Module:
    module = importlib.import_module("timm.models.metaformer")
    mixers = [module.SepConv, module.SepConv, module.Attention, module.Attention]
    norms = [module.LayerNorm2dNoBias] * 2 + [module.LayerNormNoBias] * 2
    model = module.MetaFormer(
        num_classes=5, depths=(1,) * 4, dims=(16, 24, 32, 64), token_mixers=mixers, norm_layers=norms
    )
    model.pretrained_cfg = _IMAGE["pretrained_cfg_overlay"]  # as `timm.create_model` leaves it
    return model


MAPS = [
    Donor(
        "davit_tiny",
        "timm",
        from_timm("davit_tiny", embed_dims=(16, 24), depths=(1, 1), num_heads=(2, 3), window_size=4),
        [(4, 4)] * 2,
        image=(32, 48),
    ),
    Donor(
        "gcvit_xxtiny",
        "timm",
        from_class(
            "timm.models.gcvit.GlobalContextVit",
            num_classes=5,
            img_size=(64, 96),
            window_ratio=(16, 32),
            embed_dim=16,
            depths=(2, 2),
            num_heads=(2, 4),
        ),
        [(4, 6)] * 2 + [(2, 3)] * 2,
        image=(64, 96),
    ),
    Donor(
        "fastvit_sa12",
        "timm",
        _calm(from_timm("fastvit_sa12", layers=(1, 1, 1, 1), embed_dims=(32, 32, 32, 64), **_IMAGE)),
        [(2, 3)],
        image=(64, 96),
    ),
    Donor(
        "visformer_tiny",
        "timm",
        _calm(
            from_timm(
                "visformer_tiny",
                img_size=(64, 96),
                init_channels=8,
                embed_dim=32,
                depth=(1, 1, 1),
                num_heads=2,
                **_IMAGE,
            ),
            16.0,
        ),
        [(4, 6), (2, 3)],
        image=(64, 96),
    ),
    Donor(
        "botnet26t_256",
        "timm",
        _calm(from_timm("botnet26t_256", img_size=(64, 96)), 25.0),
        [(4, 6), (4, 6), (2, 3)],
        image=(64, 96),
    ),
    Donor(
        "coatnet_pico_rw_224",
        "timm",
        _calm(from_timm("coatnet_pico_rw_224", img_size=(64, 96), embed_dim=(32,) * 4, depths=(1,) * 4, stem_width=16)),
        [(4, 6), (2, 3)],
        image=(64, 96),
    ),
    Donor("caformer_s18", "timm", _caformer, [(4, 6), (2, 3)], image=(64, 96)),
    Donor(
        "efficientformer_l1",
        "timm",
        _calm(from_timm("efficientformer_l1", depths=(1, 1, 1, 2), embed_dims=(16, 16, 16, 32), num_vit=1)),
        [(7, 7)],
        image=(224, 224),
    ),
    Donor(
        "pvt_v2_b0",
        "timm",
        from_timm(
            "pvt_v2_b0",
            depths=(1, 1, 1),
            embed_dims=(16, 24, 32),
            num_heads=(1, 2, 4),
            sr_ratios=(4, 2, 1),
            mlp_ratios=(2, 2, 2),
            **_IMAGE,
        ),
        [(16, 24), (8, 12), (4, 6)],
        image=(64, 96),
    ),
    Donor(
        "samvit_base_patch16_224",
        "timm",
        from_timm(
            "samvit_base_patch16_224",
            img_size=(32, 48),
            patch_size=8,
            embed_dim=48,
            depth=2,
            num_heads=3,
            window_size=3,
            use_rel_pos=True,
            global_attn_indexes=(1,),
            neck_chans=16,
        ),
        [(3, 3), (4, 6)],
        image=(32, 48),
    ),
    Donor(
        "sam2_hiera_tiny",
        "timm",
        from_timm(
            "sam2_hiera_tiny",
            embed_dim=16,
            num_heads=1,
            stages=(1, 2, 1),
            q_pool=2,
            window_spec=(4, 4, 2),
            global_att_blocks=(2,),
            **_IMAGE,
        ),
        [(4, 4), (4, 4), (8, 12), (4, 4)],
        image=(64, 96),
    ),
    Donor(
        "efficientformerv2_s0",
        "timm",
        _calm(
            from_timm(
                "efficientformerv2_s0",
                img_size=(128, 192),
                embed_dims=(16, 16, 24, 32),
                depths=(1, 1, 2, 2),
                num_vit=1,
                mlp_ratios=((2,), (2,), (2, 2), (2, 2)),
            )
        ),
        [(4, 6), (8, 12), (4, 6)],
        image=(128, 192),
    ),
    Donor(
        "tnt_s_patch16_224",
        "timm",
        from_timm(
            "tnt_s_patch16_224",
            img_size=(32, 48),
            patch_size=8,
            first_stride=2,
            embed_dim=24,
            inner_dim=12,
            depth=2,
            num_heads_outer=2,
            num_heads_inner=3,
        ),
        [(4, 4), (4, 6)] * 2,
        [0, 1] * 2,
        (32, 48),
    ),
]
