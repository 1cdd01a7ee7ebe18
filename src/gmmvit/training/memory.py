"""How much memory training takes: the least, estimated from a few images before the first step, and the measured peak.

Letters: B batch, C channels, H x W pixels.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from gmmvit.augment import normalize, take_rows
from gmmvit.data.memory import free_memory, in_words, peak_memory, refusal
from gmmvit.training.session import Setting, State, step_images
from gmmvit.training.step import TrainingError

_FEW = 2  # images of the smaller of two forward passes; the larger has twice as many
# All that a step takes, relative to what it keeps: 1.55 to 1.7 measured on the CPU (ViT, Swin and ResNet).
_USUAL = 1.7
_ADVICE = (
    "take a smaller --batch-size (with --accumulate for the same step), a smaller --image-size or model, or larger "
    "patches"
)


@dataclass(frozen=True)
class Need:
    """The least bytes that training takes, besides the model and data already loaded.

    Attributes:
        images: what the forward pass of a step's images keeps for the backward pass, on the device.
        moments: the optimiser's state, on the device.
        copies: weights and optimiser state to write while the next epoch trains, on the host.
    """

    images: int
    moments: int
    copies: int


@contextmanager
def naming_memory(setting: Setting) -> Iterator[None]:
    """Turns running out of memory inside into a TrainingError that names the step."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, MemoryRefused) or (memory := refusal(error)) is None:
            raise
        raise TrainingError(
            f"the memory of {setting.device} ran out ({memory}) in a step of {_step_in_words(setting)}; {_ADVICE}"
        ) from error


class MemoryRefused(MemoryError):
    """Training refused before it starts because the free memory cannot hold it; one sentence."""


def check_memory(setting: Setting, state: State) -> Need | None:
    """The least that training needs; None if that cannot be known in advance (sharded or compiled models).

    Raises MemoryRefused, in all processes of a team, if less is free. `state` stays unchanged.
    """
    if setting.recipe.shard or setting.recipe.compile:
        return None
    need = least(setting, state)
    on_gpu = setting.device.type == "cuda"

    def check() -> None:
        if on_gpu:
            place, free = f"the memory of {setting.device}", _free_on_gpu(setting.device)
            _refuse_less(setting, need, need.images + need.moments, free, place)
        processes, free = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), free_memory()
        least = need.copies if on_gpu else need.images + need.moments + need.copies
        _refuse_less(setting, need, least * processes, free, "memory")

    setting.team.from_leader(check)
    return need


def _refuse_less(setting: Setting, need: Need, least: int, free: int | None, place: str) -> None:
    """Raises MemoryRefused if less than `least` is free; warns if what is free may not suffice."""
    if free is None:
        return
    of_it = f"{in_words(need.images)} of it for a step of {_step_in_words(setting)}"
    if least > free:
        raise MemoryRefused(
            f"training needs at least {in_words(least)} of {place}, {of_it}, and {in_words(free)} are free; {_ADVICE}"
        )
    if least * _USUAL > free:
        setting.progress.line(
            f"{in_words(free)} of {place} may not suffice: training needs at least {in_words(least)}, {of_it}; if it "
            f"fails, {_ADVICE}"
        )


def _step_in_words(setting: Setting) -> str:
    recipe, images = setting.recipe, setting.data.train.images
    height, width = images.shape[2:]
    return f"{step_images(recipe, len(images))} images {height} x {width} through {recipe.model}"


def _free_on_gpu(device: torch.device) -> int | None:
    """Bytes free for this process, including those that torch holds but does not use."""
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + unused


def least(setting: Setting, state: State) -> Need:
    """The least that training needs, from forward passes of a few images: what they keep grows with their number."""
    recipe, team = setting.recipe, setting.team
    weights = sum(p.numel() * p.element_size() for p in state.model.parameters() if p.requires_grad)
    moments = weights * (1 if recipe.optimizer == "muon" else 2)  # AdamW keeps two numbers per weight
    images = step_images(recipe, len(setting.data.train))
    part = len(torch.empty(images).chunk(recipe.accumulate)[0])
    part = -(-part // team.size)
    few, more = (_kept_by(setting, state, count) for count in (_FEW, 2 * _FEW))
    each = max(0, more - few) / _FEW
    return Need(int(max(0, few + each * (part - _FEW))), moments, 2 * weights + moments)


def _kept_by(setting: Setting, state: State, count: int) -> int:
    """Bytes that a forward pass of `count` images keeps for the backward pass, without the parameters."""
    model, device, dtype = state.model, setting.device, setting.dtype
    known = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]  # a forward pass moves running means
    train = setting.data.train.images
    images = take_rows(train, torch.arange(count, device=train.device) % len(train)).to(device)
    was_training = model.training
    model.train()
    try:
        with (
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
            torch.autocast(device.type, dtype, enabled=dtype != torch.float32),
        ):
            logits = model(normalize(images, setting.data.mean, setting.data.std))
        del logits  # until here the graph holds what was counted, so no address repeats
    finally:
        model.train(was_training)
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)
    return sum(kept.values())


def measured_in_words(setting: Setting, need: Need | None) -> str:
    """The most memory that the process has taken so far, plus the copies of `need`; empty if unknown."""
    parts = []
    if setting.device.type == "cuda":
        parts.append(f"{in_words(torch.cuda.max_memory_reserved(setting.device))} of the GPU's memory")
    peak = peak_memory()
    if peak is not None:
        parts.append(f"{in_words(peak + (0 if need is None else need.copies))} of memory")
    return " and ".join(parts) + (" in each process" if parts and setting.team.size > 1 else "")
