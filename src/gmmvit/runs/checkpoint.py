"""Weights and checkpoints of a run, and loading a trained model from them."""

import dataclasses
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save
from torch import Tensor, nn

from gmmvit.attach.saved import SITE
from gmmvit.augment import normalize
from gmmvit.building import build_model, first_line
from gmmvit.checks import one_of
from gmmvit.config import Recipe, as_dict, fields_of
from gmmvit.data import DataError, decode_image, each_image
from gmmvit.runs.ensemble import Ensemble
from gmmvit.runs.files import RunError, is_there, replace_file, write_whole
from gmmvit.runs.predictions import Predictions
from gmmvit.runs.run_folder import (
    ANEW,
    CHECKPOINT,
    CONFIG,
    SUMMARY,
    WEIGHTS,
    as_folder,
    fold_folders,
    is_folds,
    load_config,
    read_rows,
    recipe_of,
    recipe_of_folds,
)
from gmmvit.tasks import ONE_LABEL, TASKS, SeveralLabels, Task, at_threshold
from gmmvit.text import short
from gmmvit.weight_files import load_safetensors, not_finite


def save_weights(path: Path, state: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Writes a state_dict as safetensors."""
    write_whole(path, save({name: tensor.detach().contiguous().cpu() for name, tensor in state.items()}, metadata))


def save_checkpoint(folder: Path, state: dict[str, Any]) -> None:
    """Writes all that a resumed training needs to one file."""
    replace_file(folder / CHECKPOINT, lambda file: torch.save(state, file))


def load_checkpoint(folder: Path, recipe: Recipe) -> dict[str, Any] | None:
    """The state that `save_checkpoint` wrote, on the CPU; None if no epoch has finished.

    Reads only tensors and plain values. Raises RunError if the file is missing, damaged, or from another recipe.
    """
    path = folder / CHECKPOINT
    if not is_there(path):
        if len(read_rows(folder)) > 1:  # the first row may precede the first checkpoint
            raise RunError(f"{path} is missing, so {folder} cannot be resumed; {ANEW}")
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except PermissionError as error:
        raise RunError(f"cannot read {path}: {error.strerror}") from None
    except Exception as error:
        raise RunError(f"{path} is damaged and cannot be resumed from: it is not a whole checkpoint") from error
    kinds: dict[str, Any] = dict.fromkeys(("model", "optimizer", "best", "recipe", "scaler"), dict)
    kinds |= {"epoch": int, "images_seen": int, "average": dict | None}
    if not isinstance(state, dict) or not all(isinstance(state.get(name), kind) for name, kind in kinds.items()):
        raise RunError(f"{path} is damaged and cannot be resumed from: it is not a training state")
    _check_same_recipe(path, state["recipe"], as_dict(recipe))
    _check_tensors(path, state)
    return state


def _check_tensors(path: Path, state: dict[str, Any]) -> None:
    """Raises RunError for weights with NaN or infinity, and for best weights of another model."""
    fault = f"{path} is damaged and cannot be resumed from"
    cure = f"restore a copy of it, or {ANEW}"
    model, best = state["model"], state["best"].get("weights")
    fits = isinstance(best, dict) and _shapes(best) == _shapes(model) and "epoch" in state["best"]
    if not fits:
        raise RunError(f"{fault}: its best weights do not belong to its model; {cure}")
    for part, weights in (("model", model), ("best", best), ("average", state.get("average") or {})):
        if (name := not_finite(weights)) is not None:
            raise RunError(f"{fault}: {name} ({part}) holds numbers that are not finite; {cure}")


def _shapes(weights: dict[str, Any]) -> dict[str, Any]:
    """Shapes of all weights except the marks of attached masks, whose sizes differ in older files."""
    return {
        name: tensor.shape if isinstance(tensor, Tensor) else None
        for name, tensor in weights.items()
        if not name.endswith(SITE)
    }


# Where a training runs and what it prints may change on resuming; what affects its result may not.
_MAY_CHANGE = fields_of("movable")


def changed_fields(saved: dict[str, Any], now: dict[str, Any]) -> str:
    """A phrase naming the changed recipe fields that affect a training's result; empty if none changed."""
    saved = as_dict(Recipe()) | saved  # fields newer than the run have their defaults
    changed = [name for name in now if name not in _MAY_CHANGE and saved[name] != now[name]]
    return ", ".join(f"{name} was {saved[name]!r} and is {now[name]!r}" for name in changed)


def _check_same_recipe(path: Path, saved: dict[str, Any], now: dict[str, Any]) -> None:
    # `resume` may ask for more epochs, and then changes these fields itself.
    if words := changed_fields(saved | {name: now[name] for name in ("epochs", "restarts")}, now):
        raise RunError(f"{path.parent / CONFIG} has changed since the training started ({words}); restore it to resume")


def empty_model(folder: Path) -> nn.Module:
    """The model that config.yaml describes, with random weights.

    Raises RunError if it does not describe a model, ModuleNotFoundError if the model's library is not installed.
    """
    try:
        return build_model(load_config(folder)["model"])
    except (TypeError, ValueError) as error:
        raise RunError(f"{folder / CONFIG} does not describe a model: {error}") from None


@dataclass(frozen=True)
class LoadedRun:
    """A trained model, in eval mode, with everything its predictions need.

    `image_size` is (height, width) in pixels, `bits` those of a level (8 or 16), `mean` and `std` are per channel in
    0..1, `classes` are in logit order.
    """

    folder: Path
    model: nn.Module
    recipe: Recipe
    classes: tuple[str, ...]
    image_size: tuple[int, int]
    channels: int
    bits: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fit: str
    fingerprints: dict[str, str]
    device: torch.device
    task: Task = ONE_LABEL

    @torch.no_grad()
    def logits(self, images: Tensor, batch_size: int = 256) -> Tensor:
        """Images [N, C, H, W], uint8 or uint16, -> float32 logits [N, classes] on the CPU."""
        parts = [
            self.model(normalize(batch.to(self.device), self.mean, self.std)).float().cpu()
            for batch in images.split(batch_size)
        ]
        return torch.cat(parts) if parts else torch.empty(0, len(self.classes))

    def decode(self, source: Any) -> Tensor:
        """One image, in any form `decode_image` takes -> [C, H, W] as in training. Raises DataError."""
        return decode_image(
            source, size=self.image_size, channels=self.channels, bits=self.bits, fit=self.fit, axes=self.recipe.axes
        )

    def predict(
        self, images: Any, *, unknown_below: float | None = None, threshold: float | None = None, batch_size: int = 256
    ) -> Predictions:
        """Predicts the classes of one or many images, prepared as in training and computed in batches.

        Args:
            images: a path, the bytes of a file, a PIL image, an array [H, W] or [H, W, C] or a tensor [H, W] or
                [C, H, W], uint8, uint16 or floats from 0 to 1; or many: a list or other iterable of these, an array
                [N, H, W, C] or a tensor [N, C, H, W]. Sizes may differ.
            unknown_below: predict "unknown" if the highest probability is below it (`unknown_threshold` finds one).
            threshold: for a model of several labels an image, the least probability of a predicted label; default: 0.5.
            batch_size: images in memory at a time.

        Raises:
            DataError, TypeError, ValueError: an image cannot be read or is not an image (names it or its index), or an
                argument is out of range or made for the other kind of model.
        """
        if type(batch_size) is not int or not 1 <= batch_size < 2**31:
            raise ValueError(f"batch_size must be a whole number of at least 1 and below 2^31, got {short(batch_size)}")
        nothing = self.answers(unknown_below, threshold)
        parts, pixels = [nothing.probabilities], []
        for number, image in enumerate(each_image(images)):
            try:
                pixels.append(self.decode(image))
            except (DataError, TypeError, ValueError) as error:
                if isinstance(image, str | os.PathLike):  # for error messages
                    raise
                raise type(error)(f"images[{number}]: {error}") from error
            if len(pixels) == batch_size:
                parts.append(self.logits(torch.stack(pixels), batch_size))
                pixels = []
        if pixels:
            parts.append(self.logits(torch.stack(pixels), batch_size))
        return replace(nothing, probabilities=self.task.probabilities(torch.cat(parts)))

    def answers(self, unknown_below: float | None = None, threshold: float | None = None) -> Predictions:
        """Answers to no image, which others are made of; raises ValueError as `predict`."""
        task = at_threshold(self.task, threshold)
        limit = task.threshold if isinstance(task, SeveralLabels) else None
        return Predictions(self.classes, torch.empty(0, len(self.classes)), unknown_below, limit)


def load_run(folder: str | Path, *, weights: str = "best", device: str | torch.device = "cpu") -> LoadedRun:
    """Loads a trained model from its run folder; for a cross-validation, its models as an ensemble.

    Args:
        folder: what `gmmvit train --out` wrote.
        weights: "best" on the validation part, or "last".
        device: where the model goes.

    Raises:
        RunError: the folder is not a run, or its weights are missing, damaged, not finite or of another model.
        MemoryError: one of our models is larger than the free memory.
        ValueError: `weights` is neither "best" nor "last", or the device does not exist.
    """
    folder = as_folder(folder)
    one_of("weights", weights, WEIGHTS)
    try:
        torch.empty(1, device=torch.device(device)).cpu()
    except (RuntimeError, TypeError, ValueError, AssertionError) as error:
        raise ValueError(f"device must exist, such as cpu or cuda, got {short(device)}") from error
    if is_folds(folder):
        return _load_ensemble(folder, weights, device)
    data = load_config(folder)["data"]
    model = empty_model(folder)
    path = folder / WEIGHTS[weights]
    if not path.is_file():
        raise RunError(f"{folder} has no {path.name} yet: its training has not finished an epoch")
    try:
        state = load_safetensors(path)
        model.load_state_dict(state)
    except (safetensors.SafetensorError, RuntimeError) as error:
        raise RunError(f"{path} does not hold the weights of this run: {first_line(error)}") from None
    if (name := not_finite(state)) is not None:
        other = "last" if weights == "best" else "best"
        raise RunError(
            f"{path} is damaged: {name} holds numbers that are not finite; restore a copy of it, take --weights "
            f"{other} (in Python weights=), or train again"
        )
    return LoadedRun(
        folder=folder,
        model=model.to(device).eval(),
        recipe=recipe_of(folder),
        classes=tuple(data["classes"]),
        image_size=tuple(data["image_size"]),
        channels=data["channels"],
        bits=data["bits"],
        mean=tuple(data["mean"]),
        std=tuple(data["std"]),
        fit=data["fit"],
        fingerprints=data["fingerprints"],
        device=torch.device(device),
        task=TASKS[data["task"]],
    )


_SAME = ("classes", "image_size", "channels", "bits", "fit", "task")  # in the runs of all folds


def _load_ensemble(folder: Path, weights: str, device: str | torch.device) -> LoadedRun:
    """The models of all folds as an ensemble, which does its own normalisation."""
    places = fold_folders(folder)
    left = [place.name for place in places if not (place / SUMMARY).is_file()]
    if left:
        raise RunError(
            f"{folder} is not finished: {', '.join(left[:5])} of {len(places)} folds; run `gmmvit resume {folder}`"
        )
    runs = [load_run(place, weights=weights, device=device) for place in places]
    first = runs[0]
    for run in runs:
        if any(getattr(run, name) != getattr(first, name) for name in _SAME):
            raise RunError(f"{run.folder} has other classes or images than {first.folder}: they do not belong together")
    model = Ensemble([run.model for run in runs], [(run.mean, run.std) for run in runs], first.task)
    return dataclasses.replace(
        first,
        folder=folder,
        model=model.to(device).eval(),
        recipe=recipe_of_folds(folder),
        mean=(0.0,) * first.channels,
        std=(1.0,) * first.channels,
        fingerprints={},
    )
