"""What every kind of mask answers, to attention and to those that show, save or load it.

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
    """One picture of a head: its cells [R, S], what stands below it, and what it shows in words; `dot` marks its centre
    as the patch itself."""

    cells: Tensor
    label: str
    words: str
    dot: bool = False


class Drawing(NamedTuple):
    """What a report shows of a mask: the pictures of each head, or of all heads where they share one, and a table of
    numbers with a row a head."""

    heads: list[list[Picture]]
    title: str = ""
    columns: Sequence[str] = ()
    rows: Sequence[list[str]] = ()


class Mask(nn.Module, ABC):
    """Base of the learned masks. `forward(grid)` returns what `gmm_attention` takes; the constructor takes `grid`,
    `num_heads`, `init`, `steps` (all by those names), its own options, and on request `depth` and `positive`."""

    kind: ClassVar[str]  # its name in `KINDS`
    words: ClassVar[str]  # what it is called in a title
    shown: ClassVar[str]  # what its drawing shows, a sentence or two
    options: ClassVar[tuple[str, ...]] = ()  # arguments of the constructor that `attach` takes and saved tensors show
    one_grid: ClassVar[bool] = False  # whether its parameters belong to the grid of construction
    random_starts: ClassVar[tuple[str, ...]] = ()  # values of `init` that draw numbers
    grid: Grid
    num_heads: int

    @abstractmethod
    def dense(self, grid: int | Grid | None = None) -> Tensor:
        """The mask for every pair of patches: [H, N, N], or [H, Nq, Nk] with `steps`."""

    @abstractmethod
    def view(self) -> Tensor:
        """A picture of each head, or one of all: [H or 1, R, S]."""

    def values(self) -> Tensor:
        """The numbers that decide how wide a scale of colours is."""
        return self.view()

    @abstractmethod
    def drawing(self) -> Drawing:
        """What a report shows of it."""

    @classmethod
    @abstractmethod
    def options_of(cls, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any] | None:
        """The `options` of a mask whose parameters have these shapes; None where they are of another kind."""

    def fitted(self, parameter: Tensor, grid: Grid) -> Tensor:
        """A parameter that was learned on `grid`, for the grid of this mask."""
        return parameter


def checked_grid(grid: int | Grid, most: int = 2**20) -> Grid:
    """(rows, cols); raises TypeError or ValueError for anything but a grid of at most so many patches."""
    rows, cols = pair(grid, "grid", "(rows, cols)")
    if rows * cols > most:
        raise ValueError(f"grid must have at most {most:,} patches, got {rows} x {cols}")
    return rows, cols
