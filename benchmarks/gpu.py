"""All figures that take a GPU, in under nine minutes: a CSV for each part.

    python benchmarks/gpu.py [--out benchmarks/results] [--parts correctness,attention,augmentation,training]

Needs torch, triton, numpy and this repository (for the training also what timm brings). Images are random: the speed
does not depend on what they show.

- correctness: error of the fused kernels against float64, output and gradients, divided by that of plain torch in the
  same dtype; above 2 is a failure and the exit status is 1.
- attention: `gmmvit bench`.
- augmentation: the CIFAR-10 policy with erasing and mixing, on the device.
- training: whole steps of the loop, the paper's GMM-ViT against our ViT without mask, compiled and not.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from gmmvit.attention import OffsetTable, dense_mask, gmm_attention, with_prefix
from gmmvit.augment import Augment
from gmmvit.bench import bench, grid_of
from gmmvit.data import Dataset, Split
from gmmvit.rows import row, write_rows

Rows = list[dict[str, str]]
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
# Of the correctness part: [B, H, N, D] and prefix tokens, as in the attention part with batches that float64 fits.
SHAPES = [
    ((8, 12, 64, 16), 0),
    ((8, 3, 196, 64), 1),
    ((4, 12, 256, 64), 0),
    ((2, 4, 1024, 64), 0),
    ((1, 2, 4096, 64), 0),
]
DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def everything(x: dict[str, Tensor], prefix: int, attend: Callable[..., Tensor]) -> dict[str, Tensor]:
    """Output and gradients of q, k, v and the table."""
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in x.items()}
    q, k, v, values = leaves.values()
    out = attend(q, k, v, OffsetTable(values, grid_of(q.shape[2] - prefix)))
    weights = torch.linspace(-1, 1, out.shape[2], device=out.device, dtype=out.dtype)[:, None]
    grads = torch.autograd.grad((out * weights).sum(), list(leaves.values()))
    return {"out": out.detach()} | dict(zip(leaves, grads, strict=True))


def correctness(device: torch.device) -> tuple[Rows, bool]:
    """Rows of error ratios, and whether all are at most 2."""
    rows, good = [], True
    for (batch, heads, patches, width), prefix in SHAPES:
        rows_of_grid, cols = grid_of(patches)
        for dtype in DTYPES:
            torch.manual_seed(0)
            x = {name: torch.randn(batch, heads, patches + prefix, width, device=device, dtype=dtype) for name in "qkv"}
            x["table"] = torch.rand(heads, 2 * rows_of_grid - 1, 2 * cols - 1, device=device) + 0.5
            exact = {name: tensor.double() for name, tensor in x.items()}

            def plain(q: Tensor, k: Tensor, v: Tensor, table: OffsetTable, prefix: int = prefix) -> Tensor:
                mask = with_prefix(dense_mask(table), prefix).to(q.dtype)
                return (q.shape[3] ** -0.5 * q @ k.transpose(-2, -1) * mask).softmax(-1) @ v

            def fused(q: Tensor, k: Tensor, v: Tensor, table: OffsetTable, prefix: int = prefix) -> Tensor:
                return gmm_attention(q, k, v, table, prefix_tokens=prefix, backend="triton")

            truth = everything(exact, prefix, plain)
            got, limit = everything(x, prefix, fused), everything(x, prefix, plain)
            for name, value in truth.items():
                error, allowed = ((result[name].double() - value).abs().mean().item() for result in (got, limit))
                good &= error <= 2 * allowed
                what = f"[{batch}, {heads}, {patches}+{prefix}, {width}] {str(dtype)[6:]} {name}"
                rows.append(row(f"{what}: error / plain torch's", "times", [error / max(allowed, 1e-30)]))
            torch.cuda.empty_cache()
    return rows, good


def random_images(device: torch.device) -> Dataset:
    """Noise in the place of CIFAR-10."""

    def part(count: int) -> Split:
        images = torch.randint(0, 256, (count, 3, 32, 32), device=device).byte()
        return Split(images, torch.randint(0, 10, (count,), device=device), [""] * count)

    classes = tuple(str(number) for number in range(10))
    return Dataset("cifar10", classes, part(45000), part(5000), None, MEAN, STD, "cifar10", True)


def augmentation(device: torch.device, seconds: float = 1.0, turns: int = 5) -> Rows:
    """Images/s of batches drawn and augmented on the device."""
    split = random_images(device).train
    augment = Augment(num_classes=10, mean=MEAN, std=STD, policy="cifar10")
    rows = []
    for batch in (128, 512, 2048):
        rates = []
        for turn in range(turns + 1):
            generator = torch.Generator().manual_seed(turn)
            torch.cuda.synchronize()
            seen, start = 0, time.perf_counter()
            while time.perf_counter() - start < seconds:
                for chosen in torch.randint(len(split), (20, batch), device=device):
                    augment(split.images[chosen], split.labels[chosen], generator)
                torch.cuda.synchronize()
                seen += 20 * batch
            rates.append(seen / (time.perf_counter() - start))
        rows.append(row(f"augmentation, CIFAR-10 policy, batch {batch}", "images/s", rates[1:]))
    return rows


def training(device: torch.device, steps: int = 150, turns: int = 5) -> Rows:
    """Images/s of the loop and ratios of step times; a first turn, which compiles, is not counted."""
    from train_throughput import ours

    data = random_images(device)
    options = argparse.Namespace(data_dir=None, batch_size=128, steps=steps)
    speeds: dict[str, list[float]] = {}
    for compiled in (True, False):
        runs = {f"{mask}{', compiled' if compiled else ''}": ours(data, options, mask=mask, compile=compiled)
                for mask in ("gmm", "none")}  # fmt: skip
        speeds |= {name: [] for name in runs}
        for turn in range(turns + 1):
            for name, run in runs.items():
                speed = run()
                if turn:
                    speeds[name].append(speed)
    rows = [row(f"training, ViT, {name}", "images/s", values) for name, values in speeds.items()]
    for suffix in (", compiled", ""):
        ratios = [b / a for a, b in zip(speeds["gmm" + suffix], speeds["none" + suffix], strict=True)]
        rows.append(row(f"step time, gmm / no mask{suffix}", "times", ratios))
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="benchmarks/results", help="folder of the CSVs")
    parser.add_argument("--parts", default="correctness,attention,augmentation,training")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("benchmarks/gpu.py needs a CUDA device", file=sys.stderr)
        return 1
    device = torch.device("cuda", torch.cuda.current_device())
    begun, good = time.perf_counter(), True
    for part in args.parts.split(","):
        if part == "correctness":
            rows, good = correctness(device)
        elif part == "attention":
            rows = bench(repeats=9, report=lambda line: print(line, flush=True))
        else:
            rows = {"augmentation": augmentation, "training": training}[part](device)
        write_rows(Path(args.out) / f"{part}-gpu.csv", rows)
        print(f"{part}: done after {time.perf_counter() - begun:.0f} s", flush=True)
    if not good:
        print("correctness: some errors are more than twice those of plain torch", file=sys.stderr)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
