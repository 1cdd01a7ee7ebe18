"""Every model of the table under torch.compile and torch.export, and at other image sizes."""

import pytest
import torch
from zoo import DONORS, logits

from gmmvit.attach import attach, describe

TABLE = {f"{d.library}-{d.name}": d for d in DONORS}
every_donor = pytest.mark.parametrize("donor", DONORS, ids=list(TABLE))


@pytest.fixture(autouse=True)
def installed(donor):
    if donor.missing():
        pytest.skip(donor.missing())


def assert_unchanged_by(tool, donor):
    """The logits of the attached model stay the same through the tool: to 1e-5 or, where their rounding to float32 is
    coarser than that (a tool adds up in another order), to 1e-4 and in float64 to 1e-9."""
    got, expected = with_and_without(tool, donor, torch.float32)
    if not torch.allclose(got, expected, atol=1e-5, rtol=1e-5):
        torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)
        got, expected = with_and_without(tool, donor, torch.float64)
        torch.testing.assert_close(got, expected, atol=1e-9, rtol=1e-9)


def with_and_without(tool, donor, dtype):
    torch.manual_seed(2)
    model, images = attach(donor.make(dtype=dtype), init="paper").to(dtype), donor.images(dtype=dtype)
    return tool(model, images), logits(model, images)


def exported_logits(model, images):
    return logits(torch.export.export(model, (images,)).module(), images)


def compiled_logits(model, images):
    torch.compiler.reset()
    return logits(torch.compile(model, backend="eager", fullgraph=True), images)


# Their attention is that of another row; `benchmarks/attach_table.py` compiles them too.
ALIKE = {
    "timm-deit_tiny_distilled_patch16_224",
    "timm-deit3_small_patch16_224",
    "timm-vit_small_patch14_reg4_dinov2",
    "timm-vit_relpos_base_patch32_plus_rpn_256",
    "timm-beitv2_base_patch16_224",
    "timm-eva_giant_patch14_224",
    "timm-vit_small_patch16_dinov3",
    "timm-mvitv2_small_cls",
    "timm-mvitv2_small_cls, odd grid",
    "transformers-deit",
    "transformers-dinov2",
    "transformers-dinov2_with_registers",
    "transformers-siglip",
}
to_compile = [name for name in TABLE if name not in ALIKE]


@pytest.mark.parametrize("donor", [TABLE[name] for name in to_compile], ids=to_compile)
def test_it_compiles_into_one_graph_where_the_donor_does(donor):
    if donor.patches is not None:
        with pytest.raises(torch._dynamo.exc.Unsupported):
            compiled_logits(donor.make(), donor.images())
        pytest.skip("the donor reads the grids of its samples outside of the graph")
    assert_unchanged_by(compiled_logits, donor)


@every_donor
def test_it_exports_where_the_donor_does(donor):
    if donor.patches is not None:
        with pytest.raises(Exception, match="data-dependent"):
            torch.export.export(donor.make(), (donor.images(),))
        pytest.skip("the donor's graph depends on the grids of its samples")
    assert_unchanged_by(exported_logits, donor)


# How to make donors accept other images, and the side of those images.
SIZES = {
    **dict.fromkeys(
        [
            f"timm-{d.name}"
            for d in DONORS
            if d.library == "timm" and d.name.startswith(("vit_", "deit", "beit", "eva"))
        ],
        ({"img_size": (48, 32)}, (48, 32)),
    ),
    "timm-swin_tiny_patch4_window7_224": ({"img_size": (48, 64), "window_size": (6, 4)}, (48, 64)),
    "timm-swinv2_tiny_window8_256": ({"img_size": (24, 48), "window_size": (3, 6)}, (24, 48)),
    "timm-swinv2_cr_tiny_224": ({"img_size": (24, 48), "window_size": (3, 6)}, (24, 48)),
    "timm-naflexvit": (None, (40, 24)),
    "torchvision-swin_t": (None, (44, 26)),
    "torchvision-swin_v2_t": (None, (44, 26)),
    "transformers-dinov3_vit": (None, (48, 64)),
    "transformers-swin": (None, (40, 48)),
    **dict.fromkeys(
        [
            f"transformers-{name}"
            for name in ("vit", "deit", "dinov2", "dinov2_with_registers", "beit", "clip", "siglip")
        ],
        ({"interpolate_pos_encoding": True}, (48, 64)),
    ),
}


@pytest.mark.parametrize("donor", [TABLE[name] for name in SIZES], ids=list(SIZES))
def test_the_image_size_changes_where_the_donor_can(donor):
    how, size = SIZES[f"{donor.library}-{donor.name}"]
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
    results = []
    for model in (donor.make(), attach(donor.make())):
        options = how if donor.library == "transformers" and how else {}
        if donor.library == "timm" and how:
            model.set_input_size(**how)
        results.append(logits(lambda x, model=model, options=options: model(x, **options), images))
    torch.testing.assert_close(results[1], results[0], atol=1e-5, rtol=1e-5)
    if how and "window_size" in how:
        assert describe(model)[0].grid == how["window_size"]
