"""The findings about a data set, as lines for a terminal and as plain values."""

from typing import Any

from gmmvit.config import Recipe
from gmmvit.data import Inspection
from gmmvit.data.target import colours
from gmmvit.training.session import class_lines

PARTS = ("train", "val", "test", "all")


def lines_of(found: Inspection, recipe: Recipe) -> list[str]:
    """The findings, as lines for a terminal."""
    parts = ", ".join(f"{name} {len(found.parts[name]):,}" for name in parts_of(found))
    lines = [
        f"{found.name}: {number_of(found):,} images, {len(found.classes)} classes, read at {target_of(found)}: {parts}"
    ]
    if found.dataset is not None:
        lines += class_lines(found.dataset, recipe)
    if found.labels_an_image is not None:
        lines.append(about_labels(found))
    lines += [*about_images(found), about_broken(found), about_copies(found), *found.leaks]
    return [*lines, *([refused(found)] if found.refusal else [])]


def as_values(found: Inspection) -> dict[str, Any]:
    """The findings, as plain values; sizes are "HEIGHTxWIDTH"."""
    names = found.decoded.catalog.names
    return {
        "dataset": found.name,
        "images": number_of(found),
        "image_size": list(found.decoded.images.shape[2:]),
        "channels": found.decoded.images.shape[1],
        "bits": 8 * found.decoded.images.itemsize,
        "parts": {part: dict(zip(found.classes, found.counts(part), strict=True)) for part in parts_of(found)},
        "labels_an_image": found.labels_an_image,
        "sizes": {f"{height}x{width}": count for (height, width), count in found.sizes.most_common()},
        "kinds": dict(found.kinds.most_common()),
        "turned": found.turned,
        "without_colour": found.grey,
        "broken": [{"file": name, "reason": reason} for name, reason in found.broken],
        "copies": None if found.copies is None else [[names[i] for i in rows] for rows in found.copies],
        "notes": found.leaks,
        "refused": found.refusal,
    }


def number_of(found: Inspection) -> int:
    """The number of readable images."""
    return len(found.decoded.catalog.labels)


def parts_of(found: Inspection) -> list[str]:
    """The parts in their usual order."""
    return [part for part in PARTS if part in found.parts]


def target_of(found: Inspection) -> str:
    """The training format, for example "64 x 64 in colour"."""
    images = found.decoded.images
    return f"{images.shape[2]} x {images.shape[3]} in {colours(images.shape[1], 8 * images.itemsize)}"


def about_labels(found: Inspection) -> str:
    """How many labels the images have, where they may have several."""
    counts = found.labels_an_image or [0]
    mean = sum(number * count for number, count in enumerate(counts)) / sum(counts)
    each = ", ".join(f"{number or 'none'}: {count:,}" for number, count in enumerate(counts) if count)
    return f"labels an image: {mean:.2f} on average ({each})"


def about_images(found: Inspection) -> list[str]:
    """Sentences about sizes, kinds and colours."""
    heights, widths = [h for h, _ in found.sizes], [w for _, w in found.sizes]
    if not found.sizes:
        return ["the image sizes are unknown"]
    [((height, width), count)] = found.sizes.most_common(1)
    total = found.sizes.total()
    often = f"{height} x {width} (height x width), all of them"
    if len(found.sizes) > 1:
        often = (
            f"{min(heights)} to {max(heights)} high and {min(widths)} to {max(widths)} wide, most often {height} x "
            f"{width} ({count / total:.0%})"
        )
    lines = [f"sizes: {often}"]
    high, wide = found.decoded.images.shape[2:]
    small = sum(number for (h, w), number in found.sizes.items() if h < high or w < wide)
    if small:
        lines[0] += f"; {small:,} are smaller than {high} x {wide} and are enlarged"
    kinds = "; ".join(f"{kind} {number:,}" for kind, number in found.kinds.most_common())
    lines.append(f"kinds: {kinds}" + (f"; {found.turned:,} are rotated as EXIF says" if found.turned else ""))
    if found.decoded.images.shape[1] == 3 and found.grey:
        every = found.grey == number_of(found)
        hint = "every image is grey: --channels 1 trains on one channel" if every else f"{found.grey:,} are grey"
        lines.append(f"colours: {hint}")
    return lines


def about_broken(found: Inspection) -> str:
    """How many images are broken, and the first of them."""
    if not found.broken:
        return "broken images: none"
    first = ", ".join(f"{name} ({reason})" for name, reason in found.broken[:3])
    more = f" and {len(found.broken) - 3:,} more" if len(found.broken) > 3 else ""
    return f"broken images: {len(found.broken):,}: {first}{more}; --skip-broken trains without them"


def about_copies(found: Inspection) -> str:
    """How many pictures occur more than once."""
    if found.copies is None:
        return "copies: not searched, because the images take more than half of the free memory"
    if not found.copies:
        return "copies: none"
    images = sum(map(len, found.copies))
    several = "1 picture occurs" if len(found.copies) == 1 else f"{len(found.copies):,} pictures occur"
    return f"copies: {several} more than once, exact or near ({images:,} images)"


def refused(found: Inspection) -> str:
    """Why no model can be trained on it, from `refusal`."""
    return f"a training would refuse this data set: {found.refusal}"
