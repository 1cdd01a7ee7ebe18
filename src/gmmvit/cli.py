"""The command `gmmvit`. Commands load what they need inside their functions, so that `--help` answers at once."""

import io
import json
import os
import signal
import sys
import typing
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, CycloptsError, Parameter

from gmmvit.config import RecipeError, load_recipe, recipe_names
from gmmvit.flags import RecipeFlags, suitable_recipe, variants_of
from gmmvit.version import __version__

EXIT_FAILED, EXIT_USAGE = 1, 2

app = App(
    name="gmmvit",
    version=__version__,
    help="Vision transformers that learn from small datasets: Gaussian mixture mask attention.",
    help_format="plaintext",
    result_action="return_value",
    suppress_keyboard_interrupt=False,
)


@app.command
def train(
    *,
    recipe: str | None = None,
    out: Path | None = None,
    seeds: str | None = None,
    masks: str | None = None,
    overwrite: bool = False,
    quiet: bool = False,
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
    fields: Annotated[RecipeFlags | None, Parameter(name="*")] = None,
) -> None:
    """Train a model and write its run folder.

    The defaults below are those of fields that the recipe leaves open; `gmmvit recipes` tells what each recipe is for.

    Parameters
    ----------
    recipe
        A shipped recipe (see `gmmvit recipes`) or a YAML file; by default digits for the digits, quick for the other
        named data sets, small for images of your own.
    out
        Folder of the run, runs/DATASET-MODEL-MASK-sSEED by default; one that holds files is refused.
    seeds
        Several seeds, as 0,1,2: a training each, all in this process; out then holds their run folders.
    masks
        Several masks, as gmm,none: the same.
    overwrite
        Replace an old run in that folder.
    quiet
        Show no progress.
    as_json
        Print the summary as JSON, a list where there are several.
    fields
        Any field of the recipe.
    """
    given: dict[str, Any] = dict(fields or {})
    name = recipe or suitable_recipe(given.get("dataset", "digits"))
    loaded = load_recipe(name, **given)
    variants = variants_of(loaded, seeds, masks)
    from gmmvit import training
    from gmmvit.distributed import leads

    if recipe is None and not quiet and leads():
        print(f"recipe {name} (choose with --recipe: {', '.join(recipe_names())})", file=sys.stderr)
    if variants is None:
        result: Any = training.train(loaded, out, overwrite=overwrite, quiet=quiet)
    else:
        result = training.train_several(variants, out, overwrite=overwrite, quiet=quiet)
    if not leads():
        return
    if as_json:
        print(json.dumps(result))
    elif variants is not None:
        print(training.comparison(result))


@app.command
def resume(
    run: Path,
    /,
    *others: Path,
    quiet: bool = False,
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> None:
    """Continue an interrupted training from its last finished epoch.

    Parameters
    ----------
    run
        Folder of the run.
    others
        More runs that were trained in one process with it.
    quiet
        Show no progress.
    as_json
        Print the summary as JSON.
    """
    from gmmvit import training
    from gmmvit.distributed import leads

    result: Any = training.resume_several([run, *others], quiet=quiet) if others else training.resume(run, quiet=quiet)
    if as_json and leads():
        print(json.dumps(result))


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
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> None:
    """Measure a trained model on a part of its data.

    Parameters
    ----------
    run
        Folder of the run.
    part
        Part of the data set.
    weights
        Best on validation, or of the last epoch.
    data_dir
        Where the data lies now, if it moved; of a folder of images, the folder itself.
    dataset
        Measure on another data set of the same classes, as folder:PATH.
    device
        auto, cpu, cuda ...
    metrics
        Also macro F1, AUROC and calibration error, with torchmetrics.
    as_json
        Print JSON.
    """
    from gmmvit.evaluate import evaluate_run

    result = evaluate_run(
        run, part=part, weights=weights, data_dir=data_dir, dataset=dataset, device=device, more=metrics
    )
    if as_json:
        print(json.dumps(result))
        return
    for name, value in result.items():
        if name != "per_class":
            print(f"{name:>16}  {value:.4f}" if isinstance(value, float) else f"{name:>16}  {value}")
    width = max(len(name) for name in result["per_class"])
    for name, value in result["per_class"].items():
        print(f"{name:>{max(16, width)}}  " + ("no images" if value is None else f"{value:.4f}"))


@app.command
def predict(
    run: Path,
    /,
    *images: Path,
    top: int = 5,
    weights: typing.Literal["best", "last"] = "best",
    device: str = "auto",
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> int:
    """Predict the class of images.

    Parameters
    ----------
    run
        Folder of the run.
    images
        Image files.
    top
        How many classes to name for each.
    weights
        Best on validation, or of the last epoch.
    device
        auto, cpu, cuda ...
    as_json
        Print a JSON list.
    """
    if not images:
        raise RecipeError("predict needs at least one image: gmmvit predict RUN IMAGE...")
    if top < 1:
        raise RecipeError(f"--top must be at least 1, got {top}")
    from gmmvit.checkpoint import load_run
    from gmmvit.data import DataError
    from gmmvit.session import choose_device

    model = load_run(run, weights=weights, device=choose_device(device))
    rows, failed = [], False
    for image in images:
        try:
            classes = model.predict(image, top)
        except (DataError, OSError) as error:
            failed = True
            print(f"gmmvit: {_one_line(error)}", file=sys.stderr)
            continue
        rows.append({"image": str(image), "classes": [{"class": name, "probability": p} for name, p in classes]})
        if not as_json:
            print(f"{image}: " + ", ".join(f"{name} {p:.1%}" for name, p in classes))
    if as_json:
        print(json.dumps(rows, indent=2))
    return EXIT_FAILED if failed else 0


@app.command
def report(*runs: Path, out: Path | None = None, data_dir: str | None = None, device: str = "auto") -> None:
    """Write one offline HTML page about a run, with a table when several are given.

    Parameters
    ----------
    runs
        Folders of runs; the details are those of the first.
    out
        Where the page goes; report.html in the first run by default.
    data_dir
        Where the data lies now, if it moved.
    device
        auto, cpu, cuda ...
    """
    if not runs:
        raise RecipeError("report needs at least one run folder: gmmvit report RUN...")
    from gmmvit.report import write_report
    from gmmvit.session import choose_device

    print(write_report(runs, out, data_dir=data_dir, device=str(choose_device(device))))


@app.command
def export(
    run: Path,
    /,
    *,
    format: typing.Literal["onnx", "torch"] = "onnx",
    out: Path | None = None,
    weights: typing.Literal["best", "last"] = "best",
    overwrite: bool = False,
) -> None:
    """Write the model of a run as one file, ONNX or torch.export, checked against the model.

    Parameters
    ----------
    run
        Folder of the run.
    format
        onnx (with onnx, onnxscript and, for the check, onnxruntime) or torch, a program of torch.export.
    out
        The file; model.onnx or model.pt2 in the run's folder by default.
    weights
        Best on validation, or of the last epoch.
    overwrite
        Replace that file.
    """
    from gmmvit.export import export_run

    path, difference = export_run(run, out, format=format, weights=weights, overwrite=overwrite)
    found = "not checked: onnxruntime is not installed"
    print(f"{path} ({found if difference is None else f'logits differ from the model by {difference:.1e} at most'})")


@app.command
def models(
    *,
    image_size: str = "32",
    num_classes: int = 10,
    channels: int = 3,
    markdown: bool = False,
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> None:
    """List families, sizes and masks with parameters and multiply-accumulates for an image size.

    Parameters
    ----------
    image_size
        Pixels, N or HEIGHTxWIDTH.
    num_classes
        Width of the head.
    channels
        Of the images.
    markdown
        Print the README's table: the paper's sizes, a row each.
    as_json
        Print JSON.
    """
    size = load_recipe("digits", image_size=image_size).image_size or (32,)
    from gmmvit.models import list_models, markdown_table, text_table

    rows = list_models((size[0], size[-1]), num_classes, channels)
    if as_json:
        print(json.dumps(rows, indent=2))
    else:
        print(markdown_table(rows) if markdown else text_table(rows))


@app.command
def convert(
    file: Path,
    /,
    *,
    family: str,
    mask: typing.Literal["none", "elm", "gmm"],
    out: Path,
    dataset: str | None = None,
    data_dir: str | None = None,
    num_heads: str | None = None,
    overwrite: bool = False,
) -> None:
    """Turn a checkpoint of the original code into a run folder for predict, eval and report.

    Parameters
    ----------
    file
        The .pth file; only its tensors are read.
    family
        Family of the model.
    mask
        Its mask.
    out
        Folder of the run.
    dataset
        What it was trained on: cifar10, cifar100, svhn or tiny-imagenet; the likeliest for its images and classes by
        default.
    data_dir
        Where the data set lies, to read class names where they are not known without it.
    num_heads
        Heads, where the tensors do not tell them (some models without Gaussian mask); one number or one per stage.
    overwrite
        Replace an old run in that folder.
    """
    heads = None if num_heads is None else load_recipe(num_heads=num_heads).num_heads
    from gmmvit.convert import convert as write_run

    folder = write_run(
        file,
        out,
        family=family,
        mask=mask,
        dataset=dataset,
        data_dir=data_dir,
        overwrite=overwrite,
        report=lambda notice: print(notice, file=sys.stderr),
        **({} if heads is None else {"heads": heads[0] if len(heads) == 1 else heads}),
    )
    print(folder)


@app.command
def recipes() -> None:
    """List the shipped recipes and the heads of their files."""
    from gmmvit.config import RECIPES

    for name in recipe_names():
        lines = (RECIPES / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
        print(name)
        print("\n".join(f"    {line.removeprefix('#').strip()}" for line in lines if line.startswith("#")))


def _interrupt(number: int, frame: object) -> None:
    """SIGTERM, by which schedulers stop a job, ends a training as Ctrl-C does."""
    raise KeyboardInterrupt


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns the exit status: 0 done, 1 failed, 2 wrong usage. `--debug` shows tracebacks."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    # Threads of libgomp that wait for one another spin; where another process holds a core, for ever. Read when torch
    # loads. Measured with `train` on the digits: as fast on idle cores, many times faster on shared ones.
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name that the terminal cannot show is no failure
    leads = os.environ.get("RANK", "0") == "0"
    if leads:  # of several processes the others end at once where torchrun ends them
        with suppress(ValueError):  # outside of the main thread
            signal.signal(signal.SIGTERM, _interrupt)
    name = "gmmvit" if leads else f"gmmvit (process {os.environ['RANK']})"
    try:
        return app(arguments, exit_on_error=False, print_error=False) or 0
    except KeyboardInterrupt as error:
        print(f"{name}: {str(error) or 'interrupted'}", file=sys.stderr)
        return EXIT_FAILED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that the exit flushes into nothing
        return EXIT_FAILED
    except Exception as error:
        if debug:
            raise
        print(f"{name}: {_one_line(error)}", file=sys.stderr)
        return EXIT_USAGE if isinstance(error, CycloptsError | RecipeError) else EXIT_FAILED
