"""Muon: weight matrices move along the orthogonal factor of their momentum; AdamW moves everything else.

Letters: M matrices of one shape, R x C their rows and columns, R <= C.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

# A polynomial that brings singular values of (0, 1] near 1 in five rounds (Jordan et al., 2024).
_A, _B, _C, _ROUNDS = 3.4445, -4.7750, 2.0315, 5


def hidden_matrices(model: nn.Module) -> list[Tensor]:
    """Trainable weights of linear layers and ungrouped convolutions, except the first and the last layer.

    Those two face pixels and classes, whose coordinates carry meaning, so AdamW is better.
    """
    layers = [m for m in model.modules() if isinstance(m, nn.Linear) or (isinstance(m, nn.Conv2d) and m.groups == 1)]
    weights = dict.fromkeys(layer.weight for layer in layers if layer.weight.requires_grad)  # shared weights once
    return list(weights)[1:-1]


def orthogonal_factors(matrices: Tensor) -> Tensor:
    """About U V^T of each matrix U S V^T: [M, R, C] -> the same; the singular values end between 0.7 and 1.2."""
    x = matrices / matrices.norm(dim=(1, 2), keepdim=True).clamp_min(1e-7)
    for _ in range(_ROUNDS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=_B, alpha=_C), x, beta=_A)
    return x


class Muon(torch.optim.AdamW):
    """Muon for groups with `muon=True`, AdamW in its fused form for the others.

    A matrix update is as long as AdamW's on average, so one learning rate and weight decay serve both. Convolutions
    count as matrices [out, in * height * width]; stacked queries, keys and values count as three. Matrices of one shape
    are computed together.

    Args:
        groups: parameter groups; Muon's have `muon: True`.
        lr: learning rate.
        momentum: Nesterov momentum.
        dtype: of the matrix products; bfloat16 is precise enough, float32 is for devices where bfloat16 is slow.

    Source: Jordan et al., https://kellerjordan.github.io/posts/muon (2024); the length of the update from Liu et al.,
    arXiv 2502.16982. `torch.optim.Muon` does the same one matrix at a time.
    """

    def __init__(
        self, groups: list[dict[str, Any]], lr: float, momentum: float = 0.95, dtype: torch.dtype = torch.bfloat16
    ) -> None:
        super().__init__([{"muon": False, **group} for group in groups], lr=lr, fused=True)
        self.momentum, self.product_dtype = momentum, dtype

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """A step of Muon and AdamW; a GradScaler may have scaled the gradients."""
        if closure is not None:
            raise TypeError("Muon takes no closure: compute the loss before the step")
        every = self.param_groups
        try:
            self.param_groups = [group for group in every if not group["muon"]]
            super().step()
        finally:
            self.param_groups = every
        for group in every:
            if group["muon"]:
                self._step_of(group)

    def _step_of(self, group: dict[str, Any]) -> None:
        weights = [weight for weight in group["params"] if weight.grad is not None]
        if not weights:
            return
        for weight in weights:
            if not self.state[weight]:  # AdamW's state_dict needs "step"
                step = torch.zeros((), dtype=torch.float32, device=weight.device)
                self.state[weight] = {"step": step, "momentum_buffer": torch.zeros_like(weight)}
        torch._foreach_add_([self.state[weight]["step"] for weight in weights], 1)
        buffers = [self.state[weight]["momentum_buffer"] for weight in weights]
        gradients, moves = self._unscaled([weight.grad for weight in weights], buffers)
        torch._foreach_lerp_(buffers, gradients, 1 - self.momentum)
        ahead = torch._foreach_lerp(gradients, buffers, self.momentum)
        rate = group["lr"] * moves
        updates = self._directions(list(ahead))
        torch._foreach_mul_(weights, 1 - rate * group["weight_decay"])
        torch._foreach_mul_(updates, rate)
        torch._foreach_sub_(weights, updates)

    def _unscaled(self, gradients: list[Tensor], buffers: list[Tensor]) -> tuple[list[Tensor], Tensor | float]:
        """The gradients without a GradScaler's scale, and a factor for the step: 0 if any gradient is infinite."""
        scale, overflow = getattr(self, "grad_scale", None), getattr(self, "found_inf", None)
        if scale is not None:
            gradients = [gradient / scale for gradient in gradients]
        if overflow is None:
            return gradients, 1.0
        kept = [torch.where(overflow > 0, buffer, g) for buffer, g in zip(buffers, gradients, strict=True)]
        return kept, 1 - overflow

    def _directions(self, momenta: list[Tensor]) -> list[Tensor]:
        """The update of each weight at learning rate 1."""
        result = [torch.empty_like(momentum) for momentum in momenta]
        stacks: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = {}
        for momentum, out in zip(momenta, result, strict=True):
            source, target = momentum.flatten(1), out.view(len(out), -1)
            parts = 3 if len(source) == 3 * source.shape[1] else 1
            for piece, place in zip(source.chunk(parts), target.chunk(parts), strict=True):
                if piece.shape[0] > piece.shape[1]:
                    piece, place = piece.mT, place.mT
                stacks.setdefault((piece.shape[0], piece.shape[1]), []).append((piece, place))
        for (_, columns), items in stacks.items():
            stacked = torch.stack([piece for piece, _ in items]).to(self.product_dtype)
            factors = orthogonal_factors(stacked) * (0.2 * columns**0.5)
            torch._foreach_copy_([place for _, place in items], list(factors))
        return result
