"""The element-wise mask: one number per pair of patches.

Letters: N patches (rows * cols), H heads.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gmmvit.attention.reference import EVERY_PATCH, Steps
from gmmvit.checks import boolean, integer, one_of
from gmmvit.masks.base import MOST_HEADS, Drawing, Grid, Mask, Picture, checked_grid

_MOST_PATCHES = 2**14  # already a mask of 1 GB
_DRAWN_SIDE = 64  # larger matrices are averaged down to this side


class ElementwiseMask(Mask):
    """M itself is the parameter: [N, N] shared by the heads, or [H, N, N] with `per_head`; [Nq, Nk] with `steps`, as in
    `GaussianMixtureMask`.

    `init` is "identity" (ones) or "paper" (zeros: attention starts uniform). The mask fits one grid; `resample` changes
    it to another.

    Source: arXiv 2309.05375, section 3.1.
    """

    kind = "elm"
    words = "element-wise masks"
    shown = (
        "Each layer has the learned matrix (rows are queries, columns are keys) and its row for the central patch, "
        "drawn over the grid."
    )
    options = ("per_head",)
    one_grid = True

    def __init__(
        self,
        grid: int | Grid,
        num_heads: int,
        *,
        per_head: bool = False,
        init: str = "identity",
        steps: Steps = EVERY_PATCH,
    ) -> None:
        super().__init__()
        self.grid = checked_grid(grid, _MOST_PATCHES)
        integer("num_heads", num_heads, most=MOST_HEADS)
        boolean("per_head", per_head)
        one_of("init of the mask", init, ("paper", "identity"))
        self.num_heads, self.init, self.steps = num_heads, init, steps
        sides = [math.prod(side) for side in self._sides(self.grid)]
        self.weight = nn.Parameter(torch.empty(*([num_heads] if per_head else []), *sides))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Reinitialises the parameter as `init` says."""
        self.weight.fill_(1.0 if self.init == "identity" else 0.0)

    def _sides(self, grid: Grid) -> list[Grid]:
        """The (rows, cols) of the queries and of the keys on `grid`."""
        return [(-(-grid[0] // step[0]), -(-grid[1] // step[1])) for step in (self.steps.query, self.steps.key)]

    def dense(self, grid: int | Grid | None = None) -> Tensor:
        """The mask for every pair of patches: [H, N, N], or [H, Nq, Nk] with `steps`.

        Raises ValueError for any grid but its own.
        """
        return self(grid).expand(self.num_heads, -1, -1)

    def forward(self, grid: int | Grid | None = None) -> Tensor:
        """What `gmm_attention` takes: [N, N] or [H, N, N]."""
        if grid is None or grid is self.grid:
            return self.weight
        rows, cols = checked_grid(grid)
        if (rows, cols) != self.grid:
            raise ValueError(
                f"an element-wise mask learned on a {self.grid[0]} x {self.grid[1]} grid does not fit a "
                f"{rows} x {cols} grid; call resample({(rows, cols)}) on it first, or use a Gaussian mixture mask"
            )
        return self.weight

    def resample(self, grid: int | Grid) -> "ElementwiseMask":
        """Resizes the mask to another grid in place, bilinearly over query and key positions; returns it."""
        before, self.grid = self.grid, checked_grid(grid, _MOST_PATCHES)
        self.weight = nn.Parameter(self.fitted(self.weight, before))
        return self

    @torch.no_grad()
    def fitted(self, parameter: Tensor, grid: Grid) -> Tensor:
        queries, keys = self._sides(grid)
        weight = parameter.detach().reshape(-1, *queries, *keys).float()
        for side in reversed(self._sides(self.grid)):  # the keys' axes, then the queries'
            flat = nn.functional.interpolate(weight.flatten(1, 2), side, mode="bilinear", align_corners=False)
            weight = flat.unflatten(1, weight.shape[1:3]).permute(0, 3, 4, 1, 2)
        weight = weight.flatten(3).flatten(1, 2).to(parameter)
        return weight if parameter.dim() == 3 else weight[0]

    @classmethod
    def options_of(cls, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any] | None:
        return {"per_head": len(shapes["weight"]) == 3} if "weight" in shapes else None

    def view(self) -> Tensor:
        """The row of the central patch: [H, rows, cols], or [1, rows, cols] if the heads share one."""
        rows, cols = self.grid
        weight = self.weight.reshape(-1, rows * cols, rows * cols)
        return weight[:, rows // 2 * cols + cols // 2].reshape(-1, rows, cols)

    def values(self) -> Tensor:
        return self.weight

    def drawing(self) -> Drawing:
        patches = self.weight.shape[-1]
        size = f"{patches} × {patches}"
        matrices = self.weight.detach().reshape(-1, *self.weight.shape[-2:])
        if patches > _DRAWN_SIDE:
            size += f", averaged to {_DRAWN_SIDE} × {_DRAWN_SIDE}"
            matrices = nn.functional.adaptive_avg_pool2d(matrices.float().unsqueeze(1), _DRAWN_SIDE).squeeze(1)
        place = f"from row {self.grid[0] // 2 + 1}, column {self.grid[1] // 2 + 1}"
        heads = []
        for number, (matrix, row) in enumerate(zip(matrices, self.view(), strict=True), 1):
            who = f"head {number}" if len(matrices) > 1 else "all heads"
            whole = Picture(matrix, f"{who}, {size}", f"{who}: matrix {size}")
            heads.append([whole, Picture(row, f"{who}, {place}", f"{who}: what the central patch sees")])
        return Drawing(heads)

    def extra_repr(self) -> str:
        return f"grid={self.grid}, num_heads={self.num_heads}, per_head={self.weight.dim() == 3}"
