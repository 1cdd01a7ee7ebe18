"""Where a mask sits: the grid of the images now in the model, and what is saved beside the mask's parameters."""

import math
import sys
import threading
import weakref
from collections.abc import Collection, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from gmmvit.attach.passes import Grid, Passes
from gmmvit.attention import MODES

T = TypeVar("T")


class PerThread(Generic[T]):
    """A value per thread, so that several threads can run one model.

    A thread that has not set it, such as autograd's when it repeats a forward pass, reads the last value set anywhere.
    torch.compile does not support thread-local storage, so compiled code has one value for all.
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
        # A value set by compiled code is newer than this thread's own.
        if torch.compiler.is_compiling() or self._compiled:
            return self._last
        return getattr(self._own, "value", self._last)

    def __reduce__(self) -> Any:
        return PerThread, (self.get(),)


class GridBox:
    """The grid of the images now in the model: its patch embedding writes it, its attentions read it.

    If the images of a batch have different grids, `positions` [B, N, 2] are row and column of every patch and `grid` is
    the smallest that holds them all.
    """

    def __init__(self, grid: Grid) -> None:
        self._first = grid
        self._now: PerThread[tuple[Grid, Tensor | None]] = PerThread((grid, None))
        self.passes = Passes()
        self._source: weakref.ref[nn.Module] | None = None
        self._sites: weakref.WeakSet[Site] = weakref.WeakSet()

    @property
    def grid(self) -> Grid:
        return self._now.get()[0]

    @property
    def positions(self) -> Tensor | None:
        return self._now.get()[1]

    @property
    def known(self) -> Grid:
        """The grid as numbers: torch.export with dynamic sizes leaves symbols behind."""
        grid = self.grid
        return grid if all(type(side) is int for side in grid) else self._first

    def written_by(self, source: nn.Module) -> None:
        """Names the patch embedding that writes the grid from now on."""
        self._source = weakref.ref(source)

    def join(self, site: "Site") -> None:
        self._sites.add(site)

    def needed_beside(self, sites: Collection["Site"]) -> bool:
        """Whether other attentions than those of `sites` read this box."""
        return any(all(site is not other for other in sites) for site in self._sites)

    def note(self, grid: Grid, positions: Tensor | None, made: Tensor) -> None:
        """Stores the grid that the patch embedding just `made`."""
        if not torch.compiler.is_compiling():
            if torch.jit.is_tracing():  # sizes are tensors; a trace holds for one image size
                grid = (int(grid[0]), int(grid[1]))
            self.passes.note(grid, positions, made)
        self._now.set((grid, positions))

    def stale(self) -> bool:
        """Whether the patch embedding that wrote the grid is gone."""
        return self._source is not None and self._source() is None

    def __reduce__(self) -> Any:
        return GridBox, (self.known,)  # the copy's own patch embedding will call written_by


class Site:
    """Where one mask sits: `box` holds the grid, `prefix_tokens` counts the tokens before the patches, `mode` is the
    mask's. `ran` says whether the last forward pass used the mask, for donors that may skip it. `model` is what it was
    attached to, None in a copy."""

    def __init__(self, box: GridBox, prefix_tokens: int, mode: str) -> None:
        self.box, self.prefix_tokens, self.mode = box, prefix_tokens, mode
        self.ran = PerThread(False)
        self.model: weakref.ref[nn.Module] | None = None
        box.join(self)

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"model": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.box.join(self)

    def now(self, tokens: int) -> tuple[Grid, Tensor | None]:
        """The grid of a sequence of this many tokens, and the patch positions if grids differ within the batch.

        Raises ValueError if grid and tokens do not match, as when patches are dropped in training.
        """
        prefix = self.prefix_tokens
        if not torch.compiler.is_compiling():
            if torch._C._current_graph_task_id() != -1:  # in a backward pass
                before = self.box.passes.repeated(tokens - prefix)
                if before is not None:
                    return before.grid, before.positions
            elif self.box.stale():
                raise ValueError(
                    "the patch embedding was replaced after attach, so the grid is unknown: save "
                    "state = model.state_dict(), call detach(model), then load_masks(model, state)"
                )
        rows, cols = self.box.grid
        positions = self.box.positions
        patches = rows * cols if positions is None else positions.shape[1]
        if patches + prefix != tokens:
            what = f"a {rows} x {cols} grid" if positions is None else "the patch embedding"
            raise ValueError(
                f"the attention got {tokens} tokens, {what} has {patches} patches with {prefix} tokens before them: do "
                "not drop patches; correct attach(grid=, prefix_tokens=), with the grid by name where grids differ; "
                "after a change of the patch size attach again"
            )
        return (rows, cols), positions


# Older files hold an index into this list instead of the mode's name.
_NUMBERED_MODES = ("multiply", "log", "post")


class Mark(NamedTuple):
    """What is saved beside a mask's parameters, as int64: the numbers in this order, then the letters of `mode`.

    The mask belongs to the `place`-th of `places` attentions that could carry one. It was made for `rows` x `cols`, the
    grid of a `window` or of the image. `grid_given` and `prefix_given`: whether the caller of `attach` passed the grid
    and the number of prefix tokens.
    """

    mode: str
    place: int
    places: int
    prefix_tokens: int
    rows: int
    cols: int
    window: int
    grid_given: int
    prefix_given: int

    def write(self) -> Tensor:
        """The inverse of `read`."""
        mode, *numbers = self
        return torch.tensor([*map(int, numbers), *mode.encode()], device="cpu")

    @classmethod
    def read(cls, tensor: Tensor, layer: str) -> "Mark":
        """Raises a ValueError that names the layer if `attach` cannot have saved these numbers."""
        plain = tensor.layout == torch.strided and not tensor.is_meta and not tensor.is_complex()
        numbers: Sequence[Any] = tensor.flatten().tolist() if plain else []
        # Averaging or casting a file turns the numbers into floats of the same value.
        if all(math.isfinite(x) and x == int(x) and x >= 0 for x in numbers):
            count, whole = len(cls._fields) - 1, [int(x) for x in numbers]
            if len(whole) == count + 1:
                first, whole = whole[0], whole[1:]
                mode = _NUMBERED_MODES[first] if first < len(_NUMBERED_MODES) else ""
            else:
                mode = "".join(map(chr, whole[count:])) if max(whole, default=0) <= sys.maxunicode else ""
            if mode in MODES:
                mark = cls(mode, *whole[:count])
                if mark.place < mark.places and min(mark.rows, mark.cols) > 0 and max(mark[-3:]) <= 1:
                    return mark
        raise ValueError(f"{layer}: its gmm_mask.site was not written by attach, got {numbers[:10]}")

    def said(self) -> dict[str, Any]:
        """The grid and prefix tokens that the caller of `attach` passed."""
        grid = {"grid": (self.rows, self.cols)} if self.grid_given else {}
        return grid | self.said_prefix()

    def said_prefix(self) -> dict[str, Any]:
        return {"prefix_tokens": self.prefix_tokens} if self.prefix_given else {}

    def misfit(self, saved: "Mark") -> str:
        """Why a mask saved with that mark would compute something else here; empty if it would not."""
        if saved.mode != self.mode:
            return f"was saved in mode {saved.mode!r}, not {self.mode!r}"
        if saved.said() != self.said():
            theirs, own = (
                ", ".join(f"{name}={value}" for name, value in mark.said().items()) or "neither grid nor prefix_tokens"
                for mark in (saved, self)
            )
            return f"was attached with {theirs}, here with {own}"
        if saved.window != self.window:
            kinds = ("the whole image", "a window")
            return f"was made for attention over {kinds[saved.window]}, here it would be over {kinds[self.window]}"
        return ""


class Record(nn.Module):
    """Keeps a mask's mark and saves it in `state_dict()`. It is neither parameter nor buffer, so averaging, casting and
    `to_empty` leave it alone. Loading compares marks and changes nothing."""

    def __init__(self, mark: Mark, one_grid: bool) -> None:
        super().__init__()
        self.mark, self.one_grid = mark, one_grid

    def get_extra_state(self) -> Tensor:
        return self.mark.write()

    def set_extra_state(self, state: Any) -> None:
        """Does nothing: the mask stays where it is."""

    def misfit(self, saved: Mark) -> str:
        """`Mark.misfit`; besides, a mask of one grid fits no other."""
        own = self.mark
        if self.one_grid and (own.rows, own.cols) != (saved.rows, saved.cols):
            return f"is element-wise on a {saved.rows} x {saved.cols} grid, here the grid is {own.rows} x {own.cols}"
        return own.misfit(saved)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        saved = state_dict.get(f"{prefix}_extra_state")
        if isinstance(saved, Tensor):  # torch.distributed fills gaps in the file with another type
            try:
                misfit = self.misfit(Mark.read(saved, prefix.removesuffix(".gmm_mask.site.")))
            except ValueError as error:
                misfit = str(error)
            args[-1].extend([f"{prefix.removesuffix('.site.')} {misfit}"] if misfit else [])
