"""Decodes a whole data set to pixels, block by block, so that it need not fit into memory.

Shape letters: N images of all parts, C channels, H height, W width.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Protocol

import numpy as np

from gmmvit.data.image import decode_pixels, quiet_pillow
from gmmvit.data.memory import free_memory, in_words
from gmmvit.data.records import Contents, DataError, Part, Report
from gmmvit.data.target import Target

if TYPE_CHECKING:
    from gmmvit.data.records import ImageSource

# A block is what a thread decodes at a time: enough images to outweigh passing it on, few enough bytes to keep the sums
# of a block (16 bytes per value) small.
_BLOCK_IMAGES = 128
_BLOCK_BYTES = 8 * 2**20
_SMALL_BYTES = 16384
_PROGRESS_SECONDS = 5.0
_DECODING_BYTES = 8  # per value of one image: Pillow's, ours, and those of its sums


@dataclass(frozen=True)
class Catalog:
    """Everything about decoded images except the pixels.

    Attributes:
        classes: class names.
        parts: part name -> first and one past the last image of that part.
        labels: int64 `[N]`, or uint8 `[N, K]`.
        names: N names.
        sums: int64 `[N, 2, C]`, the sum and the sum of squares of every image, from which any split gets its
            statistics.
        broken: name and reason of every image that could not be decoded; N does not count these.
        notices: how the data set was read, a line each.
    """

    classes: tuple[str, ...]
    parts: dict[str, tuple[int, int]]
    labels: np.ndarray
    names: list[str]
    sums: np.ndarray
    broken: list[tuple[str, str]]
    notices: Sequence[str] = ()


@dataclass(frozen=True)
class Decoded:
    """Images `[N, C, H, W]`, uint8 or uint16, in memory or as a read-only map, and their catalog."""

    images: np.ndarray
    catalog: Catalog


class Sink(Protocol):
    """Takes pixels in order."""

    def reserve(self, count: int) -> None:
        """Make room for at most `count` images."""

    def append(self, images: np.ndarray) -> None:
        """Take pixels `[n, C, H, W]`."""


Producer = Callable[[Sink], Catalog]


class MemorySink:
    """Keeps the pixels in one array in memory."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._images = np.empty(0, dtype=target.dtype)  # until `reserve`, which refuses what memory cannot hold
        self._count = 0

    def reserve(self, count: int) -> None:
        check_room(2 * count * self._target.nbytes, f"{count:,} images of {self._target}, and their split,")
        self._images = np.empty((count, *self._target.shape), dtype=self._target.dtype)

    def append(self, images: np.ndarray) -> None:
        self._images[self._count : self._count + len(images)] = images
        self._count += len(images)

    def images(self) -> np.ndarray:
        return self._images[: self._count]


def check_room(size: int, what: str) -> None:
    """Raises DataError if fewer bytes are free than needed: the system would kill the process later."""
    free = free_memory()
    if free is not None and size > free:
        raise DataError(
            f"{what} take {in_words(size)}, and {in_words(free)} of memory are free: choose a smaller --image-size"
        )


def in_memory(produce: Producer, target: Target) -> Decoded:
    """Run the producer and keep its pixels in memory."""
    sink = MemorySink(target)
    catalog = produce(sink)
    return Decoded(sink.images(), catalog)


@quiet_pillow()
def decode_contents(contents: Contents, sink: Sink, *, target: Target, report: Report, name: str) -> Catalog:
    """Decode all parts into the sink, in order, with a progress line every few seconds.

    Raises:
        DataError: a label is out of range, or a single image is larger than memory.
    """
    check_room(_DECODING_BYTES * target.nbytes, f"{name}: the decoder's copies of one image of {target}")
    for part in contents.parts.values():
        _check_labels(part, len(contents.classes))
    total = sum(len(part.labels) for part in contents.parts.values())
    sink.reserve(total)
    progress = _Progress(report, name, total)
    kept: list[np.ndarray] = []
    names: list[str] = []
    sums = [np.empty((0, 2, target.channels), dtype=np.int64)]
    broken: list[tuple[str, str]] = []
    parts: dict[str, tuple[int, int]] = {}
    for part_name, part in contents.parts.items():
        first, seen = len(names), 0
        good = np.ones(len(part.labels), dtype=bool)
        for block in _decoded_blocks(part.sources(), target):
            for offset, reason in block.broken:
                good[seen + offset] = False
                broken.append((part.names[seen + offset], reason))
            seen += block.size
            sink.append(block.images)
            sums.append(image_sums(block.images))
            progress.advance(block.size)
        kept.append(part.labels[good])
        names.extend(part.names[index] for index in np.flatnonzero(good).tolist())
        parts[part_name] = (first, len(names))
    return Catalog(contents.classes, parts, np.concatenate(kept), names, np.concatenate(sums), broken, contents.notices)


@dataclass(frozen=True)
class _Block:
    size: int
    images: np.ndarray
    broken: list[tuple[int, str]]


def _decode_block(sources: list[ImageSource], target: Target) -> _Block:
    images = np.empty((len(sources), *target.shape), dtype=target.dtype)
    broken: list[tuple[int, str]] = []
    count = 0
    for offset, source in enumerate(sources):
        try:
            images[count] = decode_pixels(source, target)
            count += 1
        except DataError as error:
            broken.append((offset, str(error)))
    return _Block(len(sources), images[:count], broken)


def _decoded_blocks(sources: Iterator[ImageSource], target: Target) -> Iterator[_Block]:
    """Blocks in order. Pillow frees the interpreter's lock while it decodes, so threads decode files in parallel;
    images of a few kilobytes spend their time elsewhere and are faster without threads."""
    workers = min(8, os.cpu_count() or 1)
    block_images = max(1, min(_BLOCK_IMAGES, _BLOCK_BYTES // target.nbytes))
    pending: deque[Future[_Block]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        while block := list(islice(sources, block_images)):
            if not isinstance(block[0], str) and not (isinstance(block[0], bytes) and len(block[0]) > _SMALL_BYTES):
                yield from (future.result() for future in pending)
                pending.clear()
                yield _decode_block(block, target)
                continue
            pending.append(pool.submit(_decode_block, block, target))
            # A bounded queue: sources may come from a file larger than memory.
            if len(pending) > 2 * workers:
                yield pending.popleft().result()
        yield from (future.result() for future in pending)


def image_sums(images: np.ndarray) -> np.ndarray:
    """Sum and sum of squares of uint8 or uint16 images `[n, C, H, W]`: int64 `[n, 2, C]`."""
    values = images.reshape(*images.shape[:2], int(np.prod(images.shape[2:])))  # also of a block that is all broken
    if images.dtype == np.uint16:
        squares = np.square(values, dtype=np.uint64)
        return np.stack([values.sum(2, dtype=np.uint64), squares.sum(2)], axis=1).astype(np.int64)
    squares = values.astype(np.uint16) ** 2  # 255 squared fits
    narrow = np.uint32 if values.shape[2] * 255**2 < 2**32 else np.uint64  # twice as fast in 32 bits
    return np.stack([values.sum(2, dtype=narrow), squares.sum(2, dtype=narrow)], axis=1).astype(np.int64)


def _check_labels(part: Part, num_classes: int) -> None:
    if part.labels.ndim == 2:  # columns, one for each class
        return
    wrong = np.flatnonzero((part.labels < 0) | (part.labels >= num_classes))
    if len(wrong):
        raise DataError(
            f"label {part.labels[wrong[0]]} of {part.names[wrong[0]]} is outside of 0..{num_classes - 1} "
            f"({len(wrong)} such labels): every label needs a class name"
        )


class _Progress:
    def __init__(self, report: Report, name: str, total: int) -> None:
        self._report, self._name, self._total = report, name, total
        self._done = 0
        self._start = self._last = time.monotonic()
        report(f"{name}: decoding {total:,} images")

    def advance(self, count: int) -> None:
        self._done += count
        now = time.monotonic()
        if now - self._last >= _PROGRESS_SECONDS and self._done < self._total:
            self._last = now
            rate = self._done / (now - self._start)
            left = (self._total - self._done) / rate
            done = f"{self._name}: decoded {self._done:,} of {self._total:,} images"
            self._report(f"{done}, {rate:,.0f} images/s, {left:.0f} s left")
