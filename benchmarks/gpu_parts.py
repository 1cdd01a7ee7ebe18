"""The GPU measurements, a function per part; `gpu.py` runs each in its own process. Images are random: the speed does
not depend on what they show. `tiny` sizes rehearse a part on a CPU.

Letters: B batch, H heads, N patches, D head width.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from tune_attention import tune  # noqa: F401  (a part)

from gmmvit.attention import OffsetTable, dense_mask, gmm_attention, with_prefix
from gmmvit.augment import Augment
from gmmvit.bench import GPU_SHAPES, bench_shape, grid_of
from gmmvit.data import Dataset, Split
from gmmvit.rows import row

Rows = Iterator[dict[str, str]]
TINY_MODEL = {"depth": 1, "dim": 16, "num_heads": 2}
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
# For `correctness`: [B, H, N, D] and prefix tokens, as in `attention`, with batches small enough for float64.
SHAPES = [
    ((8, 12, 64, 16), 0),
    ((8, 3, 196, 64), 1),
    ((4, 12, 256, 64), 0),
    ((2, 4, 1024, 64), 0),
    ((1, 2, 4096, 64), 0),
]
TINY_SHAPES = [((2, 2, 9, 8), 1)]
# FlexAttention is compiled only at this one: it takes ten seconds a shape, and an H200 had no room for it at D = 64.
WITH_FLEX = (GPU_SHAPES[0],)


def the_device() -> torch.device:
    """The GPU, or the CPU in a rehearsal without one."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def wait(device: torch.device) -> None:
    """Waits until the device has finished."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def everything(x: dict[str, Tensor], prefix: int, attend: Callable[..., Tensor]) -> dict[str, Tensor]:
    """Output and gradients of q, k, v and the table."""
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in x.items()}
    q, k, v, values = leaves.values()
    out = attend(q, k, v, OffsetTable(values, grid_of(q.shape[2] - prefix)), prefix)
    weights = torch.linspace(-1, 1, out.shape[2], device=out.device, dtype=out.dtype)[:, None]
    grads = torch.autograd.grad((out * weights).sum(), list(leaves.values()))
    return {"out": out.detach()} | dict(zip(leaves, grads, strict=True))


def plain(q: Tensor, k: Tensor, v: Tensor, table: OffsetTable, prefix: int) -> Tensor:
    """The formula in plain torch and in the dtype of q."""
    mask = with_prefix(dense_mask(table), prefix).to(q.dtype)
    return (q.shape[3] ** -0.5 * q @ k.transpose(-2, -1) * mask).softmax(-1) @ v


def fused(q: Tensor, k: Tensor, v: Tensor, table: OffsetTable, prefix: int) -> Tensor:
    return gmm_attention(q, k, v, table, prefix_tokens=prefix, backend="triton")


def correctness(tiny: bool) -> Rows:
    """Error of the kernels against float64, output and gradients, divided by that of plain torch in the same dtype.

    Raises AssertionError at the end if one was above 2.
    """
    device = the_device()
    # Triton's interpreter multiplies bfloat16 wrongly.
    dtypes = (torch.bfloat16, torch.float16, torch.float32) if device.type == "cuda" else (torch.float16, torch.float32)
    wrong = []
    for dtype in dtypes:
        for (batch, heads, patches, width), prefix in TINY_SHAPES if tiny else SHAPES:
            rows, cols = grid_of(patches)
            torch.manual_seed(0)
            x = {name: torch.randn(batch, heads, patches + prefix, width, device=device, dtype=dtype) for name in "qkv"}
            x["table"] = torch.rand(heads, 2 * rows - 1, 2 * cols - 1, device=device) + 0.5
            truth = everything({name: tensor.double() for name, tensor in x.items()}, prefix, plain)
            got, limit = everything(x, prefix, fused), everything(x, prefix, plain)
            for name, value in truth.items():
                error, allowed = ((result[name].double() - value).abs().mean().item() for result in (got, limit))
                what = f"[{batch}, {heads}, {patches}+{prefix}, {width}] {str(dtype)[6:]} {name}: error / plain torch's"
                ratio = error / max(allowed, 1e-30)
                yield row(what, "times", [ratio], device)
                if not ratio <= 2:
                    wrong.append(what)
    assert not wrong, f"more than twice plain torch's error: {'; '.join(wrong)}"


def attention(tiny: bool) -> Rows:
    """Time and memory of the op and its rivals, forward and backward."""
    device = the_device()
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    failed = []
    for shape in [(2, 2, 9, 8)] if tiny else GPU_SHAPES:
        left_out = () if shape in WITH_FLEX else ("FlexAttention",)
        try:
            yield from bench_shape(
                shape, dtype, device, 2 if tiny else 7, lambda line: print(line, flush=True), left_out
            )
        except (RuntimeError, MemoryError) as error:  # the other shapes are still measured
            failed.append(f"{list(shape)}: {(str(error).splitlines() or [type(error).__name__])[0]}")
            print(failed[-1], flush=True)
    assert not failed, "; ".join(failed)


def random_images(device: torch.device, count: int = 45_000) -> Dataset:
    """Noise of CIFAR-10's shape."""

    def part(count: int) -> Split:
        images = torch.randint(0, 256, (count, 3, 32, 32), device=device).byte()
        return Split(images, torch.randint(0, 10, (count,), device=device), [""] * count)

    classes = tuple(str(number) for number in range(10))
    return Dataset("cifar10", classes, part(count), part(count // 9), None, MEAN, STD, "cifar10", True)


def augmentation(tiny: bool) -> Rows:
    """Images/s when batches are drawn and augmented on the device: the CIFAR-10 policy with erasing and mixing."""
    device = the_device()
    split = random_images(device, 90 if tiny else 45_000).train
    augment = Augment(num_classes=10, mean=MEAN, std=STD, policy="cifar10")
    seconds, turns, calls = (0.01, 1, 1) if tiny else (0.5, 5, 20)
    for batch in (8,) if tiny else (128, 512, 2048):
        rates = []
        for turn in range(turns + 1):
            generator = torch.Generator().manual_seed(turn)
            wait(device)
            seen, start = 0, time.perf_counter()
            while time.perf_counter() - start < seconds:
                for chosen in torch.randint(len(split), (calls, batch), device=device):
                    augment(split.images[chosen], split.labels[chosen], generator)
                wait(device)
                seen += calls * batch
            rates.append(seen / (time.perf_counter() - start))
        yield row(f"augmentation, CIFAR-10 policy, batch {batch}", "images/s", rates[1:], device)


def training(tiny: bool) -> Rows:
    """Images/s of the loop: the paper's ViT with and without mask, recipe `small` with Muon as one graph per step and
    operation by operation, then the paper's ViT compiled."""
    from train_throughput import ours

    device = the_device()
    data = random_images(device, 90 if tiny else 45_000)
    model = TINY_MODEL if tiny else {}

    def compared(
        names: tuple[str, str], fields: tuple[dict[str, Any], ...], batch: int, steps: int, ratio: str
    ) -> Rows:
        """Two contenders in turns, and the time of the first divided by that of the second; the first turn, which
        compiles kernels, does not count."""
        options = argparse.Namespace(data_dir=None, batch_size=8 if tiny else batch, steps=2 if tiny else steps)
        runs = [ours(data, options, **model, **own) for own in fields]
        turns = [[run() for run in runs] for _ in range(2 if tiny else 4)][1:]
        for name, values in zip(names, zip(*turns, strict=True), strict=True):
            yield row(f"training, {name}", "images/s", list(values), device)
        yield row(f"step time, {ratio}", "times", [second / first for first, second in turns], device)

    paper: tuple[dict[str, Any], ...] = ({"mask": "gmm"}, {"mask": "none"})
    small: tuple[dict[str, Any], ...] = ({"recipe": "small"}, {"recipe": "small", "cuda_graph": False})
    yield from compared(("ViT, gmm", "ViT, none"), paper, 128, 150, "gmm / no mask")
    names = ("recipe small, Muon, a graph a step", "recipe small, Muon, operation by operation")
    yield from compared(names, small, 64, 60, "recipe small, graph / operations")
    if not tiny:  # `profile` compiles in a rehearsal
        compiled = tuple(own | {"compile": True} for own in paper)
        yield from compared(
            ("ViT, gmm, compiled", "ViT, none, compiled"), compiled, 128, 150, "gmm / no mask, compiled"
        )


def profile(tiny: bool) -> Rows:
    """Where a step's time goes: milliseconds of host and GPU, and launches per step; prints the longest kernels."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as record
    from train_throughput import ours

    device = the_device()
    options = argparse.Namespace(data_dir=None, batch_size=8 if tiny else 128, steps=2 if tiny else 20)
    run = ours(
        random_images(device, 270 if tiny else 45_000),
        options,
        mask="gmm",
        compile=True,
        **(TINY_MODEL if tiny else {}),
    )
    run()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    with record(activities=activities) as recorded:
        speed = run()
        wait(device)
    steps = options.steps + 3  # with those that warm up
    events = recorded.events()
    kernels = [event for event in events if event.device_type.name == "CUDA"]
    launches = [event for event in events if event.name.startswith(("cudaLaunch", "cuLaunch", "cudaGraphLaunch"))]
    yield row("step, wall time under the profiler", "ms", [1e3 * options.batch_size / speed], device)
    yield row("step, kernels' time", "ms", [sum(event.device_time for event in kernels) / 1e3 / steps], device)
    yield row("step, kernels", "number", [len(kernels) / steps], device)
    yield row("step, launches by the host", "number", [len(launches) / steps], device)
    yield row("step, host operations", "number", [len(events) / steps - len(kernels) / steps], device)
    by = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    print(recorded.key_averages().table(sort_by=by, row_limit=40, max_name_column_width=70), flush=True)
