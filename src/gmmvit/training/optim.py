"""The optimiser: parameter groups, learning-rate schedule, average of the weights."""

import math
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from gmmvit.config import Recipe
from gmmvit.masks import is_mask_parameter
from gmmvit.models.base import undecayed_parameters
from gmmvit.training.muon import Muon, hidden_matrices


def parameter_groups(model: nn.Module, recipe: Recipe) -> list[dict[str, object]]:
    """Groups "decay" (matrices), "no_decay" (norms, biases, positions, tokens, a timm model's `no_weight_decay`),
    "mask" and, with Muon, "muon" (matrices of hidden layers), each with its `weight_decay` and `lr_scale`. Empty groups
    are left out."""
    undecayed = undecayed_parameters(model) | set(getattr(model, "no_weight_decay", set)())
    hidden = {id(weight) for weight in hidden_matrices(model)} if recipe.optimizer == "muon" else set()
    groups: dict[str, list[nn.Parameter]] = {"decay": [], "no_decay": [], "mask": [], "muon": []}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if is_mask_parameter(name):
            groups["mask"].append(parameter)
        elif parameter.dim() < 2 or name in undecayed:
            groups["no_decay"].append(parameter)
        else:
            groups["muon" if id(parameter) in hidden else "decay"].append(parameter)
    decay = {"no_decay": 0.0, "mask": recipe.mask_weight_decay}
    scale = {"mask": recipe.mask_lr_scale, "muon": recipe.muon_lr_scale}
    return [
        {
            "name": name,
            "params": params,
            "weight_decay": decay.get(name, recipe.weight_decay),
            "lr_scale": scale.get(name, 1.0),
        }
        for name, params in groups.items()
        if params
    ]


def make_optimizer(model: nn.Module, recipe: Recipe, dtype: torch.dtype = torch.float32) -> torch.optim.AdamW:
    """The recipe's optimiser over `parameter_groups`, with learning rates as tensors: fused AdamW, or Muon, with matrix
    products in float32 if `dtype`, that of the forward pass, is float32, else in bfloat16."""
    groups = parameter_groups(model, recipe)
    if recipe.optimizer == "muon":
        products = torch.float32 if dtype == torch.float32 else torch.bfloat16
        groups = [{**group, "muon": group["name"] == "muon"} for group in groups]
        optimizer: torch.optim.AdamW = Muon(groups, recipe.lr, dtype=products)
    else:
        optimizer = torch.optim.AdamW(groups, lr=recipe.lr, fused=True)
    rates_as_tensors(optimizer)
    return optimizer


def check_optimizer_state(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Raises ValueError if a state_dict is empty, or its moments are NaN or differ in shape from their parameter: the
    optimiser would accept them, and its fused form would read out of bounds. Parameters without gradient have no
    moments."""
    own = [(weight.shape, group.get("muon", False)) for group in optimizer.param_groups for weight in group["params"]]
    if not saved["state"]:
        raise ValueError("it has no state of the optimizer")
    for index, entry in saved["state"].items():
        shape, muon = own[index] if index in range(len(own)) else (None, False)
        moments = ("momentum_buffer",) if muon else ("exp_avg", "exp_avg_sq")
        for name, expected in (("step", torch.Size()), *((moment, shape) for moment in moments)):
            value = entry.get(name)
            if not isinstance(value, Tensor) or value.shape != expected or bool(value.isnan().any()):
                raise ValueError(f"{name} of parameter {index} is NaN or not of this model")


LONGEST_WARMUP = 0.25  # of a training


def warmup_share(recipe: Recipe) -> float:
    """The fraction of a training that is warm-up: the recipe's, at most a quarter."""
    return min(LONGEST_WARMUP, recipe.warmup_epochs / recipe.epochs)


def learning_rate(step: int, steps_per_epoch: int, recipe: Recipe) -> float:
    """Linear from min_lr to lr over the warm-up, then a cosine down to min_lr at the last step. Each span between two
    restarts is like a training of that length."""
    ends = [*(recipe.restarts or ()), recipe.epochs]
    first, last = next(((a, b) for a, b in pairwise([0, *ends]) if step < b * steps_per_epoch), (0, recipe.epochs))
    step, total = step - first * steps_per_epoch, (last - first) * steps_per_epoch
    warmup = round(min(LONGEST_WARMUP, recipe.warmup_epochs / (last - first)) * total)
    if step < warmup:
        return recipe.min_lr + (recipe.lr - recipe.min_lr) * (step + 1) / warmup
    progress = (step - warmup) / max(1, total - warmup)
    return recipe.min_lr + (recipe.lr - recipe.min_lr) * 0.5 * (1 + math.cos(math.pi * progress))


def rates_as_tensors(optimizer: torch.optim.Optimizer) -> None:
    """Moves the learning rates into tensors on the parameters' device, where a CUDA graph reads them at every replay.

    Call it again after `load_state_dict`, which restores plain numbers. Sharded models keep plain numbers.
    """
    for group in optimizer.param_groups:
        parameter = group["params"][0]
        if type(parameter.data) is not Tensor or parameter.device.type not in ("cpu", "cuda"):
            continue
        # The dtype that the fused kernels read: double on the CPU, exactly the plain number, float on a GPU.
        dtype = torch.float64 if parameter.device.type == "cpu" else torch.float32
        group["lr"] = torch.tensor(float(group["lr"]), dtype=dtype, device=parameter.device)
        group["capturable"] = parameter.device.type == "cuda"


def plain_groups(state: dict[str, Any]) -> dict[str, Any]:
    """An optimiser's state_dict with learning rates as numbers, independent of the device."""
    groups = [{**group, "lr": float(group["lr"]), "capturable": False} for group in state.get("param_groups", [])]
    return state | ({"param_groups": groups} if state else {})


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Sets every group's learning rate to `lr` times its `lr_scale`."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(lr * group["lr_scale"])
        else:
            group["lr"] = lr * group["lr_scale"]


class Average(AveragedModel):
    """torch's exponential moving average of the weights, bit for bit, but its update neither synchronises with a GPU
    nor, after the first, depends on the host. The state_dict is torch's too. Buffers are copied.

    The number of updates is kept on the weights' device and read once, before the first update.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__(model, device=next(model.parameters()).device)
        self._decay = decay
        self._begun: bool | None = None

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Updates the average with the weights of `model`: a copy at first, then a fraction 1 - decay."""
        if self._begun is None:
            self._begun = bool(self.n_averaged > 0)
            self._averages, self._weights = (tuple(m.parameters()) for m in (self.module, model))
            self._copies, self._copied = (tuple(m.buffers()) for m in (self.module, model))
        if self._begun:
            torch._foreach_lerp_(self._averages, self._weights, 1 - self._decay)
        else:
            torch._foreach_copy_(self._averages, self._weights)
            self._begun = True
        if self._copies:
            torch._foreach_copy_(self._copies, self._copied)
        self.n_averaged.add_(1)

    def load_state_dict(self, *args: Any, **options: Any) -> Any:
        """As for any module; then reads the buffers and the number of updates again."""
        self._begun = None
        return super().load_state_dict(*args, **options)


def make_average(model: nn.Module, decay: float | None) -> Average | None:
    """An exponential moving average of the weights, or None."""
    return None if decay is None else Average(model, decay)
