"""The command predict: what a trained model answers to images."""

import json
import typing
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from gmmvit.cli.app import EXIT_FAILED, Json, app, one_line, say
from gmmvit.config import RecipeError

if TYPE_CHECKING:
    from torch import Tensor

    from gmmvit.checkpoint import LoadedRun

_BATCH = 128  # images that are decoded before the model sees them


@app.command
def predict(
    run: Path,
    /,
    *images: Path,
    top: int = 5,
    weights: typing.Literal["best", "last"] = "best",
    device: str = "auto",
    csv: Path | None = None,
    overwrite: bool = False,
    as_json: Json = False,
) -> int:
    """Predict the class of images.

    Parameters
    ----------
    run
        Folder of the run.
    images
        Image files, and folders: of a folder all images in it and below it, sorted.
    top
        How many classes to name for each.
    weights
        Best on validation, or of the last epoch.
    device
        auto, cpu, cuda ...
    csv
        File for a row of each image: file, predicted class, probability of each class.
    overwrite
        Replace that file.
    as_json
        Print a JSON list.
    """
    if not images:
        raise RecipeError("predict needs at least one image: gmmvit predict RUN IMAGE...")
    if top < 1:
        raise RecipeError(f"--top must be at least 1, got {top}")
    import torch

    from gmmvit.checkpoint import load_run
    from gmmvit.data.walk import expanded_folders
    from gmmvit.predictions import Predictions, check_csv, write_csv
    from gmmvit.session import choose_device

    if csv is not None:
        check_csv(csv, overwrite)
    model = load_run(run, weights=weights, device=choose_device(device))
    paths = list(expanded_folders(images, lambda line: say(line, error=True)))
    done: list[str] = []
    parts: list[Tensor] = []
    for files, logits in _batches(model, paths):
        answers = Predictions(model.classes, logits.softmax(-1))
        done += files
        parts.append(answers.probabilities)
        for file, classes in zip(files, answers.top(top), strict=True) if not as_json else ():
            say(f"{file}: " + ", ".join(f"{name} {p:.1%}" for name, p in classes))
    answers = Predictions(model.classes, torch.cat(parts) if parts else torch.empty(0, len(model.classes)))
    if as_json:
        print(json.dumps(_rows(done, answers.top(top)), indent=2))
    if csv is not None:
        write_csv(csv, done, answers)
    failed = len(paths) - len(done)
    if failed and done:
        say(f"gmmvit: {failed} of {len(paths)} could not be predicted", error=True)
    return EXIT_FAILED if failed else 0


def _rows(files: list[str], top: list[list[tuple[str, float]]]) -> list[dict[str, object]]:
    return [
        {"image": file, "classes": [{"class": name, "probability": p} for name, p in classes]}
        for file, classes in zip(files, top, strict=True)
    ]


def _batches(model: "LoadedRun", paths: Iterable[str]) -> Iterator[tuple[list[str], "Tensor"]]:
    """Files that could be read with their logits, batch by batch; the others are named in an error line each."""
    import torch

    from gmmvit.data import DataError

    files: list[str] = []
    pixels: list[Tensor] = []
    for path in paths:
        try:
            if Path(path).is_dir():
                raise DataError(f"{path} holds no images")
            pixels.append(model.decode(path))
        except (DataError, OSError) as error:
            say(f"gmmvit: {one_line(error)}", error=True)
            continue
        files.append(path)
        if len(files) == _BATCH:
            yield files, model.logits(torch.stack(pixels))
            files, pixels = [], []
    if files:
        yield files, model.logits(torch.stack(pixels))
