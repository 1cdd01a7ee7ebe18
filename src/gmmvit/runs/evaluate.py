"""Measures a model on one part of a data set. Letters: N images, C channels."""

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gmmvit.augment import normalize
from gmmvit.checks import booleans, is_real, one_of, paths
from gmmvit.data import DataError, Dataset, Split, numbered_classes
from gmmvit.data.several import cell_of, class_counts, numbers_of
from gmmvit.device import choose_device, choose_dtype
from gmmvit.distributed import Team
from gmmvit.runs.checkpoint import LoadedRun, load_run
from gmmvit.runs.files import RunError
from gmmvit.runs.predictions import check_csv, write_csv
from gmmvit.runs.run_data import fingerprint, load_data, with_data_at
from gmmvit.tasks import ONE_LABEL, SeveralLabels, Task, at_threshold, task_of
from gmmvit.text import short

EVAL_BATCH = 512


@torch.no_grad()
def predict(
    model: nn.Module, split: Split, data: Dataset, device: torch.device, dtype: torch.dtype, team: Team | None = None
) -> Tensor:
    """Logits [N, classes] of a whole part, float32 on the CPU; each process of a team computes its share. Leaves the
    model in eval mode."""
    model.eval()

    def logits(images: Tensor) -> Tensor:
        parts = []
        for batch in images.split(EVAL_BATCH):
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                parts.append(model(normalize(batch.to(device), data.mean, data.std)).float())
        return torch.cat(parts)

    return (team or Team()).spread(split.images, logits).cpu()


def interval(part: float, count: int) -> tuple[float, float]:
    """The 95 % interval of a fraction of `count` images (Wilson's score interval)."""
    z = 1.96
    centre, spread = part + z * z / (2 * count), z * (part * (1 - part) / count + (z / (2 * count)) ** 2) ** 0.5
    return (centre - spread) / (1 + z * z / count), (centre + spread) / (1 + z * z / count)


def class_scores(logits: Tensor, labels: Tensor, task: Task = ONE_LABEL) -> dict[str, list[float | None]]:
    """Precision, recall and f1 of each class by scikit-learn; None where the denominator is zero: no image predicted as
    the class, no image of it, or neither."""
    from sklearn.metrics import precision_recall_fscore_support

    found = precision_recall_fscore_support(
        labels.cpu().numpy(),
        task.answers(logits).cpu().numpy(),
        labels=range(logits.shape[1]),
        average=None,
        zero_division=math.nan,
    )
    lists = [[None if math.isnan(value) else float(value) for value in column] for column in found[:3]]
    return dict(zip(("precision", "recall", "f1"), lists, strict=True))


@dataclass(frozen=True)
class Calibration:
    """Images binned by the confidence of their prediction in `CALIBRATION_BINS` equal steps: mean confidence, accuracy
    and count of each non-empty bin; `error` is the expected calibration error. If an image may have several labels,
    each label counts, by its probability, and `accuracy` is how often it is there."""

    error: float
    confidence: list[float]
    accuracy: list[float]
    images: list[int]


CALIBRATION_BINS = 15  # as in Guo et al., arXiv 1706.04599


def calibration(logits: Tensor, labels: Tensor, task: Task = ONE_LABEL) -> Calibration:
    """Compares the model's confidence with its accuracy."""
    sure, hits = task.claims(logits, labels)
    bins = (sure * CALIBRATION_BINS).long().clamp(0, CALIBRATION_BINS - 1)
    images = bins.bincount(minlength=CALIBRATION_BINS)
    there = images > 0
    confidence, accuracy = ((bins.bincount(x, minlength=CALIBRATION_BINS) / images)[there] for x in (sure, hits))
    error = ((confidence - accuracy).abs() * images[there]).sum() / len(sure)
    return Calibration(error.item(), confidence.tolist(), accuracy.tolist(), images[there].tolist())


def confused_pairs(counts: Tensor, limit: int) -> list[tuple[int, int, int]]:
    """The `limit` most frequent mistakes as (true class, predicted class, count), the most frequent first."""
    mistakes = counts.clone().fill_diagonal_(0).flatten()
    order = mistakes.argsort(descending=True, stable=True)[:limit].tolist()
    return [(*divmod(cell, len(counts)), int(mistakes[cell])) for cell in order if mistakes[cell]]


def worst_mistakes(logits: Tensor, labels: Tensor, limit: int, task: Task = ONE_LABEL) -> list[int]:
    """Indices of the images that are not answered right with the highest loss, the highest first."""
    labels = labels.cpu()
    losses = task.losses(logits, labels)
    wrong = (~task.right(logits, labels)).nonzero().flatten()
    return wrong[losses[wrong].argsort(descending=True, stable=True)[:limit]].tolist()


def load_parts(
    run: LoadedRun, *, data_dir: str | None = None, dataset: str | None = None, download: bool = True
) -> Dataset:
    """The data of a run, or of `dataset`, at the run's image size.

    `data_dir` is where the data is now, if it moved; for a folder of images, that folder.
    Raises RunError if its classes differ from those the model learned, or only one of the two has several labels an
    image.
    """
    recipe = run.recipe
    if dataset is not None:
        recipe = dataclasses.replace(
            recipe, dataset=dataset, data_dir=data_dir or recipe.data_dir, folds=None, fold=None
        )
    else:
        recipe = with_data_at(recipe, data_dir)
    recipe = dataclasses.replace(recipe, image_size=run.image_size, channels=run.channels, bits=run.bits)
    data = load_data(recipe, download=download)
    if task_of(data.train.labels) is not run.task:
        raise RunError(
            f"an image of {recipe.dataset} has {task_of(data.train.labels).words}, and {run.folder} learned images of "
            f"{run.task.words}"
        )
    if run.classes != data.classes and list(run.classes) != numbered_classes(len(data.classes)):
        missing = [name for name in run.classes if name not in data.classes]
        more = [name for name in data.classes if name not in run.classes]
        what = f"lacks {missing[:5]}" if missing else f"also has {more[:5]}" if more else "orders them differently"
        raise RunError(f"{recipe.dataset} has other classes than {run.folder} learned: it {what}")
    return data


def check_unchanged(run: LoadedRun, data: Dataset, part: str) -> None:
    """Raises RunError if a part differs from that of the training: a new split may contain training images."""
    split = getattr(data, part)
    known = run.fingerprints.get(part)
    if split is not None and known is not None and fingerprint(split) != known:
        raise RunError(
            f"the {part} part of {data.name} is not that of {run.folder}: images were added or removed, and the new "
            "split may contain training images; measure on a separate folder with --dataset"
        )


def part_of(run: LoadedRun, data: Dataset, part: str) -> Split:
    """A part of a run's own data; raises RunError if it is missing or differs from that of the training."""
    split: Split | None = getattr(data, part)
    if split is None or not len(split):
        others = " and ".join(name for name in ("train", "val", "test") if getattr(data, name) is not None)
        raise RunError(
            f"{data.name} has no {part} part in this run, but {others}: choose with --part (in Python part=)"
        )
    check_unchanged(run, data, part)
    return split


def measured_logits(run: LoadedRun, split: Split) -> Tensor:
    """Logits [N, classes] in the run's validation precision, so that figures match its summary."""
    dtype = choose_dtype(run.recipe.dtype, run.device)
    with torch.autocast(run.device.type, dtype, enabled=dtype != torch.float32):
        return run.logits(split.images)


@dataclass(frozen=True)
class Threshold:
    """A `value` for `unknown_below`, with which `kept` of `images` validation images still get a class."""

    value: float
    kept: int
    images: int


def unknown_threshold(run: LoadedRun, *, keep: float = 0.95, data_dir: str | None = None) -> Threshold:
    """The highest `unknown_below` with which a fraction `keep` of the validation images still gets a class, rounded
    down to six decimals.

    Args:
        run: a loaded run.
        keep: fraction of the validation images, above 0 and at most 1.
        data_dir: where the run's data is now, if it moved; for a folder of images, that folder.

    Raises:
        RunError: the run's data cannot be read, has changed, or has no validation part.
        ValueError: `keep` is out of range, or the model answers with several labels.
    """
    paths(data_dir=data_dir)
    if not isinstance(run, LoadedRun):
        raise TypeError(f"run must be a loaded run, as gmmvit.load_run gives it, got {short(run)}")
    run.answers(unknown_below=1.0)  # raises if the model cannot answer "unknown"
    if not is_real(keep) or not 0 < keep <= 1:
        raise ValueError(f"keep must be above 0 and at most 1, got {short(keep)}")
    try:
        data = load_parts(run, data_dir=data_dir, download=False)
        check_unchanged(run, data, "val")
    except (DataError, OSError, RunError) as error:
        raise RunError(f"no threshold can be chosen without validation images: {error}") from error
    if data.val is None or not len(data.val):
        raise RunError(
            f"no threshold can be chosen: {data.name} has no val part in this run; give a number, or take a run that "
            "held images out for validation"
        )
    sure = run.logits(data.val.images).softmax(-1).amax(1).sort().values.double()
    lost = math.floor((1 - keep) * len(sure) + 1e-9)
    value = max(1e-6, math.floor(sure[lost].item() * 1e6) / 1e6)
    return Threshold(value, int((sure >= value).sum()), len(sure))


def evaluate_run(
    folder: str | Path,
    *,
    part: str = "test",
    weights: str = "best",
    data_dir: str | None = None,
    dataset: str | None = None,
    device: str = "auto",
    more: bool = False,
    csv: str | Path | None = None,
    threshold: float | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Measures a trained model on a part of its data.

    Args:
        folder: run folder.
        part: "test", "val" or "train" (without augmentation).
        weights: "best" or "last".
        data_dir: where the data is now, if it moved; for a folder of images, that folder.
        dataset: another data set with the same classes.
        device: "auto" or a torch device.
        more: also AUROC and calibration error, which needs torchmetrics.
        csv: file with one row per image: name, true and predicted class, and the probability of each class.
        threshold: for several labels an image, the least probability of a predicted label; default: 0.5.
        overwrite: replaces that file.

    Returns:
        run, dataset, part, weights, images, loss, and as fractions top1, macro_f1, balanced, top5 (with six or more
        classes); per_class, the top-1 of each class (None without images), and class_images, their numbers. With
        several labels an image, map, macro_f1, micro_f1 and exact (the fraction of images whose labels are all right)
        replace these figures, and per_class holds average precisions.

    Raises:
        RunError: the folder is not a run, its data lacks the part or has other classes or another split than in
            training, or the CSV exists or cannot be written.
    """
    one_of("part", part, ("test", "val", "train"))
    paths(data_dir=data_dir, csv=csv)
    booleans(more=more, overwrite=overwrite)
    if dataset is not None and not isinstance(dataset, str):
        raise TypeError(f"dataset must be the name of a data set, as folder:PATH, got {short(dataset)}")
    if csv is not None:
        check_csv(csv, overwrite)
    run = load_run(folder, weights=weights, device=choose_device(device))
    task = at_threshold(run.task, threshold)
    data = load_parts(run, data_dir=data_dir, dataset=dataset)
    split: Split | None = getattr(data, part)
    if run.recipe.folds and not run.recipe.fold and dataset is None and (split is None or part != "test"):
        raise RunError(
            f"{folder} was trained on every image of {data.name} in one of its folds, so measure it on others with "
            "--dataset folder:PATH (in Python dataset=); the results of the folds are in folds.csv"
        )
    if dataset is None or split is None or not len(split):
        split = part_of(run, data, part)
    logits, labels = measured_logits(run, split), split.labels.cpu()
    result: dict[str, Any] = {"run": str(folder), "dataset": data.name, "part": part, "weights": weights}
    result |= {"images": len(split), **task.scores(logits, labels)}
    if data.several:
        result["exact"] = task.right(logits, labels).double().mean().item()
    elif logits.shape[1] > 5:  # else always right
        result["top5"] = (logits.topk(5).indices == labels[:, None]).any(1).double().mean().item()
    if more:
        result |= _more_metrics(logits, labels, task)
    result |= {"per_class": dict(zip(data.classes, task.class_values(logits, labels), strict=True))}
    if csv is not None:
        answers = dataclasses.replace(
            run.answers(threshold=threshold), classes=data.classes, probabilities=task.probabilities(logits)
        )
        write_csv(csv, split.names, answers, [_true_cell(label, data) for label in labels])
    totals = class_counts(labels, len(data.classes)).tolist()
    return result | {"class_images": dict(zip(data.classes, totals, strict=True))}


def _true_cell(label: Tensor, data: Dataset) -> str:
    names = [data.classes[number] for number in numbers_of(label)]
    return cell_of(names) if data.several else names[0]


def _more_metrics(logits: Tensor, labels: Tensor, task: Task) -> dict[str, float]:
    """AUROC by torchmetrics, of several labels the mean over those that some images have and others not, and the
    calibration error."""
    error = calibration(logits, labels, task).error
    try:
        from torchmetrics.functional.classification import binary_auroc, multiclass_auroc
    except ImportError as error:
        raise ModuleNotFoundError("--metrics needs torchmetrics; install it: pip install torchmetrics") from error
    probabilities, classes = task.probabilities(logits), logits.shape[1]
    if isinstance(task, SeveralLabels):
        mixed = ((labels.sum(0) > 0) & (labels.sum(0) < len(labels))).nonzero().flatten().tolist()
        each = [binary_auroc(probabilities[:, k], labels[:, k].long()).item() for k in mixed]
        return {"auroc_macro": sum(each) / max(1, len(each)), "calibration_error": error}
    auroc = multiclass_auroc(probabilities, labels, classes, average="macro").item()
    return {"auroc_macro": auroc, "calibration_error": error}
