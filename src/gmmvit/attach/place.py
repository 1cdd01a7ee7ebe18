"""Where a mask sits: the grid of the images that are in the model now, and what is saved beside its parameters."""

import threading
import weakref
from collections.abc import Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from gmmvit.attention import MODES

Grid = tuple[int, int]  # (rows, cols) in patches
T = TypeVar("T")


class PerThread(Generic[T]):
    """A value that each thread has to itself, so that several can compute with one model.

    A thread that has none yet, as autograd's when it repeats a forward pass, reads the one that was written last.
    torch.compile knows no storage of threads: compiled code has one value for all.
    """

    def __init__(self, value: T) -> None:
        self._last, self._compiled = value, False
        self._own = threading.local()

    def set(self, value: T) -> None:
        self._last = value
        self._compiled = torch.compiler.is_compiling()
        if not torch.compiler.is_compiling():
            self._own.value = value

    def get(self) -> T:
        # Written by compiled code, whatever this thread wrote before is old.
        if torch.compiler.is_compiling() or self._compiled:
            return self._last
        return getattr(self._own, "value", self._last)

    def __reduce__(self) -> Any:
        return PerThread, (self.get(),)


class GridBox:
    """The grid of the images that are in the model now: written by its patch embedding, read by its attentions.

    Where each image of a batch has a grid of its own, `positions` [B, N, 2] are row and column of every patch and
    `grid` is the smallest that all fit in.
    """

    def __init__(self, grid: Grid | None) -> None:
        self._now: PerThread[tuple[Grid | None, Tensor | None]] = PerThread((grid, None))
        self._seen: dict[int, Grid] = {}
        self._source: weakref.ref[nn.Module] | None = None

    @property
    def grid(self) -> Grid | None:
        return self._now.get()[0]

    @property
    def positions(self) -> Tensor | None:
        return self._now.get()[1]

    def note(self, source: nn.Module, grid: Grid, positions: Tensor | None = None) -> None:
        """Takes the grid that the patch embedding `source` made just now."""
        if torch.compiler.is_compiling():
            self._now.set((grid, positions))
            return
        if torch.jit.is_tracing():  # sizes are tensors there; a trace is of one image size
            grid = (int(grid[0]), int(grid[1]))
        self._now.set((grid, positions))
        self._seen[grid[0] * grid[1]] = grid
        self._source = weakref.ref(source)

    def recomputed(self, patches: int) -> Grid | None:
        """The grid of so many patches while gradient checkpointing repeats a forward pass in the backward pass: images
        of another size may have been in the model since."""
        return self._seen.get(patches) if torch._C._current_graph_task_id() != -1 else None

    def stale(self) -> bool:
        """Whether the patch embedding that wrote the grid exists no more."""
        return self._source is not None and self._source() is None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_source": None}  # a copy has a patch embedding of its own, which will tell


class Site:
    """Where one mask sits: `box` holds the grid, `prefix_tokens` stand before the patches, `mode` is the mask's; `ran`
    says whether the mask was used in the last forward pass, where that is not certain."""

    def __init__(self, box: GridBox, prefix_tokens: int, mode: str) -> None:
        self.box, self.prefix_tokens, self.mode = box, prefix_tokens, mode
        self.ran = PerThread(False)

    def grid(self, tokens: int) -> Grid:
        """The grid behind a sequence of that many tokens.

        Raises ValueError where the two do not fit, as when patches are dropped in training.
        """
        if not torch.compiler.is_compiling() and self.box.stale():
            raise ValueError(
                "the patch embedding that told the grid was replaced after attach, so the grid is not known: keep "
                "state = model.state_dict(), call detach(model), then load_masks(model, state)"
            )
        rows, cols = self.box.grid  # type: ignore[misc]
        positions = self.box.positions
        if positions is not None and positions.shape[1] + self.prefix_tokens != tokens:
            raise ValueError(
                f"the attention got {tokens} tokens, the patch embedding {positions.shape[1]} patches with "
                f"{self.prefix_tokens} tokens before them: no patches may be dropped"
            )
        if positions is None and rows * cols + self.prefix_tokens != tokens:
            before = self.box.recomputed(tokens - self.prefix_tokens)
            if before is not None:
                return before
            raise ValueError(
                f"the attention got {tokens} tokens; a {rows} x {cols} grid with {self.prefix_tokens} before it has "
                f"{rows * cols + self.prefix_tokens}: no patches may be dropped; say another grid with attach(grid=), "
                "and attach anew after a change of the patch size"
            )
        return rows, cols


class Mark(NamedTuple):
    """What is saved beside a mask's parameters, as int64 numbers in this order.

    `mode` counts in MODES; the mask is that of the `place`-th of `places` attentions that could carry one. `rows` and
    `cols` are those of its grid when it was made, of a `window` or of the image; `grid_given` and `prefix_given` tell
    whether the caller of `attach` said the grid and the number of prefix tokens.
    """

    mode: int
    place: int
    places: int
    prefix_tokens: int
    rows: int
    cols: int
    window: int
    grid_given: int
    prefix_given: int

    @classmethod
    def read(cls, tensor: Tensor, layer: str) -> "Mark":
        """Raises ValueError that names the layer where the numbers cannot be those that `attach` saves."""
        numbers: Sequence[Any] = tensor.flatten().tolist()
        whole = not tensor.is_floating_point() and len(numbers) == len(cls._fields)
        if whole:
            mark = cls(*numbers)
            within = 0 <= mark.mode < len(MODES) and 0 <= mark.place < mark.places
            if within and min(numbers) >= 0 and min(mark.rows, mark.cols) > 0 and max(mark[-3:]) <= 1:
                return mark
        raise ValueError(f"{layer}: its gmm_mask.site is none that attach saves, got {numbers[:10]}")

    def said(self) -> dict[str, Any]:
        """What the caller of `attach` said about grid and prefix tokens."""
        grid = {"grid": (self.rows, self.cols)} if self.grid_given else {}
        return grid | ({"prefix_tokens": self.prefix_tokens} if self.prefix_given else {})

    def misfit(self, saved: "Mark") -> str:
        """Why a mask that was saved with that mark computes something else at this place; empty if it does not."""
        if saved.mode != self.mode:
            return f"was saved in mode {MODES[saved.mode]!r}, not {MODES[self.mode]!r}"
        if saved.said() != self.said():
            theirs, own = (
                ", ".join(f"{name}={value}" for name, value in mark.said().items()) or "neither grid nor prefix_tokens"
                for mark in (saved, self)
            )
            return f"was attached with {theirs}, here with {own}"
        if saved.window != self.window:
            kinds = ("the whole image", "a window")
            return f"belongs to an attention inside {kinds[saved.window]}, here it would be {kinds[self.window]}"
        return ""
