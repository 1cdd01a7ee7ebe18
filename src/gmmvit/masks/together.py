"""The tables of a model's masks in one computation: a ninth of the operations, where nine layers have one each."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from gmmvit.masks.gaussian import GaussianMixtureMask

# Of one mask's Gaussians, H * K * (2*rows-1) * (2*cols-1). Several of larger ones leave a CPU's cache (docs/log.md) and
# keep a GPU busy for longer than a launch takes.
MOST_VALUES = {"cpu": 2**15, "cuda": 2**18}


def tables_together(masks: Iterable[nn.Module | None], device: torch.device) -> dict[nn.Module, Tensor]:
    """By mask, its table on its own grid [H, 2*rows-1, 2*cols-1], of those that share a computation with another; the
    rest compute theirs when they are called.

    Parameters that are elsewhere until their layer is called (FSDP's shards, offloaded ones) are left alone.
    """
    alike: dict[tuple[Any, ...], list[GaussianMixtureMask]] = {}
    for mask in masks:
        if type(mask) is GaussianMixtureMask and _is_small_and_here(mask, device):
            alike.setdefault(mask.likeness(), []).append(mask)
    tables: dict[nn.Module, Tensor] = {}
    for first, *others in alike.values():
        if others:
            slices = first.table(beside=others).split([mask.num_heads for mask in (first, *others)])
            tables |= zip((first, *others), slices, strict=True)
    return tables


def _is_small_and_here(mask: GaussianMixtureMask, device: torch.device) -> bool:
    values = mask.alpha.numel() * mask.offsets.numel() // 2
    here = type(mask.alpha) is nn.Parameter and mask.alpha.device == device
    return here and values <= MOST_VALUES.get(device.type, 0)
