"""`attach` puts the mask into any ViT, in place and on one instance; `detach` restores the donor exactly.

`gmmvit.attach` names both this package and its function, so the package is callable too.
"""

import importlib
import inspect
import sys
import weakref
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import torch
from torch import nn

from gmmvit.attach import peft
from gmmvit.attach.maps import attention_maps
from gmmvit.attach.place import Grid, GridBox, Mark, Record, Site
from gmmvit.attach.refuse import check_module, refuse_unfit
from gmmvit.attach.saved import FLOATS, load_mask, read_masks
from gmmvit.attach.surgery import GridRecorder, MaskedDonor, Swapped, restore, swap, unrestorable
from gmmvit.attach.survey import Found, listing, masked, recorders, survey
from gmmvit.attention import MODES
from gmmvit.checks import integer, known_options, one_of, pair
from gmmvit.masks import KINDS, Mask, create_mask
from gmmvit.text import short

__all__ = ["Layer", "Layers", "attach", "attention_maps", "describe", "detach", "load_masks", "mask_parameters"]

Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True)
class Layer:
    """One attention in `describe`. `action` is "gmm" or "elm" if it carries a mask, "free" if it could, else "left
    alone" with the `reason`. `grid` is the (rows, cols) of its patches or window."""

    name: str
    kind: str
    action: str
    grid: Grid | None = None
    heads: int | None = None
    prefix_tokens: int | None = None
    reason: str = ""


class Layers(list[Layer]):
    """What `describe` returns; prints as a table."""

    def __str__(self) -> str:
        rows: list[tuple[str, ...]] = [("layer", "attention", "mask", "grid", "heads", "prefix", "")]
        for item in self:
            grid = "" if item.grid is None else f"{item.grid[0]} x {item.grid[1]}"
            numbers = ["" if n is None else str(n) for n in (item.heads, item.prefix_tokens)]
            rows.append((item.name, item.kind.rsplit(".", 1)[-1], item.action, grid, *numbers, item.reason))
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        return "\n".join("  ".join(f"{x:<{w}}" for x, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def attach(
    model: Model,
    mask: str = "gmm",
    *,
    mode: str = "multiply",
    init: str = "identity",
    num_kernels: int = 5,
    layers: Iterable[int] | None = None,
    grid: Grid | Mapping[str, Grid] | None = None,
    prefix_tokens: int | None = None,
    dtype: torch.dtype | None = None,
    **options: Any,
) -> Model:
    """Puts a mask into every patch attention of a ViT of timm, transformers or torchvision, in place.

    The mask multiplies the content logits, before any bias. It becomes the child `gmm_mask` of each attention, so
    `state_dict()` holds its parameters; `mask_parameters` lists them.

    Args:
        model: the model itself, not yet compiled, wrapped or quantised.
        mask: "gmm" (Gaussian mixture) or "elm" (element-wise).
        mode: "multiply", "log" or "post", as in `gmm_attention`.
        init: "identity" keeps the outputs unchanged; "paper", "local" and "conv" (for training from scratch, mode
            "log") as in `GaussianMixtureMask`.
        num_kernels: Gaussians per head; only for "gmm".
        layers: indices into the attentions that can carry a mask, from 0, negative from the end; default: all.
        grid: (rows, cols) in patches, if the model does not give it; it then holds for every image. If grids differ
            between attentions: a mapping from their names in `describe` to (rows, cols).
        prefix_tokens: class and register tokens before the patches; default: the model's own, 0 for unknown models.
        dtype: of the masks' parameters; default: the model's, but at least float32. FSDP2 wants one dtype in what it
            shards together, so pass `torch.bfloat16` for a bfloat16 model. Masks are always computed in float32.
        options: further arguments of the mask's class (`covariance`, `learn_center`, `per_head`).

    Returns:
        The same model.

    Raises:
        TypeError: model is not a module, or an option does not exist.
        ValueError: no attention can carry a mask (the message lists what was found), grid or prefix_tokens is unknown
            and was not passed, or the model already carries masks or is compiled, wrapped or quantised.

    Source: arXiv 2309.05375, section 3; the identity start is this project's.
    """
    refuse_unfit(model)
    one_of("mask", mask, KINDS)
    one_of("mode", mode, MODES)
    known = KINDS[mask].options
    known_options(f"the {mask} mask", options, [name for name in known if name != "num_kernels"])
    if isinstance(grid, Mapping):
        grid = {name: pair(own, f"grid of {name!r}", "(rows, cols)") for name, own in grid.items()}
    elif grid is not None:
        grid = pair(grid, "grid", "(rows, cols)")
    if prefix_tokens is not None:
        integer("prefix_tokens", prefix_tokens, 0)
    _check_dtype(dtype)
    _check_free(model)
    found = survey(model, located=grid is not None)
    places = [item for item in found if item.adapter is not None]
    if not places:
        what = f"found {listing(found)}" if found else "found no attention at all"
        raise ValueError(f"{type(model).__name__} has no attention that can carry a mask: {what}")
    if isinstance(grid, Mapping):
        _check_named(grid, places)
    if "num_kernels" in known:
        options["num_kernels"] = num_kernels
    free, places = places, _chosen(places, layers)
    sites = _sites(places, mode, grid, prefix_tokens)
    # Build all masks before touching a module, so that an error leaves the model unchanged.
    modules = []
    with torch.inference_mode(False):  # parameters made in inference mode cannot be trained
        for i, (item, site) in enumerate(zip(places, sites, strict=True)):
            said = (item.window is not None, _said(grid, item) is not None, prefix_tokens is not None)
            mark = Mark(mode, free.index(item), len(free), site.prefix_tokens, *site.box.grid, *said)
            depth = i / max(1, len(places) - 1)
            modules.append(_mask_of(item, site, mask, mark, dtype, init=init, depth=depth, **options))
    for item, site, module in zip(places, sites, modules, strict=True):
        site.model = weakref.ref(model)
        swap(item.module, item.adapter, gmm_site=site, gmm_mask=module, **item.state)  # type: ignore[arg-type]
        if item.tower is None or _said(grid, item) is not None:
            continue
        source: Any = item.tower.source
        if not isinstance(source, GridRecorder):
            swap(source, item.tower.recorder, gmm_boxes=())
        # Keep the boxes of other models that share this embedding, drop those of a detached part.
        others = [box for box in source.gmm_boxes if box is not site.box and box.needed_beside(sites)]
        source.gmm_serve(*others, site.box)
    return model


def _check_dtype(dtype: Any) -> None:
    if dtype is not None and not isinstance(dtype, torch.dtype):
        raise TypeError(f"dtype must be a torch.dtype such as torch.bfloat16, got {short(dtype)}")
    if dtype is not None and dtype not in FLOATS:
        raise ValueError(f"dtype must be one of {', '.join(map(str, FLOATS))}, got {dtype}")


def _check_free(model: nn.Module) -> None:
    if there := masked(model):
        raise ValueError(f"model already carries {len(there)} masks, the first in {there[0][0]!r}: call detach first")
    if (name := peft.tuned(model)) is not None:
        raise ValueError(
            f"{name!r} is already wrapped by peft: attach first, then get_peft_model with modules_to_save=['gmm_mask'] "
            "to make peft train and save the masks"
        )


def _chosen(places: list[Found], layers: Iterable[int] | None) -> list[Found]:
    if layers is None:
        return places
    if isinstance(layers, str | bytes) or not isinstance(layers, Iterable):
        raise TypeError(f"layers must be whole numbers, such as range(6) or [0, -1], got {short(layers)}")
    wanted = set()
    for index in layers:
        integer("each of layers", index, -sys.maxsize)
        if not -len(places) <= index < len(places):
            count = len(places)
            raise ValueError(f"layers must be indices of the {count} attentions, counted from 0, got {index}")
        wanted.add(index % len(places))
    if not wanted:
        raise ValueError(f"layers must select at least one of the {len(places)} attentions, got none")
    return [item for i, item in enumerate(places) if i in wanted]


Grids = Grid | Mapping[str, Grid] | None  # as `attach` takes them


def _said(grid: Grids, item: Found) -> Grid | None:
    """The grid the caller passed for this attention."""
    return grid.get(item.name) if isinstance(grid, Mapping) else grid


def _check_named(grid: Mapping[str, Grid], places: list[Found]) -> None:
    known = {item.name: item for item in places}
    for name, own in grid.items():
        if name not in known:
            raise ValueError(f"grid names {name!r}, but the attentions that can carry a mask are {', '.join(known)}")
        window = known[name].adapter.gmm_window(known[name].module)  # type: ignore[union-attr]
        if window not in (None, own):
            raise ValueError(f"grid of {name!r} must equal its window, {window}, got {own}")


def _sites(places: list[Found], mode: str, grid: Grids, prefix_tokens: int | None) -> list[Site]:
    """A site for each place; attentions behind one patch embedding share its box."""
    boxes: dict[int, GridBox] = {}
    sites = []
    unknown = [item for item in places if item.window is None and _start(grid, item) is None]
    if unknown:
        sources = {id(item.tower.source) if item.tower else 0 for item in unknown}
        how = "grid=(rows, cols)" if grid is None and len(sources) == 1 else "grid={name: (rows, cols), ...}"
        names = ", ".join(repr(item.name) for item in unknown)
        raise ValueError(f"the patch grid of {names} is unknown: pass {how}")
    for item in places:
        prefix = _prefix(item)
        own = grid.get(item.name) if isinstance(grid, Mapping) else None
        if item.window is not None:
            sites.append(Site(GridBox(own or item.window), prefix or 0, mode))
            continue
        prefix = prefix if prefix_tokens is None else prefix_tokens
        if prefix is None:
            raise ValueError(
                f"the number of tokens before the patches in {item.name!r} is unknown: pass prefix_tokens="
            )
        box = GridBox(_start(grid, item))  # type: ignore[arg-type]
        if own is None:
            box = boxes.setdefault(0 if item.tower is None else id(item.tower.source), box)
        sites.append(Site(box, prefix, mode))
    return sites


def _start(grid: Grids, item: Found) -> Grid | None:
    """The grid before the first image."""
    return _said(grid, item) or (item.tower.grid if item.tower else None)


def _prefix(item: Found) -> int | None:
    """The number of tokens before its patches, None if unknown for this model."""
    own = None if item.adapter is None else item.adapter.gmm_prefix(item.module)
    return own if own is not None else item.tower.prefix_tokens if item.tower else 0


def _mask_of(item: Found, site: Site, mask: str, mark: Mark, dtype: torch.dtype | None, **options: Any) -> nn.Module:
    """The mask for one attention, on its device; parameters have `dtype`, by default float32 or wider."""
    heads = item.adapter.gmm_heads(item.module)  # type: ignore[union-attr]
    weight = next(item.module.parameters())
    with weight.device:  # whatever default device the caller has set
        module: Any = create_mask(mask, site.box.grid, heads, mode=site.mode, steps=item.steps, **options)
        # Saved with the parameters: their meaning depends on the mode, and libraries rename layers in files.
        module.add_module("site", Record(mark, module.one_grid))
    module.to(dtype=torch.promote_types(weight.dtype, torch.float32)).train(item.module.training)
    for parameter in module.parameters() if dtype is not None else ():  # buffers (offsets) stay exact
        parameter.data = parameter.data.to(dtype)
    return module


def detach(model: Model) -> Model:
    """Removes every mask that `attach` put into `model`, in place: classes, state_dict and outputs are as before.

    Returns the same model. Raises ValueError if it carries no mask or is compiled, wrapped or parametrized.
    """
    refuse_unfit(model)
    attentions, embeddings = [module for _, module in masked(model)], recorders(model)
    sites = [module.gmm_site for module in attentions]
    # An embedding that is shared with other models keeps serving their attentions.
    needed = {module: [box for box in module.gmm_boxes if box.needed_beside(sites)] for module in embeddings}
    if not attentions and any(needed.values()):
        raise ValueError(f"{type(model).__name__} is the patch embedding of masks outside it: detach the whole model")
    if not attentions and not embeddings:
        raise ValueError(f"{type(model).__name__} carries no mask: there is nothing to detach")
    names = {module: name for name, module in model.named_modules()}
    there: list[Swapped] = [*attentions, *(module for module in embeddings if not needed[module])]
    for module in there:
        if reason := unrestorable(module):
            raise ValueError(f"{names[module]!r} {reason}: undo that before detach")
    for module in there:
        restore(module)
    for module in embeddings:
        if needed[module]:
            module.gmm_serve(*needed[module])
    return model


def load_masks(
    model: Model, path: str | Path | Mapping[str, torch.Tensor], *, dtype: torch.dtype | None = None
) -> Model:
    """Attaches the masks that were saved with a model by `save_pretrained` of transformers, `save_for_hf` of timm,
    `safetensors` or `torch.save` of a state_dict. Loads only the masks: the donor's own weights are for its library.

    Args:
        model: the donor without masks, of the same sizes.
        path: a file of safetensors or of `torch.save`, a folder with one, or a state_dict.
        dtype: of the masks' parameters, as in `attach`.

    Returns:
        The same model, with masks of the file's kinds, sizes and modes in the same layers.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: it has no masks, or they are damaged or do not fit the model, which stays unchanged.
    """
    refuse_unfit(model)
    saved = read_masks(path)
    _check_free(model)
    found = survey(model, located=saved.located)
    free = [item.name for item in found if item.adapter is not None]
    by_place = saved.by_place(free, type(model).__name__)
    attach(model, layers=by_place, grid=saved.grid(free, by_place), dtype=dtype, **saved.options)
    try:
        for (name, module), place in zip(masked(model), sorted(by_place), strict=True):
            load_mask(name, module.gmm_mask, by_place[place])
    except ValueError:
        detach(model)
        raise
    return model


def mask_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The parameters of every mask in `model`, attached or built in, for an optimizer group of their own."""
    check_module(model)
    masks = (m for m in model.modules() if isinstance(m, Mask))
    frozen = peft.originals(model)
    return [parameter for module in masks if module not in frozen for parameter in module.parameters()]


def describe(model: nn.Module) -> Layers:
    """Lists every attention of `model`: the mask it carries, or whether it could carry one.

    Returns a list of `Layer` that prints as a table. Changes nothing. Raises TypeError if model is not a module.
    """
    check_module(model)
    return Layers(_layer(item) for item in survey(model))


def _layer(item: Found) -> Layer:
    module = item.module
    if isinstance(module, MaskedDonor):
        grid, prefix = module.gmm_window(module) or module.gmm_site.box.known, module.gmm_site.prefix_tokens
        return Layer(item.name, item.kind, module.gmm_mask.kind, grid, module.gmm_heads(module), prefix)
    if item.adapter is None:
        return Layer(item.name, item.kind, "left alone", reason=item.reason)
    own = item.window or (item.tower.grid if item.tower else None)
    return Layer(item.name, item.kind, "free", own, item.adapter.gmm_heads(module), _prefix(item))


class _CallableModule(ModuleType):
    """`import gmmvit.attach` rebinds the name from the function to this package, so calls must work on both."""

    __signature__ = inspect.signature(attach)

    def __call__(self, *args: Any, **kwargs: Any) -> nn.Module:
        return attach(*args, **kwargs)

    def __reduce__(self) -> Any:
        return importlib.import_module, (self.__name__,)


sys.modules[__name__].__class__ = _CallableModule
