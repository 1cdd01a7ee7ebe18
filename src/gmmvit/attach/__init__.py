"""`attach`: the mask in anybody's ViT, in place on one instance; `detach` gives the donor back exactly.

The package can be called like its function, so that `gmmvit.attach(model)` works whichever of the two names the
interpreter met first.
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

__all__ = ["Layer", "Layers", "attach", "attention_maps", "describe", "detach", "load_masks", "mask_parameters"]

Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True)
class Layer:
    """One attention in `describe`: `action` is "gmm" or "elm" where a mask sits, "free" where one could, else "left
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

    The mask multiplies the content logits, before any bias. It becomes the child `gmm_mask` of each attention: its
    parameters are in `state_dict()`, and `mask_parameters` finds them.

    Args:
        model: the model itself, before it is compiled, wrapped or quantised.
        mask: "gmm" (Gaussian mixture) or "elm" (element-wise).
        mode: "multiply", "log" or "post", as in `gmm_attention`.
        init: "identity" leaves the outputs as they are; "paper", "local" and "conv" (for training from scratch, mode
            "log") as in `GaussianMixtureMask`.
        num_kernels: Gaussians per head; read by "gmm" alone.
        layers: which of the attentions that can carry a mask, from 0, negative from the end; all by default.
        grid: (rows, cols) in patches, if the model does not give it; it then holds for every image. If the
            attentions have different grids, a mapping of their names in `describe` to (rows, cols).
        prefix_tokens: class and register tokens before the patches; the model's own by default, 0 in one of your own.
        dtype: of the masks' parameters, by default the model's, but float32 at least. FSDP2 wants one dtype in what it
            shards together: `torch.bfloat16` for a model of that. Masks are computed in float32 in any case.
        options: further arguments of the mask's class (`covariance`, `learn_center`, `per_head`).

    Returns:
        The same model.

    Raises:
        TypeError: model is no module, or an option does not exist.
        ValueError: nothing to attach to (lists what was found), grid or prefix_tokens not known and not said, masks are
            there already, or the model is compiled, wrapped or quantised.

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
    # All masks are built before the first module is touched: an error leaves the model as it was.
    modules = []
    with torch.inference_mode(False):  # parameters made inside of it could never be trained
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
        # Those of another model that has the same embedding stay, those of a part that was detached do not.
        others = [box for box in source.gmm_boxes if box is not site.box and box.needed_beside(sites)]
        source.gmm_serve(*others, site.box)
    return model


def _check_dtype(dtype: Any) -> None:
    if dtype is not None and not isinstance(dtype, torch.dtype):
        raise TypeError(f"dtype must be a torch.dtype as torch.bfloat16, got {dtype!r}")
    if dtype is not None and dtype not in FLOATS:
        raise ValueError(f"dtype must be one of {', '.join(map(str, FLOATS))}, got {dtype}")


def _check_free(model: nn.Module) -> None:
    if there := masked(model):
        raise ValueError(f"model already carries {len(there)} masks, the first in {there[0][0]!r}: call detach first")
    if (name := peft.tuned(model)) is not None:
        raise ValueError(
            f"{name!r} is of peft already: attach first, then get_peft_model with modules_to_save=['gmm_mask'], so "
            "that peft trains and saves the masks"
        )


def _chosen(places: list[Found], layers: Iterable[int] | None) -> list[Found]:
    if layers is None:
        return places
    if isinstance(layers, str | bytes) or not isinstance(layers, Iterable):
        raise TypeError(f"layers must be some whole numbers, as range(6) or [0, -1], got {layers!r}")
    wanted = set()
    for index in layers:
        integer("each of layers", index, -sys.maxsize)
        if not -len(places) <= index < len(places):
            raise ValueError(f"layers must name some of the {len(places)} attentions from 0, got {index}")
        wanted.add(index % len(places))
    if not wanted:
        raise ValueError(f"layers must name some of the {len(places)} attentions from 0, got none")
    return [item for i, item in enumerate(places) if i in wanted]


Grids = Grid | Mapping[str, Grid] | None  # as `attach` takes them


def _said(grid: Grids, item: Found) -> Grid | None:
    """What the caller says of the grid of this attention."""
    return grid.get(item.name) if isinstance(grid, Mapping) else grid


def _check_named(grid: Mapping[str, Grid], places: list[Found]) -> None:
    known = {item.name: item for item in places}
    for name, own in grid.items():
        if name not in known:
            raise ValueError(f"grid names {name!r}, the attentions that can carry a mask are {', '.join(known)}")
        window = known[name].adapter.gmm_window(known[name].module)  # type: ignore[union-attr]
        if window not in (None, own):
            raise ValueError(f"grid of {name!r} must be that of its window, {window}, got {own}")


def _sites(places: list[Found], mode: str, grid: Grids, prefix_tokens: int | None) -> list[Site]:
    """A site for each place; attentions behind one patch embedding share its box."""
    boxes: dict[int, GridBox] = {}
    sites = []
    unknown = [item for item in places if item.window is None and _start(grid, item) is None]
    if unknown:
        sources = {id(item.tower.source) if item.tower else 0 for item in unknown}
        how = "grid=(rows, cols)" if grid is None and len(sources) == 1 else "grid={name: (rows, cols), ...}"
        names = ", ".join(repr(item.name) for item in unknown)
        raise ValueError(f"the patch grid of {names} is not known: say it with {how}")
    for item in places:
        prefix = _prefix(item)
        own = grid.get(item.name) if isinstance(grid, Mapping) else None
        if item.window is not None:
            sites.append(Site(GridBox(own or item.window), prefix or 0, mode))
            continue
        prefix = prefix if prefix_tokens is None else prefix_tokens
        if prefix is None:
            raise ValueError(
                f"how many tokens stand before the patches in {item.name!r} is not known: say it with prefix_tokens="
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
    """The tokens before its patches, None if the model is one of which it is not known."""
    own = None if item.adapter is None else item.adapter.gmm_prefix(item.module)
    return own if own is not None else item.tower.prefix_tokens if item.tower else 0


def _mask_of(item: Found, site: Site, mask: str, mark: Mark, dtype: torch.dtype | None, **options: Any) -> nn.Module:
    """The mask for one attention, on its device, with parameters of that dtype, by default float32 or wider."""
    heads = item.adapter.gmm_heads(item.module)  # type: ignore[union-attr]
    weight = next(item.module.parameters())
    with weight.device:  # whatever default device the caller has set
        module: Any = create_mask(mask, site.box.grid, heads, mode=site.mode, steps=item.steps, **options)
        # Saved with the parameters, which mean something else in another mode; names of layers may change in files.
        module.add_module("site", Record(mark, module.one_grid))
    module.to(dtype=torch.promote_types(weight.dtype, torch.float32)).train(item.module.training)
    for parameter in module.parameters() if dtype is not None else ():  # its offsets stay exact
        parameter.data = parameter.data.to(dtype)
    return module


def detach(model: Model) -> Model:
    """Takes every mask that `attach` put into `model` out again: classes, state_dict and outputs as before; in place.

    Raises ValueError if there is none, or if the model is compiled, wrapped or parametrized.
    """
    refuse_unfit(model)
    attentions, embeddings = [module for _, module in masked(model)], recorders(model)
    sites = [module.gmm_site for module in attentions]
    # An embedding that other models share, or that of a part, goes on serving the others.
    needed = {module: [box for box in module.gmm_boxes if box.needed_beside(sites)] for module in embeddings}
    if not attentions and any(needed.values()):
        raise ValueError(
            f"{type(model).__name__} is the patch embedding of masks outside of it: detach the whole model"
        )
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
    """Attaches the masks that were saved with a model: what `save_pretrained` of transformers, `save_for_hf` of timm,
    `safetensors` or `torch.save` of a state_dict wrote. The donor's own weights are loaded by its library, or not, as
    before.

    Args:
        model: the donor without masks, of the same sizes.
        path: a file of safetensors or of `torch.save`, a folder with one, or a state_dict.
        dtype: of the masks' parameters, as in `attach`.

    Returns:
        The same model, with masks of the kinds, sizes and modes that the file has, where it has them.

    Raises:
        FileNotFoundError: no file there.
        ValueError: no masks in it, damaged ones, or they do not fit the model, which is then left as it was.
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
    except ValueError:  # the model stays as it was
        detach(model)
        raise
    return model


def mask_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The parameters of every mask in `model`, attached or of our own families: for an optimizer group of their own."""
    check_module(model)
    masks = (m for m in model.modules() if isinstance(m, Mask))
    frozen = peft.originals(model)
    return [parameter for module in masks if module not in frozen for parameter in module.parameters()]


def describe(model: nn.Module) -> Layers:
    """What every attention of `model` is and does: its mask if it has one, else whether it could carry one.

    Returns a list of `Layer` that prints as a table. Changes nothing. Raises TypeError if model is no module.
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
    """`import gmmvit.attach` binds the package to the name that `gmmvit.attach(model)` calls."""

    __signature__ = inspect.signature(attach)

    def __call__(self, *args: Any, **kwargs: Any) -> nn.Module:
        return attach(*args, **kwargs)

    def __reduce__(self) -> Any:
        return importlib.import_module, (self.__name__,)


sys.modules[__name__].__class__ = _CallableModule
