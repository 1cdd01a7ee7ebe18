"""Looks at a data set before training: classes, sizes, kinds, broken images, copies.

Shape letters: N images that can be read, C channels, H height, W width.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gmmvit.checks import paths
from gmmvit.data.copies import find_copies, told_copies
from gmmvit.data.decode_all import Decoded
from gmmvit.data.headers import read_header
from gmmvit.data.image import quiet_pillow
from gmmvit.data.load import decode_source, find_source, load_dataset, printable, target_size
from gmmvit.data.memory import fits_in_memory
from gmmvit.data.records import DataError, Dataset, Report, Source, counted, packages_for
from gmmvit.data.several import class_counts
from gmmvit.data.target import Target
from gmmvit.data.wanted import Wanted


@dataclass(frozen=True)
class Inspection:
    """What was found.

    Attributes:
        name: the name asked for.
        location: its folder or Hub name.
        decoded: the readable images at the training size, their labels and names, and the broken ones.
        parts: part -> int64 rows of `decoded`, as training would split them, or as given if training would refuse.
        refusal: why training would refuse the data, broken images aside; None if it would not.
        dataset: what training would get; None if it would refuse.
        sizes: (height, width) as stored -> number of readable images.
        kinds: format and colours, such as "PNG, grey" -> number of readable images.
        turned: how many of them EXIF turns or mirrors.
        grey: how many have no colour in their pixels, whatever their kind; all if one channel is read.
        copies: rows of each picture that occurs more than once, exactly or nearly; None if the images do not fit into
            memory for the comparison.
        leaks: warnings about copies in several parts or with several classes.
    """

    name: str
    location: str
    decoded: Decoded
    parts: dict[str, np.ndarray]
    refusal: str | None
    dataset: Dataset | None
    sizes: Counter[tuple[int, int]]
    kinds: Counter[str]
    turned: int
    grey: int
    copies: list[list[int]] | None
    leaks: list[str]

    @property
    def classes(self) -> tuple[str, ...]:
        return self.decoded.catalog.classes

    @property
    def broken(self) -> list[tuple[str, str]]:
        """Name and reason of every image that cannot be read."""
        return self.decoded.catalog.broken

    def counts(self, part: str) -> list[int]:
        """The images of each class in a part."""
        return class_counts(self.decoded.catalog.labels[self.parts[part]], len(self.classes)).tolist()

    @property
    def labels_an_image(self) -> list[int] | None:
        """How many images have no label, one, two ...; None if every image has one class."""
        labels = self.decoded.catalog.labels
        return np.bincount(labels.sum(1)).tolist() if labels.ndim == 2 else None


def inspect_dataset(
    name: str = "digits",
    *,
    data_dir: str | os.PathLike[str] | None = None,
    image_size: int | tuple[int, int] | None = None,
    channels: int | None = None,
    bits: int | None = None,
    axes: str | None = None,
    fit: str = "crop",
    cache_dir: str | os.PathLike[str] | None = None,
    download: bool = True,
    report: Report | None = None,
    **split: Any,
) -> Inspection:
    """Look at a data set as `load_dataset` loads it, with the same arguments; `split` are those that make its parts.
    Neither broken images nor a split that training would refuse are errors here.

    Raises:
        DataError: nothing is there, its layout is ambiguous or unknown, or no image can be read.
        ValueError, TypeError: an argument is out of range.
    """
    paths(data_dir=data_dir, cache_dir=cache_dir)
    report = printable(report)
    wanted = Wanted(target_size(image_size), channels, bits, fit, axes)
    with packages_for(name):
        source = find_source(name, data_dir or "data", download, report)
        target = wanted.of(source)
        decoded, _ = decode_source(name, source, target, cache_dir, report)
        catalog = decoded.catalog
        if not len(catalog.labels):
            raise DataError(f"none of {counted(len(catalog.broken), 'image')} of {name} can be read")
        sizes, kinds, turned = _headers(source, target, {image for image, _ in catalog.broken})
    groups = find_copies(decoded.images) if fits_in_memory(decoded.images.nbytes) else None
    rows = {part: np.arange(first, last) for part, (first, last) in catalog.parts.items() if last > first}
    refusal, dataset, leaks = None, None, []
    try:
        dataset = load_dataset(  # finds the decoded images in the cache
            name,
            data_dir=data_dir,
            image_size=image_size,
            channels=target.channels,
            bits=target.bits,
            axes=axes,
            fit=fit,
            cache_dir=cache_dir,
            download=download,
            skip_broken=True,
            **split,
        )
        rows = _rows(dataset, catalog.names)
        leaks = [] if groups is None else told_copies(groups, rows, catalog.labels, catalog.names)
    except DataError as error:
        refusal = str(error)
    return Inspection(
        name=name,
        location=source.location,
        decoded=decoded,
        parts=rows,
        refusal=refusal,
        dataset=dataset,
        sizes=sizes,
        kinds=kinds,
        turned=turned,
        grey=int((catalog.sums == catalog.sums[..., :1]).all(axis=(1, 2)).sum()),
        copies=None if groups is None else _several(groups),
        leaks=leaks,
    )


def _rows(dataset: Dataset, names: Sequence[str]) -> dict[str, np.ndarray]:
    """The rows of each part's images in the catalog."""
    row_of = {name: row for row, name in enumerate(names)}
    parts = {"train": dataset.train, "val": dataset.val, "test": dataset.test}
    return {
        part: np.array([row_of[name] for name in split.names], dtype=np.int64)
        for part, split in parts.items()
        if split is not None
    }


@quiet_pillow()
def _headers(source: Source, target: Target, broken: set[str]) -> tuple[Counter[tuple[int, int]], Counter[str], int]:
    """Sizes and kinds of the readable images, and how many are turned."""
    sizes: Counter[tuple[int, int]] = Counter()
    kinds: Counter[str] = Counter()
    turned = 0
    for part in source.read().parts.values():
        for name, image in zip(part.names, part.sources(), strict=True):
            header = None if name in broken else read_header(image, target)
            if header is not None:
                sizes[header.size] += 1
                kinds[header.kind] += 1
                turned += header.turned
    return sizes, kinds, turned


def _several(groups: np.ndarray) -> list[list[int]]:
    """The rows of each group with more than one, in order."""
    members: dict[int, list[int]] = {}
    for row, first in enumerate(groups.tolist()):
        members.setdefault(first, []).append(row)
    return [rows for rows in members.values() if len(rows) > 1]
