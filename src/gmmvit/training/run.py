"""`train`, `train_several` and `resume`: from a recipe or a run folder to a finished run."""

import shlex
import statistics
import time
import traceback
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from gmmvit.building import first_line
from gmmvit.checks import booleans, paths
from gmmvit.config import Recipe, RecipeError
from gmmvit.distributed import join, lost_contact
from gmmvit.runs import claim, run_folder
from gmmvit.runs.run_data import absolute_paths
from gmmvit.tasks import WORDS, task_in
from gmmvit.text import short
from gmmvit.training.budget import forecast, within_minutes
from gmmvit.training.loop import fit
from gmmvit.training.memory import Need, check_memory, measured_in_words, naming_memory
from gmmvit.training.optim import warmup_share
from gmmvit.training.progress import Progress, clock
from gmmvit.training.resuming import Started, continued, fold_label, shared_data
from gmmvit.training.session import Setting, State, prepare
from gmmvit.training.step import TrainingError


def train(
    recipe: Recipe, out: str | Path | None = None, *, overwrite: bool = False, quiet: bool = False
) -> dict[str, Any]:
    """Trains a model and writes its run folder.

    Under torchrun (or another launcher that sets RANK and WORLD_SIZE) all processes train this one model together;
    `batch_size` is their total.

    Args:
        recipe: from `gmmvit.load_recipe`.
        out: run folder, runs/DATASET-MODEL-MASK-sSEED by default; one that holds files is refused.
        overwrite: replace an old run (only the files that a run writes).
        quiet: no progress on standard error.

    Returns:
        The content of summary.json; accuracies as fractions.

    Raises:
        TypeError, ValueError (RecipeError, DataError), RunError, TrainingError, MemoryError: one sentence each.
    """
    _check_recipe(recipe)
    paths(out=out)
    booleans(overwrite=overwrite, quiet=quiet)
    with ExitStack() as locks:
        return _finish(*_start_all([recipe], [_folder(recipe, out)], overwrite, quiet, locks)[0])


def train_several(
    recipes: Sequence[Recipe], out: str | Path | None = None, *, overwrite: bool = False, quiet: bool = False
) -> list[dict[str, Any]]:
    """Trains several models one after another on data loaded once. Each gets its own run folder, with the results that
    `train` would give.

    Args:
        recipes: one for each model, with the same data and device; seed, mask and anything else may differ.
        out: the folder for the run folders, MODEL-MASK-sSEED each; by default runs, with the names of `train`.
        overwrite, quiet: as in `train`.

    Returns:
        The summaries, in the order of the recipes.

    Raises what `train` raises; if one training fails, only after the others have finished.
    """
    if not isinstance(recipes, Sequence) or not recipes:
        raise ValueError(f"recipes must be a list of at least one recipe, got {short(recipes)}")
    for recipe in recipes:
        _check_recipe(recipe)
    paths(out=out)
    booleans(overwrite=overwrite, quiet=quiet)
    folders = [_folder(recipe, Path(out) / _name(recipe) if out is not None else None) for recipe in recipes]
    _check_different(folders)
    with ExitStack() as locks:
        return _finish_all(_start_all(recipes, folders, overwrite, quiet, locks))


def resume(
    folder: str | Path, *, data_dir: str | None = None, epochs: int | None = None, quiet: bool = False
) -> dict[str, Any]:
    """Continues an interrupted training from its last finished epoch; leaves a finished one as it is.

    On the CPU the result is bit for bit that of an uninterrupted training. `data_dir` is where the data is now, if it
    moved; for a folder of images, that folder. `epochs` extends the training to that many in total: over the added
    epochs the learning rate restarts, with its own warm-up and cosine.

    Returns and raises as `train`.
    """
    paths(data_dir=data_dir)
    booleans(quiet=quiet)
    with ExitStack() as locks:
        found = continued(run_folder.as_folder(folder), data_dir, quiet, locks, epochs=epochs)
        return found if isinstance(found, dict) else _finish(*found)


def resume_several(
    folders: Sequence[str | Path], *, data_dir: str | None = None, quiet: bool = False
) -> list[dict[str, Any]]:
    """Continues trainings of `train_several`, one after another; leaves finished ones as they are.

    Returns and raises as `train_several`: if one cannot be resumed, the others finish first.
    """
    if isinstance(folders, str | Path) or not folders:
        raise ValueError(f"folders must be a list of at least one run folder, got {short(folders)}")
    paths = [run_folder.as_folder(folder) for folder in folders]
    _check_different(paths)
    with ExitStack() as locks:
        started: list[Started] = []
        summaries: list[dict[str, Any] | None] = []  # None for a training that continues
        failed: list[tuple[Path, Exception]] = []
        for folder in paths:
            try:
                found = continued(folder, data_dir, quiet, locks, started[0] if started else None, f"{folder.name}: ")
            except Exception as error:  # reported now and at the end
                if join().size > 1:  # the other processes wait for this one, or have ended
                    raise
                Progress().notice(f"{folder} cannot be resumed and is left out: {first_line(error)}")
                failed.append((folder, error))
                continue
            if isinstance(found, dict):
                summaries.append(found)
            else:
                summaries.append(None)
                started.append(found)
        rest = iter(_finish_all(started, failed, finished=len(summaries) - len(started)))
        return [next(rest) if summary is None else summary for summary in summaries]


def comparison(summaries: Sequence[dict[str, Any]]) -> str:
    """A line per mask: test accuracy in percent (mAP with several labels per image) of the best and last weights, mean
    and standard deviation over the seeds."""
    main = task_in(summaries[0]).main
    lines = [f"{'mask':<6} {'seeds':>5}  {f'test {WORDS[main]} %, best':>20}  {'last epoch':>20}"]
    for mask in dict.fromkeys(summary["mask"] for summary in summaries):
        runs = [summary for summary in summaries if summary["mask"] == mask]
        cells = []
        for which in (f"test_{main}_best", f"test_{main}_last"):
            values = [100 * run[which] for run in runs if run[which] is not None]
            spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.2f}{spread}" if values else "no test part")
        lines.append(f"{mask:<6} {len(runs):>5}  {cells[0]:>20}  {cells[1]:>20}")
    return "\n".join(lines)


def _check_recipe(recipe: Any) -> None:
    if not isinstance(recipe, Recipe):
        raise TypeError(f"recipe must be a Recipe, as gmmvit.load_recipe('digits') makes it, got {short(recipe)}")
    if recipe.folds is not None and recipe.fold is None:
        raise RecipeError("gmmvit.cross_validate trains all folds; to train one of them, set fold")


def _name(recipe: Recipe) -> str:
    return f"{_last_part(recipe.model)}-{recipe.mask}-s{recipe.seed}"


def _last_part(name: str) -> str:
    """The last part of a name such as folder:PATH."""
    return name.rstrip("/").replace(":", "-").rpartition("/")[2]


def _folder(recipe: Recipe, out: str | Path | None) -> Path:
    return Path(out) if out is not None else Path("runs") / run_name(recipe)


def run_name(recipe: Recipe) -> str:
    """The default name of a training's folder."""
    return f"{_last_part(recipe.dataset)}-{_name(recipe)}{f'-fold{recipe.fold}' if recipe.fold else ''}"


def _check_different(folders: Sequence[Path]) -> None:
    seen: set[Path] = set()
    for folder in folders:
        if folder.resolve() in seen:
            raise RecipeError(f"{folder} is named twice: every training needs a run folder of its own")
        seen.add(folder.resolve())


def _start_all(
    recipes: Sequence[Recipe], folders: Sequence[Path], overwrite: bool, quiet: bool, locks: ExitStack
) -> list[Started]:
    """Prepares trainings that share their data and claims their run folders; changes no folder before all are free and
    all trainings are prepared."""
    team = join()

    def check() -> None:
        for folder in folders:
            claim.check_free(folder, overwrite=overwrite)

    team.from_leader(check)
    started: list[Started] = []
    described, expected = [], []
    for recipe, folder in zip(recipes, folders, strict=True):
        progress = Progress(quiet or not team.leads, f"{_name(recipe)}: " if len(recipes) > 1 else fold_label(recipe))
        begun, recipe = time.perf_counter(), absolute_paths(recipe)
        data = shared_data(recipe, started[0] if started else None)
        setting, state, described_one = prepare(recipe, folder, progress, team, data=data)
        with naming_memory(setting):
            need = check_memory(setting, state)
            if recipe.minutes is not None:
                setting = within_minutes(setting, state, begun)
                if memory := measured_in_words(setting, need):
                    progress.line(f"takes up to {memory}")
            elif not quiet:
                expected.append(_say_forecast(setting, state, need))
        started.append((setting, state))
        described.append(described_one)
    if len(expected) > 1:
        started[0][0].progress.line(f"all {len(expected)} trainings take about {clock(sum(expected))}")

    def take() -> None:
        for folder in folders:
            locks.enter_context(claim.locked(folder))
        check()
        for (setting, _), facts in zip(started, described, strict=True):
            claim.clear(setting.folder)
            claim.own(setting.folder, *claim.TRAINED)
            run_folder.save_config(setting.folder, setting.recipe, **facts)

    team.from_leader(take)
    return started


def _say_forecast(setting: Setting, state: State, need: Need | None) -> float:
    """Reports how much time and memory the training will take; returns the seconds."""
    recipe = setting.recipe
    seconds, images_per_s = forecast(setting, state)
    most = ", less if patience ends it" if recipe.patience is not None else ""
    folds = f", all {recipe.folds} folds {clock(recipe.folds * seconds)}" if recipe.folds and recipe.fold == 1 else ""
    memory = measured_in_words(setting, need)
    setting.progress.line(
        f"{recipe.epochs * setting.steps_per_epoch:,} steps at {images_per_s:,.0f} images/s: about {clock(seconds)}"
        f"{folds}{most}{f'; takes up to {memory}' if memory else ''}"
    )
    return seconds


def _interruptible(setting: Setting, state: State, waiting: Sequence[Started]) -> dict[str, Any]:
    """`fit`; an interrupt reports how to continue this training and those waiting."""
    try:
        with naming_memory(setting):
            return fit(setting, state)
    except KeyboardInterrupt:
        folders = shlex.join(str(left.folder) for left, _ in ((setting, state), *waiting))
        raise KeyboardInterrupt(
            f"interrupted after epoch {state.kept}; `gmmvit resume {folders}` continues from there"
        ) from None
    except RuntimeError as error:
        if setting.team.size == 1 or not lost_contact(error):
            raise
        raise TrainingError(
            "another process of this training ended or cannot be reached; `gmmvit resume` continues after epoch "
            f"{state.kept}"
        ) from error


def _finish(setting: Setting, state: State, waiting: Sequence[Started] = ()) -> dict[str, Any]:
    steps = setting.steps_per_epoch
    setting.progress.begin(setting.recipe.epochs * steps, state.epoch * steps)
    _say_warmup(setting)
    summary = _interruptible(setting, state, waiting)
    main = setting.task.main
    names = (f"val_{main}", f"test_{main}_best", f"test_{main}_last", "test_macro_f1_last")
    shown = {name: summary[name] for name in names}
    words = ", ".join(f"{name} {value:.2%}" for name, value in shown.items() if value is not None)
    setting.progress.line(f"done in {clock(state.wall_s)}: {words}  ->  {setting.folder}")
    return summary


def _say_warmup(setting: Setting) -> None:
    recipe, share = setting.recipe, warmup_share(setting.recipe)
    if share * recipe.epochs < recipe.warmup_epochs:
        setting.progress.line(
            f"the warm-up is cut from {recipe.warmup_epochs:g} epochs to {share * recipe.epochs:g}, a quarter of the "
            "training"
        )


def _finish_all(
    started: list[Started], failed: Sequence[tuple[Path, Exception]] = (), finished: int = 0
) -> list[dict[str, Any]]:
    """Finishes the trainings one by one and returns their summaries; empties the list, so each frees its memory before
    the next starts.

    Raises TrainingError at the end if one failed, or had `failed` before; its total includes those `finished` before.
    """
    summaries: list[dict[str, Any]] = []
    wrong = list(failed)
    total = len(started) + len(failed) + finished
    while started:
        setting, state = started.pop(0)
        try:
            summaries.append(_finish(setting, state, started))
        except Exception as error:  # reported at the end
            if setting.team.size > 1:  # the other processes wait for this one, or have ended
                raise
            if started:
                setting.progress.notice(f"failed, the others continue: {first_line(error)}")
            for each in (error, error.__cause__):  # their frames hold the model
                traceback.clear_frames(None if each is None else each.__traceback__)
            wrong.append((setting.folder, error))
        if setting.recipe.compile:
            torch.compiler.reset()  # a function is compiled eight times at most, and this frees CUDA graphs
    if wrong:
        words = "; ".join(f"{folder}: {error}" for folder, error in wrong)
        raise TrainingError(f"{len(wrong)} of {total} trainings failed: {words}") from wrong[0][1]
    return summaries
