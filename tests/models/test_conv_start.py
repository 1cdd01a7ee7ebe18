"""The mask start "conv": attention that starts as a convolution."""

import pytest
import torch

from gmmvit import GaussianMixtureMask, create_model, load_recipe
from gmmvit.attention import unpack
from gmmvit.config import RecipeError
from gmmvit.masks import create_mask, stencil
from gmmvit.models.layers import MaskedAttention


def test_the_stencil_is_rings_round_the_patch():
    assert set(stencil(9)) == {(down, right) for down in (-1, 0, 1) for right in (-1, 0, 1)}
    assert set(stencil(25)) == {(down, right) for down in range(-2, 3) for right in range(-2, 3)}
    assert stencil(1) == [(0, 0)]


@pytest.mark.parametrize("heads", [2, 4, 8, 12, 30])
def test_heads_have_cells_of_their_own_and_the_layers_cover_the_ring(heads):
    cells = [stencil(heads, depth) for depth in torch.linspace(0, 1, 20).tolist()]
    assert all(len(set(layer)) == heads for layer in cells)
    reach = max(abs(side) for cell in cells[0] for side in cell)
    assert set().union(*cells) == {(i, j) for i in range(-reach, reach + 1) for j in range(-reach, reach + 1)}


@pytest.mark.parametrize("grid", [(6, 6), (4, 7)])
def test_in_the_limit_attention_is_the_convolution_it_stands_for(grid):
    torch.manual_seed(0)
    heads, width = 9, 4
    mask = GaussianMixtureMask(grid, heads, 3, "conv", positive=True)
    layer = MaskedAttention(18, heads, head_dim=width, mask=mask, mode="log").double()
    with torch.no_grad():
        mask.sigma[:, 0], mask.alpha[:, 1] = 0.02, 1e-30
    x = torch.randn(2, grid[0] * grid[1], 18, dtype=torch.float64)
    values = layer.qkv.weight[2 * heads * width :].unflatten(0, (heads, width))  # [H, D, in]
    joined = layer.proj.weight.unflatten(1, (heads, width))  # [out, H, D]
    kernel = torch.zeros(18, 18, 3, 3, dtype=torch.float64)
    for head, (down, right) in enumerate(stencil(heads)):
        kernel[:, :, down + 1, right + 1] = joined[:, head] @ values[head]
    image = x.transpose(1, 2).unflatten(2, grid)
    expected = torch.nn.functional.conv2d(image, kernel, layer.proj.bias)  # without the border
    got = layer(x).transpose(1, 2).unflatten(2, grid)[:, :, 1:-1, 1:-1]
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


def test_at_the_border_a_head_without_its_cell_attends_as_if_there_were_no_mask():
    torch.manual_seed(0)
    mask = GaussianMixtureMask((3, 4), 9, 2, "conv", positive=True)
    layer = MaskedAttention(18, 9, head_dim=2, mask=mask, mode="log").double()
    with torch.no_grad():
        mask.sigma[:, 0], mask.alpha[:, 1] = 0.02, 1e-30
    x = torch.randn(1, 12, 18, dtype=torch.float64)
    qkv = layer.project(x)
    masked = layer.attend(qkv, None)
    q, k, v = unpack(qkv)
    head = stencil(9).index((-1, 0))  # looks up: the first row has nothing there
    plain = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    torch.testing.assert_close(masked[:, head, :4], plain[:, head, :4])
    torch.testing.assert_close(masked[:, head, 4:], v[:, head, :8])


@pytest.mark.parametrize("covariance", ["spherical", "diag", "full"])
def test_every_part_of_the_start_has_a_gradient_at_once(covariance):
    mask = GaussianMixtureMask((4, 4), 9, 4, "conv", covariance=covariance, positive=True)
    (mask.table() * torch.rand(9, 7, 7)).sum().backward()
    assert mask.center is not None
    assert (mask.center.grad != 0).all()
    assert (mask.alpha.grad != 0).all()
    assert (mask.sigma.grad[:, 0] != 0).all()


@pytest.mark.parametrize("family", ["vit", "swin", "cait", "pit", "t2t"])
def test_the_start_is_on_in_every_family(family):
    outputs = {}
    for mask in ("none", "gmm"):
        torch.manual_seed(0)
        options = {"mask_options": {"init": "conv"}} if mask == "gmm" else {}
        model = create_model(family, mask=mask, mode="log", **options).eval()
        torch.manual_seed(1)
        outputs[mask] = model(torch.randn(2, 3, 32, 32))
    assert (outputs["gmm"] - outputs["none"]).abs().max() > 1e-3


def test_what_cannot_start_so_is_refused():
    with pytest.raises(ValueError, match=r"init='conv' of the mask needs mode='log', got mode='multiply'"):
        create_mask("gmm", (4, 4), 3, init="conv")
    with pytest.raises(ValueError, match="num_kernels must be at least 2 for init='conv'"):
        GaussianMixtureMask((4, 4), 3, 1, "conv")
    with pytest.raises(RecipeError, match=r"needs mode log \(--mode log\), or .* \(--mask-init local\), got 'mul"):
        load_recipe("digits", mask_init="conv", mode="multiply")
    with pytest.raises(RecipeError, match="mask_init conv needs num_kernels of at least 2"):
        load_recipe("digits", mask_init="conv", mode="log", num_kernels=1)
    with pytest.raises(RecipeError, match="mask_init of an elm must be paper or identity, got 'conv'"):
        load_recipe("digits", mask="elm", mask_init="conv")


def test_a_model_with_it_can_be_built_without_memory():
    with torch.device("meta"):
        model = create_model("vit", mask="gmm", mode="log", mask_options={"init": "conv"}, stem="conv")
    assert all(parameter.is_meta for parameter in model.parameters())


@pytest.mark.parametrize("family", ["vit", "pit", "cait"])
def test_positions_start_as_wide_as_asked_for(family):
    wide, narrow = (create_model(family, position_std=std).pos_embed.std().item() for std in (1.0, 0.1))
    assert wide == pytest.approx(1, rel=0.1)
    assert narrow == pytest.approx(0.1, rel=0.1)
    with pytest.raises(ValueError, match="position_std"):
        create_model(family, position_std=0)
