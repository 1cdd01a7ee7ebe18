"""The grids at which attached masks run; an element-wise mask must be made for exactly that grid."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from gmmvit.attach.place import Grid
from gmmvit.attach.surgery import MaskedDonor
from gmmvit.attach.survey import masked


def used_grids(model: nn.Module, *inputs: Any) -> dict[str, Grid]:
    """Attention name -> (rows, cols), for each mask that one pass uses at another grid than it was made for. Windows
    are left out: the model fixes their grid.

    Args:
        model: with Gaussian mixture masks attached, which take every grid.
        inputs: what the model is called with: images [B, C, height, width].
    """
    layers = [(name, module) for name, module in masked(model) if module.gmm_window(module) is None]
    seen: dict[str, Grid] = {}
    with _noting(layers, seen), torch.no_grad():
        model(*inputs)
    made = {name: module.gmm_mask.grid for name, module in layers}
    return {name: grid for name, grid in seen.items() if grid != made[name]}


@contextmanager
def _noting(layers: list[tuple[str, MaskedDonor]], seen: dict[str, Grid]) -> Iterator[None]:
    """Within this context every mask writes the grid it is called with to `seen`."""

    def noted(name: str, ask: Callable[..., Any]) -> Callable[..., Any]:
        def asked(grid: Grid, *more: Any) -> Any:
            seen[name] = grid
            return ask(grid, *more)

        return asked

    for name, module in layers:
        for method in ("forward", "dense"):
            setattr(module.gmm_mask, method, noted(name, getattr(module.gmm_mask, method)))
    try:
        yield
    finally:
        for _, module in layers:
            del module.gmm_mask.forward, module.gmm_mask.dense
