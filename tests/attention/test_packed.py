"""A joint projection as it comes: `gmm_attention_packed` computes what `gmm_attention` does, and its gradient goes back
into the projection without a copy. Triton's kernels run on a GPU where there is one, else in the interpreter."""

import importlib.util

import pytest
import torch
from device_ops import Operations
from torch.utils.checkpoint import checkpoint

from gmmvit.attention import BACKENDS, OffsetTable, gmm_attention, gmm_attention_packed, unpack
from gmmvit.masks import GaussianMixtureMask
from gmmvit.models.layers import MaskedAttention

COPIES = ("stack", "cat", "clone", "_to_copy", "copy_", "contiguous")
GRIDS = {"one tile": (3, 5), "tiles": (5, 7)}


@pytest.fixture(params=list(BACKENDS))
def backend(request):
    if request.param == "triton" and not importlib.util.find_spec("triton"):
        pytest.skip("Triton is not installed")
    return request.param


def leaves(grid, device="cpu", dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    tokens = grid[0] * grid[1] + 1
    packed = torch.randn(2, tokens, 3, 2, 8, generator=generator)
    table = torch.rand(2, 2 * grid[0] - 1, 2 * grid[1] - 1, generator=generator) + 0.5
    bias = torch.randn(1, 2, tokens, tokens, generator=generator)
    return [x.to(device, dtype).requires_grad_() for x in (packed, table, bias)]


def place_of(backend):
    return "cuda" if backend == "triton" and torch.cuda.is_available() else "cpu"


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("mode", ["multiply", "log"])
@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_it_equals_the_entry_of_three(backend, grid, mode):
    packed, table, bias = leaves(grid, place_of(backend))
    options = {"bias": bias, "prefix_tokens": 1, "mode": mode, "backend": backend, "scale": 0.3}
    results = []
    for out in (
        gmm_attention_packed(packed, OffsetTable(table, grid), **options),
        gmm_attention(*unpack(packed), OffsetTable(table, grid), **options),
    ):
        weights = torch.linspace(-1, 1, out.numel(), device=out.device).view(out.shape)
        results.append([out, *torch.autograd.grad((out * weights).sum(), [packed, table, bias])])
    (out, grad, *rest), (expected_out, expected_grad, *expected) = results
    assert torch.equal(out, expected_out)
    assert torch.equal(grad, expected_grad)
    torch.testing.assert_close(rest, expected)  # on a GPU those of a table are added in any order


@pytest.mark.parametrize("name", ["triton", "chunked"])
def test_its_gradient_is_one_tensor_that_no_copy_makes(name):
    if name == "triton" and not importlib.util.find_spec("triton"):
        pytest.skip("Triton is not installed")
    grid = (3, 5)
    copies = {}
    for entry in ("packed", "apart"):
        packed, table, _ = leaves(grid, place_of(name))
        options = {"prefix_tokens": 1, "backend": name}
        given = OffsetTable(table, grid)
        if entry == "packed":
            out = gmm_attention_packed(packed, given, **options)
        else:
            out = gmm_attention(*unpack(packed), given, **options)
        grad_out = torch.ones_like(out)
        with Operations() as operations:
            (grad,) = torch.autograd.grad(out, packed, grad_out)
        assert grad.is_contiguous()
        # The CPU's chunks are copied into the cache in both.
        names = [call.split(".")[0] for call, _ in operations.calls]
        copies[entry] = [copy for copy in names if copy in COPIES and not (name == "chunked" and copy == "copy_")]
    assert copies == {"packed": [], "apart": ["stack"]}


class Apart(MaskedAttention):
    """The layer with q, k and v separated before the op."""

    def forward(self, x, grid=None, bias=None):
        return self.merge(self.attend(unpack(self.project(x)), grid, bias))


def layers():
    """The layer and a separating one with the same weights, and tokens for both."""
    made = []
    for kind in (MaskedAttention, Apart):
        torch.manual_seed(0)
        made.append(kind(16, 2, mask=GaussianMixtureMask((3, 5), 2, 3, "local"), prefix_tokens=1, qkv_bias=True))
    return *made, torch.randn(3, 16, 16, requires_grad=True)


def gradients(layer, x, call):
    out = call(layer, x)
    grads = torch.autograd.grad(out.float().square().sum(), [x, *layer.parameters()])
    return [out.detach(), *grads]


def twice(layer, x):
    return layer(layer(x))


def recomputed(layer, x):
    return checkpoint(twice, layer, x, use_reentrant=False)


def in_bfloat16(layer, x):
    with torch.autocast("cpu", torch.bfloat16):
        return layer(x)


@pytest.mark.parametrize("call", [twice, recomputed, in_bfloat16])
def test_a_layer_has_the_gradients_of_one_taken_apart(call):
    packed, apart, x = layers()
    for got, expected in zip(gradients(packed, x, call), gradients(apart, x, call), strict=True):
        assert torch.equal(got, expected)


def test_a_compiled_layer_has_the_gradients_of_the_plain_one():
    layer, _, x = layers()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    got = gradients(layer, x, lambda _, x: compiled(x))
    torch.testing.assert_close(got, gradients(layer, x, lambda layer, x: layer(x)), rtol=1e-4, atol=1e-5)


def test_a_compiler_sees_one_op_that_keeps_the_contract_of_torch_library():
    pytest.importorskip("triton", reason="Triton is not installed")
    packed, table, bias = leaves((3, 5), place_of("triton"))
    seed = torch.tensor([5], device=packed.device)
    op = torch.ops.gmmvit.masked_attention.default
    torch.library.opcheck(op, (packed, None, None, table, bias, seed, 5, 1, 0.5, False, 0.3))
    attend = lambda x: gmm_attention_packed(x, OffsetTable(table, (3, 5)), prefix_tokens=1, backend="triton")  # noqa: E731
    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager")
    got, expected = (torch.autograd.grad(f(packed).square().sum(), (packed, table)) for f in (compiled, attend))
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize(
    "given", [torch.ones(2, 4, 2, 2, 3), torch.ones(2, 4, 6, 3), None], ids=["two", "flat", "none"]
)
def test_what_is_no_projection_is_refused(given):
    with pytest.raises(TypeError, match=r"qkv must be a tensor \[batch, tokens, 3, heads, head width\], got"):
        gmm_attention_packed(given, None)
