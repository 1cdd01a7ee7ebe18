"""Forward passes that a backward pass may repeat. Gradient checkpointing repeats blocks without the patch embedding,
and the model may have seen images of another size since."""

import weakref
from typing import NamedTuple

import torch
from torch import Tensor

Grid = tuple[int, int]  # (rows, cols) in patches
_MOST = 16  # passes of a frozen patch embedding to remember


class _Alive:
    """Stored in a node of autograd's graph, so it lives as long as the node."""


class Pass(NamedTuple):
    """One forward pass: its grid and, where each sample has its own, the `positions` [B, N, 2] of the patches.

    `alive` is None for a frozen patch embedding: without a graph nothing shows whether the pass may still be repeated.
    """

    grid: Grid
    positions: Tensor | None
    alive: weakref.ref[_Alive] | None

    @property
    def patches(self) -> int:
        return self.grid[0] * self.grid[1] if self.positions is None else self.positions.shape[1]

    def waits(self) -> bool:
        return self.alive is None or self.alive() is not None

    def same(self, other: "Pass") -> bool:
        """Whether its patches lie at the same places. Synchronises with the GPU if the positions are two tensors."""
        if self.grid != other.grid or self.positions is None or other.positions is None:
            return self.grid == other.grid and self.positions is other.positions
        return self.positions is other.positions or torch.equal(self.positions, other.positions)


class Passes:
    """The forward passes of one patch embedding that may still be repeated."""

    def __init__(self) -> None:
        self._waiting: list[Pass] = []
        self._repeated = False  # whether a pass was repeated since the last new one
        self._task = -1  # autograd's id of the backward pass in which the last one ran, -1 outside

    def note(self, grid: Grid, positions: Tensor | None, made: Tensor) -> None:
        """Records a new forward pass, in which the patch embedding `made` this tensor."""
        self._task = torch._C._current_graph_task_id()
        done = self._repeated  # then assume that passes without a graph are over
        self._repeated = False
        self._waiting = [past for past in self._waiting if past.waits() and not (done and past.alive is None)]
        metadata = getattr(made.grad_fn, "metadata", None)
        if metadata is not None:
            alive = metadata.setdefault("gmmvit", _Alive())
            self._waiting.append(Pass(grid, positions, weakref.ref(alive)))
        elif torch.is_grad_enabled():
            known = (p.alive is None and p.grid == grid and p.positions is positions for p in self._waiting)
            if not any(known):
                self._waiting = [*self._waiting[-_MOST:], Pass(grid, positions, None)]

    def repeated(self, patches: int) -> Pass | None:
        """The pass of this many patches that a backward pass is repeating; None if it began with the embedding or no
        such pass is known. Raises ValueError if passes of several grids match."""
        if self._task == torch._C._current_graph_task_id():
            return None
        self._repeated = True
        found: list[Pass] = []
        for past in self._waiting:
            if past.patches == patches and past.waits() and not any(past.same(other) for other in found):
                found.append(past)
        if len(found) > 1:
            raise ValueError(
                f"gradient checkpointing repeats a forward pass of {patches} patches, and images of several grids with "
                "as many still await their backward pass: call backward after each of them, and keep no old outputs"
            )
        return found[0] if found else None
