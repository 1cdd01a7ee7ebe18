"""A few training images under a recipe's augmentation.

Letters: C channels, H height, W width, K classes.
"""

from collections.abc import Sequence
from html import escape

import torch
from torch import Tensor

from gmmvit.augment import take_rows
from gmmvit.config import Recipe
from gmmvit.data import Dataset
from gmmvit.data.several import NO_LABEL, has_class, words_of
from gmmvit.report.page import paragraph, picture
from gmmvit.report.pictures import LOSSLESS_SIDE, about_view, image_address
from gmmvit.training.session import make_augment

PREVIEWED, DRAWS = 4, 6  # images, and augmentations of each


def augmentation_section(data: Dataset, recipe: Recipe) -> str:
    """Training images, each followed by augmented versions."""
    chosen = spread_rows(data, PREVIEWED)
    images, targets = previews(data, recipe, chosen, DRAWS)
    kept = recipe.label_smoothing
    parts = []
    for place, index in enumerate(chosen):
        original = data.train.images[index]
        name = words_of(data.train.labels[index].cpu(), data.classes)
        smooth = max(original.shape) > LOSSLESS_SIDE
        cards = picture(
            [(image_address(original), str(data.train.names[index]))], f"<b>{escape(name)}</b>", smooth=smooth
        )
        for image, target in zip(images[:, place], targets[:, place], strict=True):
            words = _shares(target, data.classes, kept, data.several)
            cards += picture([(image_address(image), words)], f"<small>{escape(words)}</small>", smooth=smooth)
        parts.append(f'<div class="cards">{cards}</div>')
    policy, flip = recipe.policy or data.policy, data.flip if recipe.flip is None else recipe.flip
    intro = (
        f"Training images, each followed by {DRAWS} draws: crop_padding {recipe.crop_padding}, flip "
        f"{str(flip).lower()}, policy {policy}, erase_prob {recipe.erase_prob:g}, mix_prob {recipe.mix_prob:g} "
        f"(mixup_alpha {recipe.mixup_alpha:g}, cutmix_alpha {recipe.cutmix_alpha:g}). Below each is its target, "
        f"without the label smoothing of {recipe.label_smoothing:g}."
    )
    intro += about_view(data.train.images.shape[1], 8 * data.train.images.element_size())
    return paragraph(intro) + "".join(parts)


def spread_rows(data: Dataset, count: int) -> list[int]:
    """The rows of `count` training images, of different classes as far as possible."""
    labels = data.train.labels.cpu()
    of_class = [has_class(labels, label).nonzero().flatten().tolist() for label in range(len(data.classes))]
    turns = [rows[turn] for turn in range(count) for rows in of_class if turn < len(rows)]
    return list(dict.fromkeys(turns))[:count]


def previews(data: Dataset, recipe: Recipe, rows: Sequence[int], draws: int) -> tuple[Tensor, Tensor]:
    """The training images of `rows`, augmented `draws` times: [draws, n, C, H, W], and targets [draws, n, K]."""
    augment, generator = make_augment(recipe, data), torch.Generator().manual_seed(recipe.seed)
    chosen = torch.tensor(rows)
    drawn = [augment(take_rows(data.train.images, chosen), data.train.labels[chosen], generator) for _ in range(draws)]
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (data.mean, data.std))
    floats = torch.stack([images for images, _ in drawn]) * std + mean
    white = torch.iinfo(data.train.images.dtype).max
    images = (floats * white).round().clamp(0, white).to(data.train.images.dtype)
    return images, torch.stack([targets for _, targets in drawn])


def _shares(target: Tensor, classes: Sequence[str], smoothing: float, several: bool = False) -> str:
    """The classes of a soft target float32 [K] without label smoothing, such as "cat 62%, dog 38%"."""
    shares = target if several else target / target.sum()
    if smoothing < 1:
        shares = (shares - smoothing / (2 if several else len(classes))) / (1 - smoothing)
    order = shares.argsort(descending=True)[:3].tolist()
    return ", ".join(f"{classes[i]} {shares[i]:.0%}" for i in order if shares[i] >= 0.005) or NO_LABEL
