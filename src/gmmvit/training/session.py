"""What a training starts from: device, data, model, optimiser, and the state that its checkpoint keeps."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gmmvit.augment import Augment
from gmmvit.building import check_model, start_model
from gmmvit.config import Recipe, RecipeError, fields_of
from gmmvit.data import Dataset
from gmmvit.data.records import listing
from gmmvit.data.several import class_counts
from gmmvit.device import choose_device, choose_dtype
from gmmvit.distributed import Team, full_weights, load_optimizer_state, load_weights, optimizer_state, wrap
from gmmvit.runs.checkpoint import empty_model
from gmmvit.runs.run_data import describe_data, load_data, with_recorded_pixels
from gmmvit.runs.run_folder import load_config
from gmmvit.tasks import WORDS, SeveralLabels, Task, positive_weights, task_of
from gmmvit.training.optim import (
    Average,
    check_optimizer_state,
    make_average,
    make_optimizer,
    plain_groups,
    rates_as_tensors,
)
from gmmvit.training.progress import Progress, require_loggers
from gmmvit.training.sampling import balanced_weights
from gmmvit.training.step import Step, recordable

_SHOWN = 12  # classes whose image counts are shown at the start
_UNEVEN = 5  # warn if the largest class has this many times the images of the smallest
_FEW = 50  # warn below this many validation images, where one is more than 2 %


@dataclass
class State:
    """What changes while a model trains; `persistent` is what the checkpoint keeps of it."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    average: Average | None
    scaler: torch.amp.GradScaler
    step: Step
    epoch: int = 0  # finished epochs
    kept: int = 0  # epochs whose files are safe
    images_seen: int = 0
    train_s: float = 0.0
    wall_s: float = 0.0
    core_s: float = 0.0  # CPU time of all threads, kernel included
    best: dict[str, Any] = field(default_factory=lambda: {"epoch": 0, "weights": {}})

    def evaluated(self) -> nn.Module:
        """The model whose weights are validated and kept: the average if there is one."""
        return self.model if self.average is None else self.average.module

    def persistent(self) -> dict[str, Any]:
        """A copy on the CPU, which further steps do not change."""
        average = None if self.average is None else full_weights(self.average)
        plain = {name: getattr(self, name) for name in ("epoch", "images_seen", "train_s", "wall_s", "core_s", "best")}
        return plain | {
            "model": full_weights(self.model),
            "optimizer": plain_groups(optimizer_state(self.model, self.optimizer)),
            "average": average,
            "scaler": self.scaler.state_dict(),
        }

    def restore(self, saved: dict[str, Any]) -> None:
        """Raises KeyError, TypeError, ValueError or RuntimeError if `persistent` of such a model did not make it."""
        check_optimizer_state(self.optimizer, saved["optimizer"])
        load_weights(self.model, saved["model"])
        load_optimizer_state(self.model, self.optimizer, saved["optimizer"])
        rates_as_tensors(self.optimizer)
        self.step.forget()
        self.scaler.load_state_dict(saved["scaler"])
        if self.average is not None:
            self.average.load_state_dict(saved["average"])
        self.core_s = saved.get("core_s", 0.0)  # missing in the checkpoints of older versions
        for name in ("epoch", "images_seen", "train_s", "wall_s", "best"):
            setattr(self, name, saved[name])
        self.kept = self.epoch


@dataclass(frozen=True)
class Setting:
    """What stays the same while a model trains."""

    recipe: Recipe
    folder: Path
    data: Dataset
    device: torch.device
    dtype: torch.dtype
    augment: Augment
    steps_per_epoch: int
    progress: Progress
    team: Team
    task: Task


def step_images(recipe: Recipe, train_images: int) -> int:
    """Images in one optimiser step; a training set smaller than that makes one step."""
    return min(recipe.batch_size * recipe.accumulate, train_images * recipe.passes)


def steps_per_epoch(recipe: Recipe, train_images: int) -> int:
    """Optimiser steps in an epoch, without images that do not fill a step."""
    return max(1, train_images * recipe.passes // step_images(recipe, train_images))


def seed_everything(seed: int, epoch: int, rank: int = 0) -> torch.Generator:
    """Seeds torch and returns a generator, both from (seed, epoch): an epoch draws the same whether or not the training
    was interrupted before it. All processes of a team get the same generator, but each its own seed of torch."""
    mixed = int(torch.randint(2**62, (epoch + 1,), generator=torch.Generator().manual_seed(seed))[-1])
    torch.manual_seed(mixed + 2 * rank)
    return torch.Generator().manual_seed(mixed + 1)


def _on_device(data: Dataset, device: torch.device) -> Dataset:
    """The data set in the device's memory if it takes less than half of what is free there."""
    if device.type != "cuda":
        return data
    parts = {name: getattr(data, name) for name in ("train", "val", "test")}
    size = sum(part.images.nbytes for part in parts.values() if part is not None)
    if size > torch.cuda.mem_get_info(device)[0] // 2:
        return data
    moved = {
        name: dataclasses.replace(part, images=part.images.to(device), labels=part.labels.to(device))
        for name, part in parts.items()
        if part is not None
    }
    return dataclasses.replace(data, **moved)


def make_augment(recipe: Recipe, data: Dataset) -> Augment:
    """The recipe's augmentation; the data set decides what the recipe leaves open."""
    balanced = recipe.class_weights == "balanced" and not data.several  # several labels: the loss has the weights
    weights = balanced_weights(data.train.labels, len(data.classes)).tolist() if balanced else None
    options = {name: getattr(recipe, name) for name in fields_of("Augmentation")}
    options["flip"] = data.flip if recipe.flip is None else recipe.flip
    options["policy"] = recipe.policy or data.policy
    return Augment(num_classes=len(data.classes), mean=data.mean, std=data.std, class_weights=weights, **options)


def make_task(recipe: Recipe, data: Dataset, device: torch.device) -> Task:
    """The task that the labels call for, with the recipe's weights.

    Raises RecipeError for fields that make no sense if an image may have several labels.
    """
    task = task_of(data.train.labels)
    try:
        task.selected(recipe.select)
    except ValueError as error:
        raise RecipeError(str(error)) from None
    if not data.several:
        return task
    if recipe.sampling == "balanced":
        raise RecipeError(
            "sampling balanced draws every class equally often, which images with several labels do not allow: take "
            "--class-weights balanced"
        )
    if recipe.class_weights == "none":
        return task
    counts = torch.from_numpy(class_counts(data.train.labels, len(data.classes)))
    return SeveralLabels(positive=positive_weights(counts, len(data.train)).to(device))


def _compiled(model: nn.Module, own_graphs: bool) -> Callable[[Tensor], Tensor]:
    """The model as fused kernels, with CUDA graphs of its own unless the whole step is one: without any, a small model
    waits for launches."""
    return torch.compile(model, mode="reduce-overhead" if own_graphs else None)


def _check_team(recipe: Recipe, team: Team) -> None:
    """Raises RecipeError for what several processes, or shards of a model, cannot do."""
    if recipe.batch_size < team.size:
        raise RecipeError(
            f"batch_size is that of all processes together: at least {team.size} for {team.size} processes, got "
            f"{recipe.batch_size}"
        )
    if recipe.shard and recipe.ema is not None:
        raise RecipeError("shard and ema do not go together: an average of the weights would need a second model")


def _held_out(data: Dataset) -> str:
    parts = {"validation": data.val, "test": data.test}
    return "".join(f", {len(part):,} {name} images" for name, part in parts.items() if part is not None)


def class_lines(data: Dataset, recipe: Recipe) -> list[str]:
    """The training images of each class, and a warning if their numbers differ much or another part lacks a label."""
    counts = class_counts(data.train.labels, len(data.classes)).tolist()
    order = sorted(range(len(counts)), key=lambda number: -counts[number])
    shown = [f"{data.classes[number]} {counts[number]:,}" for number in order]
    if len(shown) > _SHOWN:
        shown[_SHOWN // 2 : -_SHOWN // 2] = ["..."]
    lines = ["training images of the classes: " + ", ".join(shown)]
    if data.several:
        return lines + _label_lines(data, recipe)
    most, least = counts[order[0]], counts[order[-1]]
    if most >= _UNEVEN * least and "balanced" not in (recipe.class_weights, recipe.sampling):
        lines.append(
            f"the classes are uneven ({most:,} to {least:,} images): top-1 hardly sees the small ones, macro F1 does; "
            "--class-weights balanced or --sampling balanced weighs all alike, --select macro_f1 chooses by it"
        )
    return lines


def _label_lines(data: Dataset, recipe: Recipe) -> list[str]:
    task, none = task_of(data.train.labels), int((data.train.labels.sum(1) == 0).sum())
    lines = [
        f"an image may have several labels ({none:,} training images have none): a sigmoid for each, the best epoch is "
        f"that of the highest {WORDS[task.selected(recipe.select)]}"
    ]
    for name, part in (("validation", data.val), ("test", data.test)):
        counts = [] if part is None else class_counts(part.labels, len(data.classes)).tolist()
        lacking = [label for label, count in zip(data.classes, counts, strict=False) if not count]
        if lacking:
            lines.append(f"no {name} image has the label {listing(lacking)}: {WORDS['map']} is over the others")
    return lines


def prepare(
    recipe: Recipe,
    folder: Path,
    progress: Progress,
    team: Team | None = None,
    *,
    data: Dataset | None = None,
    resumed: bool = False,
) -> tuple[Setting, State, dict[str, dict[str, Any]]]:
    """Loads the data unless given, and builds the model and everything around it; writes nothing.

    A `resumed` run has a checkpoint: its model is that of its config.yaml, with random weights.
    Also returns what config.yaml records: "model", from which `build_model` rebuilds the model, and "data".
    """
    team = team or Team()
    _check_team(recipe, team)
    if recipe.shard and team.size == 1:
        progress.line("shard has no effect in one process: torchrun starts several")
    if not resumed:
        check_model(recipe)
    require_loggers(recipe.loggers)
    if recipe.threads:
        torch.set_num_threads(recipe.threads)
    torch.use_deterministic_algorithms(recipe.deterministic)
    device = choose_device(recipe.device)
    dtype = choose_dtype(recipe.dtype, device)
    if data is None:
        report = progress.notice if team.leads else None
        read = with_recorded_pixels(recipe, load_config(folder)["data"]) if resumed else recipe
        data = _on_device(team.leader_first(lambda: load_data(read, report)), device)
    if recipe.patience is not None and data.val is None:
        raise RecipeError(
            f"patience needs a validation part, and {recipe.dataset} has none here: hold images out with "
            "--val-fraction 0.1, or drop --patience"
        )
    task = make_task(recipe, data, device)
    described = describe_data(data, recipe.fit)
    seed_everything(recipe.seed, 0)
    if resumed:
        options, model = load_config(folder)["model"], empty_model(folder)
    else:
        options, model = start_model(recipe, described, progress.line)
    model = model.to(device)
    wrapped = wrap(model, team, recipe.shard)
    forward: Callable[[Tensor], Tensor] = wrapped
    if recipe.compile:
        forward = _compiled(wrapped, device.type == "cuda" and not recordable(recipe, device, team))
    optimizer, average = make_optimizer(model, recipe, dtype), make_average(model, recipe.ema)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    step = Step(forward, model, optimizer, average, scaler, recipe, dtype, device, team, task)
    state = State(model, optimizer, average, scaler, step)
    setting = Setting(
        recipe=recipe,
        folder=folder,
        data=data,
        device=device,
        dtype=dtype,
        augment=make_augment(recipe, data),
        steps_per_epoch=steps_per_epoch(recipe, len(data.train)),
        progress=progress,
        team=team,
        task=task,
    )
    height, width = described["image_size"]
    parameters = sum(p.numel() for p in model.parameters())
    progress.line(
        f"{recipe.model} with mask {recipe.mask}, {parameters:,} parameters, on {device} in {str(dtype)[6:]}; "
        f"{recipe.dataset}: {len(data.train):,} training images {height} x {width}, {len(data.classes)} classes"
        f"{_held_out(data)}"
    )
    for line in class_lines(data, recipe):
        progress.line(line)
    if recipe.train_on_all:
        progress.line("the validation images train too: nothing chooses a best epoch, the last one is kept")
    if data.val is not None and len(data.val) < _FEW:
        progress.line(
            f"{len(data.val)} validation images are few to choose the best epoch by: look at the last epoch too, or "
            "hold out more with --val-fraction"
        )
    return setting, state, {"model": options, "data": described}
