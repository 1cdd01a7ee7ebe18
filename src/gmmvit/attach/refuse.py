"""Models that must be attached before, not after, something was done to them."""

from torch import nn

_WRAPPERS = {
    "torch.nn.parallel.distributed.DistributedDataParallel": "DistributedDataParallel",
    "torch.nn.parallel.data_parallel.DataParallel": "DataParallel",
    "torch.distributed.fsdp.fully_sharded_data_parallel.FullyShardedDataParallel": "FullyShardedDataParallel",
}
_QUANTISED = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized", "bitsandbytes", "torchao", "optimum.quanto")


def refuse_unfit(model: object) -> None:
    """Raises for what cannot be changed in place any more: TypeError if it is no module, else ValueError."""
    if isinstance(model, type):
        raise TypeError(f"model must be a torch.nn.Module, got the class {model.__name__}: make an instance")
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    kind = f"{type(model).__module__}.{type(model).__qualname__}"
    if isinstance(model, nn.modules.lazy.LazyModuleMixin) or kind.startswith(("torch.jit.", "torch.fx.")):
        raise ValueError(f"model is a {type(model).__name__}, whose code is fixed: attach the model it was made from")
    for name, module in model.named_modules():
        wrapper = _WRAPPERS.get(f"{type(module).__module__}.{type(module).__qualname__}")
        if wrapper:
            inside = f"{name}.module" if name else "model.module"
            raise ValueError(
                f"{name or 'model'} is wrapped in {wrapper}: call attach and detach on {inside}, then wrap it"
            )
        if any(cls.__name__ == "FSDPModule" for cls in type(module).__mro__):
            raise ValueError(f"{name or 'model'} is sharded by fully_shard: attach to the model first, then shard it")
        if "_orig_mod" in module._modules or getattr(module, "_compiled_call_impl", None) is not None:
            raise ValueError(f"{name or 'model'} is compiled: attach and detach before torch.compile, not after")
        weight = getattr(module, "weight", None)
        library = next(
            (part for part in _QUANTISED for x in (module, weight) if type(x).__module__.startswith(part)), None
        )
        if library:
            raise ValueError(f"module {name!r} is quantised ({library}): attach to the model first, then quantise it")
    if any(parameter.is_meta for parameter in model.parameters()):
        raise ValueError("model has parameters on the meta device: give it its weights first, then attach")
