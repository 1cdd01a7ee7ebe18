"""Models and modules that can no longer be attached to, because something was done to them first."""

from typing import Any

from torch import nn
from torch.nn.utils import parametrize

_WRAPPERS = {
    "torch.nn.parallel.distributed.DistributedDataParallel": "DistributedDataParallel",
    "torch.nn.parallel.data_parallel.DataParallel": "DataParallel",
    "torch.distributed.fsdp.fully_sharded_data_parallel.FullyShardedDataParallel": "FullyShardedDataParallel",
}
_QUANTISED = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized", "bitsandbytes", "torchao", "optimum.quanto")

_DROPOUT_AND_SOFTMAX = {"attn_drop": (nn.Dropout, nn.Identity), "softmax": (nn.Softmax,)}


def check_module(model: object) -> None:
    """Raises TypeError unless `model` is a module."""
    if isinstance(model, type):
        raise TypeError(f"model must be a torch.nn.Module, got the class {model.__name__}: pass an instance")
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")


def refuse_unfit(model: Any) -> None:
    """Raises TypeError if `model` is not a module, ValueError if it can no longer be changed in place."""
    check_module(model)
    for name, module in model.named_modules():
        kind = f"{type(module).__module__}.{type(module).__qualname__}"
        lazy = not name and isinstance(module, nn.modules.lazy.LazyModuleMixin)
        if lazy or kind.startswith(("torch.jit.", "torch.fx.")):
            what = f"{name or 'model'} is a {type(module).__name__}, whose code can no longer change"
            raise ValueError(f"{what}: attach to the model it was made from")
        wrapper = _WRAPPERS.get(kind)
        if wrapper:
            inside = f"{name}.module" if name else "model.module"
            raise ValueError(
                f"{name or 'model'} is wrapped in {wrapper}: call attach and detach on {inside}, then wrap it"
            )
        if any(cls.__name__ == "FSDPModule" for cls in type(module).__mro__):
            raise ValueError(f"{name or 'model'} is sharded by fully_shard: attach and detach before that, not after")
        if "_orig_mod" in module._modules or _is_compiled(module):
            raise ValueError(f"{name or 'model'} is compiled: attach and detach before torch.compile, not after")
        weight = getattr(module, "weight", None)
        library = next(
            (part for part in _QUANTISED for x in (module, weight) if type(x).__module__.startswith(part)), None
        )
        if library:
            raise ValueError(f"module {name!r} is quantised ({library}): attach and detach before that, not after")
    if any(parameter.is_meta for parameter in model.parameters()):
        raise ValueError("model has parameters on the meta device: load its weights first, then attach")


def _is_compiled(module: nn.Module) -> bool:
    if getattr(module, "_compiled_call_impl", None) is not None:  # module.compile()
        return True
    return hasattr(vars(module).get("forward"), "_torchdynamo_orig_callable")  # module.forward = torch.compile(...)


def spoiled(module: nn.Module) -> str:
    """Why exchanging the class of `module` is impossible or has no effect; empty if it works."""
    if "forward" in vars(module):
        return "its forward was replaced on the instance, so a mask would have no effect: attach first"
    if parametrize.is_parametrized(module):
        return "it is parametrized: attach first"
    for name, kinds in _DROPOUT_AND_SOFTMAX.items():
        child = module._modules.get(name)
        if child is not None and type(child) not in kinds:
            return f"its {name} is a {type(child).__name__}, which a mask would bypass: put {kinds[0].__name__} back"
    owned = (*vars(module), *module._parameters, *module._buffers, *module._modules)
    ours = next((name for name in owned if name.startswith("gmm_")), None)
    return f"it already has a {ours!r}, a name that attach uses" if ours else ""
