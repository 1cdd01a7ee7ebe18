"""Reads masks from saved weights: the tensors' names, shapes and marks say what was attached."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gmmvit.attach.peft import trained_copy
from gmmvit.attach.place import Grid, Mark
from gmmvit.masks import KINDS
from gmmvit.weight_files import read_tensors, unwrapped

_MASK = "gmm_mask."
SITE = "site._extra_state"  # of `Record`, saved beside the mask's parameters
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class SavedMask(NamedTuple):
    """One mask: its attention's name in the file, its mark and its tensors."""

    layer: str
    mark: Mark
    tensors: dict[str, Tensor]

    def options(self) -> dict[str, Any]:
        """The options of `attach`, except the grid, that make a mask like this one."""
        shapes = {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}
        for name, kind in KINDS.items():
            if (options := kind.options_of(shapes)) is not None:
                return {"mask": name, "mode": self.mark.mode, **options, **self.mark.said_prefix()}
        raise ValueError(
            f"{self.layer}: its mask must have sigma and alpha [heads, Gaussians], or a weight; it has {shapes}"
        )


class SavedMasks(NamedTuple):
    """The masks of a file and the options of `attach`, except the grid, that made them."""

    options: dict[str, Any]
    masks: list[SavedMask]

    @property
    def located(self) -> bool:
        """Whether the caller of `attach` passed a grid for any of them."""
        return any(mask.mark.grid_given for mask in self.masks)

    def grid(self, free: list[str], by_place: dict[int, SavedMask]) -> dict[str, Grid] | None:
        """The grids that the caller passed, for the attentions `free` of this model."""
        said = {free[i]: (m.mark.rows, m.mark.cols) for i, m in by_place.items() if m.mark.grid_given}
        return said or None

    def by_place(self, free: list[str], model: str) -> dict[int, SavedMask]:
        """The masks by index into `free`, the names of a model's attentions that can carry one.

        Masks are matched by name if all names exist in the model, otherwise by position, because libraries rename
        layers between model and file. Raises ValueError if neither works.
        """
        if {mask.layer for mask in self.masks} <= set(free):
            return {free.index(mask.layer): mask for mask in self.masks}
        found: dict[int, SavedMask] = {}
        for mask in self.masks:
            if mask.mark.places != len(free):
                raise ValueError(
                    f"the masks were saved from a model with {mask.mark.places} attentions that can carry one, "
                    f"{model} has {len(free)}, but no {mask.layer!r}"
                )
            twin = found.setdefault(mask.mark.place, mask)
            if twin is not mask and not _same(twin.tensors, mask.tensors):  # attention shared by two blocks
                raise ValueError(
                    f"the masks of {twin.layer!r} and {mask.layer!r} claim the same place, and {model} has neither name"
                )
        return found


def _same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def read_masks(source: str | Path | Mapping[str, Tensor]) -> SavedMasks:
    """The masks in a state_dict, or in a file or folder as `read_tensors` takes them.

    Raises FileNotFoundError if there is no file, ValueError if it has no masks or damaged ones.
    """
    if isinstance(source, Mapping):
        tensors = {name: tensor for name, tensor in unwrapped(source, "the state_dict").items() if _MASK in name}
    elif isinstance(source, str | Path):
        tensors = read_tensors(source, lambda name: _MASK in name)
    else:
        raise TypeError(f"path must be a file, a folder or a state_dict, got {type(source).__name__}")
    if not tensors:
        where = "the state_dict" if isinstance(source, Mapping) else source
        raise ValueError(f"{where}: contains no masks; attach(model) makes new ones")
    layers: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        layer, _, name = key.rpartition(_MASK)
        layers.setdefault(layer.removesuffix("."), {})[name] = tensor
    return _checked([_mask(layer, trained_copy(layer, tensors)) for layer, tensors in layers.items()])


def _mask(layer: str, tensors: dict[str, Tensor]) -> SavedMask:
    if SITE not in tensors:
        raise ValueError(f"{layer}: its mask has no '{SITE}', so it was not saved from an attached model")
    mark = Mark.read(tensors.pop(SITE), layer)
    for name, tensor in tensors.items():
        usual = tensor.layout == torch.strided and not tensor.is_meta and tensor.dtype in FLOATS
        if not usual or not tensor.isfinite().all():
            raise ValueError(f"{layer}: the {name} of its mask must be finite real numbers: the file is damaged")
    return SavedMask(layer, mark, tensors)


def _checked(masks: list[SavedMask]) -> SavedMasks:
    """Raises ValueError unless a single `attach` call could have made them all."""
    options = masks[0].options()
    for mask in masks:
        if mask.options() != options:
            raise ValueError(
                f"the masks of {masks[0].layer!r} and {mask.layer!r} come from different attach calls: {options} and "
                f"{mask.options()}"
            )
    return SavedMasks(options, masks)


def load_mask(name: str, mask: Any, saved: SavedMask) -> None:
    """Loads a saved mask into `mask`, that of layer `name`. Raises ValueError if it does not fit."""
    own = dict(mask.named_parameters())
    extra = sorted(set(saved.tensors) - set(own))
    if extra:
        raise ValueError(f"the saved mask does not fit {name!r}: it has a {extra[0]!r}, which this mask lacks")
    for key, tensor in own.items():
        found = saved.tensors.get(key)
        if found is None or found.shape != tensor.shape:
            sizes = "is missing" if found is None else f"has {tuple(found.shape)}"
            raise ValueError(
                f"the saved mask does not fit {name!r}: {key} must have shape {tuple(tensor.shape)}, but {sizes}"
            )
    misfit = mask.site.misfit(saved.mark)
    if misfit:
        raise ValueError(f"the saved mask does not fit {name!r}: it {misfit}")
    mask.load_state_dict(saved.tensors, strict=False)
