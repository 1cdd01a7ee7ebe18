"""Trains one model in several processes, started by torchrun. In a single process everything here does nothing.

Every process draws the same batches and computes its share of each; gradients are averaged over the processes. So the
training equals that of one process with the same batch size, and a checkpoint can resume with another number of
processes. Only dropout and drop path are drawn separately in each process.
"""

import atexit
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint import state_dict as full

from gmmvit.augment import take_rows

Result = TypeVar("Result")
_FULL = full.StateDictOptions(full_state_dict=True, cpu_offload=True)


@dataclass(frozen=True)
class Team:
    """The processes of a training: this one is number `rank` of `size`. Only rank 0, the leader, writes and prints."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def share(self, count: int) -> slice:
        """This process's slice of `count` items; shares differ by at most one."""
        return slice(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def total(self, values: Tensor) -> Tensor:
        """The sum of `values` over all processes."""
        if self.size > 1:
            values = values.clone()
            dist.all_reduce(values)
        return values

    def spread(self, rows: Tensor, compute: Callable[[Tensor], Tensor]) -> Tensor:
        """`compute(rows)` split over the processes: [N, ...] -> [N, K], complete on every process.

        All parts have the same length, because every process must call a sharded model equally often.
        """
        if self.size == 1 or not len(rows):
            return compute(rows)
        length = -(-len(rows) // self.size)
        mine = torch.arange(self.rank * length, (self.rank + 1) * length) % len(rows)
        part = compute(take_rows(rows, mine.to(rows.device))).contiguous()
        parts = [torch.empty_like(part) for _ in range(self.size)]
        dist.all_gather(parts, part)
        return torch.cat(parts)[: len(rows)]

    def from_leader(self, work: Callable[[], Result]) -> Result:
        """The leader's result of `work`; the others wait. If it raises, they exit silently."""
        if self.size == 1:
            return work()
        result: list[Any] = [False, None]
        try:
            if self.leads:
                result = [True, work()]
        finally:
            dist.broadcast_object_list(result, src=0)
        if not result[0]:
            raise SystemExit(1)
        return result[1]

    def leader_first(self, work: Callable[[], Result]) -> Result:
        """Runs `work` in every process, first in the leader, so that the others find what it caches."""
        done: list[Result] = []
        self.from_leader(lambda: done.append(work()))
        return done[0] if done else work()


def leads() -> bool:
    """Whether this process may print: always, unless torchrun started it with a rank above 0."""
    return os.environ.get("RANK", "0") == "0"


def join() -> Team:
    """The team in which torchrun (or another launcher that sets RANK and WORLD_SIZE) started this process.

    Backends are NCCL for CUDA and gloo for the CPU; an existing process group is used as it is.
    """
    if not dist.is_available():
        return Team()
    if not dist.is_initialized():
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return Team()
        if torch.cuda.is_available():
            torch.cuda.set_device(local_device())
        dist.init_process_group()
    return Team(dist.get_rank(), dist.get_world_size())


def leave() -> None:
    """Ends all processes of a team together, with status 0, when their work is done; alone it does nothing.

    The barrier is needed because a process that ends can abort another one still connected to it. Python's exit
    functions run, torch's destructors do not: in them gloo threads left by FSDP2 aborted 1 process in 12.
    """
    if dist.is_available() and dist.is_initialized():
        dist.barrier()
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def lost_contact(error: RuntimeError) -> bool:
    """Whether an error says that another process of the team is gone."""
    return isinstance(error, dist.DistError) or "gloo" in str(error)


def local_device() -> int:
    """The number of the GPU that belongs to this process on its machine."""
    return int(os.environ.get("LOCAL_RANK", "0")) % max(1, torch.cuda.device_count())


def wrap(model: nn.Module, team: Team, shard: bool) -> nn.Module:
    """Wraps the model so that its gradients are averaged over the team.

    With `shard`, parameters, gradients and optimiser states are split over the processes block by block (FSDP2); make
    the optimiser afterwards. Otherwise every process holds all of them (DDP).
    """
    if team.size == 1:
        return model
    if not shard:
        device = next(model.parameters()).device
        return nn.parallel.DistributedDataParallel(model, [device] if device.type == "cuda" else None)
    from torch.distributed.fsdp import fully_shard

    blocks: Any = getattr(model, "steps", list)  # our families have `steps`; any other model is one shard
    for step in blocks():
        fully_shard(step)
    fully_shard(model)  # in place
    return model


def full_weights(model: nn.Module) -> dict[str, Tensor]:
    """A copy of the state_dict on the CPU; for a sharded model, complete in the leader and empty elsewhere."""
    state: dict[str, Any] = (
        dict(full.get_model_state_dict(model, options=_FULL)) if _sharded(model) else model.state_dict()
    )
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in state.items()}


def load_weights(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """The inverse of `full_weights`, in all processes at once."""
    if _sharded(model):
        options = full.StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
        full.set_model_state_dict(model, dict(weights), options=options)
    else:
        model.load_state_dict(weights)


def optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """A copy, on the CPU, of the optimiser's state_dict in unsharded form; for a sharded model, complete in the leader
    and empty elsewhere."""
    if not _sharded(model):
        return _copy(optimizer.state_dict())
    state: dict[str, Any] = full.get_optimizer_state_dict(model, optimizer, options=_FULL)
    if not state:
        return {}
    names = [name for group in state["param_groups"] for name in group["params"]]
    number = {name: index for index, name in enumerate(names)}
    groups = [{**group, "params": [number[name] for name in group["params"]]} for group in state["param_groups"]]
    return _copy({"state": {number[name]: value for name, value in state["state"].items()}, "param_groups": groups})


def _copy(state: dict[str, Any]) -> dict[str, Any]:
    """An optimiser's state_dict with its moments copied to the CPU; learning rates are not copied."""
    moments = {
        number: {
            name: value.to("cpu", copy=True) if isinstance(value, Tensor) else value for name, value in entry.items()
        }
        for number, entry in state["state"].items()
    }
    return state | {"state": moments}


def load_optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """The inverse of `optimizer_state`; every process has read the same state."""
    if not _sharded(model):
        optimizer.load_state_dict(state)
        return
    known = {id(parameter): name for name, parameter in model.named_parameters()}
    names = [known[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]
    groups = [{**group, "params": [names[i] for i in group["params"]]} for group in state["param_groups"]]
    named: dict[str, Any] = {"state": {names[i]: value for i, value in state["state"].items()}, "param_groups": groups}
    full.set_optimizer_state_dict(model, optimizer, named, options=full.StateDictOptions(full_state_dict=True))


def _sharded(model: nn.Module) -> bool:
    """Whether the model is sharded; if so, re-shards blocks that a forward pass left gathered."""
    if not dist.is_initialized():
        return False
    from torch.distributed.fsdp import FSDPModule

    if isinstance(model, FSDPModule):
        model.reshard()
    return isinstance(model, FSDPModule)
