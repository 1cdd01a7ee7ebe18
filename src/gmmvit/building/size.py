"""Checks that one of our models fits into memory before anything is allocated."""

from typing import Any

import torch

from gmmvit.data.memory import free_memory, in_words
from gmmvit.models import create_model

HELD, TRAINED = 4, 16  # bytes per parameter: float32; with its gradient and AdamW's two moments
# The arguments of `create_model` that set the number of parameters.
_DECIDING = ("image_size", "patch_size", "dim", "depth", "num_heads", "mlp_ratio", "mask", "num_classes")


def check_size(options: dict[str, Any], bytes_each: int = HELD) -> None:
    """Raises MemoryError if the model of `create_model(**options)`, at `bytes_each` per parameter, exceeds the free
    memory; the message names the fields to change. Raises ValueError and TypeError like `create_model`."""
    try:
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            parameters = sum(parameter.numel() for parameter in create_model(**options).parameters())
    except RuntimeError as error:  # more than 2^63 elements
        if "overflow" not in str(error):
            raise
        parameters = 2**63
    free = free_memory()
    if free is None or parameters * bytes_each <= free:
        return
    fields = ", ".join(f"{name} {_words(name, options[name])}" for name in _DECIDING if name in options)
    size = in_words(parameters * bytes_each)
    doing = "to train" if bytes_each == TRAINED else "to hold"
    raise MemoryError(
        f"{options['family']} with {fields} has {parameters:,} parameters, which take {size} of memory "
        f"{doing}, and {in_words(free)} are free; choose a smaller model or larger patches"
    )


def _words(name: str, value: Any) -> str:
    between = " x " if name in ("image_size", "patch_size") else ","
    return between.join(map(str, value)) if isinstance(value, list | tuple) else str(value)
