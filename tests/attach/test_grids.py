"""Models whose attentions have different grids: found, or given by name."""

import math
import re

import pytest
import torch
from oracle import masks_in, mixture
from places import _rows_and_columns
from torch import nn
from zoo import DONORS, logits

from gmmvit.attach import attach, describe, detach, load_masks
from gmmvit.attach.grids import used_grids
from gmmvit.attach.surgery import MaskedDonor

timm = pytest.importorskip("timm")
GRIDS = {"stages.0.attention": (4, 6), "stages.1.attention": (2, 3)}


class Stage(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.patches = nn.Conv2d(channels, 12, 2, 2)
        self.token = nn.Parameter(torch.zeros(1, 1, 12))
        self.attention = nn.MultiheadAttention(12, 2, batch_first=True)

    def forward(self, x):
        x = self.patches(x)
        tokens = torch.cat([self.token.expand(len(x), -1, -1), x.flatten(2).transpose(1, 2)], dim=1)
        tokens = tokens + self.attention(tokens, tokens, tokens, need_weights=False)[0]
        return tokens[:, 1:].transpose(1, 2).unflatten(2, x.shape[2:])


class Pyramid(nn.Module):
    """Two stages of 4 x 6 and 2 x 3 patches, each after a token, which nothing in the model reveals."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stages = nn.Sequential(Stage(3), Stage(12))
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.5)

    def forward(self, x):
        return self.stages(x).mean((2, 3))


IMAGES = torch.randn(2, 3, 8, 12, generator=torch.Generator().manual_seed(0))


def test_grids_said_by_name_are_those_of_the_oracle():
    images = IMAGES.double()
    model = attach(Pyramid().double(), grid=GRIDS, prefix_tokens=1, init="paper", num_kernels=3)
    assert [(layer.name, layer.grid, layer.prefix_tokens) for layer in describe(model)] == [
        (name, grid, 1) for name, grid in GRIDS.items()
    ]
    masks = []
    for layer in (m for m in model.modules() if isinstance(m, MaskedDonor)):
        cells = _rows_and_columns(*layer.gmm_mask.grid)
        masks.append(mixture(layer.gmm_mask.sigma, layer.gmm_mask.alpha, cells, cells, 1))
    got, plain = model(images), Pyramid().double()
    for stage in plain.stages:  # the oracle replaces `scaled_dot_product_attention` of a training pass
        stage.attention.train()
    with masks_in(masks):
        expected = plain(images)
    torch.testing.assert_close(got, expected, atol=1e-9, rtol=1e-9)
    assert (expected - Pyramid().double()(images)).abs().max() > 1e-5


@pytest.mark.parametrize("mask", ["gmm", "elm"])
def test_grids_said_by_name_come_back_from_a_file_under_other_names_too(mask):
    model = attach(Pyramid(), mask, grid=GRIDS, prefix_tokens=1, init="paper")
    state, expected = model.state_dict(), model(IMAGES)
    assert torch.equal(load_masks(Pyramid(), state)(IMAGES), expected)
    renamed = {f"trunk.{name}": tensor for name, tensor in state.items()}
    assert torch.equal(load_masks(Pyramid(), renamed)(IMAGES), expected)
    other = attach(Pyramid(), mask, grid=dict(zip(GRIDS, reversed(GRIDS.values()), strict=True)), prefix_tokens=1)
    with pytest.raises(RuntimeError, match=r"size mismatch|was attached with grid=\(4, 6\)|on a 4 x 6 grid"):
        other.load_state_dict(state)
    one = attach(Pyramid(), mask, grid=GRIDS, prefix_tokens=1, layers=[1], init="paper")
    assert [layer.action for layer in describe(load_masks(Pyramid(), one.state_dict()))] == ["left alone", mask]


def test_the_advice_of_the_errors_works_when_it_is_followed():
    with pytest.raises(ValueError, match=r"pass grid=\(rows, cols\), or \{name: \(rows, cols\)\} where they differ"):
        attach(Pyramid())
    model = attach(Pyramid(), grid=(4, 6), prefix_tokens=1)
    with pytest.raises(
        ValueError, match=r"a 4 x 6 grid has 24 patches with 1 tokens before them.*with the grid by name"
    ):
        model(IMAGES)
    with pytest.raises(ValueError, match=r"grid of 'stages\.1\.attention' is unknown: pass grid=\{name: \(rows"):
        attach(detach(model), grid={"stages.0.attention": (4, 6)})
    with pytest.raises(
        ValueError, match=r"grid names 'stages\.2', but the attentions .* are stages\.0\.attention, stages\.1"
    ):
        attach(model, grid={"stages.2": (4, 6)})
    with pytest.raises(ValueError, match=r"grid of 'stages\.0\.attention' must be a positive int or a pair"):
        attach(model, grid={"stages.0.attention": (4, 0)})
    assert attach(model, grid=GRIDS, prefix_tokens=1)(IMAGES).isfinite().all()
    part = attach(Pyramid(), grid={"stages.1.attention": (2, 3)}, prefix_tokens=1, layers=[1])
    torch.testing.assert_close(part(IMAGES), Pyramid()(IMAGES))


def mobilevit():
    return next(d for d in DONORS if d.name == "mobilevit_xxs").make(dtype=torch.float64)


@pytest.mark.parametrize("size", [(96, 160), (64, 64), (80, 112)])
def test_mobilevit_finds_the_grid_of_every_stage_at_every_size(size):
    images = torch.randn(2, 3, *size, dtype=torch.float64)
    model = attach(mobilevit())
    torch.testing.assert_close(model(images), mobilevit()(images), atol=1e-5, rtol=1e-5)
    cut = [tuple(math.ceil(math.ceil(side / step) / 2) for side in size) for step in (8, 16, 32)]
    assert sorted({layer.grid for layer in describe(model) if layer.action == "gmm"}) == sorted(set(cut))


def test_mobilevit_takes_grids_by_name_where_it_has_no_image_size_and_for_element_wise_masks():
    model, images = mobilevit(), torch.randn(1, 3, 64, 96, dtype=torch.float64)
    expected = model(images)
    model.pretrained_cfg = {}
    with pytest.raises(ValueError, match=r"patch grid of '.*', '.*' is unknown: pass grid=\{name") as error:
        attach(model)
    names = re.findall("'([^']+)'", str(error.value))
    assert len(names) == 9
    grids = {name: {"2": (4, 6), "3": (2, 3), "4": (1, 2)}[name.split(".")[1]] for name in names}
    torch.testing.assert_close(attach(model, "elm", grid=grids)(images), expected, atol=1e-5, rtol=1e-5)


def test_a_grid_by_name_stands_for_that_of_the_model_and_must_be_that_of_a_window():
    donor = next(d for d in DONORS if d.name == "mvitv2_small_cls, odd grid")
    images = torch.randn(1, 3, 38, 53)
    names = [layer.name for layer in describe(donor.make())]
    model = attach(donor.make(), "elm", grid=dict(zip(names, [(10, 14), (10, 14), (5, 7)], strict=True)))
    torch.testing.assert_close(logits(model, images), logits(donor.make(), images), atol=1e-5, rtol=1e-5)
    swin = next(d for d in DONORS if d.name == "swin_tiny_patch4_window7_224").make()
    name = describe(swin)[0].name
    with pytest.raises(ValueError, match=rf"grid of '{re.escape(name)}' must equal its window, \(4, 6\), got \(6, 4\)"):
        attach(swin, grid={name: (6, 4)})
    attach(swin, grid={name: (4, 6)})


@pytest.mark.parametrize(
    ("name", "size"),
    [("mobilevit_xxs", (64, 96)), ("shvit_s1", (96, 64)), ("csatv2", (64, 160)), ("segformer", (64, 96))],
)
def test_element_wise_masks_made_for_other_images_are_those_of_the_oracle(name, size):
    donor = next(d for d in DONORS if d.name == name)
    images = torch.randn(2, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    model = attach(donor.make(dtype=torch.float64))
    grids = used_grids(model, images)
    assert len(grids) == len(donor.layers)
    assert used_grids(model, donor.images(dtype=torch.float64)) == {}
    attach(detach(model), "elm", grid=grids)
    masks = []
    for layer in (m for m in model.modules() if isinstance(m, MaskedDonor)):
        nn.init.normal_(layer.gmm_mask.weight)
        masks.append(layer.gmm_mask.dense().detach())
    got = logits(model, images)
    with masks_in(masks):
        expected = logits(donor.make(dtype=torch.float64), images)
    torch.testing.assert_close(got, expected, atol=1e-9, rtol=1e-9)
    assert (expected - logits(donor.make(dtype=torch.float64), images)).abs().max() > 1e-5


def test_grids_of_crossvit_follow_its_branches_and_go_by_name_too():
    donor = next(d for d in DONORS if d.name == "crossvit_9_dagger_240")
    grids = {layer.name: layer.grid for layer in describe(donor.make()) if layer.action == "free"}
    assert grids["blocks.0.blocks.0.0.attn"] == (8, 12)
    assert grids["blocks.0.blocks.1.0.attn"] == (4, 6)
    for mask in ("gmm", "elm"):
        model = attach(donor.make(), mask, grid=grids)
        torch.testing.assert_close(logits(model, donor.images()), logits(donor.make(), donor.images()))
