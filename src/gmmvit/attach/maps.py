"""The attention weights of attached models for given images."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from gmmvit.attach.refuse import refuse_unfit
from gmmvit.attach.surgery import MaskedDonor
from gmmvit.attach.survey import masked


def attention_maps(model: nn.Module, *inputs: Any, **options: Any) -> dict[str, Tensor]:
    """The attention weights of one pass of an attached model, in evaluation mode and without gradients.

    Args:
        model: of timm, transformers or torchvision, with masks attached.
        inputs, options: what the model is called with: images [B, C, height, width].

    Returns:
        Attention name -> weights [B, H, Tq, Tk] after softmax and mask, prefix tokens first, for each attention with
        a mask, in the order they ran. In window models B counts windows, or the windows have an axis of their own, as
        in the donor. An attention that runs several times adds its later weights as "NAME#2" and so on.

    Raises:
        TypeError: model is not a module.
        ValueError: model carries no mask, or is compiled or wrapped.
    """
    refuse_unfit(model)
    layers = masked(model)
    if not layers:
        raise ValueError(f"{type(model).__name__} carries no mask: call attach first")
    order: list[tuple[str, Tensor]] = []
    with _looking(layers, order), _evaluating(model), torch.no_grad():
        model(*inputs, **options)
    maps: dict[str, Tensor] = {}
    for name, weights in order:
        times = sum(known.partition("#")[0] == name for known in maps)
        maps[f"{name}#{times + 1}" if times else name] = weights
    return maps


class _Noted(list[Tensor]):
    """Appends one attention's weights, with its name, to the common list."""

    def __init__(self, name: str, order: list[tuple[str, Tensor]]) -> None:
        super().__init__()
        self._name, self._order = name, order

    def append(self, weights: Tensor) -> None:
        self._order.append((self._name, weights.detach()))


@contextmanager
def _looking(layers: list[tuple[str, MaskedDonor]], order: list[tuple[str, Tensor]]) -> Iterator[None]:
    for name, module in layers:
        module.gmm_seen = _Noted(name, order)
    try:
        yield
    finally:
        for _, module in layers:
            del module.gmm_seen


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
