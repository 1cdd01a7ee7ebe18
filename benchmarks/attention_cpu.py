"""Masked attention on the CPU, forward and backward: ours and all that torch offers, in turns.

    python benchmarks/attention_cpu.py [--out CSV]

The mask is a Gaussian mixture of 5 kernels per head, computed from its parameters in every step as in training. In mode
"log" the mask is a bias that plain SDPA can add. Ratios are times of "gmm, chunked", which `gmm_attention` uses on the
CPU, divided by those of each of the others in the same turn.
"""

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor

from gmmvit import GaussianMixtureMask, gmm_attention
from gmmvit.attention.reference import log_mask
from gmmvit.rows import row, write_rows

SHAPES = [(128, 12, 64, 16), (16, 12, 256, 64), (2, 12, 1024, 64)]  # batch, heads, patches, head width
CHOSEN, FREE = "gmm, chunked", "no mask, SDPA"
Attend = Callable[[Tensor, Tensor, Tensor, GaussianMixtureMask], Tensor]


def sdpa_log(q: Tensor, k: Tensor, v: Tensor, mask: GaussianMixtureMask) -> Tensor:
    """softmax(S + log M) v with the logarithm as SDPA's bias."""
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, log_mask(mask.dense()).to(q.dtype))


def contenders() -> dict[str, Attend]:
    """Name -> attention of q, k, v and a mask module."""
    eager: Attend = lambda q, k, v, mask: gmm_attention(q, k, v, mask(), backend="eager")  # noqa: E731
    return {
        CHOSEN: lambda q, k, v, mask: gmm_attention(q, k, v, mask(), backend="chunked"),
        "gmm, eager": eager,
        "gmm, eager compiled": torch.compile(eager, dynamic=False),
        "gmm log, chunked": lambda q, k, v, mask: gmm_attention(q, k, v, mask(), mode="log", backend="chunked"),
        "gmm log, SDPA": sdpa_log,
        FREE: lambda q, k, v, mask: torch.nn.functional.scaled_dot_product_attention(q, k, v),
        "no mask, chunked": lambda q, k, v, mask: gmm_attention(q, k, v, None, backend="chunked"),
    }


def step(attend: Attend, shape: tuple[int, int, int, int], dtype: torch.dtype) -> Callable[[], None]:
    """A function that runs one forward and backward pass."""
    batch, heads, patches, width = shape
    side = int(patches**0.5)
    mask = GaussianMixtureMask((side, side), heads, init="paper", positive=True)
    packed = torch.randn(batch, patches, 3, heads, width, dtype=dtype, requires_grad=True)
    grad = torch.randn(batch, heads, patches, width, dtype=dtype)

    def run() -> None:
        q, k, v = (x.transpose(1, 2) for x in packed.unbind(2))
        attend(q, k, v, mask).backward(grad)
        packed.grad = None

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", default="", help="CSV to write")
    args = parser.parse_args()
    rows = []
    for shape in SHAPES:
        for dtype in (torch.float32, torch.bfloat16):
            torch.compiler.reset()
            runs = {name: step(attend, shape, dtype) for name, attend in contenders().items()}
            times: dict[str, list[float]] = {name: [] for name in runs}
            for turn in range(args.repeats + 2):
                for name, run in runs.items():
                    start = time.perf_counter()
                    run()
                    if turn >= 2:
                        times[name].append(time.perf_counter() - start)
            label = f"{list(shape)} {str(dtype)[6:]}"
            rows += [row(f"{label} {name}", "ms", [1e3 * t for t in values]) for name, values in times.items()]
            for name, values in times.items():
                ratios = [a / b for a, b in zip(times[CHOSEN], values, strict=True)]
                if name != CHOSEN:
                    rows.append(row(f"{label} ratio {CHOSEN} / {name}", "times", ratios))
    write_rows(args.out, rows)


if __name__ == "__main__":
    main()
