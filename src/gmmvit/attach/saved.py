"""The masks among saved weights: what was attached is read from the tensors' names and shapes."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gmmvit.attention import MODES

_MARK = "gmm_mask."


class SavedMasks(NamedTuple):
    """The options of `attach` that made them, and the tensors of each mask by its place in the model."""

    options: dict[str, Any]
    layers: dict[int, dict[str, Tensor]]


def read_masks(source: Path | Mapping[str, Tensor]) -> SavedMasks:
    """The masks in a state_dict, in a file of safetensors or of `torch.save`, or in the safetensors files of a folder.

    Raises FileNotFoundError without a file, ValueError without masks.
    """
    layers: dict[str, dict[str, Tensor]] = {}
    for key, tensor in _masks_of(source):
        layer, _, name = key.rpartition(_MARK)
        layers.setdefault(layer.removesuffix("."), {})[name] = tensor
    if not layers:
        where = "the state_dict" if isinstance(source, Mapping) else source
        raise ValueError(f"{where}: no masks in it; attach(model) starts new ones")
    for layer, tensors in layers.items():
        if "site" not in tensors:
            raise ValueError(f"{layer}: its mask has no 'site', so it was not saved from an attached model")
    options = _options(next(iter(layers.values())))
    return SavedMasks(options, {int(tensors["site"][1]): tensors for tensors in layers.values()})


def _masks_of(source: Path | Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of masks alone: the other weights of a safetensors file are not read."""
    if isinstance(source, Path):
        files = sorted(source.glob("*.safetensors")) if source.is_dir() else [source]
        if not files or not files[0].is_file():
            raise FileNotFoundError(f"{source}: no safetensors file here; save the attached model as safetensors")
        if files[0].suffix == ".safetensors":
            yield from _masks_of_safetensors(files)
            return
        source = torch.load(source, map_location="cpu", weights_only=True)
        if not isinstance(source, Mapping):
            raise ValueError(f"{files[0]}: holds a {type(source).__name__}, not the state_dict of a model")
    yield from ((key, tensor) for key, tensor in source.items() if _MARK in str(key))


def _masks_of_safetensors(files: list[Path]) -> Iterator[tuple[str, Tensor]]:
    from safetensors import safe_open

    for file in files:
        with safe_open(file, framework="pt") as tensors:
            for key in tensors.keys():  # noqa: SIM118 (no dict)
                if _MARK in key:
                    yield key, tensors.get_tensor(key)


def _options(tensors: dict[str, Tensor]) -> dict[str, Any]:
    mode = MODES[int(tensors["site"][0])]
    if "weight" in tensors:
        return {"mask": "elm", "mode": mode, "per_head": tensors["weight"].dim() == 3}
    covariance = "full" if "correlation" in tensors else "diag" if tensors["sigma"].dim() == 3 else "spherical"
    return {
        "mask": "gmm",
        "mode": mode,
        "num_kernels": tensors["alpha"].shape[1],
        "covariance": covariance,
        "learn_center": "center" in tensors,
    }
