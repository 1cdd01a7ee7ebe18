"""Counts, on the CPU, what code asks of a device: every operation that torch dispatches inside."""

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

# Operations whose result the host needs before it can continue.
WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "_unique", "unique")


class Operations(TorchDispatchMode):
    """The operations inside, in order: `calls` holds name and all arguments that are no tensors, `outside` the address
    of every tensor that went in and was not made inside."""

    def __init__(self):
        super().__init__()
        self.calls, self.outside, self.made, self.kept = [], [], set(), []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given, _ = tree_flatten((args, kwargs or {}))
        tensors = [item for item in given if isinstance(item, Tensor)]
        self.outside += [tensor.data_ptr() for tensor in tensors if id(tensor) not in self.made]
        if func.namespace != "profiler":
            self.calls.append((func.__name__, tuple(repr(item) for item in given if not isinstance(item, Tensor))))
        result = func(*args, **(kwargs or {}))
        made = [item for item in tree_flatten(result)[0] if isinstance(item, Tensor)]
        self.kept += made  # so that no address or id repeats
        inside = {id(tensor) for tensor in tensors} & self.made
        known = [tensor for tensor in made if not any(tensor is other for other in tensors) or id(tensor) in inside]
        self.made |= {id(tensor) for tensor in known}
        return result

    def waiting(self):
        """Names of the operations that make the host wait."""
        return [name for name, _ in self.calls if name.split(".")[0] in WAITING]

    def __len__(self):
        return len(self.calls)
