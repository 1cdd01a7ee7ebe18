"""The Gaussian mixture mask: its parameters and how they start. The formula is in `attention/reference.py`.

Letters: N patches (rows * cols), H heads, K Gaussians per head.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gmmvit.attention import OffsetTable, dense_mask, gaussian_mixture_table, patch_offsets
from gmmvit.attention.reference import EVERY_PATCH, Steps
from gmmvit.checks import boolean, integer, one_of, real
from gmmvit.masks.base import MOST_HEADS, Drawing, Grid, Mask, Picture, checked_grid

INITS = ("paper", "identity", "local", "conv")
COVARIANCES = ("spherical", "diag", "full")
# A Gaussian this wide is 1 within float32 rounding on 16 x 16 patches, and within 2e-6 on 64 x 64; float16 can hold it.
_CONSTANT_SIGMA = 6e4
# The start "conv": a peak that falls to exp(-1.39) on the next cell, over a constant.
_PEAK_SIGMA, _FLOOR = 0.6, 0.02
_MOST_KERNELS = 1024
_PARAMETERS = ("sigma", "alpha", "correlation", "center")


def stencil(heads: int, depth: float = 0.0) -> list[tuple[int, int]]:
    """Cells (down, right) of a convolution's stencil, one per head: the patch itself, then rings of 8, 16, ... cells.

    If too few heads are left for a ring, they take cells at equal distances; `depth` turns the choice, so that the
    layers of a network cover the ring together.
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


def _as_in_float32(offsets: Tensor) -> Tensor:
    """Offsets [2, R, C] with the length that exp(-d2) in float32 stands for.

    Below 2^-126 = exp(-87.3) float32 has only multiples of 2^-149 = exp(-103.3); 0 means infinitely far.
    """
    squared = offsets.square().sum(0)
    smallest = 149 * math.log(2)
    multiples = (smallest - squared).clamp_max(16).exp().round()
    distance = torch.where(multiples > 0, smallest - multiples.clamp_min(1).log(), 1e30)
    return offsets * torch.where(squared > 87.3, (distance / squared.clamp_min(1)).sqrt(), 1.0)


class GaussianMixtureMask(Mask):
    """M[h,i,j] = sum_k alpha[h,k] * exp(-d2(i,j) / (2 * (sigma[h,k]^2 + 1e-5))), with two scalars per Gaussian.

    Args:
        grid: (rows, cols) in patches, or one int for a square.
        num_heads: heads, H.
        num_kernels: K, Gaussians per head.
        init: "paper": sigma ~ N(10, 10), alpha ~ N(0, 2). "identity": M is 1 within rounding, as a trained model
            needs: one Gaussian so wide that it is constant, the others with alpha 0 and widths from one patch to half
            the grid (with K = 1 only the constant can learn). "local": a constant plus peaks around the patch itself,
            narrow in early layers and wide in late ones, each head with its own strength. "conv": each head has a
            narrow peak on its own cell of a stencil (3 x 3, then 5 x 5, ...; `stencil`) over a small constant, so in
            mode "log" attention starts as a convolution; the other Gaussians have alpha 0. "conv" needs at least two
            Gaussians and always learns its centre.
        covariance: "spherical" (one sigma, the paper), "diag" (one per axis) or "full" (and their correlation).
        learn_center: a learned offset of the peak per head, in grid steps, starting at 0.
        depth: place of the layer in the network, 0 first to 1 last; read by init="local" and "conv".
        positive: start with M > 0, which mode "log" needs.
        float32_table: for weights trained with the original code (`load_reference` sets it): reproduces the rounding
            of its float32 table of exp(-d2) beyond nine patches, and the underflow to 0 beyond ten.
        steps: which patches are queries and keys if these are pooled; the mask is then [H, Nq, Nk].

    Parameters: sigma [H, K] or [H, K, 2] in grid steps, alpha [H, K]; if asked for, correlation [H, K], center [H, 2].

    Raises TypeError or ValueError for an argument that does not fit, naming it.

    Source: arXiv 2309.05375, section 3.2; the other starts and the extensions are this project's. Attention that starts
    as a convolution: d'Ascoli et al., arXiv 2103.10697.
    """

    kind = "gmm"
    words = "Gaussian mixture masks"
    shown = (
        "Each picture shows the factor on the attention logits for every offset between two patches; the dot is the "
        "patch itself (offset 0), one cell is one grid step."
    )
    options = ("num_kernels", "covariance", "learn_center")
    random_starts = ("paper",)
    offsets: Tensor

    def __init__(
        self,
        grid: int | Grid,
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
        self.grid = checked_grid(grid)
        integer("num_heads", num_heads, most=MOST_HEADS)
        integer("num_kernels", num_kernels, most=_MOST_KERNELS)
        for name, flag in (("learn_center", learn_center), ("float32_table", float32_table), ("positive", positive)):
            boolean(name, flag)
        real("depth", depth)
        if not 0 <= depth <= 1:
            raise ValueError(f"depth must be between 0 (first layer) and 1 (last layer), got {depth}")
        one_of("init of the mask", init, INITS)
        one_of("covariance of the mask", covariance, COVARIANCES)
        if init == "conv" and num_kernels < 2:
            raise ValueError("num_kernels must be at least 2 for init='conv', a peak and a constant, got 1")
        self.num_heads, self.init, self.covariance = num_heads, init, covariance
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
        """Resets the parameters as `init` says."""
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
        """Gives every head the first K of these widths, the same along both axes."""
        sigma = torch.cat([torch.tensor(first), rest])[: self.alpha.shape[1]]
        self.sigma.copy_(sigma.view(1, -1, *[1] * (self.sigma.dim() - 2)).expand_as(self.sigma))

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        # The offsets are not saved, and `to_empty` or the meta device may have erased them.
        device = self.alpha.device if self.offsets.is_meta else self.offsets.device
        self.offsets = patch_offsets(self.grid, device, self.steps.shift).to(self.offsets.dtype)

    def table(self, grid: int | Grid | None = None, beside: Sequence["GaussianMixtureMask"] = ()) -> Tensor:
        """The mask over all offsets of `grid` (its own by default): [H, 2*rows-1, 2*cols-1], float32 or wider. With
        masks `beside`, of the same `likeness`, their heads follow its own."""
        wanted = self._grid(grid)
        own = all(type(side) is int for side in wanted) and wanted == self.grid
        offsets = self.offsets if own else patch_offsets(wanted, self.offsets.device, self.steps.shift)
        if self.float32_table:
            offsets = _as_in_float32(offsets)
        device = self.sigma.device.type
        with torch.autocast("cpu" if device == "meta" else device, enabled=False):  # there is no autocast for meta
            sigma, alpha, correlation, center = (self._joined(name, beside) for name in _PARAMETERS)
            return gaussian_mixture_table(sigma, alpha, offsets, correlation=correlation, center=center)

    def _joined(self, name: str, beside: Sequence["GaussianMixtureMask"]) -> Any:
        """A parameter followed by those of the masks `beside`; None if the masks have none."""
        own = getattr(self, name)
        return torch.cat([own, *(getattr(mask, name) for mask in beside)]) if beside and own is not None else own

    def likeness(self) -> tuple[Any, ...]:
        """Equal for masks whose tables can be computed together."""
        shapes = [None if extra is None else extra.shape[1:] for extra in (self.sigma, self.correlation, self.center)]
        return self.grid, self.steps.shift, self.float32_table, self.alpha.dtype, self.alpha.device, *shapes

    def _grid(self, grid: int | Grid | None) -> Grid:
        return self.grid if grid is None or grid is self.grid else checked_grid(grid)

    def dense(self, grid: int | Grid | None = None, table: Tensor | None = None) -> Tensor:
        """The mask for every pair of patches: [H, N, N], or [H, Nq, Nk] with `steps`."""
        return dense_mask(self(grid, table), self.steps)

    def forward(self, grid: int | Grid | None = None, table: Tensor | None = None) -> OffsetTable:
        """What `gmm_attention` takes; a grid other than that of construction needs no new parameters. `table`: that of
        the grid, if `tables_together` has computed it."""
        return OffsetTable(self.table(grid) if table is None else table, self._grid(grid))

    def extra_repr(self) -> str:
        heads, kernels = self.alpha.shape
        return f"grid={self.grid}, num_heads={heads}, num_kernels={kernels}, covariance={self.covariance!r}"

    @classmethod
    def options_of(cls, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any] | None:
        if len(shapes.get("alpha", ())) != 2 or "sigma" not in shapes:
            return None
        covariance = "full" if "correlation" in shapes else "diag" if len(shapes["sigma"]) == 3 else "spherical"
        return {"num_kernels": shapes["alpha"][1], "covariance": covariance, "learn_center": "center" in shapes}

    def view(self) -> Tensor:
        """The table: the factor for every offset between two patches."""
        return self.table()

    def drawing(self) -> Drawing:
        numbers = [self._numbers(head) for head in range(self.num_heads)]
        heads = [
            [Picture(cells, f"head {head}", f"head {head}: {'; '.join(texts)}", dot=True)]
            for head, (cells, texts) in enumerate(zip(self.view(), numbers, strict=True), 1)
        ]
        columns = [f"Gaussian {k}" for k in range(1, self.alpha.shape[1] + 1)]
        columns += ["centre"] if self.center is not None else []
        return Drawing(heads, f"σ (grid steps) and α of the {self.alpha.numel()} Gaussians", columns, numbers)

    def _numbers(self, head: int) -> list[str]:
        """A text for each Gaussian of a head: sigma in grid steps (rows × columns where there are two), alpha,
        correlation; then the head's centre, if it is learned. The sign of sigma has no meaning and is left out."""
        texts = []
        for k, alpha in enumerate(self.alpha[head].tolist()):
            widths = self.sigma[head, k].detach().abs().reshape(-1).tolist()
            # A Gaussian a hundred times as wide as the grid is flat on it to four digits.
            shown = ["∞" if width > 100 * max(self.grid) else f"{width:.2f}" for width in widths]
            text = f"σ {' × '.join(shown)}, α {alpha:.2f}".replace("-", "−")
            if self.correlation is not None:
                text += f", ρ {0.99 * self.correlation[head, k].tanh().item():.2f}"
            texts.append(text)
        if self.center is not None:
            down, right = self.center[head].tolist()
            texts.append(f"{down:+.2f} rows, {right:+.2f} columns".replace("-", "−"))
        return texts
