"""The learned masks: parameters and their start. The formula itself is in `attention/reference.py`.

Letters: N patches (rows * cols), H heads, K Gaussians per head.
"""

import inspect
import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from gmmvit.attention import OffsetTable, dense_mask, gaussian_mixture_table, patch_offsets
from gmmvit.attention.reference import EVERY_PATCH, Steps
from gmmvit.checks import boolean, integer, known_options, one_of, pair, real

INITS = ("paper", "identity", "local", "conv")
COVARIANCES = ("spherical", "diag", "full")
MASKS = ("none", "elm", "gmm")
# A Gaussian this wide is 1 within float32 rounding on 16 x 16 patches, and within 2e-6 on 64 x 64; float16 can hold it.
_CONSTANT_SIGMA = 6e4
# Of the start "conv": a peak that leaves exp(-1.39) of itself on the cell beside it, over a constant.
_PEAK_SIGMA, _FLOOR = 0.6, 0.02
_MOST_PATCHES = 2**20
_MOST_PATCHES_ELEMENTWISE = 2**14  # whose mask is 1 GB already
_MOST = 1024  # heads, Gaussians


def _checked_grid(grid: int | tuple[int, int], most: int = _MOST_PATCHES) -> tuple[int, int]:
    rows, cols = pair(grid, "grid", "(rows, cols)")
    if rows * cols > most:
        raise ValueError(f"grid must have at most {most:,} patches, got {rows} x {cols}")
    return rows, cols


def stencil(heads: int, depth: float = 0.0) -> list[tuple[int, int]]:
    """Cells (down, right) of a convolution's stencil, one a head: the patch itself, then rings of 8, 16, ... around it.

    Of a ring that has more cells than heads are left, these take some at equal distances; which ones turns with
    `depth`, so that the layers of a network cover the ring together.
    """
    cells: list[tuple[int, int]] = [(0, 0)]
    reach = 0
    while len(cells) < heads:
        reach += 1
        side = range(-reach, reach)
        ring = [(-reach, i) for i in side] + [(i, reach) for i in side]
        ring += [(-down, -right) for down, right in ring]
        left = min(heads - len(cells), len(ring))
        turn = 0 if left == len(ring) else round(depth * (len(ring) - 1))
        cells += [ring[(turn + i * len(ring) // left) % len(ring)] for i in range(left)]
    return cells[:heads]


def _as_float32_tells(offsets: Tensor) -> Tensor:
    """Offsets [2, R, C] as long as the float32 number exp(-d2) says that they are.

    Below 2^-126 = exp(-87.3) float32 has nothing but multiples of 2^-149 = exp(-103.3), and 0 is infinitely far.
    """
    squared = offsets.square().sum(0)
    smallest = 149 * math.log(2)
    multiples = (smallest - squared).clamp_max(16).exp().round()
    told = torch.where(multiples > 0, smallest - multiples.clamp_min(1).log(), 1e30)
    return offsets * torch.where(squared > 87.3, (told / squared.clamp_min(1)).sqrt(), 1.0)


class GaussianMixtureMask(nn.Module):
    """M[h,i,j] = sum_k alpha[h,k] * exp(-d2(i,j) / (2 * (sigma[h,k]^2 + 1e-5))), from two scalars a Gaussian.

    Args:
        grid: (rows, cols) in patches, or one int for a square.
        num_heads: H.
        num_kernels: K, Gaussians per head.
        init: "paper": sigma ~ N(10, 10), alpha ~ N(0, 2). "identity": M is 1 within rounding, so that a mask can be
            added to a trained model: one Gaussian so wide that it is a constant, the others with alpha 0 and widths
            from one patch to half the grid (with K = 1 only the constant can learn). "local": a constant plus peaks
            round the patch itself, narrow in early layers and wide in late ones, of another strength in every head.
            "conv": each head a narrow peak on a cell of its own of a stencil (3 x 3, then 5 x 5, ...; `stencil`) over a
            small constant, so that in mode "log" attention starts as a convolution; the other Gaussians have alpha 0.
            It wants at least two Gaussians and always learns its centre.
        covariance: "spherical" (one sigma, the paper), "diag" (one per axis) or "full" (and their correlation).
        learn_center: a learned offset of the peak per head, in grid steps, starting at 0.
        depth: place of the layer in the network, 0 first to 1 last; read by init="local" and "conv".
        positive: start with M > 0, which mode "log" needs.
        float32_table: for weights trained with the original code (`load_reference` sets it): what its table of
            exp(-d2) in float32 leaves of distances beyond nine patches, and 0 where that underflows, beyond ten.
        steps: which patches ask and answer, where queries or keys are pooled: the mask is [H, Nq, Nk] then.

    Parameters: sigma [H, K] or [H, K, 2] in grid steps, alpha [H, K]; if asked for, correlation [H, K], center [H, 2].

    Raises TypeError or ValueError for an argument that does not fit, naming it.

    Source: arXiv 2309.05375, section 3.2; the other starts and the extensions are this project's. Attention that starts
    as a convolution: d'Ascoli et al., arXiv 2103.10697.
    """

    offsets: Tensor

    def __init__(
        self,
        grid: int | tuple[int, int],
        num_heads: int,
        num_kernels: int = 5,
        init: str = "identity",
        *,
        covariance: str = "spherical",
        learn_center: bool = False,
        depth: float = 0.5,
        positive: bool = False,
        float32_table: bool = False,
        steps: Steps = EVERY_PATCH,
    ) -> None:
        super().__init__()
        self.grid = _checked_grid(grid)
        integer("num_heads", num_heads, most=_MOST)
        integer("num_kernels", num_kernels, most=_MOST)
        for name, flag in (("learn_center", learn_center), ("float32_table", float32_table), ("positive", positive)):
            boolean(name, flag)
        real("depth", depth)
        if not 0 <= depth <= 1:
            raise ValueError(f"depth must lie between 0 (first layer) and 1 (last layer), got {depth}")
        one_of("init of the mask", init, INITS)
        one_of("covariance of the mask", covariance, COVARIANCES)
        if init == "conv" and num_kernels < 2:
            raise ValueError("num_kernels must be at least 2 for init='conv', a peak and a constant, got 1")
        self.init, self.covariance = init, covariance
        self.depth, self.positive, self.float32_table, self.steps = depth, positive, float32_table, steps
        axes = () if covariance == "spherical" else (2,)
        self.sigma = nn.Parameter(torch.empty(num_heads, num_kernels, *axes))
        self.alpha = nn.Parameter(torch.empty(num_heads, num_kernels))
        self.correlation = nn.Parameter(torch.empty(num_heads, num_kernels)) if covariance == "full" else None
        self.center = nn.Parameter(torch.empty(num_heads, 2)) if learn_center or init == "conv" else None
        self.register_buffer("offsets", patch_offsets(self.grid, shift=steps.shift), persistent=False)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Starts the parameters anew as `init` says."""
        for extra in (self.correlation, self.center):
            if extra is not None:
                extra.zero_()
        if self.init == "paper":
            self.sigma.normal_(10, 10)
            self.alpha.normal_(0, 2)
            if self.positive:
                self.alpha.abs_()
            return
        heads, kernels = self.alpha.shape
        reach = max(2.0, max(self.grid) / 2)
        widths = torch.logspace(0, 1, max(1, kernels - 1), base=reach)  # one patch to half the grid
        self.alpha.zero_()
        if self.init == "conv":
            assert self.center is not None
            self._set_sigma([_PEAK_SIGMA, _CONSTANT_SIGMA], widths)
            self.alpha[:, 0], self.alpha[:, 1] = 1, _FLOOR
            self.center.copy_(torch.tensor(stencil(heads, self.depth)))
            return
        if self.init == "local":
            widths = widths * reach ** (self.depth - 0.5)
            self.alpha[:, 1:] = torch.linspace(0.5, 2, heads).unsqueeze(1) * (1 - 0.75 * self.depth)
        self._set_sigma([_CONSTANT_SIGMA], widths)
        self.alpha[:, 0] = 1

    def _set_sigma(self, first: list[float], rest: Tensor) -> None:
        """In every head the first K of these, the same along both axes."""
        sigma = torch.cat([torch.tensor(first), rest])[: self.alpha.shape[1]]
        self.sigma.copy_(sigma.view(1, -1, *[1] * (self.sigma.dim() - 2)).expand_as(self.sigma))

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        # Not saved, and `to_empty` or the meta device may have left nothing of them.
        device = self.alpha.device if self.offsets.is_meta else self.offsets.device
        self.offsets = patch_offsets(self.grid, device, self.steps.shift).to(self.offsets.dtype)

    def table(self, grid: int | tuple[int, int] | None = None) -> Tensor:
        """The mask over all offsets of `grid` (its own by default): [H, 2*rows-1, 2*cols-1], float32 or wider."""
        wanted = self._grid(grid)
        own = all(type(side) is int for side in wanted) and wanted == self.grid
        offsets = self.offsets if own else patch_offsets(wanted, self.offsets.device, self.steps.shift)
        if self.float32_table:
            offsets = _as_float32_tells(offsets)
        device = self.sigma.device.type
        with torch.autocast("cpu" if device == "meta" else device, enabled=False):  # there is no autocast for meta
            return gaussian_mixture_table(
                self.sigma, self.alpha, offsets, correlation=self.correlation, center=self.center
            )

    def _grid(self, grid: int | tuple[int, int] | None) -> tuple[int, int]:
        return self.grid if grid is None or grid is self.grid else _checked_grid(grid)

    def dense(self, grid: int | tuple[int, int] | None = None) -> Tensor:
        """The mask for every pair of patches: [H, N, N], or [H, Nq, Nk] with `steps`."""
        return dense_mask(self(grid), self.steps)

    def forward(self, grid: int | tuple[int, int] | None = None) -> OffsetTable:
        """What `gmm_attention` takes; another grid than at construction needs no new parameters."""
        return OffsetTable(self.table(grid), self._grid(grid))

    def extra_repr(self) -> str:
        heads, kernels = self.alpha.shape
        return f"grid={self.grid}, num_heads={heads}, num_kernels={kernels}, covariance={self.covariance!r}"


class ElementwiseMask(nn.Module):
    """M itself is the parameter: [N, N] shared by the heads, or [H, N, N] with `per_head`; [Nq, Nk] with `steps`, as in
    `GaussianMixtureMask`.

    `init` is "identity" (ones) or "paper" (zeros: attention starts uniform). It belongs to one grid; `resample` makes
    it fit another.

    Source: arXiv 2309.05375, section 3.1.
    """

    def __init__(
        self,
        grid: int | tuple[int, int],
        num_heads: int,
        *,
        per_head: bool = False,
        init: str = "identity",
        steps: Steps = EVERY_PATCH,
    ) -> None:
        super().__init__()
        self.grid = _checked_grid(grid, _MOST_PATCHES_ELEMENTWISE)
        integer("num_heads", num_heads, most=_MOST)
        boolean("per_head", per_head)
        one_of("init of the mask", init, ("paper", "identity"))
        self.num_heads, self.init, self.steps = num_heads, init, steps
        sides = [math.prod(side) for side in self._sides(self.grid)]
        self.weight = nn.Parameter(torch.empty(*([num_heads] if per_head else []), *sides))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Starts the parameter anew as `init` says."""
        self.weight.fill_(1.0 if self.init == "identity" else 0.0)

    def _sides(self, grid: tuple[int, int]) -> list[tuple[int, int]]:
        """Rows and columns of the queries and of the keys that stand on `grid`."""
        return [(-(-grid[0] // step[0]), -(-grid[1] // step[1])) for step in (self.steps.query, self.steps.key)]

    def dense(self, grid: int | tuple[int, int] | None = None) -> Tensor:
        """The mask for every pair of patches: [H, N, N], or [H, Nq, Nk] with `steps`.

        Raises ValueError for another grid than its own.
        """
        return self(grid).expand(self.num_heads, -1, -1)

    def forward(self, grid: int | tuple[int, int] | None = None) -> Tensor:
        """What `gmm_attention` takes: [N, N] or [H, N, N]."""
        if grid is None or grid is self.grid:
            return self.weight
        rows, cols = _checked_grid(grid)
        if (rows, cols) != self.grid:
            raise ValueError(
                f"an element-wise mask learned on a {self.grid[0]} x {self.grid[1]} grid does not fit a "
                f"{rows} x {cols} grid; call resample({(rows, cols)}) on it first, or use a Gaussian mixture mask"
            )
        return self.weight

    @torch.no_grad()
    def resample(self, grid: int | tuple[int, int]) -> "ElementwiseMask":
        """Fits the mask to another grid in place, bilinearly over the queries' and the keys' positions."""
        new = _checked_grid(grid, _MOST_PATCHES_ELEMENTWISE)
        queries, keys = self._sides(self.grid)
        weight = self.weight.detach().reshape(-1, *queries, *keys).float()
        for side in reversed(self._sides(new)):  # the keys' axes, then the queries'
            flat = nn.functional.interpolate(weight.flatten(1, 2), side, mode="bilinear", align_corners=False)
            weight = flat.unflatten(1, weight.shape[1:3]).permute(0, 3, 4, 1, 2)
        weight = weight.flatten(3).flatten(1, 2).to(self.weight)
        self.weight = nn.Parameter(weight if self.weight.dim() == 3 else weight[0])
        self.grid = new
        return self

    def extra_repr(self) -> str:
        return f"grid={self.grid}, num_heads={self.num_heads}, per_head={self.weight.dim() == 3}"


def is_mask_parameter(name: str) -> bool:
    """Whether a parameter, by its name in the model, belongs to a learned mask."""
    return not {"mask", "gmm_mask"}.isdisjoint(name.split(".")[:-1])  # of our families, and attached ones


def check_mask_options(mask: str, options: Iterable[str]) -> None:
    """Raises ValueError unless `mask` is a mask by name, TypeError for an option that it does not have."""
    one_of("mask", mask, MASKS)
    if mask == "none":
        return
    kind = ElementwiseMask if mask == "elm" else GaussianMixtureMask
    decided = ("grid", "num_heads", "depth", "positive", "steps")  # by the layer that the mask sits in
    known_options(f"the {mask} mask", options, [o for o in inspect.signature(kind).parameters if o not in decided])


def check_start(init: object, mode: str) -> None:
    """Raises ValueError for a start that the mode cannot begin with."""
    if init == "conv" and mode != "log":
        raise ValueError(
            f"init='conv' of the mask needs mode='log', got mode={mode!r}: a factor on logits near zero moves no "
            "attention, its logarithm does"
        )


def create_mask(
    mask: str,
    grid: tuple[int, int],
    num_heads: int,
    *,
    mode: str = "multiply",
    depth: float = 0.5,
    steps: Steps = EVERY_PATCH,
    **options: object,
) -> nn.Module | None:
    """The mask of one attention layer by name: "none" (None), "elm" or "gmm"; `options` go to its constructor.

    Raises as `check_mask_options`.
    """
    check_mask_options(mask, options)
    if mask == "none":
        return None
    check_start(options.get("init"), mode)
    if mask == "elm":
        return ElementwiseMask(grid, num_heads, steps=steps, **options)  # type: ignore[arg-type]
    positive = mode == "log"
    return GaussianMixtureMask(grid, num_heads, depth=depth, positive=positive, steps=steps, **options)  # type: ignore[arg-type]
