"""Masks under peft (LoRA and the like). peft itself is never imported.

peft freezes what it does not know. With `modules_to_save=["gmm_mask"]` it trains the masks: a wrapper holds one copy
per adapter and forwards calls to that of the active adapter.
"""

import re
import warnings
from typing import Any

from torch import Tensor, nn

_BASES = ("BaseTunerLayer", "AuxiliaryTrainingWrapper")
_COPY = re.compile(r"(?:original_module|modules_to_save\.(?P<adapter>[^.]+))\.(?P<name>.+)")
NOTICE = "peft neither trains nor saves the masks: get_peft_model(model, LoraConfig(..., modules_to_save=['gmm_mask']))"


def tuned(model: nn.Module) -> str | None:
    """The name of the first module that peft put into `model`, else None."""
    return next((name for name, module in model.named_modules() if _is_peft(module)), None)


def _is_peft(module: nn.Module) -> bool:
    return any(cls.__module__.startswith("peft.") and cls.__name__ in _BASES for cls in type(module).__mro__)


def warn_if_left_out(attention: nn.Module, mask: nn.Module, model: nn.Module | None) -> None:
    """Warns if peft has wrapped parts of `attention` or of the attached `model` but not the mask."""
    if not _is_peft(mask) and any(tuned(part) is not None for part in (attention, model) if part is not None):
        warnings.warn(NOTICE, stacklevel=2)


def originals(model: nn.Module) -> set[nn.Module]:
    """The frozen masks that peft keeps beside the copies it trains."""
    kept = (module._modules.get("original_module") for module in model.modules() if _is_peft(module))
    return {module for module in kept if module is not None}


def trained_copy(layer: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a layer's mask under their plain names, taken from peft's trained copy if there is one.

    Raises ValueError if there are copies for several adapters.
    """
    copies: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        match: Any = _COPY.fullmatch(key)
        if match and match["adapter"]:
            copies.setdefault(match["adapter"], {})[match["name"]] = tensor
    if len(copies) > 1:
        names = " and ".join(sorted(copies))
        raise ValueError(
            f"{layer}: its mask has copies for the peft adapters {names}: save the model with only one of them"
        )
    return next(iter(copies.values()), tensors)
