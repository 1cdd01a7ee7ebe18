"""Measures a training's speed before its first step, to plan its epochs within a time limit or forecast its time."""

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

RESERVE = 0.05  # of the minutes, for variation
FEWEST, MOST = 10, 100  # epochs, roughly; each is validated and checkpointed
_FIRST_STEPS = 2  # not measured: they compile kernels and allocate memory
_MEASURED_S, _MEASURED_PART = 10.0, 0.03  # measure steps for so many seconds, or this part of the minutes
_FORECAST_S = 1.5  # the same for a forecast
_SHORT_S = 20.0  # for shorter trainings measure only steps


@dataclass(frozen=True)
class Speed:
    """Seconds per step, per epoch besides its steps, and for the test at the end."""

    step_s: float
    epoch_s: float
    test_s: float


def within_minutes(setting: Setting, state: State, started: float) -> Setting:
    """The setting with epochs, passes and warm-up that fit into the recipe's minutes; `state` stays unchanged.

    The minutes count from `started` (`time.perf_counter`). The warm-up keeps its share.

    Raises RecipeError if not even one pass over the images would finish in time.
    """
    recipe, team = setting.recipe, setting.team
    assert recipe.minutes is not None
    seconds = min(_MEASURED_S, _MEASURED_PART * 60 * recipe.minutes)
    with _untouched(state):
        speed = measure(setting, state, seconds)

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
    """The recipe with as many epochs as fit into its minutes, of which `gone_s` seconds have passed; passes change if
    the epochs would be too few or too many."""
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


def forecast(setting: Setting, state: State) -> tuple[float, float]:
    """The seconds that the training will take, and its images per second; `state` stays unchanged.

    Takes about three seconds, or two steps if they take longer. A very short training is judged only by its steps.
    """
    recipe, images = setting.recipe, len(setting.data.train)
    total = recipe.epochs * setting.steps_per_epoch
    with _untouched(state):
        quick = _step_s(setting, state, 0.0)
        if setting.team.from_leader(partial(lt, total * quick, _SHORT_S)):
            return total * quick, step_images(recipe, images) / quick
        speed = measure(setting, state, _FORECAST_S)
    seconds = total * speed.step_s + recipe.epochs * speed.epoch_s + speed.test_s
    return seconds, step_images(recipe, images) / speed.step_s


def measure(setting: Setting, state: State, seconds: float) -> Speed:
    """Times training steps for at least `seconds`, a validation and a checkpoint; changes `state`."""
    step_s = _step_s(setting, state, seconds)
    image_s = step_s / step_images(setting.recipe, len(setting.data.train))
    # Processes measure different times, and each must evaluate as many images as the others.
    most = setting.team.from_leader(lambda: max(1, int(seconds / image_s)))
    evaluation = _evaluation_s(setting, state, most)
    data = setting.data
    test = 0.0 if data.test is None else 2 * len(data.test) * evaluation  # the best weights and the last
    validation = 0.0 if data.val is None else len(data.val) * evaluation
    return Speed(step_s, validation + _keeping_s(state), test)


def _step_s(setting: Setting, state: State, seconds: float) -> float:
    """Seconds per step, measured for at least `seconds`, or for an epoch."""
    still = dataclasses.replace(setting.recipe, lr=1e-12, min_lr=0.0)  # learns nothing, so cannot diverge
    quiet = dataclasses.replace(setting, recipe=still, progress=Progress(quiet=True))
    most, longer = setting.steps_per_epoch, setting.team.from_leader

    def steps(count: int) -> float:
        start = time.perf_counter()
        train_epoch(dataclasses.replace(quiet, steps_per_epoch=count), state)
        return time.perf_counter() - start

    taken = steps(1)
    eager = setting.device.type == "cpu" and not setting.recipe.compile
    if eager and longer(partial(lt, seconds, taken)):  # steps that take seconds need no further warm-up
        return taken
    count = min(_FIRST_STEPS, most)
    taken = steps(count)
    while count < most and longer(partial(lt, taken, seconds)):
        count = min(2 * count, most)
        taken = steps(count)
    return taken / count


def _evaluation_s(setting: Setting, state: State, most: int) -> float:
    """Seconds per image in evaluation, from at most `most` images; 0 if none is evaluated."""
    part = setting.data.val if setting.data.test is None else setting.data.test
    if part is None:
        return 0.0
    count = min(most, 2 * EVAL_BATCH)
    some = Split(part.images[:count], part.labels[:count], part.names[:count])
    for _ in range(2):  # the first one compiles
        start = time.perf_counter()
        predict(state.evaluated(), some, setting.data, setting.device, setting.dtype, setting.team)
    return (time.perf_counter() - start) / len(some)


def _keeping_s(state: State) -> float:
    """Seconds to write an epoch's weights and checkpoint."""
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
    """Restores the state of a training that has not begun after measurements inside this context."""
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
