"""The masks among saved weights: what was attached is read from the tensors' names, shapes and marks."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gmmvit.attach.place import Mark
from gmmvit.attention import MODES
from gmmvit.weight_files import read_tensors, unwrapped

_MARK = "gmm_mask."


class SavedMask(NamedTuple):
    """One mask: the name of its attention in the file, where it was, and its tensors."""

    layer: str
    mark: Mark
    tensors: dict[str, Tensor]

    def options(self) -> dict[str, Any]:
        """The options of `attach` that make one like it."""
        mode, shapes = MODES[self.mark.mode], {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}
        if "weight" in shapes:
            return {"mask": "elm", "mode": mode, "per_head": len(shapes["weight"]) == 3, **self.mark.said()}
        if len(shapes.get("alpha", ())) != 2 or "sigma" not in shapes:
            raise ValueError(f"{self.layer}: its mask must have sigma and alpha [heads, Gaussians], it has {shapes}")
        covariance = "full" if "correlation" in shapes else "diag" if len(shapes["sigma"]) == 3 else "spherical"
        kinds = {"num_kernels": shapes["alpha"][1], "covariance": covariance, "learn_center": "center" in shapes}
        return {"mask": "gmm", "mode": mode, **kinds, **self.mark.said()}


class SavedMasks(NamedTuple):
    """The options of `attach` that made them, how many attentions could have had one, and the masks by their place."""

    options: dict[str, Any]
    places: int
    by_place: dict[int, SavedMask]


def read_masks(source: str | Path | Mapping[str, Tensor]) -> SavedMasks:
    """The masks in a state_dict, or in a file or folder as `read_tensors` takes them.

    Raises FileNotFoundError without a file, ValueError where there are no masks or they are damaged.
    """
    if isinstance(source, Mapping):
        tensors = {name: tensor for name, tensor in unwrapped(source, "the state_dict").items() if _MARK in name}
    elif isinstance(source, str | Path):
        tensors = read_tensors(source, lambda name: _MARK in name)
    else:
        raise TypeError(f"path must be a file, a folder or a state_dict, got {type(source).__name__}")
    if not tensors:
        where = "the state_dict" if isinstance(source, Mapping) else source
        raise ValueError(f"{where}: no masks in it; attach(model) starts new ones")
    layers: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        layer, _, name = key.rpartition(_MARK)
        layers.setdefault(layer.removesuffix("."), {})[name] = tensor
    return _checked([_mask(layer, tensors) for layer, tensors in layers.items()])


def _mask(layer: str, tensors: dict[str, Tensor]) -> SavedMask:
    if "site" not in tensors:
        raise ValueError(f"{layer}: its mask has no 'site', so it was not saved from an attached model")
    for name, tensor in tensors.items():
        if name != "site" and not (tensor.is_floating_point() and torch.isfinite(tensor).all()):
            raise ValueError(f"{layer}: the {name} of its mask must be finite real numbers: the file is damaged")
    return SavedMask(layer, Mark.read(tensors["site"], layer), tensors)


def _checked(masks: list[SavedMask]) -> SavedMasks:
    """Raises ValueError unless one call of `attach` could have made them all."""
    first = masks[0]
    options, places = first.options(), first.mark.places
    by_place = {mask.mark.place: mask for mask in masks}
    for mask in masks:
        if by_place[mask.mark.place] is not mask:
            twin = by_place[mask.mark.place].layer
            raise ValueError(f"the masks of {mask.layer!r} and {twin!r} claim the same place, so the file is damaged")
        if mask.options() != options or mask.mark.places != places:
            raise ValueError(
                f"the masks of {first.layer!r} and {mask.layer!r} are not of one attach call: {options} of {places} "
                f"and {mask.options()} of {mask.mark.places}"
            )
    return SavedMasks(options, places, by_place)


def load_mask(name: str, mask: nn.Module, saved: SavedMask) -> None:
    """Puts a saved mask into that of the layer `name`. Raises ValueError where they do not fit."""
    own = mask.state_dict()
    extra = sorted(set(saved.tensors) - set(own))
    if extra:
        raise ValueError(f"the saved mask does not fit {name!r}: it has a {extra[0]!r}, which this mask has not")
    for key, tensor in own.items():
        found = saved.tensors.get(key)
        if found is None or found.shape != tensor.shape:
            sizes = "missing" if found is None else f"of {tuple(found.shape)}"
            raise ValueError(
                f"the saved mask does not fit {name!r}: {key} must be of {tuple(tensor.shape)}, is {sizes}"
            )
    misfit = Mark.read(own["site"], name).misfit(saved.mark)
    if misfit:
        raise ValueError(f"the saved mask does not fit {name!r}: it {misfit}")
    mask.load_state_dict(saved.tensors)
