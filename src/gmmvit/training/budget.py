"""How many epochs a training may have to end within its minutes: measured before its first step, then fixed."""

import copy
import dataclasses
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from operator import lt
from pathlib import Path

from gmmvit.config import Recipe, RecipeError
from gmmvit.data import Split
from gmmvit.distributed import full_weights, load_weights
from gmmvit.runs import checkpoint
from gmmvit.runs.evaluate import EVAL_BATCH, predict
from gmmvit.training.loop import train_epoch
from gmmvit.training.optim import warmup_share
from gmmvit.training.progress import Progress, clock
from gmmvit.training.session import Setting, State, step_images, steps_per_epoch

RESERVE = 0.05  # of the minutes, for what varies
FEWEST, MOST = 10, 100  # epochs, about; each of which is validated and checkpointed
_FIRST_STEPS = 2  # in which kernels are compiled and memory is found
_MEASURED_S, _MEASURED_PART = 10.0, 0.03  # how long steps are measured: so many seconds, or this part of the minutes


@dataclass(frozen=True)
class Speed:
    """Seconds that a step takes, that an epoch takes besides its steps, and that the test takes at the end."""

    step_s: float
    epoch_s: float
    test_s: float


def within_minutes(setting: Setting, state: State, started: float) -> Setting:
    """The setting with the epochs, passes and warm-up that end within the recipe's minutes; `state` stays as it was.

    `started` is the time (`time.perf_counter`) from which the minutes count. The warm-up keeps its share.

    Raises RecipeError where not even one pass over the images would end in time.
    """
    recipe, team = setting.recipe, setting.team
    with _untouched(state):
        speed = measure(setting, state)

    def decide() -> Recipe:
        return fitting(recipe, len(setting.data.train), time.perf_counter() - started, speed)

    chosen = team.from_leader(decide)
    images = step_images(recipe, len(setting.data.train)) / speed.step_s
    setting.progress.line(
        f"{recipe.minutes:g} minutes at {images:,.0f} images/s: {chosen.epochs} epochs of {chosen.passes} "
        f"{'pass' if chosen.passes == 1 else 'passes'} over the images"
    )
    return dataclasses.replace(setting, recipe=chosen, steps_per_epoch=steps_per_epoch(chosen, len(setting.data.train)))


def fitting(recipe: Recipe, train_images: int, gone_s: float, speed: Speed) -> Recipe:
    """The recipe with as many epochs as its minutes hold, of which `gone_s` seconds are gone; its passes change where
    the epochs would be few or very many."""
    assert recipe.minutes is not None
    seconds = recipe.minutes * 60 * (1 - RESERVE) - gone_s - speed.test_s

    def epochs_of(passes: int) -> int:
        steps = steps_per_epoch(dataclasses.replace(recipe, passes=passes), train_images)
        return int(seconds // (steps * speed.step_s + speed.epoch_s))

    passes, epochs = recipe.passes, epochs_of(recipe.passes)
    if epochs > MOST:
        passes *= -(-epochs // MOST)
    elif epochs < FEWEST:
        passes = max(1, passes * epochs // FEWEST)
    epochs = epochs_of(passes)
    if epochs < 1:
        steps = steps_per_epoch(dataclasses.replace(recipe, passes=1), train_images)
        short = steps * speed.step_s + speed.epoch_s - seconds
        needed = recipe.minutes + short / 60 / (1 - RESERVE)
        raise RecipeError(
            f"minutes {recipe.minutes:g} is too short for one pass over {train_images:,} images, which takes "
            f"{clock(steps * speed.step_s + speed.epoch_s)}; give at least {needed:.1f}, or take a smaller model"
        )
    warmup = round(warmup_share(recipe) * epochs, 3)
    return dataclasses.replace(recipe, epochs=epochs, passes=passes, warmup_epochs=warmup, restarts=None)


def measure(setting: Setting, state: State) -> Speed:
    """Trains some steps, validates and keeps a checkpoint for their time; changes `state`."""
    quiet = dataclasses.replace(setting, progress=Progress(quiet=True))
    seconds = min(_MEASURED_S, _MEASURED_PART * 60 * (setting.recipe.minutes or 1))

    def steps(count: int) -> float:
        start = time.perf_counter()
        train_epoch(dataclasses.replace(quiet, steps_per_epoch=count), state)
        return time.perf_counter() - start

    most = setting.steps_per_epoch
    steps(min(_FIRST_STEPS, most))
    count, taken = min(_FIRST_STEPS, most), steps(min(_FIRST_STEPS, most))
    while count < most and setting.team.from_leader(partial(lt, taken, seconds)):
        count = min(2 * count, most)
        taken = steps(count)
    evaluation = _evaluation_s(setting, state)
    data = setting.data
    test = 0.0 if data.test is None else 2 * len(data.test) * evaluation  # the best weights and the last
    validation = 0.0 if data.val is None else len(data.val) * evaluation
    return Speed(taken / count, validation + _keeping_s(state), test)


def _evaluation_s(setting: Setting, state: State) -> float:
    """Seconds that an image takes in evaluation; 0 where none is evaluated."""
    part = setting.data.val if setting.data.test is None else setting.data.test
    if part is None:
        return 0.0
    some = Split(part.images[: 2 * EVAL_BATCH], part.labels[: 2 * EVAL_BATCH], part.names[: 2 * EVAL_BATCH])
    for _ in range(2):  # what is compiled is compiled in the first
        start = time.perf_counter()
        predict(state.evaluated(), some, setting.data, setting.device, setting.dtype, setting.team)
    return (time.perf_counter() - start) / len(some)


def _keeping_s(state: State) -> float:
    """Seconds that the weights and the checkpoint of an epoch take."""
    start = time.perf_counter()
    weights = full_weights(state.evaluated())
    state.best = {**state.best, "weights": weights}
    kept = state.persistent()
    with tempfile.TemporaryDirectory(prefix="gmmvit-") as folder:
        checkpoint.save_checkpoint(Path(folder), kept)
        for name in ("best", "last"):
            checkpoint.save_weights(Path(folder) / name, weights, {})
    return time.perf_counter() - start


@contextmanager
def _untouched(state: State) -> Iterator[None]:
    """What happens inside leaves no trace in the state of a training that has not begun."""
    weights = full_weights(state.model)
    average = None if state.average is None else copy.deepcopy(state.average.state_dict())
    scaler, best = state.scaler.state_dict(), state.best
    try:
        yield
    finally:
        load_weights(state.model, weights)
        state.optimizer.zero_grad(set_to_none=True)
        state.optimizer.state.clear()
        state.step.forget()
        if state.average is not None and average is not None:
            state.average.load_state_dict(average)
        state.scaler.load_state_dict(scaler)
        state.images_seen, state.best = 0, best
