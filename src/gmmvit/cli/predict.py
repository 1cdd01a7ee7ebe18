"""The command predict: classifies images with a trained model."""

import json
import typing
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from gmmvit.cli.app import EXIT_FAILED, Json, app, one_line, say
from gmmvit.config import RecipeError

if TYPE_CHECKING:
    from torch import Tensor

    from gmmvit.runs.checkpoint import LoadedRun
    from gmmvit.runs.predictions import Predictions

_BATCH = 128  # images decoded per model call


@app.command
def predict(
    run: Path,
    /,
    *images: Path,
    top: int = 5,
    weights: typing.Literal["best", "last"] = "best",
    device: str = "auto",
    unknown_below: str | None = None,
    threshold: float | None = None,
    data_dir: str | None = None,
    csv: Path | None = None,
    overwrite: bool = False,
    as_json: Json = False,
) -> int:
    """Predict the class of images, or their labels.

    Parameters
    ----------
    run
        Folder of the run.
    images
        Image files and folders; a folder stands for all images in and below it, sorted.
    top
        How many classes to print per image.
    weights
        The best on validation, or those of the last epoch.
    device
        auto, cpu, cuda ...
    unknown_below
        Predict "unknown" if the highest probability is below this number; auto chooses one with which 95 % of the
        validation images keep their class.
    threshold
        For several labels an image: predict each label whose probability is at least this; default: 0.5.
    data_dir
        For auto: where the data is now, if it moved; for a folder of images, that folder.
    csv
        File with one row per image: file, predicted class (or labels, separated by |), probability of each class.
    overwrite
        Replace that file.
    as_json
        Print a JSON list.
    """
    if not images:
        raise RecipeError("predict needs at least one image: gmmvit predict RUN IMAGE...")
    if top < 1:
        raise RecipeError(f"--top must be at least 1, got {top}")
    limit = _limit(unknown_below, data_dir)
    import torch

    from gmmvit.data.walk import expanded_folders
    from gmmvit.device import choose_device
    from gmmvit.runs.checkpoint import load_run
    from gmmvit.runs.predictions import check_csv, write_csv

    if csv is not None:
        check_csv(csv, overwrite)
    model = load_run(run, weights=weights, device=choose_device(device))
    answers = model.answers(1.0 if limit == "auto" else limit, threshold)
    if limit == "auto":
        answers = replace(answers, unknown_below=_chosen(model, data_dir))
    paths = list(expanded_folders(images, lambda line: say(line, error=True)))
    done: list[str] = []
    parts = [answers.probabilities]
    for files, logits in _batches(model, paths):
        done += files
        parts.append(model.task.probabilities(logits))
        if not as_json:
            _show(files, replace(answers, probabilities=parts[-1]), top)
    answers = replace(answers, probabilities=torch.cat(parts))
    if as_json:
        print(json.dumps(_rows(done, answers, top), indent=2))
    if csv is not None:
        write_csv(csv, done, answers)
    failed = len(paths) - len(done)
    if failed and done:
        say(f"gmmvit: {failed} of {len(paths)} could not be predicted", error=True)
    return EXIT_FAILED if failed else 0


def _limit(text: str | None, data_dir: str | None) -> float | typing.Literal["auto"] | None:
    """The value of --unknown-below."""
    if data_dir is not None and text != "auto":
        raise RecipeError("--data-dir of predict is for the validation images of --unknown-below auto")
    if text is None or text == "auto":
        return text  # type: ignore[return-value]
    with suppress(ValueError):
        if 0 < float(text) <= 1:
            return float(text)
    raise RecipeError(f"--unknown-below must be auto or a number above 0 and at most 1, got {text!r}")


def _chosen(model: "LoadedRun", data_dir: str | None) -> float:
    """Chooses the threshold on the validation part and prints it."""
    from gmmvit.runs.evaluate import unknown_threshold

    found = unknown_threshold(model, data_dir=data_dir)
    say(
        f"unknown below {found.value:g}: {found.kept} of {found.images} validation images keep their class "
        f"({found.kept / found.images:.1%})",
        error=True,
    )
    return found.value


def _show(files: list[str], answers: "Predictions", top: int) -> None:
    from gmmvit.data.several import NO_LABEL  # torch, which --help does without

    for file, answer, classes in zip(files, answers.predicted, answers.top(top), strict=True):
        shares = ", ".join(f"{name} {p:.1%}" for name, p in classes)
        words = answer if isinstance(answer, str) else ", ".join(answer) or NO_LABEL
        say(f"{file}: " + (shares if answer == classes[0][0] else f"{words} ({shares})"))


def _rows(files: list[str], answers: "Predictions", top: int) -> list[dict[str, object]]:
    return [
        {"image": file, "predicted": answer, "classes": [{"class": name, "probability": p} for name, p in classes]}
        for file, answer, classes in zip(files, answers.predicted, answers.top(top), strict=True)
    ]


def _batches(model: "LoadedRun", paths: Iterable[str]) -> Iterator[tuple[list[str], "Tensor"]]:
    """Readable files with their logits, batch by batch; prints an error line for each unreadable file."""
    import torch

    from gmmvit.data import DataError

    files: list[str] = []
    pixels: list[torch.Tensor] = []
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
