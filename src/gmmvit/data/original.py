"""Named data sets in their authors' layout, as torchvision unpacks and reads them."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gmmvit.data import tiny_imagenet
from gmmvit.data.folder import files_part
from gmmvit.data.records import Contents, DataError, Part, Report, Source

_NETWORK_SECONDS = 30.0


@dataclass(frozen=True)
class Original:
    """The published layout of one data set.

    Attributes:
        layout: what the data directory must contain, for error messages.
        find: returns the source from the first place that has it, or None.
        download: fetches it into the data directory; raises OSError or RuntimeError.
    """

    layout: str
    find: Callable[[Sequence[Path], Report], Source | None]
    download: Callable[[Path], None]


@dataclass(frozen=True)
class _Torchvision:
    """A data set that torchvision reads; it exists where all its `files` (files or folders) do."""

    name: str
    files: tuple[str, ...]
    parts: tuple[str, ...] = ("train", "test")

    def find(self, places: Sequence[Path], report: Report) -> Source | None:
        place = next((place for place in places if all((place / file).exists() for file in self.files)), None)
        if place is None:
            return None
        found = [place / file for file in self.files]
        return Source(
            name=self.name,
            location=str(place),
            files=[str(file) for top in found for file in (sorted(top.iterdir()) if top.is_dir() else [top])],
            read=lambda: self._read(place),
        )

    def download(self, place: Path) -> None:
        with _network_timeout():
            for part in self.parts:
                self._open(place, part, download=True)

    def _read(self, place: Path) -> Contents:
        try:
            opened = {part: self._open(place, part, download=False) for part in self.parts}
        except (OSError, RuntimeError) as error:
            raise DataError(
                f"{self.name} in {place} is incomplete or damaged: remove {' and '.join(self.files)} and fetch it again"
            ) from error
        classes = tuple(getattr(opened["train"], "classes", None) or (str(digit) for digit in range(10)))
        return Contents(classes, {part: self._part(place, part, data) for part, data in opened.items()})

    def _open(self, place: Path, part: str, *, download: bool) -> Any:
        from torchvision import datasets

        if self.name == "svhn":
            return datasets.SVHN(place, split=part, download=download)
        if self.name == "flowers102":
            # Get paths, not pixels: we decode ourselves, so that broken files are named.
            return datasets.Flowers102(place, split=part, download=download, loader=str)
        reader = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[self.name]
        return reader(place, train=part == "train", download=download)

    def _part(self, place: Path, part: str, data: Any) -> Part:
        if self.name == "flowers102":
            pairs = [data[index] for index in range(len(data))]
            return files_part(place, [file for file, _ in pairs], [label for _, label in pairs])
        labels = np.asarray(data.labels if self.name == "svhn" else data.targets, dtype=np.int64)
        return Part(
            labels,
            [f"{self.name}/{part}#{index}" for index in range(len(labels))],
            lambda: (data[index][0] for index in range(len(labels))),
        )


@contextlib.contextmanager
def _network_timeout() -> Iterator[None]:
    """Sets a timeout: torchvision's downloads have none and would hang forever on a dead connection."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_NETWORK_SECONDS)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _download_tiny(place: Path) -> None:
    with _network_timeout():
        tiny_imagenet.download(place)


_CIFAR10 = _Torchvision("cifar10", ("cifar-10-batches-py",))
_CIFAR100 = _Torchvision("cifar100", ("cifar-100-python",))
_SVHN = _Torchvision("svhn", ("train_32x32.mat", "test_32x32.mat"))
_FLOWERS102 = _Torchvision(
    "flowers102",
    ("flowers-102/imagelabels.mat", "flowers-102/setid.mat", "flowers-102/jpg"),
    parts=("train", "val", "test"),
)

ORIGINALS = {
    "cifar10": Original("cifar-10-batches-py/ (from cifar-10-python.tar.gz)", _CIFAR10.find, _CIFAR10.download),
    "cifar100": Original("cifar-100-python/ (from cifar-100-python.tar.gz)", _CIFAR100.find, _CIFAR100.download),
    "svhn": Original("train_32x32.mat and test_32x32.mat", _SVHN.find, _SVHN.download),
    "tiny-imagenet": Original(
        f"{tiny_imagenet.FOLDER}/ (from {tiny_imagenet.FOLDER}.zip)", tiny_imagenet.find, _download_tiny
    ),
    "flowers102": Original(
        "flowers-102/ with jpg/, imagelabels.mat and setid.mat", _FLOWERS102.find, _FLOWERS102.download
    ),
}
