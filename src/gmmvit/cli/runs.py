"""The commands for runs: train, resume, eval, report."""

import json
import typing
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from gmmvit.cli.app import Json, app, say
from gmmvit.cli.flags import RecipeFlags, suitable_recipe, variants_of
from gmmvit.config import RecipeError, load_recipe, recipe_names
from gmmvit.text import columns


@app.command
def train(
    *,
    recipe: str | None = None,
    out: Path | None = None,
    seeds: str | None = None,
    masks: str | None = None,
    overwrite: bool = False,
    quiet: bool = False,
    as_json: Json = False,
    fields: Annotated[RecipeFlags | None, Parameter(name="*")] = None,
) -> None:
    """Train a model and write its run folder.

    The defaults below hold for fields that the recipe leaves open; `gmmvit recipes` says what each recipe is for.

    Parameters
    ----------
    recipe
        A shipped recipe (see `gmmvit recipes`) or a YAML file. Default: few, small or many for your own images,
        depending on their number, digits for the digits, and quick for the other named data sets.
    out
        Folder of the run, new or empty; default: runs/DATASET-MODEL-MASK-sSEED.
    seeds
        Several seeds, such as 0,1,2: one training after another; out then holds their run folders.
    masks
        Several masks, such as gmm,none, in the same way.
    overwrite
        Replace an old run in that folder.
    quiet
        Show no progress.
    as_json
        Print the summary as JSON, a list for several trainings.
    fields
        Any field of the recipe.
    """
    given: dict[str, Any] = dict(fields or {})
    if "minutes" in given and "epochs" in given:
        raise RecipeError("--minutes sets the epochs from the measured speed: give one of --minutes and --epochs")
    if "folds" in given and "fold" not in given and (seeds or masks):
        raise RecipeError("--folds takes one seed and one mask: run the command once for each")
    name, reason = (recipe, "") if recipe else suitable_recipe(given)
    if given.get("pretrained") not in (None, "true", "false"):
        given = with_model_of(given, quiet)
    loaded = load_recipe(name, **given)
    variants = variants_of(loaded, seeds, masks)
    from gmmvit import training
    from gmmvit.distributed import leads

    if recipe is None and not quiet and leads():
        others = ", ".join(recipe_names())
        say(f"recipe {name}, {reason} (choose with --recipe: {others})", error=True)
    crossed = loaded.folds is not None and loaded.fold is None
    if crossed:
        from gmmvit.training import folds

        result: Any = folds.cross_validate(loaded, out, overwrite=overwrite, quiet=quiet)
    elif variants is None:
        result = training.train(loaded, out, overwrite=overwrite, quiet=quiet)
    else:
        result = training.train_several(variants, out, overwrite=overwrite, quiet=quiet)
    if not leads():
        return
    if as_json:
        print(json.dumps(result))
    elif crossed:
        print("\n".join(folds.lines(result)))
    elif variants is not None:
        print(training.comparison(result))


def with_model_of(given: dict[str, Any], quiet: bool) -> dict[str, Any]:
    """The given fields, with model and mask taken from the run if `pretrained` is one."""
    from gmmvit.building import given_run
    from gmmvit.distributed import leads

    run = given_run(given["pretrained"])
    if run is None or given.get("model", run.recipe.model) != run.recipe.model:
        return given
    if not quiet and leads():
        recipe = run.recipe
        say(f"{recipe.model} with mask {recipe.mask} and its sizes are taken from {given['pretrained']}", error=True)
    return run.fields() | given


@app.command
def resume(
    run: Path,
    /,
    *others: Path,
    data_dir: str | None = None,
    epochs: int | None = None,
    quiet: bool = False,
    as_json: Json = False,
) -> None:
    """Continue an interrupted training from its last finished epoch.

    Parameters
    ----------
    run
        Folder of the run.
    others
        More runs on the same data, continued one after another; plain files are skipped.
    data_dir
        Where the data is now, if it moved; for a folder of images, that folder.
    epochs
        Extend one run, finished or not, to this total number of epochs.
    quiet
        Show no progress.
    as_json
        Print the summary as JSON.
    """
    from gmmvit import training
    from gmmvit.distributed import leads
    from gmmvit.runs.run_folder import is_folds

    if any(map(is_folds, (run, *others))):
        _resume_folds(run, others, data_dir, epochs, quiet, as_json)
        return
    if others and epochs is not None:
        raise RecipeError("--epochs extends one run: resume them one after another")
    if others:
        result: Any = training.resume_several(_folders([run, *others]), data_dir=data_dir, quiet=quiet)
    else:
        result = training.resume(run, data_dir=data_dir, epochs=epochs, quiet=quiet)
    if as_json and leads():
        print(json.dumps(result))
    elif others and leads():
        print(training.comparison(result))


def _resume_folds(
    run: Path, others: tuple[Path, ...], data_dir: str | None, epochs: int | None, quiet: bool, as_json: bool
) -> None:
    """`resume` of a cross-validation."""
    if others or epochs is not None:
        raise RecipeError("resume a cross-validation alone and without --epochs, which extends single runs")
    from gmmvit.distributed import leads
    from gmmvit.training import folds

    result = folds.resume_folds(run, data_dir=data_dir, quiet=quiet)
    if leads():
        print(json.dumps(result) if as_json else "\n".join(folds.lines(result)))


def _folders(paths: list[Path]) -> list[Path]:
    """The paths without plain files, which runs/* may include."""
    for path in paths:
        if path.is_file():
            say(f"skipped {path}: a file, not a run folder", error=True)
    folders = [path for path in paths if not path.is_file()]
    if not folders:
        raise RecipeError("resume needs at least one run folder: gmmvit resume RUN...")
    return folders


@app.command(name="eval")
def evaluate(
    run: Path,
    /,
    *,
    part: typing.Literal["test", "val", "train"] = "test",
    weights: typing.Literal["best", "last"] = "best",
    data_dir: str | None = None,
    dataset: str | None = None,
    device: str = "auto",
    metrics: bool = False,
    csv: Path | None = None,
    threshold: float | None = None,
    overwrite: bool = False,
    as_json: Json = False,
) -> None:
    """Measure a trained model on a part of its data.

    Parameters
    ----------
    run
        Folder of the run.
    part
        Part of the data set.
    weights
        The best on validation, or those of the last epoch.
    data_dir
        Where the data is now, if it moved; for a folder of images, that folder.
    dataset
        Measure on another data set with the same classes, such as folder:PATH.
    device
        auto, cpu, cuda ...
    metrics
        Also AUROC and calibration error (needs torchmetrics).
    csv
        File with one row per image: file, true and predicted class (or labels, separated by |), probability of each
        class.
    threshold
        For several labels an image: predict each label whose probability is at least this; default: 0.5.
    overwrite
        Replace that file.
    as_json
        Print JSON.
    """
    from gmmvit.runs.evaluate import evaluate_run

    result = evaluate_run(
        run,
        part=part,
        weights=weights,
        data_dir=data_dir,
        dataset=dataset,
        device=device,
        more=metrics,
        csv=csv,
        threshold=threshold,
        overwrite=overwrite,
    )
    if as_json:
        print(json.dumps(result))
        return
    for name, value in result.items():
        if name not in ("per_class", "class_images"):
            say(f"{name:>16}  {value:.4f}" if isinstance(value, float) else f"{name:>16}  {value}")
    width = max(16, *(columns(name) for name in result["per_class"]))
    print()
    say(f"{'class':>{width}}  images  {'AP' if 'map' in result else 'top1':>6}")
    for name, value in result["per_class"].items():
        score = "no images" if value is None else f"{value:.4f}"
        say(f"{' ' * (width - columns(name))}{name}  {result['class_images'][name]:>6}  {score}")


@app.command
def report(
    *runs: Path, out: Path | None = None, data_dir: str | None = None, device: str = "auto", overwrite: bool = False
) -> None:
    """Write an offline HTML page about a run, or several runs with a table that compares them.

    Parameters
    ----------
    runs
        Folders of runs; the details show the first.
    out
        The page; default: report.html in the first run's folder.
    data_dir
        Where the data is now, if it moved.
    device
        auto, cpu, cuda ...
    overwrite
        Replace an existing file at out.
    """
    if not runs:
        raise RecipeError("report needs at least one run folder: gmmvit report RUN...")
    from gmmvit.device import choose_device
    from gmmvit.report import write_report

    chosen = str(choose_device(device))
    say(str(write_report(runs, out, data_dir=data_dir, device=chosen, overwrite=overwrite)))
