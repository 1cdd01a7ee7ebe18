"""A data set by name: find it, decode it once, split it, and hand it out as tensors."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from gmmvit.checks import booleans, is_integer, paths
from gmmvit.data.cache import cache_folder, cache_path, fetch, fingerprint
from gmmvit.data.copies import find_copies, kept_together, told_copies
from gmmvit.data.decode_all import Catalog, Decoded, Sink, decode_contents, in_memory
from gmmvit.data.digits import digits_source
from gmmvit.data.folder import folder_source
from gmmvit.data.folds import check_folds, measured_by
from gmmvit.data.hub import hub_source
from gmmvit.data.memory import fits_in_memory
from gmmvit.data.named import NAMED, named_source
from gmmvit.data.records import (
    DataError,
    Dataset,
    Report,
    Source,
    Split,
    counted,
    expanded,
    listing,
    packages_for,
    silent,
)
from gmmvit.data.split import check_fraction, check_per_class, check_seed, choose_parts, cut_validation, first_of_each
from gmmvit.data.target import Target
from gmmvit.data.wanted import Wanted
from gmmvit.text import short, shown

_BROKEN_SHOWN = 3
_COPY_ROWS = 1024


def dataset_names() -> tuple[str, ...]:
    """The names that need no path; `folder:PATH` and `hf:NAME_OR_PATH` come beside them."""
    return ("digits", *NAMED)


def load_dataset(
    name: str = "digits",
    *,
    data_dir: str | os.PathLike[str] | None = None,
    image_size: int | tuple[int, int] | None = None,
    channels: int | None = None,
    bits: int | None = None,
    axes: str | None = None,
    fit: str = "crop",
    val_fraction: float = 0.1,
    test_fraction: float = 0.2,
    split_seed: int = 0,
    train_per_class: int | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    skip_broken: bool = False,
    dedupe: bool = False,
    folds: int | None = None,
    fold: int | None = None,
    train_on_all: bool = False,
    download: bool = True,
    report: Report | None = None,
) -> Dataset:
    """Load a data set as tensors of uint8 or uint16, decoded once into a cache that later calls share whatever their
    split is.

    Args:
        name: one of `dataset_names()`, `folder:PATH` or `hf:NAME_OR_PATH`.
        data_dir: where named data sets lie or are downloaded to; `data` by default.
        image_size: pixels, one number or (height, width); by default 8 for digits, 32 for CIFAR and SVHN, 64 otherwise.
        channels: 1 for grey, 3 for RGB, or another number up to 12, which every image must have; by default 1 for
            digits, in a folder what its first image has if that is no usual one (.npy, bands of a TIFF, grey of 16
            bits), and 3 otherwise.
        bits: 8 or 16; by default 16 in a folder whose first image has so many and none of them is lost by its format.
        axes: `hwc` or `chw`, the order of the axes in .npy files; by default where the shape says it.
        fit: what happens to another aspect ratio: `crop`, `stretch` or `pad`, see `decode_image`.
        val_fraction: share of the training part held out for validation where the data bring no such part.
        test_fraction: share held out for test where the data bring neither a test nor a validation part.
        split_seed: decides which images are held out; the split is stratified and the same on every machine. Of
            several labels an image each part gets its share as nearly as can be.
        train_per_class: the training and the validation part are made of the first so many images of each class, in
            the order of the data set; the test part stays whole. Not where an image may have several labels.
        cache_dir: where decoded images are kept; by default GMMVIT_CACHE, else `~/.cache/gmmvit`.
        skip_broken: leave out images that cannot be decoded and name them through `report`.
        dedupe: keep exact and near copies of a picture in one part: of parts that are cut in the training part, of
            given ones in the part that is held out. Folds never share a copy then.
        folds: cross-validation: all images but those of a given test part are dealt to so many folds, alike in their
            classes. `test_fraction` is without meaning then.
        fold: 1..folds: the test part is this fold, the validation part is cut from the others by `val_fraction`.
            Without it, the training part is all folds and the test part the given one, if there is one.
        train_on_all: the validation part is learned too, and none is left.
        download: whether a named data set that is not there may be fetched from the network.
        report: receives lines of progress and notices; silent by default.

    Raises:
        DataError: a fault of the data, or a package that they need is missing, in one sentence. Where it is broken
            images, it names them, unless they are many and have been reported, a line each.
        ValueError, TypeError: an argument is out of range or of another type.
    """
    paths(data_dir=data_dir, cache_dir=cache_dir)
    booleans(skip_broken=skip_broken, dedupe=dedupe, train_on_all=train_on_all, download=download)
    heard, report = report is not None, printable(report)
    check_fraction("val_fraction", val_fraction)
    check_fraction("test_fraction", test_fraction)
    check_seed(split_seed)
    check_per_class(train_per_class)
    check_folds(folds, fold)
    size = target_size(image_size)
    wanted = Wanted(size, channels, bits, fit, axes)
    with packages_for(name):
        source = find_source(name, data_dir or "data", download, report)
        target = wanted.of(source)
        decoded, path = decode_source(name, source, target, cache_dir, report)
    _check_decoded(name, decoded.catalog, skip_broken, report, heard=heard)
    catalog = decoded.catalog
    of_user = source.name.startswith(("folder-", "hf-"))
    # To look at all images would take as long as to train on them where they do not fit.
    groups = find_copies(decoded.images) if of_user and fits_in_memory(decoded.images.nbytes) else None
    if folds is None:
        rows = _parts(catalog, val_fraction, test_fraction, split_seed, train_per_class)
    else:
        together = groups if dedupe else None
        rows = _parts_of_fold(catalog, folds, fold, together, val_fraction, split_seed, train_per_class)
    if catalog.labels.ndim == 2:
        _check_measurable(name, catalog, rows)
    if train_on_all and "val" in rows:
        rows["train"] = np.sort(np.concatenate([rows["train"], rows.pop("val")]))
    if of_user:
        if groups is not None:
            given = folds is None and "all" not in catalog.parts
            rows = _without_leaks(catalog, groups, rows, dedupe, report, given=given)
        if channels is None and target.channels == 3 and (catalog.sums == catalog.sums[..., :1]).all():
            report(f"every image of {name} is grey: --channels 1 trains on one channel and not on three equal ones")
    splits = _splits(decoded, target, rows, path, report)
    mean, std = _statistics(catalog.sums[rows["train"]], target)
    return Dataset(
        name=name,
        classes=catalog.classes,
        train=splits["train"],
        val=splits.get("val"),
        test=splits.get("test"),
        mean=mean,
        std=std,
        policy=source.policy,
        flip=source.flip,
    )


def count_training(
    name: str,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    test_fraction: float = 0.2,
    train_per_class: int | None = None,
    download: bool = True,
) -> int:
    """How many images `load_dataset` would have for training and validation together, if all can be read; nothing is
    decoded. Arguments and errors as there."""
    with packages_for(name):
        contents = find_source(name, data_dir or "data", download, silent).read()
    labels = {part: content.labels for part, content in contents.parts.items()}
    fractions = {"val_fraction": 0.0, "test_fraction": test_fraction}
    chosen = choose_parts(labels, contents.classes, **fractions, seed=0, per_class=train_per_class)
    return len(chosen["train"][1])


def target_size(image_size: int | Sequence[int] | None) -> tuple[int, int] | None:
    """(height, width) of an argument `image_size`; None where it leaves the size to the data set."""
    if image_size is None:
        return None
    if isinstance(image_size, int) and is_integer(image_size):
        return image_size, image_size
    if not isinstance(image_size, Sequence) or len(image_size) != 2:
        raise ValueError(f"image_size must be a whole number or a pair (height, width), got {short(image_size)}")
    return image_size[0], image_size[1]


def _known_names() -> str:
    return f"{', '.join(dataset_names())}, folder:PATH or hf:NAME_OR_PATH"


def printable(report: Report | None) -> Report:
    """Names of files may hold what a terminal cannot show or a log cannot encode; None reports nothing.

    Raises TypeError if `report` is not a function.
    """
    if report is None:
        return silent
    if not callable(report):
        raise TypeError(f"report must be a function of one line of text, got {short(report)}")
    return lambda line: report(shown(line))


def find_source(name: str, data_dir: str | os.PathLike[str], download: bool, report: Report) -> Source:
    """What `load_dataset` reads for a name; errors as there."""
    if not isinstance(name, str):
        raise TypeError(f"name must be the name of a data set, {_known_names()}, got {short(name)}")
    kind, colon, rest = name.partition(":")
    if colon and kind in ("folder", "hf"):
        if not rest:
            raise ValueError(f"dataset {name!r} names no {'path' if kind == 'folder' else 'data set'} after the colon")
        return folder_source(expanded(rest), report) if kind == "folder" else hub_source(rest, report)
    if name == "digits":
        return digits_source()
    if name in NAMED:
        return named_source(name, Path(os.path.realpath(expanded(data_dir))), download=download, report=report)
    hint = f"; did you mean 'folder:{name}'?" if os.path.isdir(expanded(name)) else ""
    raise ValueError(f"dataset must be {_known_names()}, got {short(name)}{hint}")


def decode_source(
    name: str,
    source: Source,
    target: Target,
    cache_dir: str | os.PathLike[str] | None,
    report: Report,
) -> tuple[Decoded, tuple[Path, str] | None]:
    """The decoded images, and the path and fingerprint of their cache where there may be one. Reports how the data set
    was read, also where that was before."""
    if not source.cached:
        contents = source.read()
        produce = partial(decode_contents, contents, target=target, report=silent, name=name)
        return in_memory(produce, target), None

    def read_and_decode(sink: Sink) -> Catalog:
        return decode_contents(source.read(), sink, target=target, report=report, name=name)

    folder = cache_folder(cache_dir, report)
    cache = None
    if folder is not None:
        cache = cache_path(folder, source.name, source.location, target), fingerprint(source.location, source.files)
    decoded = fetch(*cache, target, read_and_decode, report) if cache else in_memory(read_and_decode, target)
    for line in decoded.catalog.notices:
        report(line)
    return decoded, cache


def _check_decoded(name: str, catalog: Catalog, skip_broken: bool, report: Report, *, heard: bool) -> None:
    if not catalog.names and len(catalog.broken) > 1 and len({reason for _, reason in catalog.broken}) == 1:
        raise DataError(f"every image of {name} is refused: {catalog.broken[0][1]}")
    if catalog.broken:
        broken = [f"{image} ({reason})" for image, reason in catalog.broken]
        in_lines = skip_broken or (heard and len(broken) > _BROKEN_SHOWN)  # each is reported once
        for line in broken if in_lines else ():
            report(f"broken image: {line}")
        found = f"{name}: {counted(len(broken), 'broken image')}"
        if not skip_broken:
            which = ", named above" if in_lines else f": {listing(broken, _BROKEN_SHOWN)}"
            raise DataError(
                f"{found}{which}; repair or remove them, or leave them out with --skip-broken (in Python "
                "skip_broken=True)"
            )
        report(f"{found} skipped")
    if len(catalog.classes) < 2:
        raise DataError(f"{name} has {len(catalog.classes)} class: at least two classes are needed")
    if not any(part in catalog.parts for part in ("train", "all")):
        raise DataError(f"{name} has no labelled training part: it needs a part called train")


def _check_measurable(name: str, catalog: Catalog, rows: Mapping[str, np.ndarray]) -> None:
    for part in ("val", "test"):
        if part in rows and not catalog.labels[rows[part]].any():
            raise DataError(
                f"{name}: no image of the {part} part has a label, so nothing can be measured on it: label some, or "
                "hold out more"
            )


def _parts(
    catalog: Catalog, val_fraction: float, test_fraction: float, seed: int, per_class: int | None
) -> dict[str, np.ndarray]:
    """The rows of each part."""
    chosen = choose_parts(
        {part: catalog.labels[first:last] for part, (first, last) in catalog.parts.items()},
        catalog.classes,
        val_fraction=val_fraction,
        test_fraction=test_fraction,
        seed=seed,
        per_class=per_class,
    )
    return {part: catalog.parts[origin][0] + indices for part, (origin, indices) in chosen.items()}


def _parts_of_fold(
    catalog: Catalog,
    folds: int,
    fold: int | None,
    groups: np.ndarray | None,
    val_fraction: float,
    seed: int,
    per_class: int | None,
) -> dict[str, np.ndarray]:
    """The rows of each part in a fold, or of all folds and the given test part; `groups` are not split."""
    given = {part: np.arange(*span) for part, span in catalog.parts.items()}
    test = given.pop("test", np.empty(0, np.int64))
    pool = first_of_each(catalog.labels, np.sort(np.concatenate(list(given.values()))), per_class)
    if fold is None:
        return {"train": pool} | ({"test": test} if len(test) else {})
    mine = None if groups is None else groups[pool]
    held = measured_by(fold, folds, catalog.labels[pool], mine, catalog.classes, seed)
    test, left = pool[held], pool[~held]
    val = cut_validation(catalog.labels[left], val_fraction, seed)
    return {"train": left[~val], "test": test} | ({"val": left[val]} if val.any() else {})


def _without_leaks(
    catalog: Catalog, groups: np.ndarray, rows: dict[str, np.ndarray], dedupe: bool, report: Report, *, given: bool
) -> dict[str, np.ndarray]:
    """The rows of the parts; copies between them are reported, or kept in one part."""
    if not dedupe:
        for line in told_copies(groups, rows, catalog.labels, catalog.names):
            report(line)
        return rows
    kept = kept_together(groups, rows, given)
    moved = sum(len(np.setdiff1d(rows[part], kept.get(part, []))) for part in rows)
    if moved:
        report(f"copies are kept in one part: {counted(moved, 'image')} {'left out' if given else 'moved to training'}")
    return kept


def _splits(
    decoded: Decoded, target: Target, rows: Mapping[str, np.ndarray], cache: tuple[Path, str] | None, report: Report
) -> dict[str, Split]:
    catalog = decoded.catalog
    images: dict[str, torch.Tensor] = {}
    # The map of a cache file may be larger than memory; the pixels in memory are the result already.
    mapped = isinstance(decoded.images, np.memmap) and not fits_in_memory(decoded.images.nbytes)
    if mapped and cache:
        decoded_split = _arranged(decoded, target, rows, cache, report)
        first = 0
        for part, chosen in rows.items():
            images[part] = _as_tensor(decoded_split.images[first : first + len(chosen)])
            first += len(chosen)
    else:
        images = {part: torch.from_numpy(np.take(decoded.images, chosen, axis=0)) for part, chosen in rows.items()}
    return {
        part: Split(
            images[part], torch.from_numpy(catalog.labels[chosen]), [catalog.names[index] for index in chosen.tolist()]
        )
        for part, chosen in rows.items()
    }


def _arranged(
    decoded: Decoded, target: Target, rows: Mapping[str, np.ndarray], cache: tuple[Path, str], report: Report
) -> Decoded:
    """The images in the order of the split, on a map of their own: a tensor can show a run of rows, not a selection.

    One such file is kept beside each cache; another split replaces it, while whoever has it open keeps the old one.
    """
    path, state = cache
    order = np.concatenate(list(rows.values()))
    if np.array_equal(order, np.arange(len(decoded.images))):
        return decoded
    catalog = decoded.catalog

    def copy(sink: Sink) -> Catalog:
        sink.reserve(len(order))
        for first in range(0, len(order), _COPY_ROWS):
            sink.append(decoded.images[order[first : first + _COPY_ROWS]])
        return replace(catalog, parts={}, labels=catalog.labels[order], names=[], sums=catalog.sums[order], broken=[])

    report(f"writing the split to {path.parent}: the images are larger than half of the free memory")
    state = hashlib.sha256(state.encode() + order.tobytes()).hexdigest()
    return fetch(path.with_name(f"{path.stem}-split{path.suffix}"), state, target, copy, report)


def _as_tensor(images: np.ndarray) -> torch.Tensor:
    with warnings.catch_warnings():
        # Read-only on purpose: a training that writes into its images should fail and not change the cache.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(images)


def _statistics(sums: np.ndarray, target: Target) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel in 0..1 from the sums int64 `[N, 2, C]` of the images."""
    count, white = len(sums) * target.size[0] * target.size[1], 2**target.bits - 1
    # Squares of 16 bits would leave 64 bits after some billions of pixels.
    total, squares = sums.sum(axis=0, dtype=np.int64 if target.bits == 8 else np.float64)
    mean = total / count
    variance = squares / count - mean * mean
    std = np.sqrt(np.maximum(variance, 1.0))
    return tuple((mean / white).tolist()), tuple((std / white).tolist())
