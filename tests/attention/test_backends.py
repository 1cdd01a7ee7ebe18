"""Every backend but Triton's, which has its own file, against the reference in float64: output and all gradients; and
what the op says of its choice."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from gmmvit.attention import BACKENDS, OffsetTable, chunked, explain, gmm_attention

GRIDS = [(4, 4), (3, 5), (7, 9)]
PLAIN = [name for name in BACKENDS if name != "triton"]
FAST = [name for name in PLAIN if name != "reference"]


def inputs(grid, prefix_tokens, *, batch=6, heads=3, width=4, bias_groups=None, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    tokens = grid[0] * grid[1] + prefix_tokens
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    tensors = {name: draw(batch, heads, tokens, width) for name in "qkv"}
    tensors["mask"] = draw(heads, 2 * grid[0] - 1, 2 * grid[1] - 1).abs() + 0.1
    if bias_groups is not None:
        tensors["bias"] = draw(bias_groups, heads, tokens, tokens)
    return {name: t.to(dtype).requires_grad_() for name, t in tensors.items()}


def run(tensors, grid, prefix_tokens, mode, backend):
    table = OffsetTable(tensors["mask"], grid)
    bias = tensors.get("bias")
    args = (tensors["q"], tensors["k"], tensors["v"], table)
    out = gmm_attention(*args, bias=bias, prefix_tokens=prefix_tokens, mode=mode, backend=backend)
    weights = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view_as(out).to(out.dtype)
    grads = torch.autograd.grad((out * weights).sum(), list(tensors.values()))
    return {"out": out.detach(), **dict(zip(tensors, grads, strict=True))}


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("mode", ["multiply", "log", "post"])
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize(("prefix_tokens", "bias_groups"), [(0, None), (2, 1), (1, 6), (0, 3)])
def test_backend_equals_the_reference(backend, mode, grid, prefix_tokens, bias_groups, monkeypatch):
    if backend == "chunked" and mode == "post":
        pytest.skip("chunked refuses mode post, which another test holds")
    monkeypatch.setattr(chunked, "CHUNK_BYTES", 20_000)  # several chunks, the last one ragged
    tensors = inputs(grid, prefix_tokens, bias_groups=bias_groups)
    expected = run(tensors, grid, prefix_tokens, mode, "reference")
    got = run(tensors, grid, prefix_tokens, mode, backend)
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, rtol=1e-9, atol=1e-10, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_low_precision_is_as_exact_as_plain_torch(backend, dtype):
    """Error against float64 at most twice that of plain torch in the same dtype."""
    grid, prefix = (8, 8), 1
    exact = inputs(grid, prefix, batch=8, width=16)
    low = {name: t.detach().to(dtype).requires_grad_() for name, t in exact.items()}
    exact = {name: t.detach().double().requires_grad_() for name, t in low.items()}
    truth = run(exact, grid, prefix, "multiply", "reference")
    got = run(low, grid, prefix, "multiply", backend)

    mask = torch.nn.functional.pad(_dense(low["mask"], grid), (1, 0, 1, 0), value=1.0)
    scores = low["q"] @ low["k"].transpose(-2, -1) * 0.25
    out = (scores * mask).softmax(-1) @ low["v"]
    weights = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view_as(out).to(dtype)
    grads = torch.autograd.grad((out * weights).sum(), list(low.values()))
    plain = {"out": out, **dict(zip(low, grads, strict=True))}
    for name, value in truth.items():
        error, allowed = ((x[name].double() - value).abs().mean() for x in (got, plain))
        assert error <= 2 * allowed + 1e-12, f"{name}: {error:.3g} against {allowed:.3g} of plain torch"


@pytest.mark.parametrize("fast", [True, False])
def test_bfloat16_on_either_kind_of_processor_is_close_to_float32(fast, monkeypatch):
    monkeypatch.setattr(chunked, "fast_bfloat16", lambda: fast)
    monkeypatch.setattr(chunked, "CHUNK_BYTES", 20_000)
    low = inputs((5, 7), 1, bias_groups=2, width=16, dtype=torch.bfloat16)
    exact = {name: t.detach().double().requires_grad_() for name, t in low.items()}
    got, expected = run(low, (5, 7), 1, "multiply", "chunked"), run(exact, (5, 7), 1, "multiply", "reference")
    for name, value in expected.items():
        error = (got[name].double() - value).norm() / value.norm()
        assert error < 0.02, f"{name}: {error:.3g}"
    with torch.no_grad():  # keeps nothing for a backward pass
        args = [low[name] for name in "qkv"]
        again = gmm_attention(*args, OffsetTable(low["mask"], (5, 7)), bias=low["bias"], prefix_tokens=1)
    assert torch.equal(again, got["out"])


def _dense(table, grid):
    from gmmvit.attention import dense_mask

    return dense_mask(OffsetTable(table, grid))


@pytest.mark.parametrize("backend", FAST)
def test_a_mask_shared_by_the_heads_gets_the_sum_of_their_gradients(backend):
    tensors = inputs((3, 4), 0)
    shared = torch.rand(12, 12, dtype=torch.float64, requires_grad=True)
    args = [tensors[name] for name in "qkv"]
    expected, got = (
        torch.autograd.grad(gmm_attention(*args, shared, backend=name).square().sum(), [shared, *args])
        for name in ("reference", backend)
    )
    for a, b in zip(expected, got, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("backend", FAST)
def test_no_mask_is_plain_attention(backend):
    tensors = inputs((4, 4), 1, dtype=torch.float32)
    args = [tensors[name] for name in "qkv"]
    expected = torch.nn.functional.scaled_dot_product_attention(*args)
    torch.testing.assert_close(gmm_attention(*args, None, backend=backend), expected)


@pytest.mark.parametrize("backend", PLAIN)
@pytest.mark.parametrize("mode", ["multiply", "log"])
@pytest.mark.parametrize(
    ("batch", "tokens", "bias_groups"), [(0, 6, None), (0, 6, 1), (0, 6, 3), (2, 0, 1), (0, 0, None)]
)
def test_nothing_in_is_nothing_out(backend, mode, batch, tokens, bias_groups):
    tensors = [torch.randn(batch, 3, tokens, 4) for _ in range(3)] + [torch.rand(3, tokens, tokens)]
    if bias_groups:
        tensors.append(torch.randn(bias_groups, 3, tokens, tokens))
    q, k, v, mask, *bias = (t.requires_grad_() for t in tensors)
    out = gmm_attention(q, k, v, mask, bias=bias[0] if bias else None, mode=mode, backend=backend)
    assert out.shape == q.shape
    out.sum().backward()
    assert all(t.grad.shape == t.shape and (t.grad == 0).all() for t in tensors)


def test_chunked_under_autocast_and_no_grad():
    tensors = inputs((4, 4), 0, dtype=torch.bfloat16)
    args = [tensors[name] for name in "qkv"]
    mask = torch.rand(3, 16, 16)
    expected = gmm_attention(*args, mask, backend="reference")
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(gmm_attention(*args, mask, backend="chunked"), expected, rtol=2e-2, atol=2e-2)
    with torch.autocast("cpu", torch.bfloat16):
        out = gmm_attention(*args, mask, backend="chunked")
        out.float().sum().backward()
    assert torch.isfinite(tensors["q"].grad).all()


def test_dropout_keeps_the_mean_and_drops():
    torch.manual_seed(0)
    q, k, v = torch.zeros(1, 1, 64, 8), torch.zeros(1, 1, 64, 8), torch.ones(1, 1, 64, 8)
    out = gmm_attention(q, k, v, torch.ones(64, 64), dropout_p=0.5)
    assert out.mean().item() == pytest.approx(1, abs=0.1)
    assert out[0, 0, :, 0].std() > 0.05


def test_a_named_backend_is_used_or_refused_with_the_reason():
    q = torch.randn(1, 1, 4, 2)
    for mode, dropout, reason in (
        ("post", 0.0, "not support mode 'post'"),
        ("multiply", 0.1, "not support attention dropout"),
    ):
        with pytest.raises(ValueError, match=reason):
            gmm_attention(q, q, q, torch.ones(4, 4), mode=mode, dropout_p=dropout, backend="chunked")
    with pytest.raises(ValueError, match=r"backend must be one of .* got 'flash'"):
        gmm_attention(q, q, q, None, backend="flash")


def test_the_choice_is_explained():
    q = torch.randn(1, 1, 4, 2)
    assert explain(q).startswith("chunked: taken")
    text = explain(q, torch.ones(4, 4), mode="post")
    assert text.startswith("eager: taken")
    assert "chunked: not taken, it does not support mode 'post'" in text
    assert explain(q, backend="reference").startswith("reference: taken, requested by name")


Q = torch.randn(2, 3, 6, 4)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"q": torch.randn(2, 3, 6)}, TypeError, r"q must be a tensor .* got \(2, 3, 6\)"),
        ({"k": torch.randn(2, 3, 5, 4)}, ValueError, "one shape"),
        ({"v": torch.randn(2, 3, 6, 4).double()}, TypeError, "one floating-point dtype, .*float64"),
        ({"mask": torch.ones(5, 5)}, ValueError, r"mask must be \(3, 6, 6\) or \(6, 6\) .* got \(5, 5\)"),
        ({"mask": OffsetTable(torch.ones(3, 3, 5), (2, 4))}, ValueError, "the offset table of a 2 x 4 grid"),
        ({"mask": OffsetTable(torch.ones(3, 3, 7), (2, 4))}, ValueError, "8 patches, q has 6"),
        ({"mask": OffsetTable(torch.ones(2, 3, 5), (2, 3))}, ValueError, "the offset table has 2 heads, q has 3"),
        ({"mask": OffsetTable(None, (2, 3))}, TypeError, "values of an OffsetTable must be a tensor, got NoneType"),
        ({"mask": OffsetTable([[1.0]], (2, 3))}, TypeError, "values of an OffsetTable must be a tensor, got list"),
        ({"mask": OffsetTable(torch.ones(3, 3, 5), 3)}, TypeError, r"must be a pair \(rows, cols\), got 3"),
        ({"mask": OffsetTable(torch.ones(3, 3, 5), (2, "3"))}, TypeError, r"a pair \(rows, cols\) of them, got"),
        ({"mask": OffsetTable(torch.ones(3, 5), (2, 3))}, ValueError, r"must be \[heads, 3, 5\], got \(3, 5\)"),
        ({"mask": "gmm"}, TypeError, "mask must be a tensor"),
        ({"bias": torch.ones(2, 2, 6, 6)}, ValueError, "bias must broadcast"),
        ({"bias": torch.ones(4, 3, 6, 6)}, ValueError, "divides 2"),
        ({"bias": 1}, TypeError, "bias must be a floating-point tensor .* got 1"),
        ({"bias": np.zeros((2, 2))}, TypeError, r"or None, got array\(\[\[0., 0.\], \[0., 0.\]\]\)"),
        ({"bias": torch.ones(6, 6).bool()}, TypeError, r"bias must be a floating-point tensor .* got torch\.bool"),
        ({"mode": "times"}, ValueError, "mode must be one of"),
        ({"scale": "x"}, TypeError, "scale must be one number, got 'x'"),
        ({"scale": float("nan")}, ValueError, "scale must be finite, got nan"),
        ({"dropout_p": 1.0}, ValueError, r"dropout_p must be in \[0, 1\), got 1.0"),
        ({"prefix_tokens": 7}, ValueError, "prefix_tokens must be between 0 and 6, got 7"),
        ({"prefix_tokens": 1.5}, TypeError, "prefix_tokens must be one int, got 1.5"),
        ({"prefix_tokens": True}, TypeError, "prefix_tokens must be one int, got True"),
        ({"q": Q.to("meta")}, ValueError, "q, k and v must be on one device, got meta, cpu, cpu"),
        ({"mask": torch.ones(6, 6, device="meta")}, ValueError, "mask must be on the device of q, cpu, got meta"),
        ({"bias": torch.ones(6, 6, device="meta")}, ValueError, "bias must be on the device of q, cpu, got meta"),
        ({"mask": torch.ones(6, 6).to_sparse()}, TypeError, "mask must be a dense tensor, got .* sparse_coo"),
        ({"bias": torch.ones(6, 6).to_sparse()}, TypeError, "bias must be a dense tensor, got .* sparse_coo"),
        (dict.fromkeys("qkv", Q.long()), TypeError, r"one floating-point dtype, got torch\.int64"),
        (dict.fromkeys("qkv", Q[..., :0]), ValueError, "at least one head of width 1 or more"),
    ],
)
def test_wrong_arguments_are_named(change, error, words):
    arguments = {"q": Q, "k": Q, "v": Q, "mask": None} | change
    with pytest.raises(error, match=words):
        gmm_attention(**arguments)


def test_compiles_whole_and_equals_the_plain_call():
    tensors = inputs((3, 4), 1, dtype=torch.float32)
    args = [tensors[name] for name in "qkv"]
    call = lambda *a: gmm_attention(*a, OffsetTable(tensors["mask"], (3, 4)), prefix_tokens=1)  # noqa: E731
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*args), call(*args))


def test_import_stays_light():
    heavy = ["triton", "timm", "transformers", "matplotlib", "torchvision", "sklearn", "PIL", "pyarrow"]
    code = (
        "import sys, torch\nbefore = set(sys.modules)\nimport gmmvit\n"
        "for name in gmmvit.__all__: getattr(gmmvit, name)\n"
        f"print([m for m in {heavy!r} if m in sys.modules and m not in before])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"


def test_torch_func_transforms_take_plain_operations():
    tensors = {name: t.detach() for name, t in inputs((3, 5), 1, batch=4).items()}
    q, k, v, mask = (tensors[name] for name in ("q", "k", "v", "mask"))

    def loss(mask, q, k, v):
        return gmm_attention(q[None], k[None], v[None], OffsetTable(mask, (3, 5)), prefix_tokens=1).square().sum()

    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0, 0))(mask, q, k, v)
    for i in range(4):
        own = mask.clone().requires_grad_()
        loss(own, q[i], k[i], v[i]).backward()
        torch.testing.assert_close(each[i], own.grad)
    _, slope = torch.func.jvp(lambda mask: loss(mask, q[0], k[0], v[0]), (mask,), (torch.ones_like(mask),))
    torch.testing.assert_close(slope, each[0].sum())
