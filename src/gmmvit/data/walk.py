"""What lies in the folders of a data set: class folders, images, and what is passed over with a notice."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from gmmvit.data.records import DataError, Report, listing, relative

EXTENSIONS = frozenset(
    """.jpg .jpeg .jpe .jfif .png .webp .bmp .gif .tif .tiff .ppm .pgm .pbm .pnm .avif .npy""".split()  # noqa: SIM905
)
TABLES = ("metadata.csv", "metadata.jsonl")  # which list images and their classes

# What systems and tools put into folders; left out like hidden files.
_OF_SYSTEMS = frozenset("__MACOSX __pycache__ @eaDir lost+found $RECYCLE.BIN Thumbs.db desktop.ini".split())  # noqa: SIM905
_NOTES = ("readme", "licen", "citation", "changelog")  # how the names of files begin that hold no data


@dataclass(frozen=True)
class PassedOver:
    """What folders hold beside what is read: tables of images, other files by extension, and links that lead nowhere or
    in a circle."""

    tables: list[str] = field(default_factory=list)
    extensions: Counter[str] = field(default_factory=Counter)
    links: list[str] = field(default_factory=list)

    def report_to(self, root: Path, report: Report) -> None:
        """One line for each kind that was met below `root`."""
        if count := self.extensions.total():
            kinds = [f"{extension} {number}" for extension, number in self.extensions.most_common()]
            are = "files that are not images" if count > 1 else "file that is not an image"
            report(f"ignored {count} {are}: {listing(kinds)} (in {root})")
        self.report_links(root, report)

    def report_links(self, root: Path, report: Report) -> None:
        """The line about the links alone."""
        if self.links:
            lead = "link that leads" if len(self.links) == 1 else "links that lead"
            links = listing([relative(link, root) for link in self.links])
            report(f"ignored {len(self.links)} {lead} nowhere or in a circle: {links} (in {root})")


def visible_folders(path: Path) -> list[Path]:
    """The folders in a folder, also linked ones, without hidden ones and links that lead back to where they lie."""
    above = _with_those_above(path)
    return [Path(entry.path) for entry in _sorted_entries(path) if _is_folder(entry) and not _leads_back(entry, above)]


def loose_images(path: Path) -> list[str]:
    """The names of the images directly in a folder."""
    return [entry.name for entry in _sorted_entries(path) if _is_image(entry.name) and _is_file(entry)]


def idle_links(path: Path) -> list[str]:
    """The paths of the links in a folder that lead nowhere or in a circle."""
    above = _with_those_above(path)
    return [entry.path for entry in _sorted_entries(path) if _is_dead(entry) or _leads_back(entry, above)]


def other_files(path: Path) -> list[str]:
    """The names of the files directly in a folder that are neither images nor notes on the data."""
    files = (entry.name for entry in _sorted_entries(path) if _is_file(entry))
    return [name for name in files if not _is_image(name) and not is_note(name)]


def is_note(name: str) -> bool:
    """Whether a file is there for readers alone, such as README.txt."""
    return name.lower().startswith(_NOTES) or name.lower().endswith(".md")


def files_below(
    folder: str | Path, passed: PassedOver, above: frozenset[str] | None = None
) -> Iterator[os.DirEntry[str]]:
    """The files in a folder and in those below it, sorted, without hidden ones. Linked folders are read like others;
    links that lead back to a folder they lie in (`above`, by default that of the first call) are passed over."""
    above = _with_those_above(folder) if above is None else above
    for entry in _sorted_entries(folder):
        if not _is_folder(entry):
            yield entry
        elif _leads_back(entry, above):
            passed.links.append(entry.path)
        else:
            yield from files_below(entry.path, passed, above | _with_those_above(entry.path))


def holds_images(folder: Path) -> bool:
    """Whether there are images in a folder or below it."""
    return any(images_below(folder, PassedOver()))


def images_below(folder: str | Path, passed: PassedOver) -> Iterator[str]:
    """The images among `files_below`; a dead link with the name of an image counts as one, so that it is listed among
    the broken images."""
    for entry in files_below(folder, passed):
        if _is_image(entry.name) and (_is_file(entry) or _is_dead(entry)):
            yield entry.path
        elif _is_dead(entry):
            passed.links.append(entry.path)
        else:
            if entry.name in TABLES:
                passed.tables.append(entry.path)
            passed.extensions[os.path.splitext(entry.name)[1].lower() or "no extension"] += 1


def expanded_folders(paths: Iterable[str | Path], report: Report) -> Iterator[str]:
    """The paths, with every folder among them replaced by the images in it and below it, sorted; a folder without
    images comes as it is. Reports what it passes over, as in the class folders of a data set."""
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
            return sorted((entry for entry in entries if not _is_hidden(entry.name)), key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"folder {path} cannot be read: {error.strerror}") from error


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name in _OF_SYSTEMS


# The methods of DirEntry raise on a link that leads in a circle, so links are asked through os.path.
def _is_folder(entry: os.DirEntry[str]) -> bool:
    return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()


def _is_file(entry: os.DirEntry[str]) -> bool:
    return os.path.isfile(entry.path) if entry.is_symlink() else entry.is_file()


def _with_those_above(folder: str | Path) -> frozenset[str]:
    """The real paths of a folder and of all that it lies in."""
    real = Path(os.path.realpath(folder))
    return frozenset(map(str, (real, *real.parents)))


def _leads_back(entry: os.DirEntry[str], above: frozenset[str]) -> bool:
    return entry.is_symlink() and os.path.realpath(entry.path) in above


def _is_dead(entry: os.DirEntry[str]) -> bool:
    return entry.is_symlink() and not os.path.exists(entry.path)


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in EXTENSIONS
