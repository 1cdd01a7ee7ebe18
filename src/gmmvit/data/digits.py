"""`digits`: 1797 handwritten digits of 8 x 8 pixels that ship with scikit-learn, for work without a network."""

from __future__ import annotations

import numpy as np

from gmmvit.data.records import Contents, Part, Source
from gmmvit.data.split import hold_out


def digits_source() -> Source:
    """Ten classes, one channel, grey levels 0..16 scaled to 0..255; the test part is a fixed stratified 20 % (360)."""
    return Source(
        name="digits",
        location="scikit-learn",
        files=(),
        read=_read,
        image_size=(8, 8),
        channels=1,
        policy="none",
        flip=False,
        cached=False,
    )


def _read() -> Contents:
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    labels = digits.target.astype(np.int64)
    held = hold_out(labels, 0.2, 0)

    def part(chosen: np.ndarray) -> Part:
        names = [f"digits#{index}" for index in chosen]
        return Part(labels[chosen], names, lambda: (Image.fromarray(pixels[index]) for index in chosen))

    parts = {"train": part(np.flatnonzero(~held)), "test": part(np.flatnonzero(held))}
    return Contents(tuple(str(digit) for digit in range(10)), parts)
