"""Finds the best tiles of the long kernels on this GPU: forward and backward for every choice of one kernel's tiles.

    python benchmarks/tune_attention.py 64x12x256x64
    python benchmarks/gpu.py --parts tune

Prints a line for each choice, the current ones first as "now"; the winners belong in `long_tiles`, `whole_tiles` and
`mask_layout` of `attention/triton/launch.py`. Not part of `make gpu`.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from gmmvit.attention import OffsetTable, gmm_attention
from gmmvit.attention.triton import launch
from gmmvit.bench import Shape, graph_timer, grid_of, parse_shapes
from gmmvit.rows import line, row

SHAPES: list[Shape] = [(64, 12, 256, 64), (64, 8, 256, 16), (2, 12, 4096, 64)]
TINY_SHAPES: list[Shape] = [(2, 1, 36, 16)]
SECONDS = 65  # per shape; then no further choice is tried
TILES = {
    "forward": [(64, 32, 4, 2), (64, 32, 4, 4), (64, 64, 4, 2), (64, 64, 4, 3), (128, 32, 4, 3), (128, 64, 8, 2)],
    "kv": [(32, 64, 4, 2), (32, 64, 4, 3), (64, 64, 4, 2), (64, 64, 4, 3), (64, 32, 4, 3), (128, 64, 8, 2)],
    "q": [(64, 32, 4, 2), (64, 32, 4, 3), (64, 64, 4, 2), (64, 64, 4, 3), (128, 32, 4, 2), (128, 64, 8, 2)],
    "table": [(64, 64, 4, 1), (64, 64, 4, 2), (64, 64, 4, 3), (64, 64, 8, 2), (128, 128, 8, 1), (128, 128, 8, 2)],
}
WHOLE = [(128, 32, 4, 2), (128, 64, 8, 2), (256, 32, 8, 1), (256, 32, 8, 2), (256, 64, 8, 2)]  # tiles of all queries
LAYOUTS = ("table", "shifted", "whole")


def step_of(shape: Shape, device: torch.device) -> Callable[[], None]:
    """Forward and backward with the gradient of the table, bfloat16 on a GPU."""
    batch, heads, tokens, width = shape
    rows, cols = grid_of(tokens)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    packed = torch.randn(batch, tokens, 3, heads, width, device=device, dtype=dtype, requires_grad=True)
    table = (torch.rand(heads, 2 * rows - 1, 2 * cols - 1, device=device) + 0.5).requires_grad_()
    grad = torch.randn(batch, tokens, heads, width, device=device, dtype=dtype).transpose(1, 2)

    def step() -> None:
        q, k, v = (x.transpose(1, 2) for x in packed.unbind(2))
        out = gmm_attention(q, k, v, OffsetTable(table, (rows, cols)), backend="triton")
        torch.autograd.grad(out, [packed, table], grad)

    return step


def milliseconds(step: Callable[[], None], device: torch.device) -> list[float]:
    """Times of single steps: as a CUDA graph, or without a GPU once by the clock."""
    if device.type == "cuda":
        replay = graph_timer(step)
        return [1e3 * replay() for _ in range(3)]
    start = time.perf_counter()
    step()
    return [1e3 * (time.perf_counter() - start)]


def choices(tiny: bool) -> Iterator[tuple[str, str, Any]]:
    """Replacements for functions of `launch`: (description, name of the function, replacement)."""
    yield "now", "long_tiles", launch.long_tiles
    for layout in LAYOUTS[:1] if tiny else LAYOUTS:
        yield f"mask {layout}", "mask_layout", lambda *sizes, layout=layout: layout
    yield "backward in two kernels", "whole_tiles", lambda x: None
    for size in [(64, 32, 4, 1)] if tiny else WHOLE:
        tiles = launch.Tiles(*size)
        yield f"backward in one kernel {size}", "whole_tiles", lambda x, t=tiles: t if x.q.shape[2] <= t.BM else None
    chosen = launch.long_tiles
    for kernel, sizes in TILES.items():
        for size in [(32, 32, 4, 1)] if tiny and kernel == "q" else [] if tiny else sizes:
            tiles = launch.Tiles(*size)
            yield (
                f"{kernel} {size}",
                "long_tiles",
                (lambda name, *shape, k=kernel, t=tiles: t if name == k else chosen(name, *shape)),
            )


def tune(tiny: bool, shapes: list[Shape] | None = None) -> Iterator[dict[str, str]]:
    """A row for each choice and shape; prints and skips a choice that does not fit the GPU."""
    from triton.runtime.errors import OutOfResources

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for shape in shapes or (TINY_SHAPES if tiny else SHAPES):
        end = time.monotonic() + SECONDS
        step = step_of(shape, device)
        for what, name, function in choices(tiny):
            if time.monotonic() > end:
                print(f"{shape}: {what} and the rest skipped after {SECONDS} s", flush=True)
                break
            before = getattr(launch, name)
            setattr(launch, name, function)
            try:
                values = milliseconds(step, device)
            except (OutOfResources, RuntimeError) as error:
                print(f"{shape} {what}: {(str(error).splitlines() or [type(error).__name__])[0]}", flush=True)
                continue
            finally:
                setattr(launch, name, before)
            yield row(f"{'x'.join(map(str, shape))} {what}", "ms", values, device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shapes", help="BATCHxHEADSxTOKENSxWIDTH, several joined by commas")
    for found in tune(False, parse_shapes(parser.parse_args().shapes)):
        print(line(found), flush=True)


if __name__ == "__main__":
    main()
