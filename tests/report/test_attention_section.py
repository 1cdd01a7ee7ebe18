"""The report shows the attention that the model computes."""

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import nn

import gmmvit
from gmmvit.attention import unpack
from gmmvit.report.attention import attention_maps, attention_section, layer_weights
from gmmvit.report.pictures import heat_over
from gmmvit.runs.checkpoint import load_run


@pytest.mark.parametrize("mode", ["multiply", "log", "post"])
@pytest.mark.parametrize("mask", ["none", "gmm", "elm"])
@pytest.mark.parametrize("pool", ["mean", "cls"])
def test_the_attention_drawn_is_the_attention_computed(trained: Path, mode: str, mask: str, pool: str) -> None:
    torch.manual_seed(0)
    options = {"pool": pool, "dim": 16, "depth": 2, "num_heads": 2, "channels": 1, "patch_size": (2, 4)}
    model = gmmvit.create_model("vit", mask=mask, mode=mode, image_size=8, num_classes=10, **options).eval()
    run = dataclasses.replace(load_run(trained), model=model)
    images = torch.randint(256, (3, 1, 8, 8), dtype=torch.uint8)
    maps = attention_maps(run, images)
    assert [attention.grid for attention in maps] == [(4, 2), (4, 2)]
    assert not any("attend" in vars(module) for module in model.modules())  # the model stays unchanged
    layer = model.get_submodule(maps[0].name)
    assert isinstance(layer, gmmvit.MaskedAttention)
    x = torch.randn(3, 8 + (pool == "cls"), 16)
    q, k, v = unpack(layer.project(x))
    torch.testing.assert_close(layer.merge(layer_weights(layer, q, k, None) @ v), layer(x), atol=1e-5, rtol=1e-4)
    heat, cell = maps[0].heat()
    prefix = int(pool == "cls")
    assert cell == (None if prefix else (2, 1))
    expected = maps[0].weights[:, :, 0 if prefix else 5, prefix:].mean(1).reshape(3, 4, 2)
    torch.testing.assert_close(heat, expected)


def test_a_family_without_masked_attention_gets_a_sentence(trained: Path) -> None:
    run = dataclasses.replace(load_run(trained), model=nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))
    assert "not drawn for vit" in attention_section(run, torch.zeros(1, 1, 8, 8, dtype=torch.uint8), ["a"])


def test_heat_is_strongest_where_attention_is() -> None:
    heat = torch.zeros(4, 2)
    heat[3, 1] = 1
    picture = heat_over(torch.zeros(1, 8, 8, dtype=torch.uint8), heat, None).int()
    assert picture.shape == (3, 96, 96)
    assert picture[0, -5, -5] > 150
    assert picture[0, 5, 5] == 0
