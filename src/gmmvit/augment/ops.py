"""The policies' operations by name, applied to a batch in one pass per group of operations. The pixels are computed in
`colour.py` and `geometry.py`; which operations a policy draws, and how strong, is torchvision's table (`policies.py`).

B samples, n samples of a group, C channels, H x W pixels.
"""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gmmvit.augment import colour, geometry
from gmmvit.augment.device import to_device

# One operation per sample, on the host: indices into OPS, and signed magnitudes in the units of torchvision's
# AutoAugment (shear factor, pixels, degrees, factor - 1, bits, level; ignored if an operation has none).
Stage = tuple[NDArray[np.int64], NDArray[np.float64]]

# torchvision's names. Operations that share a pass stand side by side: the batch is sorted by this order.
OPS = (
    "Identity",
    *("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate"),
    *("Brightness", "Contrast", "AutoContrast", "Invert"),
    *("Color", "Sharpness", "Posterize", "Solarize", "Equalize"),
)
OP_INDEX = {name: index for index, name in enumerate(OPS)}
_PARAMETERS = 6  # an affine transform has six; the others use the first one or two


class _Groups:
    """Where the samples of each operation are once the batch is sorted by operation."""

    def __init__(self, counts: Sequence[int]) -> None:
        self._starts = [0]
        for count in counts:
            self._starts.append(self._starts[-1] + count)

    def span(self, first: str, last: str | None = None, origin: str = "Identity") -> slice:
        """The samples of operations `first` to `last` (`first` only by default), counted from those of `origin`."""
        base = self._starts[OP_INDEX[origin]]
        return slice(self._starts[OP_INDEX[first]] - base, self._starts[OP_INDEX[last or first] + 1] - base)


def _parameters(groups: _Groups, magnitude: NDArray[np.float64], height: int, width: int) -> NDArray[np.float32]:
    """Magnitudes [B], sorted by operation, to the kernels' parameters [B, 6]; in float64 until the end."""
    rows = np.zeros((len(magnitude), _PARAMETERS))
    makers: dict[str, Callable[[NDArray[np.float64]], NDArray[np.float64]]] = {
        "ShearX": geometry.shear_x,
        "ShearY": geometry.shear_y,
        "TranslateX": geometry.translate_x,
        "TranslateY": geometry.translate_y,
        "Rotate": lambda degrees: geometry.rotate(degrees, height, width),
    }
    for name, affine in makers.items():
        span = groups.span(name)
        if span.start < span.stop:
            rows[span] = affine(magnitude[span])
    blends = groups.span("Brightness", "Sharpness")
    rows[blends, 0] = 1 + magnitude[blends]
    rows[blends, 1] = -magnitude[blends]
    bits = groups.span("Posterize")
    rows[bits, 0] = 256 - 2 ** (8 - np.trunc(magnitude[bits]))
    threshold = groups.span("Solarize")
    rows[threshold, 0] = np.ceil(magnitude[threshold])
    return rows.astype(np.float32)


def _tone(images: Tensor, groups: _Groups, ratio: Tensor, complement: Tensor) -> Tensor:
    """Brightness, contrast, autocontrast and invert: one linear map of the levels per sample and channel."""
    low = images.new_zeros((*images.shape[:2], 1, 1), dtype=torch.float32)
    gain, offset = ratio.expand_as(low).clone(), torch.zeros_like(low)
    contrast, autocontrast, invert = (
        groups.span(name, origin="Brightness") for name in ("Contrast", "AutoContrast", "Invert")
    )
    if contrast.start < contrast.stop:
        offset[contrast] = complement[contrast] * colour.mean_grey(images[contrast])
    if autocontrast.start < autocontrast.stop:
        low[autocontrast], gain[autocontrast] = colour.level_range(images[autocontrast])
    if invert.start < invert.stop:
        low[invert].fill_(colour.white(images))
        gain[invert].fill_(-1)
    return colour.stretch(images, low, gain, offset)


def _apply_sorted(images: Tensor, groups: _Groups, parameters: Tensor) -> None:
    """Apply the operations in place to a batch sorted by operation."""
    value, complement = parameters[:, :2, None, None, None].unbind(1)
    for first, last, kernel in (
        ("ShearX", "Rotate", lambda x, s: geometry.warp_nearest(x, parameters[s])),
        ("Brightness", "Invert", lambda x, s: _tone(x, groups, value[s], complement[s])),
        ("Color", "Color", lambda x, s: colour.saturation(x, value[s], complement[s])),
        ("Sharpness", "Sharpness", lambda x, s: colour.sharpness(x, value[s], complement[s])),
        ("Posterize", "Posterize", lambda x, s: colour.posterize(x, value[s])),
        ("Solarize", "Solarize", lambda x, s: colour.solarize(x, value[s])),
        ("Equalize", "Equalize", lambda x, s: colour.equalize(x)),
    ):
        span = groups.span(first, last)
        if span.start < span.stop:
            images[span] = kernel(images[span], span)


def apply_stages(images: Tensor, stages: Iterable[Stage]) -> Tensor:
    """Apply one operation per stage to each sample.

    Args:
        images: uint8 [B, C, H, W], or float32 with black at 0 and white at 1; not changed.
        stages: (operations [B], magnitudes [B]) on the host, see `Stage`.

    Returns:
        [B, C, H, W] of the same type on the same device, from which nothing is read back.
    """
    place = np.arange(len(images))  # of each sample; moving whole samples is cheap, indexing into them is not
    for op, magnitude in stages:
        order = np.argsort(op, kind="stable")
        images = images.index_select(0, to_device(torch.from_numpy(place[order]), images.device))
        groups = _Groups(np.bincount(op, minlength=len(OPS)).tolist())
        parameters = torch.from_numpy(_parameters(groups, magnitude[order], *images.shape[-2:]))
        _apply_sorted(images, groups, to_device(parameters, images.device))
        place = np.argsort(order)
    return images.index_select(0, to_device(torch.from_numpy(place), images.device))
