"""Finds a model's attentions: which can carry a mask, and why the others cannot. Changes nothing."""

import dis
import re
from dataclasses import dataclass, field
from types import FunctionType
from typing import Any

from torch import nn

from gmmvit.attach.donors import (
    timm,
    timm_gemma,
    timm_inline,
    timm_maps,
    timm_pooled,
    timm_windows,
    torchvision,
    transformers,
    transformers_stages,
)
from gmmvit.attach.donors.measured import Measures, by_rule
from gmmvit.attach.place import Grid
from gmmvit.attach.refuse import spoiled
from gmmvit.attach.surgery import GridRecorder, MaskedDonor, Swapped, Tower
from gmmvit.attention.reference import EVERY_PATCH, Steps

LIBRARIES = (
    timm,
    timm_gemma,
    timm_windows,
    timm_pooled,
    timm_maps,
    timm_inline,
    torchvision,
    transformers,
    transformers_stages,
)
TOWERS = (
    timm_maps.tower,
    timm.tower,
    timm_gemma.tower,
    torchvision.tower,
    transformers_stages.tower,
    transformers.tower,
)
ATTENTIONS = {name: adapter for library in LIBRARIES for name, adapter in library.ATTENTIONS.items()}
LEFT_ALONE = {name: reason for library in LIBRARIES for name, reason in library.LEFT_ALONE.items()}
_PRODUCTS = {"matmul", "bmm", "baddbmm", "einsum"}
_LOOKS_LIKE_ATTENTION = re.compile(r"Atte?n(tion)?(?!Mask)")


@dataclass(frozen=True)
class Found:
    """One attention of a model. If it is left alone, `adapter` is None and `reason` says why."""

    name: str
    module: nn.Module
    adapter: type[MaskedDonor] | None
    tower: Tower | None = None
    window: Grid | None = None
    steps: Steps = EVERY_PATCH
    state: dict[str, Any] = field(default_factory=dict)
    reason: str = ""

    @property
    def kind(self) -> str:
        return qualified(self.module)


def qualified(module: nn.Module) -> str:
    """The full name of a module's class; for a swapped module that of the donor."""
    cls = module.gmm_donor if isinstance(module, Swapped) else type(module)
    return f"{cls.__module__}.{cls.__qualname__}"


def survey(model: nn.Module, *, located: bool = False) -> list[Found]:
    """Every attention of `model` in module order; `located`: the caller passes the grid."""
    modules = dict(model.named_modules())
    names = [name for name, module in modules.items() if _is_attention(module)]
    # A part of a known attention may have an attention's name, and so may a wrapper around one; neither counts.
    known = tuple(f"{name}." for name in names if name and qualified(modules[name]) in ATTENTIONS)
    names = [name for name in names if not name.startswith(known)]
    leaves = [n for n in names if not any(other != n and other.startswith(f"{n}." if n else "") for other in names)]
    paths: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        paths.setdefault(module, []).append(name)
    everything = {name: module for module, own in paths.items() for name in own}
    measures = Measures()
    return [_found(name, paths[modules[name]], everything, located, measures) for name in leaves]


def _adapter(module: nn.Module) -> type[MaskedDonor] | None:
    if isinstance(module, MaskedDonor):
        return module.gmm_adapter  # type: ignore[return-value]
    return ATTENTIONS.get(qualified(module)) or (None if qualified(module) in LEFT_ALONE else by_rule(module))


def _is_attention(module: nn.Module) -> bool:
    kind = qualified(module)
    if kind in ATTENTIONS or kind in LEFT_ALONE or _LOOKS_LIKE_ATTENTION.search(kind.rsplit(".", 1)[-1]):
        return True
    return _base(module) is not None or (not isinstance(module, Swapped) and _attends(type(module)))


def _attends(cls: type[nn.Module]) -> bool:
    """Whether a class's code calls torch's attention, or a softmax and a matrix product."""
    functions = [f for c in cls.__mro__ if not c.__module__.startswith("torch.") for f in vars(c).values()]
    for code in (f.__code__ for f in functions if isinstance(f, FunctionType)):
        names = set(code.co_names)
        if "scaled_dot_product_attention" in names:
            return True
        if "softmax" in names and (
            names & _PRODUCTS or any(step.argrepr == "@" for step in dis.get_instructions(code))
        ):
            return True
    return False


def _base(module: nn.Module) -> str | None:
    """The known attention that the class of `module` subclasses, if any."""
    bases = (f"{cls.__module__}.{cls.__qualname__}" for cls in type(module).__mro__[1:])
    return next((base for base in bases if base in ATTENTIONS), None) if not isinstance(module, Swapped) else None


def _ancestors(path: str, modules: dict[str, nn.Module]) -> list[nn.Module]:
    """The modules around the one at `path`, from the whole model down to its parent."""
    parts = path.split(".")
    return [modules[".".join(parts[:i])] for i in range(len(parts))] if path else []


def _tower(ancestors: list[nn.Module]) -> Tower | None:
    return next((tower for find in TOWERS if (tower := find(ancestors)) is not None), None)


def _found(name: str, paths: list[str], modules: dict[str, nn.Module], located: bool, measures: Measures) -> Found:
    module = modules[name]
    kind = qualified(module)
    ancestors = _ancestors(name, modules)
    adapter = _adapter(module)
    if adapter is None:
        base = _base(module)
        if base:
            unknown = f"not known to gmmvit: a subclass of {base}"
        elif _LOOKS_LIKE_ATTENTION.search(kind.rsplit(".", 1)[-1]):
            unknown = "not known to gmmvit"
        else:
            unknown = "computes attention in its own code, not known to gmmvit: call gmmvit.gmm_attention there"
        return Found(name, module, None, reason=LEFT_ALONE.get(kind, unknown))
    reason = adapter.gmm_refusal(module, ancestors)
    if not reason and not isinstance(module, Swapped):
        reason = spoiled(module)
    known = module._modules if adapter.gmm_parts is None else adapter.gmm_parts
    unknown_parts = sorted(key for key in module._modules if key not in known and not key.startswith("gmm_"))
    if unknown_parts and not reason:
        reason = f"has parts that this version of gmmvit does not know: {', '.join(unknown_parts)}"
    window = adapter.gmm_window_at(module, ancestors)
    tower = _tower(ancestors) if window is None else None
    if not reason and adapter.gmm_parts is None:
        tower, reason = measures.tower(module, tower, ancestors)
    if not reason and window is None and not located:
        reason = _without_grid(tower, [_tower(_ancestors(path, modules)) for path in paths])
    if reason:
        return Found(name, module, None, reason=reason)
    steps, state = adapter.gmm_steps(module, ancestors), adapter.gmm_state(module, ancestors)
    return Found(name, module, adapter, tower, window, steps, state)


def _without_grid(tower: Tower | None, towers: list[Tower | None]) -> str:
    """Why an attention's grid is unknown, given the towers on its paths through the model; empty if it is known."""
    if tower is None:
        return "the patch grid was not found: pass grid=(rows, cols), or {name: (rows, cols)} where they differ"
    if any(other is None or other.source is not tower.source for other in towers):
        return "it follows several patch embeddings, so its grid is ambiguous"
    damage = "" if isinstance(tower.source, Swapped) else spoiled(tower.source)
    return f"the patch embedding does not give its grid: {damage}" if damage else ""


def masked(model: nn.Module) -> list[tuple[str, MaskedDonor]]:
    """The attentions of `model` that carry a mask."""
    return [(name, module) for name, module in model.named_modules() if isinstance(module, MaskedDonor)]


def recorders(model: nn.Module) -> list[GridRecorder]:
    return [module for module in model.modules() if isinstance(module, GridRecorder)]


def listing(found: list[Found]) -> str:
    """What was found, for an error message: each kind with its count and reason."""
    kinds: dict[tuple[str, str], int] = {}
    for item in found:
        kinds[item.kind, item.reason] = kinds.get((item.kind, item.reason), 0) + 1
    return "; ".join(f"{count} x {kind} ({reason})" for (kind, reason), count in kinds.items())
