"""The page of a data set before training: classes, images, broken ones, copies, contact sheet, augmentation."""

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

import numpy as np
import torch

from gmmvit.config import Recipe
from gmmvit.data import Inspection
from gmmvit.data.several import has_class, numbers_of, words_of
from gmmvit.report.found import about_copies, about_images, about_labels, number_of, parts_of, refused, target_of
from gmmvit.report.page import document, paragraph, percent, picture, row, table
from gmmvit.report.pictures import LOSSLESS_SIDE, about_view, image_address
from gmmvit.report.preview import augmentation_section
from gmmvit.report.results import OPEN_CLASSES, short_name
from gmmvit.report.runs import last_name
from gmmvit.runs.files import RunError, check_new, naming_faults, write_whole
from gmmvit.text import shown
from gmmvit.training.session import class_lines

SHEET = 240  # pictures on the contact sheet, at most
EACH = 7  # per class: one row of a wide screen
COPIES = 24  # groups of copies drawn
SIZES = 12  # most frequent sizes listed
LISTED = 500  # broken images listed


def check_page(out: Path, overwrite: bool) -> None:
    """Raises RunError if the page cannot be written, before any work is done."""
    if out.is_dir():
        raise RunError(f"{out} is a folder; give a file with --out (in Python out=)")
    check_new(out, overwrite)


def write_inspection(
    found: Inspection, recipe: Recipe, out: str | Path, *, notices: Sequence[str] = (), overwrite: bool = False
) -> Path:
    """Writes the page of a data set: one HTML file that works offline.

    Args:
        found: the result of `inspect_data` for the recipe.
        recipe: the page shows its augmentation.
        out: the file.
        notices: messages from reading the data.
        overwrite: replaces an existing file.

    Returns:
        The path of the file.

    Raises:
        RunError: the file exists, or cannot be written.
    """
    path = Path(out)
    check_page(path, overwrite)
    augmented = "" if found.dataset is None else augmentation_section(found.dataset, recipe)
    sections = [
        ("classes", "Classes", classes_section(found)),
        ("images", "Images", images_section(found)),
        ("broken", "Broken images", broken_section(found)),
        ("copies", "Copies", copies_section(found)),
        ("sheet", "Contact sheet", sheet_section(found)),
        ("augmentation", "Augmentation", augmented),
    ]
    page = document(shown(last_name(found.name)), sections, _head(found, recipe, notices))
    with naming_faults(path, "write"):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, page.encode(errors="backslashreplace"))
    return path


def _head(found: Inspection, recipe: Recipe, notices: Iterable[str]) -> str:
    cards = [("images that can be read", f"{number_of(found):,}"), ("classes", f"{len(found.classes):,}")]
    cards += [(f"{name} part", f"{len(found.parts[name]):,}") for name in parts_of(found)]
    copies = "–" if found.copies is None else f"{len(found.copies):,}"
    cards += [("read at", target_of(found)), ("broken", f"{len(found.broken):,}"), ("pictures with copies", copies)]
    listing = "".join(f"<li><span>{escape(name)}</span><b>{escape(value)}</b></li>" for name, value in cards)
    said = [*([refused(found)] if found.refusal else []), *found.leaks, *notices]
    if found.dataset is not None:
        said += class_lines(found.dataset, recipe)[1:]
    warnings = "".join(paragraph(_without_places(line, found), "warn") for line in said)
    return f'<h1>{escape(shown(last_name(found.name)))}</h1><ul class="facts">{listing}</ul>{warnings}'


def _without_places(line: str, found: Inspection) -> str:
    """A line with the data set's path reduced to its last part, because pages are shared."""
    for place in (Path(found.location), Path(found.name.partition(":")[2])):
        if place.is_absolute() and place.name:
            line = shown(line).replace(shown(str(place)), shown(place.name))
    return line


def classes_section(found: Inspection) -> str:
    """The classes with their images in each part, the largest first."""
    parts = parts_of(found)
    counts = np.array([found.counts(part) for part in parts])
    totals = counts.sum(0)
    rows = []
    for number in np.argsort(-totals, kind="stable").tolist():
        cells = [found.classes[number], f"{totals[number]:,}", *(f"{count:,}" for count in counts[:, number].tolist())]
        share = f"{totals[number] / totals.max():.1%}"
        bar = f'<td class="track"><span class="bar" style="width:{share}"></span></td></tr>'
        rows.append(row(cells).removesuffix("</tr>") + bar)
    listing = table(["class", "images", *parts, ""], rows)
    if len(rows) > OPEN_CLASSES:
        listing = f"<details><summary>all {len(rows)} classes, the largest first</summary>{listing}</details>"
    if found.labels_an_image is not None:
        return paragraph(_sentence(about_labels(found))) + listing
    return listing


def images_section(found: Inspection) -> str:
    """Sizes and kinds of the files."""
    total = max(1, found.sizes.total())
    sizes = [row([f"{h} x {w}", f"{n:,}", percent(n / total)]) for (h, w), n in found.sizes.most_common(SIZES)]
    kinds = [row([kind, f"{n:,}", percent(n / total)]) for kind, n in found.kinds.most_common()]
    more = len(found.sizes) - SIZES
    note = paragraph(f"{more:,} rarer sizes are not listed.", "note") if more > 0 else ""
    return (
        "".join(paragraph(_sentence(line)) for line in about_images(found))
        + f'<div class="pair"><div>{table(["height x width", "images", "share"], sizes)}{note}</div>'
        + f"<div>{table(['format and colours', 'images', 'share'], kinds)}</div></div>"
    )


def broken_section(found: Inspection) -> str:
    """The unreadable images, and why."""
    if not found.broken:
        return paragraph("Every image can be read.")
    rows = [row([name, reason], left=2) for name, reason in found.broken[:LISTED]]
    more = len(found.broken) - LISTED
    note = paragraph(f"{more:,} more are not listed.", "note") if more > 0 else ""
    intro = "`gmmvit train` names these and stops; --skip-broken trains without them."
    return paragraph(intro) + table(["image", "why"], rows, left=2) + note


def copies_section(found: Inspection) -> str:
    """Pictures that occur more than once: first those in several classes, then those in several parts."""
    if not found.copies:
        return paragraph(_sentence(about_copies(found)))
    catalog = found.decoded.catalog
    part_of = {index: part for part, rows in found.parts.items() for index in rows.tolist()}

    def order(rows: list[int]) -> tuple[bool, bool]:
        classes, parts = {numbers_of(catalog.labels[i]) for i in rows}, {part_of.get(i) for i in rows}
        return len(classes) == 1, len(parts) == 1

    cards = []
    for rows in sorted(found.copies, key=order)[:COPIES]:
        names = [
            f"{catalog.names[i]} ({words_of(catalog.labels[i], found.classes)}, {part_of.get(i, 'left out')})"
            for i in rows
        ]
        told_of = "".join(f"<small>{escape(short_name(name, 60))}</small>" for name in names[:4])
        told_of += f"<small>and {len(names) - 4} more</small>" if len(names) > 4 else ""
        pictures = [(_address(found, i), name) for i, name in zip(rows[:2], names, strict=False)]
        cards.append(picture(pictures, told_of, smooth=_smooth(found)))
    intro = f"{about_copies(found)}; those of several classes come first, then those in several parts"
    return paragraph(_sentence(intro)) + f'<div class="cards">{"".join(cards)}</div>'


def sheet_section(found: Inspection) -> str:
    """A few images of each class, evenly spread over it."""
    catalog = found.decoded.catalog
    each = max(1, min(EACH, SHEET // len(found.classes)))
    parts = []
    for number, name in enumerate(found.classes[:SHEET]):
        rows = np.flatnonzero(has_class(catalog.labels, number))
        chosen = rows[np.unique(np.linspace(0, len(rows) - 1, min(each, len(rows))).round().astype(int))].tolist()
        cards = "".join(
            picture(
                [(_address(found, i), f"{name}: {catalog.names[i]}")],
                f"<small>{escape(short_name(catalog.names[i]))}</small>",
                smooth=_smooth(found),
            )
            for i in chosen
        )
        parts.append(f'<h3>{escape(name)} <span class="note">{len(rows):,}</span></h3><div class="cards">{cards}</div>')
    more = len(found.classes) - SHEET
    note = paragraph(f"{more:,} more classes are not shown.", "note") if more > 0 else ""
    intro = f"Up to {each} of each class, from first to last, as in training ({target_of(found)})."
    intro += about_view(found.decoded.images.shape[1], 8 * found.decoded.images.itemsize)
    return paragraph(intro) + "".join(parts) + note


def _sentence(line: str) -> str:
    return f"{line[:1].upper()}{line[1:]}."


def _address(found: Inspection, index: int) -> str:
    return image_address(torch.from_numpy(np.array(found.decoded.images[index])))


def _smooth(found: Inspection) -> bool:
    return max(found.decoded.images.shape[2:]) > LOSSLESS_SIDE
