"""Random erasing (Zhong et al., arXiv 1708.04896): a rectangle of the mean colour, per sample.

B samples, C channels, H x W pixels.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gmmvit.augment.device import to_device

_TRIES = 10  # redraws of rectangles that do not fit, as in torchvision's RandomErasing


class RandomErasing:
    """Erases a rectangle of each sample with probability `prob`.

    Its area is uniform in `area` (fractions of the image), its aspect ratio (height / width) log-uniform in `aspect`,
    its place uniform: the distribution of torchvision's `RandomErasing`.
    """

    num_draws = 3 + 2 * _TRIES  # whether, top, left; areas; aspects

    def __init__(self, prob: float, area: tuple[float, float], aspect: tuple[float, float]) -> None:
        self._prob, self._area, self._log_aspect = prob, area, (math.log(aspect[0]), math.log(aspect[1]))

    def plan(self, uniform: NDArray[np.float64], height: int, width: int) -> NDArray[np.int64]:
        """[B, num_draws] in [0, 1) to boxes [B, 4]: top, bottom, left, right, ends exclusive; empty if not erased."""
        (least, most), (flat, steep) = self._area, self._log_aspect
        areas, aspects = np.split(uniform[:, 3:], 2, axis=1)
        area = (least + (most - least) * areas) * (height * width)
        aspect = np.exp(flat + (steep - flat) * aspects)
        tall, wide = np.rint(np.sqrt(area * aspect)), np.rint(np.sqrt(area / aspect))
        fits = (tall < height) & (wide < width)
        sample, first = np.arange(len(uniform)), fits.argmax(1)
        erased = (uniform[:, 0] < self._prob) & fits[sample, first]
        tall, wide = tall[sample, first] * erased, wide[sample, first] * erased
        top, left = np.floor(uniform[:, 1] * (height - tall + 1)), np.floor(uniform[:, 2] * (width - wide + 1))
        return np.stack((top, top + tall, left, left + wide), 1).astype(np.int64)

    def apply(self, images: Tensor, uniform: NDArray[np.float64]) -> Tensor:
        """Set the rectangles of normalised images, float32 [B, C, H, W], to 0 in place."""
        height, width = images.shape[-2:]
        boxes = to_device(torch.from_numpy(self.plan(uniform, height, width)), images.device)
        top, bottom, left, right = boxes[:, :, None].unbind(1)
        y, x = torch.arange(height, device=images.device), torch.arange(width, device=images.device)
        rows, columns = ((y >= top) & (y < bottom)).float(), ((x >= left) & (x < right)).float()
        # A product over the whole batch: on CPU several times as fast as selecting the erased samples.
        return images.mul_(1 - rows[:, None, :, None] * columns[:, None, None, :])
