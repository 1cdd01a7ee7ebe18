"""Augments a batch at a time: flip, pad-crop, policy, normalise, random erasing, mix, in this order.

B samples, C channels, H x W pixels, K classes.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gmmvit.augment.device import one_thread, take_rows, to_device
from gmmvit.augment.erase import RandomErasing
from gmmvit.augment.geometry import flip_crop
from gmmvit.augment.mix import Mix, soft_targets
from gmmvit.augment.normalize import check_images, check_statistics, normalize
from gmmvit.augment.ops import apply_stages
from gmmvit.augment.policies import MAGNITUDE_BINS, make_policy
from gmmvit.checks import integer
from gmmvit.text import short

_REACH = 2.0  # standard deviations from the mean to black and to white, for 16-bit images


def _check_between(name: str, value: float, high: float) -> None:
    if not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number; got {short(value)}")
    if not 0 <= value <= high:
        raise ValueError(f"{name} must be within 0..{high:g}; got {value}")


def _checked_range(name: str, value: Sequence[float], limit: float) -> tuple[float, float]:
    if len(value) != 2 or not 0 < value[0] <= value[1] <= limit:
        raise ValueError(f"{name} must be (low, high) with 0 < low <= high <= {limit:g}; got {tuple(value)}")
    return value[0], value[1]


def steps_at_once(values: int, device: torch.device) -> int:
    """How many steps, of `values` (pixels times channels) each, to augment in one call: at most 16, as many as keep the
    floats of a call within 64 MB on a GPU, which needs several times that on the way, and within a CPU's cache."""
    return max(1, min(16, (2**21 if device.type == "cpu" else 2**24) // values))


class Augment:
    """A batch to a normalised float batch and soft targets; every draw comes from the generator, per sample.

    8-bit images keep their levels until normalised. 16-bit images may fill only a small part of their range, so they
    are augmented on the scale of the training images: black, which fills what a crop or a shift leaves open, is two
    standard deviations of the channel below its mean, white two above; nothing is rounded or clipped.

    Args:
        num_classes: K, at least 1.
        mean, std: one value per channel, on the scale 0..1.
        crop_padding: pixels of zeros around the image before a random crop back to its size; 0: no crop.
        flip: mirror left to right with probability one half.
        policy: "none", an AutoAugment policy ("cifar10", "svhn", "imagenet"), "rand" (RandAugment) or "trivial"
            (TrivialAugmentWide): torchvision's on uint8 tensors, nearest neighbour, fill 0. With channels other than 1
            or 3, Color does nothing and Contrast takes the mean of the channels as grey; the others act on each.
        rand_ops, rand_magnitude: operations per image and their magnitude (0..30), for "rand".
        erase_prob, erase_area, erase_aspect: random erasing with the mean colour: probability per image, range of the
            area as a fraction of the image, range of height / width.
        mix_prob: probability that a batch is mixed, by mixup or cutmix with equal chance.
        mixup_alpha, cutmix_alpha: the ratio is drawn from Beta(alpha, alpha), once per batch; 0 switches one off.
        label_smoothing: fraction of the target spread evenly over all classes; with several labels, over 0 and 1 of
            each.
        class_weights: weights of the targets of each class's images, 1 by default: the loss is linear in them. Not with
            several labels.

    Raises:
        TypeError, ValueError: naming the argument, the value and the values allowed.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        mean: Sequence[float],
        std: Sequence[float],
        crop_padding: int = 4,
        flip: bool = True,
        policy: str = "none",
        rand_ops: int = 2,
        rand_magnitude: int = 9,
        erase_prob: float = 0.25,
        erase_area: Sequence[float] = (0.02, 0.4),
        erase_aspect: Sequence[float] = (0.3, 3.3),
        mix_prob: float = 0.5,
        mixup_alpha: float = 1.0,
        cutmix_alpha: float = 1.0,
        label_smoothing: float = 0.1,
        class_weights: Sequence[float] | None = None,
    ) -> None:
        check_statistics(mean, std)
        integer("num_classes", num_classes)
        integer("crop_padding", crop_padding, 0)
        integer("rand_ops", rand_ops)
        integer("rand_magnitude", rand_magnitude, 0, MAGNITUDE_BINS - 1)
        for name, value, high in (
            ("erase_prob", erase_prob, 1),
            ("mix_prob", mix_prob, 1),
            ("mixup_alpha", mixup_alpha, 1e6),
            ("cutmix_alpha", cutmix_alpha, 1e6),
            ("label_smoothing", label_smoothing, 1),
        ):
            _check_between(name, value, high)
        area = _checked_range("erase_area", erase_area, 1)
        aspect = _checked_range("erase_aspect", erase_aspect, 1e6)
        self._num_classes, self._mean, self._std = num_classes, tuple(mean), tuple(std)
        self._crop_padding, self._flip, self._label_smoothing = crop_padding, flip, label_smoothing
        self._policy = make_policy(policy, rand_ops=rand_ops, rand_magnitude=rand_magnitude)
        self._erase = RandomErasing(erase_prob, area, aspect) if erase_prob else None
        if class_weights is not None and len(class_weights) != num_classes:
            raise ValueError(f"class_weights must be {num_classes} numbers, got {len(class_weights)}")
        self._weights = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32)
        self._mix = Mix(mix_prob, mixup_alpha, cutmix_alpha)
        # Numbers that a sample draws for flip and crop, for the policy and for erasing.
        self._columns = [3, *(part.num_draws if part else 0 for part in (self._policy, self._erase))]

    def __call__(
        self, images: Tensor, labels: Tensor, generator: torch.Generator, share: slice | None = None
    ) -> tuple[Tensor, Tensor]:
        """Augment a batch, or only a share of it.

        Args:
            images: uint8 or uint16 [B, C, H, W]; not changed. B may be 0.
            labels: int64 [B], 0..num_classes-1 (checked only on the CPU, as a check on a GPU would wait for it), or
                uint8 [B, num_classes] of 0 and 1 if an image may have several labels.
            generator: on any device. One on the CPU never makes the host wait for a GPU.
            share: the samples to compute, all by default. The draws are those of the whole batch, so processes that
                each compute a share together make the batch that one process would.

        Returns:
            float32 [S, C, H, W], normalised, and float32 [S, num_classes], whose rows sum to 1 if images have one
            label; both on the images' device. Mixing aside, sample i depends only on image i and its draws.
        """
        return self.several(images, labels, [len(labels)], generator, lambda count: share or slice(None))[0]

    def several(
        self,
        images: Tensor,
        labels: Tensor,
        sizes: Sequence[int],
        generator: torch.Generator,
        share: Callable[[int], slice] = lambda count: slice(None),
    ) -> list[tuple[Tensor, Tensor]]:
        """Augment several batches in one call, with the draws and results of one call per batch.

        On a GPU the number of operations takes the time, and it hardly grows with the number of batches.

        Args:
            images, labels: those of all batches, one batch after another.
            sizes: images in each batch; they must add up.
            generator: as in a call for one batch.
            share: from the size of a batch, the samples of it to compute.

        Returns:
            For each batch what a call returns.
        """
        self._check_batch(images, labels, generator)
        if sum(sizes) != len(labels):
            raise ValueError(f"sizes must add up to the {len(labels)} images; got {list(sizes)}")
        with one_thread():
            return self._augment(images, labels, sizes, generator, share)

    def _augment(
        self,
        images: Tensor,
        labels: Tensor,
        sizes: Sequence[int],
        generator: torch.Generator,
        share: Callable[[int], slice],
    ) -> list[tuple[Tensor, Tensor]]:
        batches = []
        height, width = images.shape[-2:]
        needed, draws, others, seen, rows = [], [], [np.empty(0, np.int64)], 0, 0
        for size in sizes:
            table, mixing = self._draw(size, generator), self._mix.draw(size, height, width, generator)
            mine = np.arange(size)[share(size)]
            partners = mine if mixing is None else mixing.partner.cpu().numpy()[mine]
            both = np.union1d(mine, partners)
            needed.append(seen + both)
            draws.append(table[both])
            if mixing is not None:
                others.append(np.searchsorted(both, partners))
            own = int(np.searchsorted(both, mine[0])) if len(mine) else 0  # my samples are contiguous
            batches.append((slice(rows, rows + len(both)), slice(own, own + len(mine)), mixing))
            seen, rows = seen + size, rows + len(both)
        if rows < seen:
            chosen = to_device(torch.from_numpy(np.concatenate(needed)), images.device)
            images, labels = (take_rows(x, to_device(chosen, x.device)) for x in (images, labels))
        floats = self._one_by_one(images, np.concatenate(draws).astype(np.float64))
        weights = None if self._weights is None else to_device(self._weights, images.device)
        targets = soft_targets(to_device(labels, images.device), self._num_classes, self._label_smoothing, weights)
        places = iter(to_device(torch.from_numpy(np.concatenate(others)), images.device).split([*map(len, others)])[1:])
        return [
            (floats[span][own], targets[span][own])
            if mixing is None
            else mixing.apply(floats[span], targets[span], own, next(places))
            for span, own, mixing in batches
        ]

    def _one_by_one(self, images: Tensor, table: NDArray[np.float64]) -> Tensor:
        """Everything but mixing: images [R, C, H, W] and their draws -> float32 [R, C, H, W]."""
        if len(images) == 0:
            return normalize(images, self._mean, self._std)
        place, policy, erase = np.split(table, np.cumsum(self._columns[:2]), axis=1)
        height, width = images.shape[-2:]
        levels = images.dtype == torch.uint8
        pixels = images if levels else normalize(images, self._mean, self._std).mul_(1 / (2 * _REACH)).add_(0.5)
        if self._flip or self._crop_padding:
            flipped = place[:, 0] < (0.5 if self._flip else 0)
            top, left = np.floor(place[:, 1:] * (2 * self._crop_padding + 1)).T
            pixels = flip_crop(pixels, flipped, top, left, self._crop_padding)
        if self._policy:
            pixels = apply_stages(pixels, self._policy.plan(policy, height, width))
        floats = normalize(pixels, self._mean, self._std) if levels else pixels.sub_(0.5).mul_(2 * _REACH)
        return self._erase.apply(floats, erase) if self._erase else floats

    def _draw(self, count: int, generator: torch.Generator) -> NDArray[np.float32]:
        """Uniform numbers for flip and crop, the policy, and erasing, [B, k]: a row per sample, so that no sample's
        draws depend on another sample."""
        table = torch.rand((count, sum(self._columns)), generator=generator, device=generator.device)
        return table.cpu().numpy()

    def _check_batch(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> None:
        check_images(images, len(self._mean))
        if not isinstance(generator, torch.Generator):
            raise TypeError(f"generator must be a torch.Generator; got {type(generator).__name__}")
        several = isinstance(labels, Tensor) and labels.ndim == 2
        if not isinstance(labels, Tensor) or labels.dtype != (torch.uint8 if several else torch.int64):
            got = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
            raise TypeError(f"labels must be an {'uint8' if several else 'int64'} tensor; got {got}")
        if several:
            self._check_several(images, labels)
            return
        if labels.shape != images.shape[:1]:
            raise ValueError(f"labels must have the shape [{len(images)}], one per image; got {list(labels.shape)}")
        if labels.device.type == "cpu" and len(labels) and not 0 <= labels.min() <= labels.max() < self._num_classes:
            low, high = int(labels.min()), int(labels.max())
            raise ValueError(f"labels must be within 0..{self._num_classes - 1}; got {low}..{high}")

    def _check_several(self, images: Tensor, labels: Tensor) -> None:
        if labels.shape != (len(images), self._num_classes):
            raise ValueError(
                f"labels must have the shape [{len(images)}, {self._num_classes}], a row per image; got "
                f"{list(labels.shape)}"
            )
        if self._weights is not None:
            raise ValueError("class_weights need one label per image; got labels of several")
        if labels.device.type == "cpu" and len(labels) and labels.max() > 1:
            raise ValueError(f"labels must be 0 and 1 if an image may have several; got {int(labels.max())}")
