"""The training loop: one epoch, then all of them with what they leave.

Letters: B batch, C channels.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from gmmvit.augment import steps_at_once, take_rows, to_device
from gmmvit.config import Recipe, as_dict
from gmmvit.distributed import full_weights, load_weights
from gmmvit.masks import is_mask_parameter
from gmmvit.runs import checkpoint, files, run_folder
from gmmvit.runs.evaluate import predict
from gmmvit.tasks import WORDS
from gmmvit.training.optim import learning_rate, set_learning_rate
from gmmvit.training.progress import open_loggers
from gmmvit.training.sampling import drawn
from gmmvit.training.session import Setting, State, seed_everything, step_images
from gmmvit.training.step import Parts, TrainingError
from gmmvit.training.writer import Writer
from gmmvit.weight_files import not_finite

Loggers = Sequence[Callable[[dict[str, Any]], None]]
WARM_UP = 10  # steps of an epoch in which a GPU may still compile and record its graphs


def train_epoch(setting: Setting, state: State, look: Callable[[], None] = lambda: None) -> dict[str, float]:
    """One epoch: augment, forward, loss, backward, step. Returns the mean loss and the accuracy on augmented images
    (with several labels, the fraction of labels that are right).

    `look` is called after every step.
    """
    recipe, device, team = setting.recipe, setting.device, setting.team
    start, generator = time.perf_counter(), seed_everything(recipe.seed, state.epoch, team.rank)
    sums = state.step.sums.zero_()
    watch = Watch(sums)
    state.model.train()
    first = state.epoch * setting.steps_per_epoch
    images = step_images(recipe, len(setting.data.train))
    steps = augmented(setting, generator)
    for step in range(setting.steps_per_epoch):
        with no_host_wait(device, step >= WARM_UP):
            parts = next(steps)
            set_learning_rate(state.optimizer, learning_rate(first + step, setting.steps_per_epoch, recipe))
            state.step(parts, images)
        look()
        so_far = watch.look()
        if so_far is not None:
            _check_finite(so_far[0], state.epoch, step, recipe)
        if setting.progress.advance() and so_far is not None:
            speed = (step + 1) * images / (time.perf_counter() - start)
            setting.progress.show(_step_line(setting, state, step + 1, so_far, speed))
    loss_sum, hits_sum, seen = team.total(sums).tolist()
    _check_finite(loss_sum, state.epoch, setting.steps_per_epoch, recipe)
    state.images_seen += int(seen)
    return {"train_loss": loss_sum / seen, f"train_{setting.task.trained}": hits_sum / seen}


@contextmanager
def no_host_wait(device: torch.device, warm: bool) -> Iterator[None]:
    """On a `warm` GPU, turns any operation inside that makes the host wait for the device into an error."""
    if device.type != "cuda" or not warm:
        yield
        return
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


class Watch:
    """Shows the host the sums on the device: the current ones on the CPU, on a GPU those of some steps ago, because
    reading the current ones would wait for all queued work."""

    def __init__(self, sums: Tensor) -> None:
        self.sums = sums
        self.copy = torch.zeros(sums.shape, dtype=sums.dtype, pin_memory=True) if sums.is_cuda else sums
        self.copied = torch.cuda.Event() if sums.is_cuda else None
        self.pending = False

    def look(self) -> Tensor | None:
        """The newest known sums, None if nothing is new."""
        if self.copied is None:
            return self.sums
        known = self.copy.clone() if self.pending and self.copied.query() else None
        if known is not None or not self.pending:
            self.copy.copy_(self.sums, non_blocking=True)
            self.copied.record()
            self.pending = True
        return known


def fit(setting: Setting, state: State) -> dict[str, Any]:
    """Trains, validates, logs and checkpoints each epoch that is left, then tests. Returns the summary."""
    recipe, team = setting.recipe, setting.team
    loggers = open_loggers(recipe.loggers, setting.folder, as_dict(recipe)) if team.leads else []
    with Writer(setting.progress) as writer:
        # In a team, a failed write must not end the leader while the others wait for its gradients.
        look = writer.look if team.size == 1 else writer.look_for_success
        while not is_over(recipe, state.epoch, state.best):
            row, weights = _epoch(setting, state, look)
            _hand_over(setting, state, writer, row, weights, loggers)
        team.from_leader(writer.finish)
    if state.epoch < recipe.epochs:
        setting.progress.line(_stopped_line(setting, state))
    summary = _summary(setting, state)
    team.from_leader(lambda: files.write_json(setting.folder / run_folder.SUMMARY, summary))
    return summary


def is_over(recipe: Recipe, epoch: int, best: dict[str, Any]) -> bool:
    """Whether training ends after `epoch` epochs: all are done, or patience, which restarts with the learning rate, has
    run out."""
    return epoch >= recipe.epochs or (recipe.patience is not None and _waited(recipe, epoch, best) >= recipe.patience)


def _waited(recipe: Recipe, epoch: int, best: dict[str, Any]) -> int:
    """Epochs since the validation value last rose, or since the last restart if that is later."""
    begun = max((restart for restart in recipe.restarts or () if restart <= epoch), default=0)
    return epoch - max(begun, best.get("risen", best["epoch"]))


def _stopped_line(setting: Setting, state: State) -> str:
    recipe = setting.recipe
    judged, waited = _judged(setting), _waited(recipe, state.epoch, state.best)
    return (
        f"stopped early after epoch {state.epoch} of {recipe.epochs}: {judged} has not risen above "
        f"{state.best[judged]:.2%} for {waited} {'epoch' if waited == 1 else 'epochs'}"
    )


def _judged(setting: Setting) -> str:
    """The column of the metric that chooses the best epoch."""
    return f"val_{setting.task.selected(setting.recipe.select)}"


def _epoch(setting: Setting, state: State, look: Callable[[], None]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Trains and validates an epoch. Returns its row of metrics and its weights."""
    recipe, team, data = setting.recipe, setting.team, setting.data
    start, cpu, seen = time.perf_counter(), time.process_time(), state.images_seen
    row: dict[str, Any] = {"epoch": state.epoch + 1, **train_epoch(setting, state, look)}
    seconds = time.perf_counter() - start
    state.epoch += 1
    state.train_s += seconds
    if data.val is not None:
        logits = predict(state.evaluated(), data.val, data, setting.device, setting.dtype, team)
        row |= {f"val_{name}": value for name, value in setting.task.scores(logits, data.val.labels).items()}
    lr = learning_rate(state.epoch * setting.steps_per_epoch - 1, setting.steps_per_epoch, recipe)
    row |= {"lr": lr, "images_per_s": (state.images_seen - seen) / seconds}
    state.wall_s += time.perf_counter() - start
    state.core_s += time.process_time() - cpu
    row["wall_s"] = state.wall_s
    weights = full_weights(state.evaluated())
    team.from_leader(lambda: _check_good(row, weights, recipe))
    judged = _judged(setting)
    # Of equal epochs the later one, whose rate was lower; without a validation part the last one.
    if row.get(judged, float("inf")) >= state.best.get(judged, -1.0):
        main, *others = setting.task.validated
        measured = {main: row.get(main, -1.0)} | {name: row[name] for name in others if name in row}
        # Patience counts from the first epoch with this value: a small validation part often repeats one.
        same = row.get(judged) == state.best.get(judged) and "risen" in state.best
        risen = state.best["risen"] if same else state.epoch
        state.best = {"epoch": state.epoch, "risen": risen, "weights": weights} | measured
    return row, weights


def _hand_over(
    setting: Setting, state: State, writer: Writer, row: dict[str, Any], last: dict[str, Tensor], loggers: Loggers
) -> None:
    """Starts writing an epoch's files once those of the last epoch are safe; reports it once its own are."""
    setting.team.from_leader(writer.finish)  # before the copy, so that only one exists
    state.kept = state.epoch - 1
    saved = state.persistent() | {"recipe": as_dict(setting.recipe)}

    def safe() -> None:
        state.kept = row["epoch"]
        setting.progress.line(_epoch_line(row, setting, setting.progress.time_left()))
        for log in loggers:
            log(row)

    if setting.team.leads:
        writer.begin(lambda: _keep(setting, row, saved, last), safe)


def _step_line(setting: Setting, state: State, step: int, so_far: Tensor, images_per_s: float) -> str:
    loss, right = (so_far[:2] / so_far[2]).tolist()
    known = state.best.get(setting.task.validated[0], -1.0)
    best = f"  best val {known:.1%}" if known >= 0 else ""
    return (
        f"epoch {state.epoch + 1}/{setting.recipe.epochs} step {step}/{setting.steps_per_epoch}  loss {loss:.3f}  "
        f"train {right:.1%}{best}  {images_per_s:,.0f} images/s"
    )


def _epoch_line(row: dict[str, Any], setting: Setting, left: str) -> str:
    task = setting.task
    main = f"val_{task.main}"
    name = "" if task.main == "top1" else f"{WORDS[task.main]} "
    val = f"  val {name}{row[main]:.2%}, macro F1 {row['val_macro_f1']:.2%}" if main in row else ""
    return (
        f"epoch {row['epoch']:>3}/{setting.recipe.epochs}  loss {row['train_loss']:.3f}  "
        f"train {row[f'train_{task.trained}']:.2%}{val}  {row['images_per_s']:,.0f} images/s  left {left}"
    )


def _keep(setting: Setting, row: dict[str, Any], saved: dict[str, Any], last: dict[str, Tensor]) -> None:
    """Writes an epoch's files; after a kill in between, `resume` makes the others match the checkpoint."""
    run_folder.append_row(setting.folder, row)
    checkpoint.save_checkpoint(setting.folder, saved)
    save_weights(setting, saved["best"]["weights"], last)


def save_weights(setting: Setting, best: dict[str, Tensor], last: dict[str, Tensor]) -> None:
    """Writes the best and the last weights."""
    # One key: several would be stored in random order, and equal weights should make equal files.
    metadata = {"model": f"{setting.recipe.model} with mask {setting.recipe.mask}"}
    for which, weights in (("best", best), ("last", last)):
        checkpoint.save_weights(setting.folder / run_folder.WEIGHTS[which], weights, metadata)


def _check_finite(loss: Tensor | float, epoch: int, step: int, recipe: Recipe) -> None:
    if not float("-inf") < float(loss) < float("inf"):
        raise _diverged(f"the loss became {float(loss)} in epoch {epoch + 1} by step {step + 1}", epoch, recipe)


def _check_good(row: dict[str, Any], weights: dict[str, Tensor], recipe: Recipe) -> None:
    """Raises TrainingError if an epoch ended in NaN, before any of it is kept."""
    finite = not_finite(weights) is None
    if not finite or not run_folder.all_finite(row):
        what = "the validation loss is" if finite else "some weights are"
        raise _diverged(f"{what} not finite after epoch {row['epoch']}", row["epoch"] - 1, recipe)


def _diverged(what: str, kept: int, recipe: Recipe) -> TrainingError:
    return TrainingError(
        f"{what}; train again with a lower --lr (it was {recipe.lr:g}), --clip-norm 1 or --dtype float32. "
        + (f"The checkpoint of epoch {kept} is kept" if kept else "No epoch was finished")
    )


def augmented(setting: Setting, generator: torch.Generator) -> Iterator[Parts]:
    """Yields the parts of each step of an epoch, augmented and on the device: `passes` sweeps in turn, without the
    remainder. One call augments several steps, since on a GPU the number of operations takes the time; each step draws
    as it would on its own."""
    recipe, split = setting.recipe, setting.data.train
    size = step_images(recipe, len(split))
    sizes = [len(part) for part in torch.empty(size).chunk(recipe.accumulate)]
    at_once = size * steps_at_once(size * split.images[0].numel(), setting.device)
    total, balanced = setting.steps_per_epoch * size, recipe.sampling == "balanced"
    for chosen in drawn(split.labels, recipe.passes, total, at_once, balanced=balanced, generator=generator):
        rows = to_device(chosen, split.images.device)
        images, labels = (to_device(take_rows(x, rows), setting.device) for x in (split.images, split.labels))
        parts = setting.augment.several(images, labels, sizes * (len(chosen) // size), generator, setting.team.share)
        for step in range(0, len(parts), len(sizes)):
            yield parts[step : step + len(sizes)]


def _summary(setting: Setting, state: State) -> dict[str, Any]:
    recipe, data = setting.recipe, setting.data
    parameters = {name: p.numel() for name, p in state.model.named_parameters() if p.requires_grad}
    names = setting.task.metrics
    test: dict[str, float | None] = {f"test_{name}_{which}": None for name in names for which in ("best", "last")}
    if data.test is not None:
        last = full_weights(state.evaluated())
        for which, weights in (("last", last), ("best", state.best["weights"])):
            load_weights(state.evaluated(), weights)
            logits = predict(state.evaluated(), data.test, data, setting.device, setting.dtype, setting.team)
            measured = setting.task.scores(logits, data.test.labels)
            test |= {f"test_{name}_{which}": measured[name] for name in names}
        load_weights(state.evaluated(), last)
    return {
        "model": recipe.model,
        "mask": recipe.mask,
        "dataset": recipe.dataset,
        "num_parameters": sum(parameters.values()),
        "mask_parameters": sum(count for name, count in parameters.items() if is_mask_parameter(name)),
        "epochs": recipe.epochs,
        "stopped_after": state.epoch if state.epoch < recipe.epochs else None,  # by patience
        "passes": recipe.passes,
        "images_seen": state.images_seen,
        "train_images": len(data.train),
        "test_images": None if data.test is None else len(data.test),
        "train_images_per_s": round(state.images_seen / max(state.train_s, 1e-9), 1),
        "wall_s": round(state.wall_s, 1),
        "core_s": round(state.core_s, 1),
        "device": torch.cuda.get_device_name(setting.device) if setting.device.type == "cuda" else setting.device.type,
        "processes": setting.team.size,
        "dtype": str(setting.dtype).removeprefix("torch."),
        "seed": recipe.seed,
        "best_epoch": state.best["epoch"],
        "select": setting.task.selected(recipe.select),
        **{name: None if data.val is None else state.best.get(name) for name in setting.task.validated},
        **test,
        "versions": run_folder.versions(),
    }
