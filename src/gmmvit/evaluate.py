"""Measuring a model on one part of a data set. Letters: N images, C channels."""

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gmmvit.augment import normalize
from gmmvit.checkpoint import RunError, load_run
from gmmvit.data import Dataset, Split
from gmmvit.session import choose_device, load_data

EVAL_BATCH = 512


@torch.no_grad()
def predict(model: nn.Module, split: Split, data: Dataset, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Logits [N, classes] of a whole part, float32 on the CPU; the model is left in eval mode."""
    model.eval()
    parts = []
    for images in split.images.split(EVAL_BATCH):
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            parts.append(model(normalize(images.to(device), data.mean, data.std)).float())
    return torch.cat(parts).cpu()


def scores(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Loss and top-1 (a fraction) of logits [N, classes]."""
    labels = labels.cpu()
    return {
        "loss": nn.functional.cross_entropy(logits, labels).item(),
        "top1": (logits.argmax(1) == labels).double().mean().item(),
    }


def confusion_counts(logits: Tensor, labels: Tensor) -> Tensor:
    """How often each class was taken for each: int64 [classes, classes], rows true, columns predicted."""
    classes = logits.shape[1]
    cells = labels.cpu() * classes + logits.argmax(1).cpu()
    return cells.bincount(minlength=classes * classes).reshape(classes, classes)


def confused_pairs(counts: Tensor, limit: int) -> list[tuple[int, int, int]]:
    """The `limit` most frequent mistakes as (true class, predicted class, count), the most frequent first."""
    mistakes = counts.clone().fill_diagonal_(0).flatten()
    order = mistakes.argsort(descending=True, stable=True)[:limit].tolist()
    return [(*divmod(cell, len(counts)), int(mistakes[cell])) for cell in order if mistakes[cell]]


def worst_mistakes(logits: Tensor, labels: Tensor, limit: int) -> list[int]:
    """Indices of the wrongly classified images with the highest loss, the highest first."""
    labels = labels.cpu()
    losses = nn.functional.cross_entropy(logits, labels, reduction="none")
    wrong = (logits.argmax(1) != labels).nonzero().flatten()
    return wrong[losses[wrong].argsort(descending=True, stable=True)[:limit]].tolist()


def evaluate_run(
    folder: str | Path,
    *,
    part: str = "test",
    weights: str = "best",
    data_dir: str | None = None,
    device: str = "auto",
    more: bool = False,
) -> dict[str, Any]:
    """Measures a trained model on a part of its data, in float32.

    Args:
        folder: run folder.
        part: "test", "val" or "train" (without augmentation).
        weights: "best" or "last".
        data_dir: where the data lies now, if it moved.
        device: "auto" or a torch device.
        more: also macro F1, AUROC and calibration error, which needs torchmetrics.

    Returns:
        run, dataset, part, weights, images, loss, top1, top5 (fractions) and per_class, the top-1 of each class (None
        where the part has no image of it).

    Raises:
        RunError: the folder is no run, or its data set has no such part or other classes than in training.
    """
    run = load_run(folder, weights=weights, device=choose_device(device))
    recipe = run.recipe if data_dir is None else dataclasses.replace(run.recipe, data_dir=data_dir)
    data = load_data(recipe)
    if data.classes != run.classes:
        raise RunError(f"{recipe.dataset} has the classes {list(data.classes)[:5]}..., {folder} learned others")
    split: Split | None = getattr(data, part)
    if split is None:
        raise RunError(f"{recipe.dataset} has no {part} part in this run; choose another with --part")
    logits, labels = run.logits(split.images), split.labels.cpu()
    counts = confusion_counts(logits, labels)
    totals, hits = counts.sum(1).tolist(), counts.diag().tolist()
    top5 = (logits.topk(min(5, logits.shape[1])).indices == labels[:, None]).any(1).double().mean().item()
    result: dict[str, Any] = {"run": str(folder), "dataset": recipe.dataset, "part": part, "weights": weights}
    result |= {"images": len(split), **scores(logits, labels), "top5": top5}
    if more:
        result |= _more_metrics(logits, labels)
    per_class = [hit / total if total else None for hit, total in zip(hits, totals, strict=True)]
    return result | {"per_class": dict(zip(run.classes, per_class, strict=True))}


def _more_metrics(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Macro F1, AUROC and calibration error by torchmetrics."""
    try:
        from torchmetrics.functional.classification import (
            multiclass_auroc,
            multiclass_calibration_error,
            multiclass_f1_score,
        )
    except ImportError as error:
        raise ModuleNotFoundError("--metrics needs torchmetrics; install it: pip install 'gmmvit[metrics]'") from error
    probabilities, classes = logits.softmax(-1), logits.shape[1]
    return {
        "f1_macro": multiclass_f1_score(probabilities, labels, classes, average="macro").item(),
        "auroc_macro": multiclass_auroc(probabilities, labels, classes, average="macro").item(),
        "calibration_error": multiclass_calibration_error(probabilities, labels, classes).item(),
    }
