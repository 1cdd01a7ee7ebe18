"""Cross-validation: a run folder for each fold below one folder, and the table of what they measured."""

import csv
import dataclasses
import io
import shlex
import statistics
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from gmmvit.checks import booleans, paths
from gmmvit.config import Recipe, RecipeError
from gmmvit.distributed import Team, join
from gmmvit.runs import claim, files, run_folder
from gmmvit.runs.files import RunError
from gmmvit.runs.run_data import absolute_paths, with_data_at
from gmmvit.runs.run_folder import CONFIG, FOLDS, FOLDS_TABLE, REPORT
from gmmvit.sweep.table import paired
from gmmvit.text import short
from gmmvit.training.progress import Progress
from gmmvit.training.run import resume, run_name, train
from gmmvit.training.session import prepare

# Measured on a fold that neither training nor the choice of the epoch saw: accuracy with one label per image, mAP with
# several.
MEASURED = {
    "test_top1_best": "accuracy, best epoch",
    "test_top1_last": "accuracy, last epoch",
    "test_macro_f1_best": "macro F1, best epoch",
    "test_macro_f1_last": "macro F1, last epoch",
    "test_map_best": "mAP, best epoch",
    "test_map_last": "mAP, last epoch",
}
Result = dict[str, Any]


def cross_validate(
    recipe: Recipe, out: str | Path | None = None, *, overwrite: bool = False, quiet: bool = False
) -> Result:
    """Trains a model for each of `recipe.folds` folds of the data and measures it on that fold.

    Each fold is the test part of its model; `val_fraction` cuts the validation part, which chooses the best epoch, from
    the others. `minutes` covers all folds together.

    Args:
        recipe: from `gmmvit.load_recipe`, with `folds` and without `fold`.
        out: the folder for the run folders fold-1, fold-2 ...; by default that of `train` with -folds appended.
        overwrite: replace an old cross-validation (only the files that it wrote).
        quiet: no progress on standard error.

    Returns:
        "folds", "rows" (the summaries) and "measured": for each of `MEASURED` a dict of mean, deviation (n - 1), low
        and high (95 % interval by Student's t over the folds, within 0 and 1), as fractions.

    Raises what `train` raises.
    """
    if not isinstance(recipe, Recipe):
        raise TypeError(
            f"recipe must be a Recipe, as gmmvit.load_recipe('digits', folds=5) makes it, got {short(recipe)}"
        )
    paths(out=out)
    booleans(overwrite=overwrite, quiet=quiet)
    if recipe.folds is None or recipe.fold is not None:
        raise RecipeError(f"a cross-validation needs folds and no fold, got {recipe.folds} and {recipe.fold}")
    folder = Path(out) if out is not None else Path("runs") / f"{run_name(recipe)}-folds"
    team, recipe = join(), absolute_paths(recipe)
    team.from_leader(lambda: _check_free(folder, overwrite))
    # Refuse what cannot be trained before removing an old cross-validation.
    prepare(_of_fold(recipe, 1), run_folder.fold_folder(folder, 1), Progress(quiet=True), team)
    with ExitStack() as locks:

        def begin() -> None:
            locks.enter_context(claim.locked(folder, "another cross-validation"))
            _check_free(folder, overwrite)
            _clear(folder)
            run_folder.save_folds(folder, recipe)

        team.from_leader(begin)
        return _run(folder, recipe, None, quiet, team)


def resume_folds(folder: str | Path, *, data_dir: str | None = None, quiet: bool = False) -> Result:
    """Continues a cross-validation: keeps finished folds, resumes a started one from its last epoch, trains the rest.

    `data_dir` is where the data is now, if it moved. Returns and raises as `cross_validate`.
    """
    paths(data_dir=data_dir)
    booleans(quiet=quiet)
    folder, team = run_folder.as_folder(folder), join()
    recipe = run_folder.recipe_of_folds(folder)
    with ExitStack() as locks:
        team.from_leader(lambda: locks.enter_context(claim.locked(folder, "another cross-validation")) and None)
        return _run(folder, recipe, data_dir, quiet, team)


def _of_fold(recipe: Recipe, fold: int) -> Recipe:
    assert recipe.folds is not None
    minutes = None if recipe.minutes is None else recipe.minutes / recipe.folds
    return dataclasses.replace(recipe, fold=fold, minutes=minutes)


def _run(folder: Path, recipe: Recipe, data_dir: str | None, quiet: bool, team: Team) -> Result:
    assert recipe.folds is not None
    for fold in range(1, recipe.folds + 1):
        place = run_folder.fold_folder(folder, fold)
        begun = team.from_leader(lambda place=place: (place / CONFIG).exists())  # type: ignore[misc]
        try:
            if begun:
                resume(place, data_dir=data_dir, quiet=quiet)
            else:
                train(with_data_at(_of_fold(recipe, fold), data_dir), place, quiet=quiet)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                f"interrupted in fold {fold} of {recipe.folds}; `{shlex.join(['gmmvit', 'resume', str(folder)])}` "
                "continues from there"
            ) from None
    result = measured(folder)
    team.from_leader(lambda: files.write_whole(folder / FOLDS_TABLE, _table(result).encode()))
    return result


def measured(folder: str | Path) -> Result:
    """What the finished folds of a cross-validation measured, as `cross_validate` returns it; intervals need two."""
    recipe = run_folder.recipe_of_folds(folder)
    assert recipe.folds is not None
    rows = []
    for fold in range(1, recipe.folds + 1):
        summary = run_folder.read_summary(run_folder.fold_folder(folder, fold))
        if summary is not None:
            rows.append({"fold": fold} | summary)
    values = {name: [row[name] for row in rows if row.get(name) is not None] for name in MEASURED}
    return {
        "folds": recipe.folds,
        "measured": {name: _spread(known) for name, known in values.items() if known},
        "rows": rows,
    }


def _spread(values: list[float]) -> dict[str, float | None]:
    found = paired(values)
    deviation = statistics.stdev(values) if len(values) > 1 else None
    low = None if found.low is None else max(0.0, found.low)
    high = None if found.high is None else min(1.0, found.high)
    return {"mean": found.mean, "deviation": deviation, "low": low, "high": high}


def lines(result: Result) -> list[str]:
    """The figures of a cross-validation, a line each, in percent."""
    counted = f"{len(result['rows'])} of {result['folds']} folds"
    if len(result["rows"]) == result["folds"]:
        counted = f"{result['folds']} folds"
    found = [f"{'':<22} {'mean ± deviation':>18}   95 % interval of the mean, over {counted}"]
    for name, spread in result["measured"].items():
        mean, rest = f"{100 * spread['mean']:.2f}", "–"
        if spread["deviation"] is not None:
            mean += f" ± {100 * spread['deviation']:.2f} %"
            rest = f"{100 * spread['low']:.2f} to {100 * spread['high']:.2f} %"
        found.append(f"{MEASURED[name]:<22} {mean:>18}   {rest}")
    return found


def _table(result: Result) -> str:
    """A row for each fold, then mean, deviation and the interval's ends."""
    heads = ["fold", "test_images", "epochs", "best_epoch", *result["measured"], "wall_s"]
    text = io.StringIO()
    writer = csv.DictWriter(text, heads, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(result["rows"])
    for key in ("mean", "deviation", "low", "high"):
        cells = {name: spread[key] for name, spread in result["measured"].items()}
        writer.writerow({"fold": key} | {name: "" if v is None else f"{v:.6g}" for name, v in cells.items()})
    return text.getvalue()


def _check_free(folder: Path, overwrite: bool) -> None:
    if not run_folder.is_folds(folder):
        claim.check_free(folder)
    elif not overwrite:
        raise RunError(
            f"{folder} already holds a cross-validation; continue it with `gmmvit resume {folder}`, choose another "
            "folder with --out (in Python out=), or replace it with --overwrite (overwrite=True)"
        )


def _clear(folder: Path) -> None:
    """Removes what an old cross-validation wrote; the file that marks its folder goes last."""
    if not run_folder.is_folds(folder):
        return
    for place in run_folder.fold_folders(folder):
        with claim.locked(place):
            claim.clear(place)
        with files.naming_faults(place, "remove"):
            (place / run_folder.LOCK).unlink(missing_ok=True)
        with suppress(OSError):  # somebody else's files are in it
            place.rmdir()
    for name in (FOLDS_TABLE, REPORT, FOLDS):
        with files.naming_faults(folder / name, "remove"):
            (folder / name).unlink(missing_ok=True)
