"""Chooses device and dtype by name."""

import torch

from gmmvit.attention.chunked import fast_bfloat16
from gmmvit.config import RecipeError
from gmmvit.distributed import local_device
from gmmvit.text import short


def choose_device(name: str) -> torch.device:
    """ "auto" is a GPU if there is one; raises RecipeError for a device that does not exist."""
    if not isinstance(name, str | torch.device):
        raise RecipeError(f"device must be auto or exist, such as cpu or cuda, got {short(name)}")
    if name in ("auto", "cuda") and torch.cuda.is_available():
        return torch.device("cuda", local_device())
    if name == "auto":
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return accelerator or torch.device("cpu")
    try:
        torch.ones(1, device=name).item()
        return torch.device(name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise RecipeError(f"device {name!r} cannot be used: {str(error).splitlines()[0]}") from None


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """ "auto" is the 16-bit dtype that a GPU supports; on the CPU bfloat16 if it is faster than float32."""
    if name != "auto":
        return getattr(torch, name)
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return torch.bfloat16 if device.type == "cpu" and fast_bfloat16() else torch.float32
