"""Training: the step and the epoch on one screen, then what they need.

Letters: B batch, C channels.
"""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gmmvit import checkpoint, run_folder
from gmmvit.config import Recipe, as_dict
from gmmvit.data import Split
from gmmvit.evaluate import predict, scores
from gmmvit.masks import is_mask_parameter
from gmmvit.optim import learning_rate, set_learning_rate
from gmmvit.progress import Progress, clock, open_loggers
from gmmvit.session import Setting, State, TrainingError, absolute_paths, prepare, seed_everything, step_images


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
    loggers = open_loggers(recipe.loggers, folder, as_dict(recipe))
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
        _check_good(row, state, recipe)
        weights = {name: tensor.detach().cpu().clone() for name, tensor in state.evaluated().state_dict().items()}
        if row.get("val_top1", float("inf")) > state.best["val_top1"]:  # without a validation part: the last epoch
            state.best = {"epoch": state.epoch, "val_top1": row.get("val_top1", -1.0), "weights": weights}
        run_folder.append_row(folder, row)
        checkpoint.save_checkpoint(folder, state.persistent() | {"recipe": as_dict(recipe)})
        _save_weights(setting, state)
        setting.progress.line(_epoch_line(row, recipe, setting.progress.time_left()))
        for log in loggers:
            log(row)
    summary = _summary(setting, state)
    run_folder.write_json(folder / run_folder.SUMMARY, summary)
    return summary


def _epoch_line(row: dict[str, Any], recipe: Recipe, left: str) -> str:
    val = f"  val {row['val_top1']:.2%}" if "val_top1" in row else ""
    return (
        f"epoch {row['epoch']:>3}/{recipe.epochs}  loss {row['train_loss']:.3f}  train {row['train_top1']:.2%}{val}"
        f"  {row['images_per_s']:,.0f} images/s  left {left}"
    )


def _save_weights(setting: Setting, state: State) -> None:
    """Writes the best and the last weights; the checkpoint holds both, so that it alone decides what a run is."""
    metadata = {"family": setting.recipe.model, "mask": setting.recipe.mask}
    for which, weights in (("best", state.best["weights"]), ("last", state.evaluated().state_dict())):
        checkpoint.save_weights(setting.folder / run_folder.WEIGHTS[which], weights, metadata)


def _check_finite(loss: Tensor, epoch: int, step: int, recipe: Recipe) -> None:
    if not torch.isfinite(loss):
        raise _diverged(f"the loss became {loss.item()} in epoch {epoch + 1} by step {step + 1}", epoch, recipe)


def _check_good(row: dict[str, Any], state: State, recipe: Recipe) -> None:
    """Raises TrainingError where an epoch ended in NaN, before anything of it is kept."""
    weights = all(bool(torch.isfinite(p).all()) for p in state.evaluated().parameters())
    if not weights or not run_folder.all_finite(row):
        what = "the validation loss is" if weights else "some weights are"
        raise _diverged(f"{what} not finite after epoch {row['epoch']}", row["epoch"] - 1, recipe)


def _diverged(what: str, kept: int, recipe: Recipe) -> TrainingError:
    return TrainingError(
        f"{what}; train again with a lower --lr (it was {recipe.lr:g}), --clip-norm 1 or --dtype float32. "
        + (f"The checkpoint of epoch {kept} is kept" if kept else "No epoch was finished")
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
        "passes": recipe.passes,
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
        "versions": run_folder.versions(),
    }


def _run(setting: Setting, state: State) -> dict[str, Any]:
    steps, progress = setting.steps_per_epoch, setting.progress
    progress.begin(setting.recipe.epochs * steps, state.epoch * steps)
    try:
        summary = fit(setting, state)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"interrupted after epoch {state.epoch}; `gmmvit resume {setting.folder}` goes on from there"
        ) from None
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
    run_folder.check_free(folder, overwrite=overwrite)
    recipe = absolute_paths(recipe)
    setting, state, described = prepare(recipe, folder, quiet)
    with run_folder.locked(folder):
        run_folder.check_free(folder, overwrite=overwrite)
        run_folder.clear(folder)
        run_folder.save_config(folder, recipe, **described)
        return _run(setting, state)


def resume(folder: str | Path, *, quiet: bool = False) -> dict[str, Any]:
    """Continues an interrupted training from its last finished epoch; a finished one is left as it is.

    On the CPU the result is bit for bit that of a training that was never interrupted. Returns and raises as `train`.
    """
    folder = Path(folder)
    recipe = run_folder.recipe_of(folder)
    with run_folder.locked(folder):
        saved = checkpoint.load_checkpoint(folder, recipe)
        run_folder.read_rows(folder)  # a damaged file is told before any work
        summary = run_folder.read_summary(folder)
        if summary is not None and saved is not None and saved["epoch"] >= recipe.epochs:
            Progress(quiet).line(f"{folder} is finished: {recipe.epochs} epochs")
            return summary
        if summary is not None and saved is None:
            source = summary.get("converted_from", "a training whose checkpoint is gone")
            raise run_folder.RunError(f"{folder} cannot be resumed: its weights are from {source}; train anew")
        setting, state, described = prepare(recipe, folder, quiet)
        _check_same_data(folder, described["data"])
        if saved is not None:
            _restore(state, saved, folder)
            _save_weights(setting, state)
        run_folder.rewind_rows(folder, state.epoch)
        setting.progress.line(f"resuming {folder} after epoch {state.epoch} of {recipe.epochs}")
        return _run(setting, state)


def _restore(state: State, saved: dict[str, Any], folder: Path) -> None:
    try:
        state.restore(saved)
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        path = folder / run_folder.CHECKPOINT
        raise run_folder.RunError(f"{path} does not fit the model of {run_folder.CONFIG}: {reason}") from None


def _check_same_data(folder: Path, now: dict[str, Any]) -> None:
    """Raises RunError where the data is not what the run began with: other images would be learned as its classes."""
    before = run_folder.load_config(folder)["data"]
    changed = [name for name in now if before.get(name) != now[name]]
    if changed:
        raise run_folder.RunError(
            f"the data of {folder} has changed since the training began ({', '.join(changed)} differ); put it back to "
            "resume, or train anew"
        )
