"""`gmmvit bench`: what masked attention costs on this machine.

Times forward and backward from a leaf mask to its gradient, in turns with SDPA without a mask, with eager torch and, on
a GPU, with an equivalent FlexAttention, and gives the lower bound that arithmetic and memory set.

Letters: B batch, T tokens (all of them patches), H heads, D head width.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from gmmvit.attention import OffsetTable, explain, gmm_attention
from gmmvit.checks import integer
from gmmvit.config import RecipeError
from gmmvit.rows import row, write_rows
from gmmvit.runs.files import check_new

Shape = tuple[int, int, int, int]  # B, H, T, D

GPU_SHAPES: tuple[Shape, ...] = (
    (256, 12, 64, 16),
    (128, 3, 196, 64),
    (64, 12, 256, 64),
    (8, 12, 1024, 64),
    (2, 12, 4096, 64),
)
CPU_SHAPES: tuple[Shape, ...] = ((64, 12, 64, 16), (8, 3, 196, 64))
# Peak figures from data sheets, dense bfloat16 operations/s and bytes/s, by a part of the device's name.
PEAKS = {"H100 80GB HBM3": (989e12, 3.35e12), "H200": (989e12, 4.8e12)}
OWN, PLAIN = "masked", "SDPA, no mask"
WARM_UP_TURNS, GPU_TURN_S, EAGER_BYTES = 2, 0.02, 40 << 30


@dataclass(frozen=True)
class Contender:
    """One implementation: `turn` measures it and returns the seconds of one forward and backward pass."""

    turn: Callable[[], float]
    peak_bytes: int | None


def parse_shapes(text: str) -> list[Shape]:
    """Parses shapes like "256x12x64x16,2x12x4096x64"; raises a RecipeError that shows the form."""
    shapes: list[Shape] = []
    for part in text.split(","):
        sizes = part.strip().lower().split("x")
        if len(sizes) != 4 or not all(size.isdigit() and int(size) > 0 for size in sizes):
            raise RecipeError(f"--shapes must be BATCHxHEADSxTOKENSxWIDTH, such as 256x12x64x16, got {part.strip()!r}")
        batch, heads, tokens, width = map(int, sizes)
        shapes.append((batch, heads, tokens, width))
    return shapes


def grid_of(tokens: int) -> tuple[int, int]:
    """The grid nearest to a square."""
    rows = next(side for side in range(int(tokens**0.5), 0, -1) if tokens % side == 0)
    return rows, tokens // rows


def bench(
    shapes: Sequence[Shape] | None = None,
    *,
    device: str = "auto",
    dtype: str = "auto",
    repeats: int = 15,
    report: Callable[[str], None] = lambda line: None,
) -> list[dict[str, str]]:
    """Times masked attention and its rivals.

    Args:
        shapes: [B, H, T, D] each; default: those of the project's targets, on the CPU smaller ones.
        device: "cpu", "cuda" ...; "auto" is a GPU if there is one.
        dtype: "float32", "bfloat16" or "float16"; "auto" is bfloat16 on a GPU and float32 on the CPU.
        repeats: measurements of each contender.
        report: called with the backend for each shape, and with a line for each contender that cannot take part.

    Returns:
        Rows of `gmmvit.rows.row`: milliseconds, ratios within the same turn, the operations, bytes and lower bound of
        the shape, and on a GPU the peak memory of a step.
    """
    integer("repeats", repeats)
    gpu = torch.cuda.is_available() if device == "auto" else torch.device(device).type == "cuda"
    place = torch.device(("cuda" if gpu else "cpu") if device == "auto" else device)
    kind = getattr(torch, dtype) if dtype != "auto" else torch.bfloat16 if gpu else torch.float32
    rows: list[dict[str, str]] = []
    for shape in shapes or (GPU_SHAPES if gpu else CPU_SHAPES):
        rows += bench_shape(shape, kind, place, repeats, report)
    return rows


def bench_shape(
    shape: Shape,
    dtype: torch.dtype,
    device: torch.device,
    repeats: int,
    report: Callable[[str], None] = lambda line: None,
    leave_out: Sequence[str] = (),
) -> list[dict[str, str]]:
    """The rows of one shape, as `bench` returns them; `leave_out` names rivals to skip."""
    contenders = _contenders(shape, dtype, device, report, leave_out)
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(repeats + WARM_UP_TURNS):
        for name, contender in contenders.items():
            seconds = contender.turn()
            if turn >= WARM_UP_TURNS:
                times[name].append(seconds)
    return _rows(f"{list(shape)} {str(dtype)[6:]}", shape, dtype, device, contenders, times)


def run(shapes: str | None, *, out: str | Path | None, overwrite: bool, as_json: bool, **options: Any) -> None:
    """The command: prints the rows of `bench` as a table or JSON and, with `out`, writes them as CSV."""
    if out is not None:
        check_new(Path(out), overwrite)
    rows = bench(parse_shapes(shapes) if shapes else None, report=lambda line: print(line, file=sys.stderr), **options)
    if as_json:
        print(json.dumps(rows, indent=2))
    write_rows(out, rows, quiet=as_json)


def _rows(
    label: str,
    shape: Shape,
    dtype: torch.dtype,
    device: torch.device,
    contenders: dict[str, Contender],
    times: dict[str, list[float]],
) -> list[dict[str, str]]:
    limits = roofline(shape, dtype, device)
    blank = dict.fromkeys((*limits, "peak_memory_mb"), "")
    rows = []
    for name, values in times.items():
        peak = contenders[name].peak_bytes
        memory = {"peak_memory_mb": "" if peak is None else f"{peak / 2**20:.1f}"}
        rows.append(row(f"{label} {name}", "ms", [1e3 * t for t in values], device) | limits | memory)
    for name, values in times.items():
        if name != OWN:
            ratios = [a / b for a, b in zip(times[OWN], values, strict=True)]
            rows.append(row(f"{label} ratio {OWN} / {name}", "times", ratios, device) | blank)
    return rows


def roofline(shape: Shape, dtype: torch.dtype, device: torch.device) -> dict[str, str]:
    """Operations of the seven products of forward and backward, bytes that must move and, for 16-bit dtypes on a known
    GPU, the milliseconds of the slower of the two at its peak rate."""
    batch, heads, tokens, width = shape
    operations = 14 * batch * heads * tokens**2 * width
    moved = 12 * batch * heads * tokens * width * dtype.itemsize  # q k v -> out; q k v out grad_out -> three gradients
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    peak = next((figures for part, figures in PEAKS.items() if part in name), None)
    floor = "" if peak is None or dtype.itemsize != 2 else f"{1e3 * max(operations / peak[0], moved / peak[1]):.4g}"
    return {"operations": f"{operations:.3g}", "bytes": f"{moved:.3g}", "floor_ms": floor}


def _contenders(
    shape: Shape, dtype: torch.dtype, device: torch.device, report: Callable[[str], None], leave_out: Sequence[str] = ()
) -> dict[str, Contender]:
    batch, heads, tokens, width = shape
    grid = grid_of(tokens)
    table = (torch.rand(heads, 2 * grid[0] - 1, 2 * grid[1] - 1, device=device) + 0.5).requires_grad_()
    mask = OffsetTable(table, grid)
    sdpa = torch.nn.functional.scaled_dot_product_attention
    attends: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
        OWN: lambda q, k, v: gmm_attention(q, k, v, mask),
        PLAIN: lambda q, k, v: sdpa(q, k, v),
        "eager": lambda q, k, v: gmm_attention(q, k, v, mask, backend="eager"),
    }
    if 8 * batch * heads * tokens**2 * dtype.itemsize > EAGER_BYTES and device.type == "cuda":
        report(f"{list(shape)}: eager skipped, its scores take too much memory")
        del attends["eager"]
    if device.type == "cuda":  # SDPA's own choice of kernel depends on the version and the GPU
        attends[f"{PLAIN}, FlashAttention"] = _pinned(SDPBackend.FLASH_ATTENTION)
        attends[f"{PLAIN}, cuDNN"] = _pinned(SDPBackend.CUDNN_ATTENTION)
        attends["FlexAttention"] = _flex(table, grid)
    attends = {name: attend for name, attend in attends.items() if name not in leave_out}
    packed = torch.randn(batch, tokens, 3, heads, width, device=device, dtype=dtype, requires_grad=True)
    report(f"{list(shape)}: {explain(packed.unbind(2)[0].transpose(1, 2), mask).splitlines()[0]}")
    grad = torch.randn(batch, tokens, heads, width, device=device, dtype=dtype).transpose(1, 2)
    leaves = [packed, table]
    contenders = {}
    for name, attend in attends.items():
        step = _step(attend, leaves, grad)
        try:
            contenders[name] = _on_gpu(step) if device.type == "cuda" else Contender(partial(_timed, step), None)
        except Exception as error:  # a rival's compiler may raise anything; report it
            if name in (OWN, PLAIN):
                raise
            report(f"{list(shape)}: {name} cannot: {(str(error).splitlines() or [type(error).__name__])[0]}")
    return contenders


def _step(attend: Callable[[Tensor, Tensor, Tensor], Tensor], leaves: list[Tensor], grad: Tensor) -> Callable[[], None]:
    def run() -> None:
        q, k, v = (x.transpose(1, 2) for x in leaves[0].unbind(2))
        torch.autograd.grad(attend(q, k, v), leaves, grad, allow_unused=True)

    return run


def _pinned(backend: Any) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """SDPA with one of its kernels, which also fixes the backward pass."""

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel(backend):
            return torch.nn.functional.scaled_dot_product_attention(q, k, v)

    return attend


def _flex(table: Tensor, grid: tuple[int, int]) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """FlexAttention with the same mask: each score is multiplied by its cell of the offset table."""
    from torch.nn.attention.flex_attention import flex_attention

    rows, cols = grid

    def weighed(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return score * table[h, j // cols - i // cols + rows - 1, j % cols - i % cols + cols - 1]

    compiled: Any = torch.compile(flex_attention, dynamic=False)
    return lambda q, k, v: compiled(q, k, v, score_mod=weighed)


def _timed(step: Callable[[], None]) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def _on_gpu(step: Callable[[], None]) -> Contender:
    for _ in range(3):
        step()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step()
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() - before
    return Contender(graph_timer(step), peak)


def graph_timer(step: Callable[[], None]) -> Callable[[], float]:
    """A function that returns the seconds of one step on the GPU, as the mean over about 20 ms of steps.

    Steps are replayed as a CUDA graph, as in training, so that a slow host does not count, unless the step cannot be
    captured.
    """
    run = _captured(step) or step

    def several(count: int) -> float:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(count):
            run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3 / count

    several(3)
    count = max(1, round(GPU_TURN_S / statistics.median(several(3) for _ in range(3))))
    return lambda: several(count)


def _captured(step: Callable[[], None]) -> Callable[[], None] | None:
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            step()
    except RuntimeError:  # it synchronises with the device
        return None
    graph.replay()
    torch.cuda.synchronize()
    return graph.replay
