"""What the data package hands out (`Dataset`, `Split`) and what its readers hand to each other.

Shape letters: N images, C channels, H height, W width.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch

from gmmvit.text import shown

if TYPE_CHECKING:
    from PIL.Image import Image

    # A path as text, an encoded image, a decoded one, or its levels [H, W, C], uint8 or uint16.
    ImageSource: TypeAlias = str | bytes | Image | np.ndarray

# The class of an image in a table or folder, or the several (or none) that it has.
Label: TypeAlias = str | tuple[str, ...]
Report: TypeAlias = Callable[[str], None]

# Import name -> how the message calls it and what pip installs.
_PACKAGES = {
    "PIL": ("Pillow", "pillow"),
    "datasets": ("the datasets library", "datasets"),
    "pyarrow": ("pyarrow", "pyarrow"),
    "scipy": ("scipy", "scipy"),
    "sklearn": ("scikit-learn", "scikit-learn"),
    "tifffile": ("tifffile", "'gmmvit[tiff]'"),
    "torchvision": ("torchvision", "torchvision"),
}


class DataError(ValueError):
    """A fault of the data or of the place where it lies; the message is one sentence that says what would be right."""

    def __init__(self, message: str) -> None:
        super().__init__(shown(message))


@dataclass(frozen=True)
class Split:
    """One part of a data set, decoded.

    Attributes:
        images: uint8 or uint16 `[N, C, H, W]`; may lie on a read-only memory map, so never write into it.
        labels: int64 `[N]`, indices into `Dataset.classes`; or, where an image may have several labels, uint8 `[N, K]`
            with a 1 for each of the K classes that it has.
        names: where each image came from: a path relative to the folder (unprintable characters escaped), or
            `cifar10/test-00000#17` (shard and row).
    """

    images: torch.Tensor
    labels: torch.Tensor
    names: Sequence[str]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Dataset:
    """A data set, split and ready to train on.

    Attributes:
        name: as it was asked for, such as `cifar10` or `folder:/a/b`.
        classes: class names; a label is an index into them, or where `several` says so a column is one of them.
        train: the training part, without what `val` and `test` took from it.
        val: None when nothing was held out (`val_fraction=0`) and the data bring no validation part.
        test: None when the data bring a validation part but no test part, or with `test_fraction=0`.
        mean: per channel, of the training part, in 0..1.
        std: per channel, of the training part, in 0..1; never below one level (1/255 or 1/65535).
        policy: the AutoAugment policy that suits: `cifar10`, `svhn`, `imagenet` or `none`.
        flip: whether a mirrored image keeps its class.
    """

    name: str
    classes: tuple[str, ...]
    train: Split
    val: Split | None
    test: Split | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    policy: str
    flip: bool

    @property
    def several(self) -> bool:
        """Whether an image may have several labels, or none."""
        return self.train.labels.ndim == 2


@dataclass(frozen=True)
class Part:
    """One part before decoding: labels int64 `[N]` or uint8 `[N, K]`, N names, and a maker of iterators over the N
    encoded images."""

    labels: np.ndarray
    names: Sequence[str]
    sources: Callable[[], Iterator[ImageSource]]


@dataclass(frozen=True)
class Contents:
    """A data set before decoding. Parts are `train`, `val` and `test`, or one `all` that is still to be split.
    `notices` say how it was read; they are kept with the decoded images, so that a cached data set says so too."""

    classes: tuple[str, ...]
    parts: dict[str, Part]
    notices: Sequence[str] = ()


@dataclass(frozen=True)
class Source:
    """A data set that was found but not read yet.

    Attributes:
        name: what its cache is called; with `location`, the folder or Hub name, it decides which cache is looked for.
        files: absolute paths as text; their sizes and times decide whether that cache still holds.
        read: called only where it does not.
        image_size: (height, width) where none is asked for; `channels` likewise.
        cached: False where decoding is quicker than looking for a cache.
        samples: a few of its image files, which show channels and bits where none are asked for.
    """

    name: str
    location: str
    files: Sequence[str]
    read: Callable[[], Contents]
    image_size: tuple[int, int] = (64, 64)
    channels: int = 3
    policy: str = "imagenet"
    flip: bool = True
    cached: bool = True
    samples: Sequence[str] = ()


def silent(line: str) -> None:
    """The `Report` that drops every line."""


def ordered_classes(names: set[str]) -> tuple[str, ...]:
    """Class names in alphabetical order, or by value where all of them are whole numbers."""
    if all(name.isdecimal() for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))


def expanded(path: str | os.PathLike[str]) -> Path:
    """The path with `~` or `~user` at its start replaced by that home folder.

    Raises:
        DataError: nobody knows where that is.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise DataError(f"the home folder in {path} is not known: give a path without ~") from error


@contextlib.contextmanager
def packages_for(what: str) -> Iterator[None]:
    """Turn the failed import of a package that `what` needs into a DataError that says what to install."""
    try:
        yield
    except ImportError as error:
        package = (error.name or "").partition(".")[0]
        if package not in _PACKAGES:
            raise
        title, install = _PACKAGES[package]
        # A damaged package is a clearer reason than a missing one.
        reason = "" if isinstance(error, ModuleNotFoundError) else f" ({error})"
        raise DataError(f"{what} needs {title}, which cannot be imported{reason}: pip install {install}") from error


def relative(file: str, root: str | os.PathLike[str]) -> str:
    """The path below the folder `root`, unchanged where it lies elsewhere; faster than `os.path.relpath`."""
    return file.removeprefix(os.path.join(root, ""))


def counted(number: int, noun: str) -> str:
    """`1 image`, `2 images`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def listing(items: Sequence[str], limit: int = 5) -> str:
    """The first `limit` items joined by commas, and how many more there are."""
    shown = ", ".join(items[:limit])
    return f"{shown} and {len(items) - limit} more" if len(items) > limit else shown
