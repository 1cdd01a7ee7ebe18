"""The fused kernels against the reference in float64: output and all gradients. On a GPU where there is one, else in
Triton's interpreter on the CPU (small sizes: it is slow)."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch

from gmmvit.attention import OffsetTable, dense_mask, explain, gmm_attention, with_prefix
from gmmvit.attention.triton import launch

triton = pytest.importorskip("triton", reason="Triton is not installed")
ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
SCALE = 0.3


@dataclass(frozen=True)
class Case:
    """A call: one tile holds its tokens in float32 up to 32 of them, beyond there are several."""

    grid: tuple[int, int]
    prefix: int = 0
    mask: str = "table"
    mode: str = "multiply"
    bias: tuple[int, ...] | None = None  # leading sizes
    batch: int = 2
    heads: int = 2
    width: int = 16

    @property
    def tokens(self) -> int:
        return self.grid[0] * self.grid[1] + self.prefix


CASES = {
    "square grid that fills its tile": Case((4, 4), batch=5),
    "non-square grid, class token": Case((3, 5), prefix=1),
    "ragged grid, narrow heads, log": Case((2, 11), width=8, mode="log"),
    "two prefix tokens, log": Case((2, 5), prefix=2, mode="log", width=20),
    "one row": Case((1, 7), heads=1),
    "dense mask of each head": Case((3, 4), prefix=1, mask="dense"),
    "dense mask of all heads, log": Case((3, 4), mask="shared", mode="log"),
    "no mask": Case((3, 4), mask="none"),
    "a bias of each head": Case((2, 4), bias=(1, 2), batch=5),
    "a bias without head and batch": Case((2, 4), bias=()),
    "windows of Swin": Case((4, 4), bias=(3, 2), batch=6),
    "a bias of each sample": Case((2, 4), prefix=1, bias=(3, 2), batch=3, mask="dense"),
    "tiles in a ragged grid": Case((5, 7)),
    "tiles, class token, log": Case((6, 6), prefix=1, mode="log", batch=1),
    "tiles, three prefix tokens, wide grid": Case((3, 11), prefix=3, batch=1, width=24),
    "tiles that are grid rows": Case((2, 32), batch=1, heads=1),
    "tiles shorter than grid rows": Case((3, 40), heads=1),
    "tiles shorter than grid rows, class token, log": Case((2, 45), prefix=1, mode="log", batch=3, heads=1),
    "tiles, dense mask": Case((5, 7), mask="dense", prefix=1, batch=1),
    "tiles, dense mask of all heads, bias": Case((5, 7), mask="shared", bias=(2, 2), batch=2, mode="log"),
    "tiles, windows": Case((6, 6), bias=(2, 2), batch=4, heads=2),
    "tiles, no mask": Case((5, 7), mask="none", batch=1, heads=1, width=40),
}


def inputs(case: Case, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Leaves on the device: packed q, k, v as a projection gives them, mask, bias."""
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    patches = case.grid[0] * case.grid[1]
    sizes = {
        "table": (case.heads, 2 * case.grid[0] - 1, 2 * case.grid[1] - 1),
        "dense": (case.heads, patches, patches),
        "shared": (patches, patches),
    }
    leaves = {"packed": draw(case.batch, case.tokens, 3, case.heads, case.width).to(dtype)}
    if case.mask != "none":
        leaves["mask"] = draw(*sizes[case.mask]).abs() + 0.1
    if case.bias is not None:
        leaves["bias"] = draw(*case.bias, case.tokens, case.tokens)
    return {name: t.to(DEVICE).requires_grad_() for name, t in leaves.items()}


def run(case: Case, leaves: dict[str, torch.Tensor], backend: str, **options: Any) -> dict[str, torch.Tensor]:
    """Output and gradients of all leaves; `options` go to the call."""
    q, k, v = leaves["packed"].unbind(2)
    mask: Any = leaves.get("mask")
    out = gmm_attention(
        *(x.transpose(1, 2) for x in (q, k, v)),
        OffsetTable(mask, case.grid) if case.mask == "table" else mask,
        prefix_tokens=case.prefix,
        mode=case.mode,
        backend=backend,
        **({"scale": SCALE, "bias": leaves.get("bias")} | options),
    )
    return {"out": out.detach(), **gradients(out, leaves)}


def gradients(out: torch.Tensor, leaves: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    weights = torch.linspace(-1, 1, out.numel(), dtype=torch.float64, device=DEVICE).view(out.shape).to(out.dtype)
    return dict(zip(leaves, torch.autograd.grad((out * weights).sum(), list(leaves.values())), strict=True))


def exact(leaves: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: t.detach().double().requires_grad_() for name, t in leaves.items()}


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_kernels_equal_the_reference(case):
    leaves = inputs(case, torch.float32)
    expected = run(case, exact(leaves), "reference")
    for name, value in run(case, leaves, "triton").items():
        torch.testing.assert_close(
            value.double(), expected[name], rtol=1e-5, atol=2e-5, msg=lambda m, name=name: f"{name}: {m}"
        )


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("mode", ["multiply", "log"])
@pytest.mark.parametrize("layout", ["table", "shifted", "whole"])
def test_every_layout_of_the_table_is_read_alike(layout, mode, monkeypatch):
    monkeypatch.setattr(launch, "mask_layout", lambda *sizes: layout)
    case = Case((3, 14), batch=1, mode=mode)
    leaves = inputs(case, torch.float32)
    expected = run(case, exact(leaves), "reference")
    for name, value in run(case, leaves, "triton").items():
        torch.testing.assert_close(value.double(), expected[name], rtol=1e-5, atol=2e-5)


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize(
    "name",
    [
        "tiles, three prefix tokens, wide grid",
        "tiles, class token, log",
        "tiles, dense mask",
        "tiles, dense mask of all heads, bias",
    ],
)
def test_a_backward_pass_of_one_program_a_head_equals_the_reference(name, monkeypatch):
    """In float32, for which the kernel is not chosen, so that it is held to the digits of the others."""
    launched = []
    monkeypatch.setattr(launch, "whole_tiles", lambda x: launched.append(x) or launch.Tiles(128, 32, 4, 1))
    leaves = inputs(CASES[name], torch.float32)
    expected = run(CASES[name], exact(leaves), "reference")
    for gradient, value in run(CASES[name], leaves, "triton").items():
        torch.testing.assert_close(value.double(), expected[gradient], rtol=1e-5, atol=2e-5)
    assert launched


@pytest.mark.parametrize("grid", [(4, 4), (5, 8)], ids=["one tile", "tiles"])
def test_a_scale_of_zero_has_gradients_too(grid):
    case = Case(grid, batch=1)
    leaves = inputs(case, torch.float32)
    expected = run(case, exact(leaves), "reference", scale=0.0)
    for name, value in run(case, leaves, "triton", scale=0.0).items():
        torch.testing.assert_close(value.double(), expected[name], rtol=1e-5, atol=2e-5)


def plain(case: Case, leaves: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The formula written plainly, in the dtype of q."""
    q, k, v = (x.transpose(1, 2) for x in leaves["packed"].unbind(2))
    mask = with_prefix(dense_mask(OffsetTable(leaves["mask"], case.grid)), case.prefix).to(q.dtype)
    out = (SCALE * q @ k.transpose(-2, -1) * mask).softmax(-1) @ v
    return {"out": out.detach(), **gradients(out, leaves)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=lambda d: str(d)[6:])
@pytest.mark.parametrize(
    ("grid", "width"), [((4, 4), 16), ((5, 14), 16), ((5, 14), 40)], ids=["one tile", "tiles", "tiles, wide heads"]
)
def test_no_dtype_is_less_exact_than_twice_plain_torch(dtype, grid, width):
    """Heads of 16 and 40 have their gradients of q, k and v from one kernel and from two."""
    if dtype == torch.bfloat16 and not ON_GPU:
        pytest.skip("Triton's interpreter multiplies bfloat16 wrongly")
    case = Case(grid, prefix=1, batch=2, heads=1 if grid == (5, 14) else 2, width=width)
    leaves = inputs(case, dtype)
    truth = run(case, exact(leaves), "reference")
    got, allowed = run(case, leaves, "triton"), plain(case, leaves)
    for name, value in truth.items():
        error, limit = ((x[name].double() - value).abs().mean() for x in (got, allowed))
        assert error <= 2 * limit, f"{name}: {error:.3g} against {limit:.3g} of plain torch"


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("grid", [(3, 4), (3, 13)], ids=["one tile", "tiles"])
def test_any_strides_are_read(grid):
    case = Case(grid, batch=1, heads=2)
    values = inputs(case, torch.float32)["packed"].detach()
    turned = values.permute(3, 4, 0, 2, 1).contiguous().permute(2, 4, 3, 0, 1)  # tokens lie next to one another
    q, k, v = (x.transpose(1, 2).requires_grad_() for x in turned.unbind(2))
    assert q.stride(3) != 1
    out = gmm_attention(q, k, v, None, scale=SCALE, backend="triton")
    grads = torch.autograd.grad(out, (q, k, v), torch.ones_like(out[..., :1]).expand_as(out))
    expected = gmm_attention(q, k, v, None, scale=SCALE, backend="reference")
    wanted = torch.autograd.grad(expected, (q, k, v), torch.ones_like(out))
    torch.testing.assert_close((out, *grads), (expected, *wanted), rtol=1e-5, atol=2e-5)
    assert out.transpose(1, 2).is_contiguous()


@pytest.mark.parametrize("grid", [(2, 4), (3, 13)], ids=["one tile", "tiles"])
def test_a_bias_may_close_all_keys_but_the_last_ones(grid):
    """Padding [B, 1, 1, T] that masks all of a sample's first tile."""
    case = Case(grid, heads=1)
    leaves = inputs(case, torch.float32)
    padding = torch.zeros(2, 1, 1, case.tokens, device=DEVICE)
    padding[1, ..., :-3] = float("-inf")
    expected = run(case, exact(leaves), "reference", bias=padding)
    for name, value in run(case, leaves, "triton", bias=padding).items():
        torch.testing.assert_close(value.double(), expected[name], rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("grid", [(2, 4), (3, 13)], ids=["one tile", "tiles"])
def test_a_query_without_any_key_is_nan_as_in_plain_torch(grid):
    case = Case(grid, batch=1, heads=1)
    leaves = inputs(case, torch.float32)
    closed = torch.zeros(case.tokens, case.tokens, device=DEVICE)
    closed[1] = float("-inf")
    with torch.no_grad():
        q, k, v = (x.transpose(1, 2) for x in leaves["packed"].unbind(2))
        out = gmm_attention(q, k, v, None, bias=closed, backend="triton")[0, 0]
    assert torch.isnan(out[1]).all()
    assert torch.isfinite(out[[0, *range(2, case.tokens)]]).all()


@pytest.mark.parametrize("grid", [(4, 4), (5, 8)], ids=["one tile", "tiles"])
def test_dropout_drops_the_same_weights_in_both_passes(grid):
    """With the unit matrix as v the output is the weights themselves, so what was dropped can be seen and handed to
    the formula."""
    tokens, p = grid[0] * grid[1], 0.25
    case = Case(grid, heads=2, width=tokens)
    leaves = inputs(case, torch.float32)
    eye = torch.eye(tokens, device=DEVICE).expand(2, 2, -1, -1)

    def attend(value: torch.Tensor, **options: Any) -> torch.Tensor:
        torch.manual_seed(7)
        q, k, _ = (x.transpose(1, 2) for x in leaves["packed"].unbind(2))
        table = OffsetTable(leaves["mask"], grid)
        return gmm_attention(q, k, value, table, scale=SCALE, **options)

    kept = (attend(eye, dropout_p=p, backend="triton") != 0).float() / (1 - p)
    spread = (p / (1 - p) / kept.numel()) ** 0.5
    assert abs(kept.mean().item() - 1) < 4 * spread
    assert not torch.equal(kept[0, 0], kept[0, 1])
    assert not torch.equal(kept[0, 0], kept[1, 0])

    v = leaves["packed"].unbind(2)[2].transpose(1, 2)
    got = attend(v, dropout_p=p, backend="triton")
    expected = (attend(eye, backend="reference") * kept) @ v
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=2e-5)
    wanted = gradients(expected, leaves)
    for name, value in gradients(got, leaves).items():
        torch.testing.assert_close(value, wanted[name], rtol=1e-5, atol=2e-5, msg=name)


def test_dropout_draws_anew_in_every_call():
    x = torch.ones(1, 1, 16, 16, device=DEVICE)
    calls = [gmm_attention(x, x, x, None, dropout_p=0.5, backend="triton") for _ in range(2)]
    assert not torch.equal(*calls)


@pytest.mark.parametrize("tokens", [0, 6])
def test_nothing_in_is_nothing_out(tokens):
    q, k, v = (torch.randn(0, 3, tokens, 4, device=DEVICE, requires_grad=True) for _ in range(3))
    mask = torch.rand(3, tokens, tokens, device=DEVICE, requires_grad=True)
    gmm_attention(q, k, v, mask, backend="triton").sum().backward()
    assert mask.grad.shape == mask.shape
    assert (mask.grad == 0).all()


@pytest.mark.parametrize("tokens", [6, 40], ids=["one tile", "tiles"])
def test_a_grid_without_patches_is_plain_attention(tokens):
    q, k, v = (torch.randn(1, 2, tokens, 8, device=DEVICE, requires_grad=True) for _ in range(3))
    mask = torch.rand(2, 0, 0, device=DEVICE, requires_grad=True)
    out = gmm_attention(q, k, v, mask, prefix_tokens=tokens, backend="triton")
    torch.testing.assert_close(out, torch.nn.functional.scaled_dot_product_attention(q, k, v), rtol=1e-5, atol=2e-5)
    out.sum().backward()
    assert mask.grad.shape == mask.shape


def arguments(tokens: int = 9, **change: Any) -> tuple[Any, ...]:
    """Of the op itself: a 3 x 3 grid, table, no bias."""
    q, k, v = (torch.randn(1, 2, tokens, 4, device=DEVICE, requires_grad=True) for _ in range(3))
    table = torch.rand(2, 5, 5, device=DEVICE, requires_grad=True)
    given = {"bias": None, "seed": None, "dropout_p": 0.0} | change
    return q, k, v, table, given["bias"], given["seed"], 3, 0, 0.5, False, given["dropout_p"]


def test_the_op_keeps_the_contract_of_torch_library():
    bias = torch.randn(1, 2, 9, 9, device=DEVICE, requires_grad=True)
    seed = torch.tensor([5], device=DEVICE)
    op = torch.ops.gmmvit.masked_attention.default
    torch.library.opcheck(op, arguments(bias=bias, seed=seed, dropout_p=0.3))


def test_a_compiler_sees_one_node():
    q, k, v, table, *_ = arguments()
    nodes = []

    def look(module, example):
        nodes.extend(str(node.target) for node in module.graph.nodes if node.op == "call_function")
        return module

    attend = lambda *x: gmm_attention(*x, OffsetTable(table, (3, 3)), backend="triton")  # noqa: E731
    torch.compile(attend, fullgraph=True, backend=look)(q, k, v)
    assert [name for name in nodes if "getitem" not in name] == ["gmmvit.masked_attention"]


def test_compiled_it_has_the_gradients_of_the_plain_call():
    q, k, v, table, *_ = arguments()
    attend = lambda *x: gmm_attention(*x, OffsetTable(table, (3, 3)), backend="triton")  # noqa: E731
    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager")
    got, expected = (torch.autograd.grad(f(q, k, v).square().sum(), (q, k, v, table)) for f in (compiled, attend))
    torch.testing.assert_close(got, expected)


def test_a_second_derivative_is_refused():
    q, k, v, table, *_ = arguments()
    out = gmm_attention(q, k, v, OffsetTable(table, (3, 3)), backend="triton")
    (grad,) = torch.autograd.grad(out.square().sum(), q, create_graph=True)
    with pytest.raises(NotImplementedError, match="no second derivative; backend='eager' has one"):
        grad.sum().backward()


def test_autocast_leaves_the_dtype_of_q():
    q, k, v, table, *_ = (x.half() if isinstance(x, torch.Tensor) else x for x in arguments())
    with torch.autocast(DEVICE, torch.bfloat16):
        out = gmm_attention(q, k, v, OffsetTable(table.float(), (3, 3)), backend="triton")
        out.float().sum().backward()
    assert out.dtype == torch.float16


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"mode": "post"}, "not support mode 'post'"),
        ({"dtype": torch.float64}, "it does not support float64"),
        ({"width": 160}, "heads up to 128 wide, got 160"),
        ({"bias": (2, 1, 1, 9)}, "a bias that repeats over tokens"),
        ({"deterministic": True}, "deterministic algorithms were requested"),
    ],
)
def test_what_it_cannot_do_is_refused_with_the_reason(change, words, monkeypatch):
    side = 9 if "deterministic" in change else 3
    tokens = side * side if "bias" not in change else 9
    q = torch.randn(2, 2, tokens, change.get("width", 4), device=DEVICE, dtype=change.get("dtype", torch.float32))
    bias = torch.randn(change["bias"], device=DEVICE, requires_grad=True) if "bias" in change else None
    table = OffsetTable(torch.ones(2, 2 * side - 1, 2 * side - 1, device=DEVICE, requires_grad=True), (side, side))
    if "deterministic" in change:
        monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    with pytest.raises(ValueError, match=words):
        gmm_attention(q, q, q, table, bias=bias, mode=change.get("mode", "multiply"), backend="triton")
    assert "triton: not taken" in explain(q, table, bias=bias, mode=change.get("mode", "multiply"))


def test_auto_takes_it_on_a_gpu_and_never_on_the_cpu(monkeypatch):
    here = torch.randn(1, 1, 4, 8)
    assert explain(here).startswith("chunked: taken")
    assert "triton: not taken, it runs on CUDA devices" in explain(here)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match="it runs on CUDA devices, or by name in Triton's interpreter"):
        gmm_attention(here, here, here, None, backend="triton")
    if ON_GPU:
        assert explain(here.cuda()).startswith("triton: taken, the fastest that can")


@pytest.mark.skipif(not ON_GPU, reason="needs a CUDA device")
def test_a_captured_graph_replays_both_passes_and_draws_dropout_anew():
    case = Case((8, 8), width=64)
    leaves = inputs(case, torch.bfloat16)
    expected = run(case, leaves, "triton")
    run(case, leaves, "triton", dropout_p=0.5)  # nothing may be compiled or loaded while a graph is captured
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run(case, leaves, "triton")
        noisy = run(case, leaves, "triton", dropout_p=0.5)["out"]
    graph.replay()
    first = noisy.clone()
    graph.replay()
    torch.cuda.synchronize()
    assert not torch.equal(first, noisy)
    for name, value in expected.items():
        torch.testing.assert_close(captured[name], value)


@pytest.mark.skipif(not ON_GPU, reason="needs a CUDA device")
def test_a_compiled_step_with_cuda_graphs_equals_the_plain_one():
    case = Case((8, 8), prefix=1, width=64)
    leaves = inputs(case, torch.bfloat16)
    call = lambda packed, mask: run_forward(case, packed, mask)  # noqa: E731
    compiled = torch.compile(call, fullgraph=True, mode="reduce-overhead")
    for _ in range(4):
        torch.compiler.cudagraph_mark_step_begin()
        out = compiled(leaves["packed"], leaves["mask"])
        got = gradients(out, leaves)
        for name, value in gradients(call(leaves["packed"], leaves["mask"]), leaves).items():
            torch.testing.assert_close(got[name], value, rtol=2e-2, atol=2e-2)


def run_forward(case: Case, packed: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    q, k, v = (x.transpose(1, 2) for x in packed.unbind(2))
    table = OffsetTable(mask, case.grid)
    return gmm_attention(q, k, v, table, scale=SCALE, prefix_tokens=case.prefix, mode=case.mode)
