"""The interface of every mask kind, for attention and for code that shows, saves or loads masks.

Letters: N patches (rows * cols), H heads.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

from torch import Tensor, nn

from gmmvit.checks import pair

Grid = tuple[int, int]  # (rows, cols) in patches
MOST_HEADS = 1024


class Picture(NamedTuple):
    """One picture of a head: its cells [R, S], its caption and its description; `dot` marks the centre as the patch
    itself."""

    cells: Tensor
    label: str
    words: str
    dot: bool = False


class Drawing(NamedTuple):
    """A mask in a report: pictures per head, or one set if the heads share a mask, and a table of numbers with one row
    per head."""

    heads: list[list[Picture]]
    title: str = ""
    columns: Sequence[str] = ()
    rows: Sequence[list[str]] = ()


class Mask(nn.Module, ABC):
    """Base of the learned masks. `forward(grid)` returns what `gmm_attention` takes; the constructor takes `grid`,
    `num_heads`, `init`, `steps` (all by those names), its own options, and on request `depth` and `positive`."""

    kind: ClassVar[str]  # its name in `KINDS`
    words: ClassVar[str]  # its name in titles
    shown: ClassVar[str]  # what its drawing shows, in a sentence or two
    options: ClassVar[tuple[str, ...]] = ()  # constructor arguments that `attach` takes and saved tensors reveal
    one_grid: ClassVar[bool] = False  # whether its parameters fit only the grid of construction
    random_starts: ClassVar[tuple[str, ...]] = ()  # values of `init` that draw random numbers
    grid: Grid
    num_heads: int

    @abstractmethod
    def dense(self, grid: int | Grid | None = None) -> Tensor:
        """The mask for every pair of patches: [H, N, N], or [H, Nq, Nk] with `steps`."""

    @abstractmethod
    def view(self) -> Tensor:
        """A picture of each head, or one for all: [H or 1, R, S]."""

    def values(self) -> Tensor:
        """The numbers that set the range of the colour scale."""
        return self.view()

    @abstractmethod
    def drawing(self) -> Drawing:
        """The mask's drawing for a report."""

    @classmethod
    @abstractmethod
    def options_of(cls, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any] | None:
        """The `options` of a mask whose parameters have these shapes; None if they belong to another kind."""

    def fitted(self, parameter: Tensor, grid: Grid) -> Tensor:
        """A parameter learned on `grid`, resized to this mask's grid."""
        return parameter


def checked_grid(grid: int | Grid, most: int = 2**20) -> Grid:
    """(rows, cols); raises TypeError or ValueError unless it is a grid of at most `most` patches."""
    rows, cols = pair(grid, "grid", "(rows, cols)")
    if rows * cols > most:
        raise ValueError(f"grid must have at most {most:,} patches, got {rows} x {cols}")
    return rows, cols
