"""The convolutional stem: overlapping, on the grid of the patches."""

import pytest
import torch

from gmmvit import create_model
from gmmvit.models.layers import PatchEmbedding
from gmmvit.models.stem import ConvStem, make_stem, stem_strides


@pytest.mark.parametrize("patch", [(1, 1), (2, 2), (3, 3), (4, 4), (4, 2), (6, 5), (7, 7), (16, 16)])
@pytest.mark.parametrize("grid", [(1, 1), (3, 5)])
def test_the_grid_is_that_of_patches(patch, grid):
    stem = ConvStem(patch, 2, 16)
    images = torch.randn(2, 2, grid[0] * patch[0], grid[1] * patch[1])
    assert stem.grid(images) == grid
    assert stem.eval()(images).shape == (2, grid[0] * grid[1], 16)


def test_strides_are_twos_and_the_rest():
    assert stem_strides((4, 4)) == [(2, 2), (2, 2)]
    assert stem_strides((14, 14)) == [(2, 2), (7, 7)]
    assert stem_strides((5, 8)) == [(1, 2), (1, 2), (5, 2)]


def test_a_token_sees_beyond_its_patch():
    stem = ConvStem((4, 4), 1, 8).eval()
    images = torch.randn(1, 1, 12, 12)
    changed = images.clone()
    changed[0, 0, 4, 3] += 1  # the last column left of the middle patch
    difference = (stem(images) - stem(changed))[0].abs().sum(1)
    assert difference[3] > 0
    assert difference[4] > 0


@pytest.mark.parametrize("family", ["vit", "swin", "cait", "pit"])
def test_a_family_takes_it_at_its_own_grid_and_others(family):
    options = {"num_classes": 5, "image_size": 32}
    plain, conv = (create_model(family, stem=stem, **options) for stem in ("patch", "conv"))
    assert isinstance(plain.patch_embed, PatchEmbedding)
    assert isinstance(conv.patch_embed, ConvStem)
    assert conv.grid == plain.grid
    assert conv(torch.randn(2, 3, 32, 32)).shape == (2, 5)
    assert conv.eval()(torch.randn(1, 3, 64, 64)).shape == (1, 5)


def test_it_is_saved_and_found_again(tmp_path):
    model = create_model("vit", stem="conv", dim=24, depth=1, num_heads=2)
    model(torch.randn(4, 3, 32, 32))  # changes the norms' statistics
    model.eval().save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(again(images), model(images))


def test_compiled_it_is_the_same():
    model = ConvStem((4, 4), 3, 8).eval()
    images = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(torch.compile(model, fullgraph=True)(images), model(images))


def test_what_does_not_fit_is_named():
    with pytest.raises(ValueError, match="stem must be one of"):
        make_stem("cnov", (4, 4), 3, 8)
    with pytest.raises(ValueError, match="image size 30 x 32 is not a multiple of the patch size 4 x 4"):
        ConvStem((4, 4), 3, 8)(torch.randn(1, 3, 30, 32))
