"""Measuring a model on one part of a data set. Letters: N images, C channels."""

import torch
from torch import Tensor, nn

from gmmvit.augment import normalize
from gmmvit.data import Dataset, Split

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
