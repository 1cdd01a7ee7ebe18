"""Masked attention on the CPU, forward and backward, against plain SDPA without a mask and against eager torch.

    python benchmarks/attention_cpu.py [--out CSV]

The mask is a Gaussian mixture of 5 kernels a head, made anew from its parameters in every step as in training. The
contenders take turns; ratios are of the same turn.
"""

import argparse
import time
from collections.abc import Callable

import torch

from gmmvit import GaussianMixtureMask, gmm_attention
from gmmvit.rows import row, write_rows

SHAPES = [(128, 12, 64, 16), (64, 12, 256, 64), (8, 12, 1024, 64)]  # batch, heads, patches, head width


def contender(shape: tuple[int, int, int, int], dtype: torch.dtype, backend: str, masked: bool) -> Callable[[], None]:
    """A function that runs one forward and backward pass."""
    batch, heads, patches, width = shape
    side = int(patches**0.5)
    mask = GaussianMixtureMask((side, side), heads, init="paper") if masked else None
    packed = torch.randn(batch, patches, 3, heads, width, dtype=dtype, requires_grad=True)
    grad = torch.randn(batch, heads, patches, width, dtype=dtype)

    def run() -> None:
        q, k, v = packed.permute(2, 0, 3, 1, 4).unbind(0)
        if backend == "sdpa":
            out = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        else:
            out = gmm_attention(q, k, v, mask and mask(), backend=backend)
        out.backward(grad)
        packed.grad = None

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--out", default="", help="CSV to write")
    args = parser.parse_args()
    rows = []
    for shape in SHAPES:
        for dtype in (torch.float32, torch.bfloat16):
            runs = {
                "gmm, chunked": contender(shape, dtype, "chunked", True),
                "gmm, eager": contender(shape, dtype, "eager", True),
                "no mask, SDPA": contender(shape, dtype, "sdpa", False),
                "no mask, chunked": contender(shape, dtype, "chunked", False),
            }
            times: dict[str, list[float]] = {name: [] for name in runs}
            for turn in range(args.repeats + 2):
                for name, run in runs.items():
                    start = time.perf_counter()
                    run()
                    if turn >= 2:
                        times[name].append(time.perf_counter() - start)
            label = f"{list(shape)} {str(dtype)[6:]}"
            rows += [row(f"{label} {name}", "ms", [1e3 * t for t in values]) for name, values in times.items()]
            for name in ("gmm, eager", "no mask, SDPA", "no mask, chunked"):
                ratios = [a / b for a, b in zip(times["gmm, chunked"], times[name], strict=True)]
                rows.append(row(f"{label} ratio gmm chunked / {name}", "times", ratios))
    write_rows(args.out, rows)


if __name__ == "__main__":
    main()
