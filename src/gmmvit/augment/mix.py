"""Mixup and cutmix with soft targets.

Mixup: Zhang et al., arXiv 1710.09412. Cutmix: Yun et al., arXiv 1905.04899. One partner per sample and one mixing ratio
per batch. B samples, C channels, H x W pixels, K classes.
"""

from typing import NamedTuple

import torch
from torch import Tensor


def soft_targets(labels: Tensor, num_classes: int, smoothing: float, weights: Tensor | None = None) -> Tensor:
    """int64 [B] to float32 [B, K]: `smoothing` spread evenly over all classes, the rest on the label, times its weight
    in `weights`, float32 [K]. Several labels, uint8 [B, K], are each smoothed between 0 and 1."""
    if labels.ndim == 2:
        return labels * (1 - smoothing) + smoothing / 2
    targets = torch.full((len(labels), num_classes), smoothing / num_classes, device=labels.device)
    targets = targets.scatter_(1, labels[:, None], 1 - smoothing + smoothing / num_classes)
    return targets if weights is None else targets * weights[labels][:, None]


def cut_box(ratio: float, row: float, column: float, height: int, width: int) -> tuple[int, int, int, int]:
    """(top, bottom, left, right) of a patch that leaves about the fraction `ratio` of an image.

    `row` and `column`, in [0, 1), place its centre; whatever is outside the image is cut off.
    """
    half = 0.5 * (1 - ratio) ** 0.5
    y, x, half_height, half_width = int(row * height), int(column * width), int(half * height), int(half * width)
    return max(y - half_height, 0), min(y + half_height, height), max(x - half_width, 0), min(x + half_width, width)


class Mix:
    """Mix a batch with probability `prob`, by mixup or cutmix with equal chance; an alpha of 0 switches one off."""

    def __init__(self, prob: float, mixup_alpha: float, cutmix_alpha: float) -> None:
        self._mixup_alpha, self._cutmix_alpha = mixup_alpha, cutmix_alpha
        self._prob = prob if mixup_alpha or cutmix_alpha else 0.0

    def draw(self, count: int, height: int, width: int, generator: torch.Generator) -> "Mixing | None":
        """How to mix a batch of `count` images; None if it is not mixed."""
        if self._prob == 0 or count == 0:
            return None
        gate, coin, row, column = torch.rand(4, generator=generator, device=generator.device).tolist()
        if gate >= self._prob:
            return None
        cut = self._cutmix_alpha > 0 and (self._mixup_alpha == 0 or coin < 0.5)
        ratio = _beta(self._cutmix_alpha if cut else self._mixup_alpha, generator)
        partner = torch.randperm(count, generator=generator, device=generator.device)
        if not cut:
            return Mixing(partner, ratio, None)
        top, bottom, left, right = box = cut_box(ratio, row, column, height, width)
        return Mixing(partner, 1 - (bottom - top) * (right - left) / (height * width), box)


class Mixing(NamedTuple):
    """How one batch is mixed: sample i takes a fraction 1 - `ratio` from `partner[i]`, in `box` (cutmix; top, bottom,
    left, right) or, if that is None, everywhere (mixup)."""

    partner: Tensor
    ratio: float
    box: tuple[int, int, int, int] | None

    def apply(self, images: Tensor, targets: Tensor, own: slice, others: Tensor) -> tuple[Tensor, Tensor]:
        """Mixes the rows `own` of float32 images [R, C, H, W] and targets [R, K] with the rows `others`, int64 [S] on
        their device. Overwrites the images."""
        other_images, other_targets = images.index_select(0, others), targets.index_select(0, others)
        images, targets = images[own], targets[own]
        if self.box is None:
            images = other_images.lerp_(images, self.ratio)
        else:
            top, bottom, left, right = self.box
            images[..., top:bottom, left:right] = other_images[..., top:bottom, left:right]
        return images, other_targets.lerp_(targets, self.ratio)


def _beta(alpha: float, generator: torch.Generator) -> float:
    """One draw of Beta(alpha, alpha); in float64, so that two small gammas are not both 0."""
    alphas = torch.full((2,), alpha, dtype=torch.float64, device=generator.device)
    return torch._sample_dirichlet(alphas, generator)[0].item()
