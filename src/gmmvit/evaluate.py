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
