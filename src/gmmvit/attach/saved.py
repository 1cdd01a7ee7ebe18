"""The masks in a safetensors file: what was attached is read from the tensors' names and shapes."""

from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from gmmvit.attention import MODES

_MARK = "gmm_mask."


class SavedMasks(NamedTuple):
    """The options of `attach` that made them, and the tensors of each mask by its place in the model."""

    options: dict[str, Any]
    layers: dict[int, dict[str, Tensor]]


def read_masks(path: Path) -> SavedMasks:
    """The masks in a safetensors file or in those of a folder.

    Raises FileNotFoundError without a file, ValueError without masks.
    """
    from safetensors import safe_open

    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        raise FileNotFoundError(f"{path}: no safetensors file here; save the attached model with safe serialisation")
    layers: dict[str, dict[str, Tensor]] = {}
    for file in files:
        with safe_open(file, framework="pt") as tensors:
            for key in tensors.keys():  # noqa: SIM118 (no dict)
                layer, mark, name = key.rpartition(_MARK)
                if mark:
                    layers.setdefault(layer.removesuffix("."), {})[name] = tensors.get_tensor(key)
    if not layers:
        raise ValueError(f"{path}: no masks in it; attach(model) starts new ones")
    options = _options(next(iter(layers.values())))
    return SavedMasks(options, {int(tensors["site"][1]): tensors for tensors in layers.values()})


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
