"""What lies in the folders of a data set: class folders, images, and what is passed over with a notice."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from gmmvit.data.records import DataError, Report, counted, listing, relative

EXTENSIONS = frozenset(
    """.jpg .jpeg .jpe .jfif .png .webp .bmp .gif .tif .tiff .ppm .pgm .pbm .pnm .avif .npy""".split()  # noqa: SIM905
)


# Tables and archives, which may hold labels or images that nobody reads.
DATA_EXTENSIONS = frozenset(
    """.csv .tsv .json .jsonl .xlsx .parquet .arrow .npz .mat .zip .tar .gz .tgz .7z .rar""".split()  # noqa: SIM905
)


@dataclass(frozen=True)
class PassedOver:
    """What class folders hold beside images: the other files by extension, and the links to folders."""

    extensions: Counter[str] = field(default_factory=Counter)
    links: list[str] = field(default_factory=list)

    def report_to(self, root: Path, report: Report) -> None:
        """One line for each kind that was met below `root`."""
        if count := self.extensions.total():
            kinds = [f"{extension} {number}" for extension, number in self.extensions.most_common()]
            are = "files that are no images" if count > 1 else "file that is no image"
            report(f"ignored {count} {are}: {listing(kinds)} (in {root})")
        if self.links:
            links = listing([relative(link, root) for link in self.links])
            report(f"ignored {counted(len(self.links), 'linked folder')} below {root}: {links}")


def visible_folders(path: Path) -> list[Path]:
    """The folders in a folder, also linked ones, without hidden ones."""
    return [Path(entry.path) for entry in _sorted_entries(path) if _is_folder(entry)]


def loose_images(path: Path) -> list[str]:
    """The names of the images directly in a folder."""
    return [entry.name for entry in _sorted_entries(path) if _is_image(entry.name) and _is_file(entry)]


def dead_links(path: Path) -> list[str]:
    """The names of the links in a folder that lead nowhere or in a circle."""
    return [entry.name for entry in _sorted_entries(path) if _is_dead(entry)]


def data_files(path: Path) -> list[str]:
    """The names of the tables and archives directly in a folder."""
    return [e.name for e in _sorted_entries(path) if os.path.splitext(e.name)[1].lower() in DATA_EXTENSIONS]


def images_below(folder: str | Path, passed: PassedOver) -> Iterator[str]:
    """The images in a folder and in those below it. Links to folders are not followed, since they may lead in a circle;
    a dead link with the name of an image counts as one, so that it is listed among the broken images."""
    for entry in _sorted_entries(folder):
        if entry.is_dir(follow_symlinks=False):
            yield from images_below(entry.path, passed)
        elif _is_folder(entry):
            passed.links.append(entry.path)
        elif _is_image(entry.name) and (_is_file(entry) or _is_dead(entry)):
            yield entry.path
        else:
            passed.extensions[os.path.splitext(entry.name)[1].lower() or "no extension"] += 1


def expanded_folders(paths: Iterable[str | Path], report: Report) -> Iterator[str]:
    """The paths, with every folder among them replaced by the images in it and below it, sorted; a folder without
    images comes as it is. Tells of what it passes over, as in the class folders of a data set."""
    for path in paths:
        if not os.path.isdir(path):
            yield str(path)
            continue
        passed = PassedOver()
        images = list(images_below(path, passed))
        passed.report_to(Path(path), report)
        yield from images or [str(path)]


def _sorted_entries(path: Path | str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(path) as entries:
            return sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"folder {path} cannot be read: {error.strerror}") from error


# The methods of DirEntry raise on a link that leads in a circle, so links are asked through os.path.
def _is_folder(entry: os.DirEntry[str]) -> bool:
    return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()


def _is_file(entry: os.DirEntry[str]) -> bool:
    return os.path.isfile(entry.path) if entry.is_symlink() else entry.is_file()


def _is_dead(entry: os.DirEntry[str]) -> bool:
    return entry.is_symlink() and not os.path.exists(entry.path)


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in EXTENSIONS
