"""Training: the step and the epoch on one screen, then what they need.

Letters: B batch, C channels.
"""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gmmvit import checkpoint
from gmmvit.config import Recipe
from gmmvit.data import Split
from gmmvit.evaluate import predict, scores
from gmmvit.optim import is_mask_parameter, learning_rate, set_learning_rate
from gmmvit.progress import clock
from gmmvit.session import Setting, State, TrainingError, prepare, seed_everything, step_images


def train_epoch(setting: Setting, state: State) -> dict[str, float]:
    """One epoch: augment, forward, loss, backward, step. Returns the mean loss and the accuracy on augmented images."""
    recipe, device = setting.recipe, setting.device
    generator = seed_everything(recipe.seed, state.epoch)
    sums = torch.zeros(2, dtype=torch.float64, device=device)  # loss, hits
    state.model.train()
    seen = 0
    for step, (images, labels) in enumerate(batches(setting.data.train, setting, generator)):
        set_learning_rate(
            state.optimizer,
            learning_rate(state.epoch * setting.steps_per_epoch + step, setting.steps_per_epoch, recipe),
        )
        for part, part_labels in zip(images.chunk(recipe.accumulate), labels.chunk(recipe.accumulate), strict=True):
            inputs, targets = setting.augment(part.to(device), part_labels.to(device), generator)
            with torch.autocast(device.type, setting.dtype, enabled=setting.dtype != torch.float32):
                logits = setting.forward(inputs)
                loss = nn.functional.cross_entropy(logits.float(), targets)
            state.scaler.scale(loss * (len(part) / len(images))).backward()
            hits = (logits.detach().argmax(1) == targets.argmax(1)).sum()
            sums += torch.stack([loss.detach().double() * len(part), hits.double()])
        _optimizer_step(state, recipe)
        seen += len(images)
        if device.type == "cpu" or step % 50 == 49:  # on a GPU the check waits for the device, hence not every step
            _check_finite(sums[0], state.epoch, step, recipe)
        if setting.progress.advance():
            loss_so_far, top1_so_far = (sums / seen).tolist()
            setting.progress.show(
                f"epoch {state.epoch + 1}/{recipe.epochs} step {step + 1}/{setting.steps_per_epoch}"
                f"  loss {loss_so_far:.3f}  train {top1_so_far:.1%}"
            )
    _check_finite(sums[0], state.epoch, setting.steps_per_epoch, recipe)
    loss_mean, accuracy = (sums / seen).tolist()
    state.images_seen += seen
    return {"train_loss": loss_mean, "train_top1": accuracy}


def _optimizer_step(state: State, recipe: Recipe) -> None:
    if recipe.clip_norm is not None:
        state.scaler.unscale_(state.optimizer)
        nn.utils.clip_grad_norm_(state.model.parameters(), recipe.clip_norm)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    state.optimizer.zero_grad(set_to_none=True)
    if state.average is not None:
        state.average.update_parameters(state.model)


def fit(setting: Setting, state: State) -> dict[str, Any]:
    """All epochs that are left, each validated, logged and checkpointed; then the test. Returns the summary."""
    recipe, folder = setting.recipe, setting.folder
    for _ in range(state.epoch, recipe.epochs):
        start, seen = time.perf_counter(), state.images_seen
        row: dict[str, Any] = {"epoch": state.epoch + 1, **train_epoch(setting, state)}
        seconds = time.perf_counter() - start
        state.epoch += 1
        state.train_s += seconds
        if setting.data.val is not None:
            logits = predict(state.evaluated(), setting.data.val, setting.data, setting.device, setting.dtype)
            row |= {f"val_{name}": value for name, value in scores(logits, setting.data.val.labels).items()}
        row |= {"lr": state.optimizer.param_groups[0]["lr"], "images_per_s": (state.images_seen - seen) / seconds}
        state.wall_s += time.perf_counter() - start
        row["wall_s"] = state.wall_s
        weights = {name: tensor.detach().cpu().clone() for name, tensor in state.evaluated().state_dict().items()}
        if row.get("val_top1", float("inf")) > state.best["val_top1"]:  # without a validation part: the last epoch
            state.best = {"epoch": state.epoch, "val_top1": row.get("val_top1", -1.0), "weights": weights}
        checkpoint.append_row(folder, row)
        checkpoint.save_checkpoint(folder, state.persistent())
        _save_weights(setting, state.best["weights"], "best")
        _save_weights(setting, weights, "last")
        setting.progress.line(_epoch_line(row, recipe, setting.progress.time_left()))
        for log in setting.loggers:
            log(row)
    summary = _summary(setting, state)
    checkpoint.write_json(folder / checkpoint.SUMMARY, summary)
    return summary


def _epoch_line(row: dict[str, Any], recipe: Recipe, left: str) -> str:
    val = f"  val {row['val_top1']:.2%}" if "val_top1" in row else ""
    return (
        f"epoch {row['epoch']:>3}/{recipe.epochs}  loss {row['train_loss']:.3f}  train {row['train_top1']:.2%}{val}"
        f"  {row['images_per_s']:,.0f} images/s  left {left}"
    )


def _save_weights(setting: Setting, weights: dict[str, Tensor], which: str) -> None:
    metadata = {"family": setting.recipe.model, "mask": setting.recipe.mask}
    checkpoint.save_weights(setting.folder / checkpoint.WEIGHTS[which], weights, metadata)


def _check_finite(loss: Tensor, epoch: int, step: int, recipe: Recipe) -> None:
    if not torch.isfinite(loss):
        raise TrainingError(
            f"the loss became {loss.item()} in epoch {epoch + 1} by step {step + 1}; "
            f"try a lower learning rate (now {recipe.lr:g}), --clip-norm 1 or --dtype float32. "
            + (f"The checkpoint of epoch {epoch} is kept" if epoch else "No epoch was finished")
        )


def batches(split: Split, setting: Setting, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches of one epoch: `passes` shuffled sweeps one after another, the remainder left out."""
    recipe, count = setting.recipe, len(split)
    order = torch.cat([torch.randperm(count, generator=generator) for _ in range(recipe.passes)])
    size = step_images(recipe, count)
    for chosen in order[: setting.steps_per_epoch * size].split(size):
        yield split.images[chosen], split.labels[chosen]


def _summary(setting: Setting, state: State) -> dict[str, Any]:
    recipe, data = setting.recipe, setting.data
    parameters = {name: p.numel() for name, p in state.model.named_parameters() if p.requires_grad}
    last = {name: tensor.clone() for name, tensor in state.evaluated().state_dict().items()}
    test: dict[str, float | None] = {"best": None, "last": None}
    if data.test is not None:
        for which, weights in (("last", last), ("best", state.best["weights"])):
            state.evaluated().load_state_dict(weights)
            logits = predict(state.evaluated(), data.test, data, setting.device, setting.dtype)
            test[which] = scores(logits, data.test.labels)["top1"]
        state.evaluated().load_state_dict(last)
    return {
        "model": recipe.model,
        "mask": recipe.mask,
        "dataset": recipe.dataset,
        "num_parameters": sum(parameters.values()),
        "mask_parameters": sum(count for name, count in parameters.items() if is_mask_parameter(name)),
        "epochs": recipe.epochs,
        "passes": recipe.passes * recipe.epochs,
        "images_seen": state.images_seen,
        "train_images": len(data.train),
        "train_images_per_s": round(state.images_seen / max(state.train_s, 1e-9), 1),
        "wall_s": round(state.wall_s, 1),
        "device": torch.cuda.get_device_name(setting.device) if setting.device.type == "cuda" else setting.device.type,
        "dtype": str(setting.dtype).removeprefix("torch."),
        "seed": recipe.seed,
        "best_epoch": state.best["epoch"],
        "val_top1": None if data.val is None else state.best["val_top1"],
        "test_top1_best": test["best"],
        "test_top1_last": test["last"],
        "versions": checkpoint.versions(),
    }


def _run(setting: Setting, state: State) -> dict[str, Any]:
    progress = setting.progress
    progress.total = setting.recipe.epochs * setting.steps_per_epoch
    progress.first = progress.step = state.epoch * setting.steps_per_epoch
    progress.start = time.monotonic()
    summary = fit(setting, state)
    shown = {name: summary[name] for name in ("val_top1", "test_top1_best", "test_top1_last")}
    words = ", ".join(f"{name} {value:.2%}" for name, value in shown.items() if value is not None)
    progress.line(f"done in {clock(state.wall_s)}: {words}  ->  {setting.folder}")
    return summary


def train(
    recipe: Recipe, out: str | Path | None = None, *, overwrite: bool = False, quiet: bool = False
) -> dict[str, Any]:
    """Trains a model and writes its run folder.

    Args:
        recipe: from `gmmvit.load_recipe`.
        out: run folder, runs/DATASET-MODEL-MASK-sSEED by default; one that holds files is refused.
        overwrite: replace an old run (only the files that a run writes).
        quiet: no progress on standard error.

    Returns:
        The content of summary.json; accuracies as fractions.

    Raises:
        ValueError (RecipeError, DataError), RunError, TrainingError: one sentence each.
    """
    name = "-".join([recipe.dataset.rstrip("/").replace(":", "-").rpartition("/")[2], recipe.model, recipe.mask])
    folder = Path(out) if out is not None else Path("runs") / f"{name}-s{recipe.seed}"

    def create(model: dict[str, Any], data: dict[str, Any]) -> None:
        checkpoint.create_run(folder, overwrite=overwrite)
        checkpoint.save_config(folder, recipe, model, data)

    return _run(*prepare(recipe, folder, quiet, create))


def resume(folder: str | Path, *, quiet: bool = False) -> dict[str, Any]:
    """Continues an interrupted training from its last finished epoch; a finished one is left as it is.

    On the CPU the result is bit for bit that of a training that was never interrupted. Returns and raises as `train`.
    """
    folder = Path(folder)
    recipe = checkpoint.recipe_of(folder)
    saved = checkpoint.load_checkpoint(folder)
    setting, state = prepare(recipe, folder, quiet, lambda model, data: None)
    if saved is not None:
        state.restore(saved)
    checkpoint.rewind_rows(folder, state.epoch)
    setting.progress.line(f"resuming {folder} after epoch {state.epoch} of {recipe.epochs}")
    return _run(setting, state)
