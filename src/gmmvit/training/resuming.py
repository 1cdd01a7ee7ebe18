"""Resumes a training from its checkpoint, and shares data between trainings of one process."""

import dataclasses
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from gmmvit.building import first_line
from gmmvit.checks import is_integer
from gmmvit.config import Recipe, RecipeError, fields_of
from gmmvit.data import Dataset
from gmmvit.distributed import Team, full_weights, join
from gmmvit.runs import checkpoint, claim, files, run_folder
from gmmvit.runs.run_data import with_data_at
from gmmvit.text import short
from gmmvit.training.loop import is_over, save_weights
from gmmvit.training.memory import check_memory, naming_memory
from gmmvit.training.progress import Progress, clock
from gmmvit.training.session import Setting, State, prepare

Started = tuple[Setting, State]


def shared_data(recipe: Recipe, known: Started | None) -> Dataset | None:
    """The data of an earlier training in this process; raises RecipeError if the new one needs other data."""
    if known is None:
        return None
    setting, _ = known
    for name in fields_of("process") + fields_of("Data"):
        mine, theirs = getattr(recipe, name), getattr(setting.recipe, name)
        if mine != theirs:
            raise RecipeError(
                f"trainings in one process must share their {name}, got {short(theirs)} and {short(mine)}"
            )
    return setting.data


def fold_label(recipe: Recipe) -> str:
    """The label for the lines of a training that is one of several folds."""
    return f"fold {recipe.fold}/{recipe.folds}: " if recipe.fold else ""


def continued(
    folder: Path,
    data_dir: str | None,
    quiet: bool,
    locks: ExitStack,
    known: Started | None = None,
    label: str = "",
    epochs: int | None = None,
) -> Started | dict[str, Any]:
    """An interrupted training restored to its last epoch, or the summary of a finished one."""
    team = join()
    recipe = with_data_at(run_folder.recipe_of(folder), data_dir)
    progress = Progress(quiet or not team.leads, label or fold_label(recipe))
    team.from_leader(lambda: locks.enter_context(claim.locked(folder)) and None)
    saved = checkpoint.load_checkpoint(folder, recipe)
    run_folder.read_rows(folder)  # report a damaged file before any work
    summary = run_folder.read_summary(folder)
    if epochs is not None and (not is_integer(epochs) or epochs != recipe.epochs or _was_stopped(recipe, saved)):
        recipe = _extended(folder, recipe, epochs, saved, team)
    if saved is not None:
        _say_more(progress, folder, recipe, saved["recipe"])
    if summary is not None and saved is not None and is_over(recipe, saved["epoch"], saved["best"]):
        progress.line(f"{folder} is finished after epoch {min(saved['epoch'], recipe.epochs)}{_hint(recipe, saved)}")
        return summary
    if summary is not None and saved is None:
        source = summary.get("converted_from", "a training whose checkpoint is gone")
        raise files.RunError(f"{folder} cannot be resumed: its weights are from {source}; train again")
    setting, state, described = prepare(
        recipe, folder, progress, team, data=shared_data(recipe, known), resumed=saved is not None
    )
    _check_same_data(folder, described["data"])
    if saved is not None:
        _restore(state, saved, folder)
        last = full_weights(state.evaluated())
        team.from_leader(lambda: save_weights(setting, state.best["weights"], last))
    team.from_leader(lambda: run_folder.rewind_rows(folder, state.epoch))
    with naming_memory(setting):
        check_memory(setting, state)
    left = clock(state.wall_s / state.epoch * (recipe.epochs - state.epoch)) if state.epoch else ""
    progress.line(
        f"resuming {folder} after epoch {state.epoch} of {recipe.epochs}"
        + (f": about {left} more at the speed so far" if left else "")
    )
    return setting, state


def _was_stopped(recipe: Recipe, saved: dict[str, Any] | None) -> bool:
    """Whether patience ended a training."""
    return saved is not None and saved["epoch"] < recipe.epochs and is_over(recipe, saved["epoch"], saved["best"])


def _say_more(progress: Progress, folder: Path, recipe: Recipe, before: dict[str, Any]) -> None:
    """Reports how the learning rate continues in a training with a new number of epochs."""
    epochs = recipe.epochs
    begun = f"{folder} was to end after {before['epochs']} epochs and now trains to {epochs}: the learning rate"
    if recipe.restarts and tuple(before.get("restarts") or ()) != recipe.restarts:
        last = recipe.restarts[-1]
        progress.line(f"{begun} restarts after epoch {last}, with warm-up and cosine over the {epochs - last} added")
    elif before["epochs"] != epochs:
        progress.line(f"{begun} continues as in a training of {epochs}")


def _hint(recipe: Recipe, saved: dict[str, Any]) -> str:
    """A hint for a finished training that patience ended."""
    if saved["epoch"] >= recipe.epochs:
        return ""
    return f" of {recipe.epochs}, by its patience; --epochs extends it"


def _extended(folder: Path, recipe: Recipe, epochs: int, saved: dict[str, Any] | None, team: Team) -> Recipe:
    """The recipe with `epochs` epochs, also written to config.yaml; removes the summary of the shorter training.

    The added epochs start where the training was to end, or where its patience ended it.
    """
    done = 0 if saved is None else saved["epoch"]
    if not isinstance(epochs, int) or isinstance(epochs, bool) or epochs <= done:
        raise RecipeError(f"epochs must be a whole number above the {done} that {folder} has done, got {short(epochs)}")
    end = done if _was_stopped(recipe, saved) else recipe.epochs
    restarts = {epoch for epoch in (*(recipe.restarts or ()), end if done else epochs) if epoch < min(end + 1, epochs)}
    longer = dataclasses.replace(recipe, epochs=epochs, restarts=tuple(sorted(restarts)) or None)
    config = run_folder.load_config(folder)

    def write() -> None:
        run_folder.save_config(folder, longer, config["model"], config["data"])
        (folder / run_folder.SUMMARY).unlink(missing_ok=True)

    team.from_leader(write)
    return longer


def _restore(state: State, saved: dict[str, Any], folder: Path) -> None:
    try:
        state.restore(saved)
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else first_line(error)
        path = folder / run_folder.CHECKPOINT
        raise files.RunError(
            f"{path} does not fit the model of {run_folder.CONFIG}: {reason}; restore a copy of it, or "
            f"{run_folder.ANEW}"
        ) from None


def _check_same_data(folder: Path, now: dict[str, Any]) -> None:
    """Raises RunError if the data differs from that at the run's start: it would learn wrong images."""
    before = run_folder.load_config(folder)["data"]
    changed = [name for name in now if before.get(name) != now[name]]
    if changed:
        raise files.RunError(
            f"the data of {folder} has changed since the training started ({', '.join(changed)} differ); restore it to "
            "resume, or train again"
        )
