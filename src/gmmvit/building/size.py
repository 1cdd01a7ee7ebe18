"""Whether a model of ours fits into memory, said before anything is allocated."""

from typing import Any

import torch

from gmmvit.data.memory import free_memory, in_words
from gmmvit.models import create_model

HELD, TRAINED = 4, 16  # bytes a parameter: float32; with its gradient and AdamW's two moments
# What of `create_model`'s arguments decides how many parameters there are.
_DECIDING = ("image_size", "patch_size", "dim", "depth", "num_heads", "mlp_ratio", "mask", "num_classes")


def check_size(options: dict[str, Any], bytes_each: int = HELD) -> None:
    """Raises MemoryError where the model of `create_model(**options)` takes more memory than is free, at `bytes_each`
    parameter; it names the fields that make it so large. Raises ValueError and TypeError as `create_model`."""
    try:
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            parameters = sum(parameter.numel() for parameter in create_model(**options).parameters())
    except RuntimeError as error:  # the meta device counts to 2^63
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
