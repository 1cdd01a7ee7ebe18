"""The order of a training's images, and class weights in its loss."""

from collections.abc import Iterator

import torch
from torch import Tensor

_AT_ONCE = 2**22  # images ordered at a time: 32 MiB


def drawn(
    labels: Tensor, passes: int, total: int, size: int, *, balanced: bool, generator: torch.Generator
) -> Iterator[Tensor]:
    """The first `total` images of `passes` sweeps, as int64 row numbers in batches of `size`; the last may be shorter.

    A sweep has each image once in random order, or if `balanced` as many draws with every class equally likely.
    """
    waiting = torch.empty(0, dtype=torch.int64)
    several = max(1, _AT_ONCE // len(labels))
    left = passes
    while total:
        while left and len(waiting) < min(size, total):
            sweeps = [_sweep(labels, balanced, generator) for _ in range(min(several, left))]
            waiting, left = torch.cat([waiting, *sweeps]), left - len(sweeps)
        count = min(size, total)
        yield waiting[:count]
        waiting, total = waiting[count:], total - count


def _sweep(labels: Tensor, balanced: bool, generator: torch.Generator) -> Tensor:
    if not balanced:
        return torch.randperm(len(labels), generator=generator)
    counts = labels.cpu().bincount()
    ordered = labels.cpu().argsort(stable=True)
    chosen = torch.nonzero(counts).flatten()
    chosen = chosen[torch.randint(len(chosen), (len(labels),), generator=generator)]
    inside = torch.rand(len(labels), generator=generator, dtype=torch.float64) * counts[chosen]
    return ordered[counts.cumsum(0)[chosen] - counts[chosen] + inside.long()]


def balanced_weights(labels: Tensor, num_classes: int) -> Tensor:
    """Class weights, float32 [classes], that give all classes the same total weight; their mean over images is 1."""
    counts = labels.cpu().bincount(minlength=num_classes)
    return (len(labels) / ((counts > 0).sum() * counts.clamp_min(1))).float()
