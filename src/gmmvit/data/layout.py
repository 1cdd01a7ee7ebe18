"""Decides which folders are parts of a data set and which are classes; refuses unclear cases."""

from __future__ import annotations

import contextlib
import os
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from gmmvit.data.annotated import check_not_annotated
from gmmvit.data.parts import PARTS, part_of, parts_of
from gmmvit.data.records import DataError, Report, listing
from gmmvit.data.table import find_table
from gmmvit.data.walk import holds_images, idle_links, loose_images, other_files, visible_folders

_COPY = re.compile(r"(?i:[ _-]*\(\d+\)|[ _-]+copy( ?\(?\d+\)?)?)$")


def find_parts(path: Path) -> dict[str, Path]:
    """The folders of PATH named train, val or test in any usual spelling that hold class folders or a table; such a
    folder with images directly in it is a class.

    Raises:
        DataError: two folders are the same part.
    """
    parts: dict[str, Path] = {}
    called = _called(path)
    for folder in visible_folders(path):
        part, folder = called.get(folder.name), _inner(folder)
        if part is None or not (visible_folders(folder) or find_table(folder)):
            continue
        if part in parts:
            raise DataError(f"both {parts[part]} and {folder} are a {part} part: keep one")
        parts[part] = folder
    return {part: parts[part] for part in PARTS if part in parts}


def _called(path: Path) -> dict[str, str]:
    """Names of the folders of PATH that are named like parts -> part, those of train first."""
    called = parts_of([folder.name for folder in visible_folders(path)])
    return dict(sorted(called.items(), key=lambda item: item[1] != "train"))


def _inner(folder: Path) -> Path:
    """The part inside a folder that holds nothing else, as some archives unpack: `seg_train/seg_train/CLASS`."""
    inside = visible_folders(folder)
    same = len(inside) == 1 and part_of(inside[0].name) == part_of(folder.name) and not loose_images(folder)
    return inside[0] if same else folder


def check_no_parts(path: Path, report: Report) -> None:
    """Raises DataError if all class folders of PATH are named like parts; reports it if only some are."""
    called = _called(path)
    named = list(called)
    if _are_parts(called, len(visible_folders(path))):
        raise DataError(
            f"{path} holds {listing(named)}, named like parts, with images but no class folders: expected "
            f"{path / named[0]}/CLASS/*.jpg, or a metadata.csv (file_name, label) in each; if they are classes, list "
            f"their images in {path / 'metadata.csv'}"
        )
    for name in named:
        report(f"{path / name} is read as a class, not as the {called[name]} part: it holds no class folders")


def _are_parts(called: Mapping[str, str], count: int) -> bool:
    """Whether the folders `called` parts among `count` neighbours cannot be classes: all are, or several parts."""
    return bool(called) and (len(called) == count or len(set(called.values())) > 1)


def tell_other_parts(given: Path, kind: str, report: Report) -> None:
    """Reports the parts beside a folder that is given and is one part of a data set itself, be it there or where a link
    leads; `kind` is `folder` or `hf`, the way it is given."""
    for folder in dict.fromkeys((os.path.abspath(given), os.path.realpath(given))):
        path = Path(folder)
        with contextlib.suppress(DataError):  # the folder round it may not be readable
            if _inner(path.parent) == path:
                path = path.parent
            called = _called(path.parent)
            others = [name for name in called if name != path.name]
            if path.name in called and others:
                report(
                    f"{path} is one part of {path.parent}: {listing(others)} beside it is not read, give "
                    f"{kind}:{path.parent} for all of it"
                )
                return


def check_classes_hold_images(root: Path, report: Report) -> None:
    """Raises DataError if the folders of `root` are not classes but contain them: the path is one folder too high, or
    holds several data sets or folds, or parts inside classes; or if they are images and their masks. Reports folders
    inside classes."""
    check_not_annotated(root)
    inside = {folder: [sub.name for sub in visible_folders(folder)] for folder in visible_folders(root)}
    bare = {folder: subs for folder, subs in inside.items() if subs and not loose_images(folder)}
    names = {folder.name.casefold() for folder in inside}
    _check_not_one_too_high(root, inside, bare)
    for folder, subs in bare.items():
        if called := [sub for sub in subs if sub.casefold() in names]:
            raise DataError(
                f"{folder} holds folders named like its neighbours ({listing(called)}) but no images of its "
                "own, so it is not a class: move it away, or put its images into the neighbours"
            )
    for folder, subs in inside.items():
        _check_no_parts_inside(folder, len(subs))
    common = [sub for sub, count in Counter(sub for subs in inside.values() for sub in subs).items() if count > 1]
    if len(bare) == len(inside) > 1 and len(common) > 1:
        folders = listing([folder.name for folder in inside])
        raise DataError(
            f"the folders {folders} of {root} hold the same folders ({listing(common)}) but no images: give one of "
            f"them (folder:{next(iter(inside))}), or list the images in {root / 'metadata.csv'}"
        )
    nested = [f"{folder.name}/{sub}" for folder, subs in inside.items() for sub in subs]
    if nested:
        several = [folder for folder in bare if len(inside[folder]) > 1]
        only = f"; if they are the classes, give folder:{several[0]}" if len(bare) == len(several) == 1 else ""
        report(f"images in folders inside the classes of {root} count as those classes: {listing(nested)}{only}")


def _check_not_one_too_high(root: Path, inside: Mapping[Path, list[str]], bare: Mapping[Path, list[str]]) -> None:
    """Raises DataError if one folder of `root` alone holds images, and those in folders: they are the classes."""
    holding = [folder for folder in bare if len(inside) == 1 or holds_images(folder)]
    if len(holding) != 1 or any(holds_images(folder) for folder in inside if folder not in bare):
        return
    folder, subs = holding[0], bare[holding[0]]
    if len(inside) == 1:
        raise DataError(f"{root} holds only the folder {folder.name}, with {listing(subs)} in it: give folder:{folder}")
    if len(subs) > 1:
        raise DataError(f"{root} holds images in {folder.name} alone, with {listing(subs)} in it: give folder:{folder}")


def _check_no_parts_inside(folder: Path, count: int) -> None:
    """Raises DataError if a folder that is to be a class holds parts; `count` folders lie in it."""
    called = _called(folder)
    if not _are_parts(called, count):
        return
    named, around = listing(list(called)), folder.parent
    if find_parts(folder):
        raise DataError(
            f"{folder} holds parts with class folders ({named}), so it is not a class of {around}: give folder:{folder}"
        )
    raise DataError(
        f"the class folder {folder} holds folders named like parts ({named}): put the parts outside, "
        f"{around / next(iter(called))}/{folder.name}/*.jpg, or all its images directly into {folder}"
    )


def tell_unused(path: Path, used: set[Path], parts: set[str], report: Report) -> None:
    """Reports what is ignored beside the parts: parts without images, and classes or images outside any part."""
    strays = [*loose_images(path), *map(os.path.basename, idle_links(path)), *other_files(path)]
    called = _called(path)
    for folder in visible_folders(path):
        part = called.get(folder.name)
        if part is None:
            strays.append(folder.name)
        elif _inner(folder) not in used:
            cut = part == "val" or "val" not in parts
            then = f"the {part} part is cut from train by {part}_fraction" if cut else "there is no test part"
            then = f"another folder is the {part} part" if part in parts else then
            report(f"ignored {folder}, which holds no class folders with images: {then}")
    if strays:
        report(f"ignored beside the parts of {path}: {listing(strays)}")


def copied_name(name: str, others: set[str]) -> str | None:
    """Which of the other names this one is a copy of by its end, as systems call copies: `cat (1)`, `cat - Copy`."""
    original = _COPY.sub("", name)
    return original if original != name and original in others else None
