"""The learned masks as pictures: every layer and head before and after training, with its parameters.

Letters: H heads, R x S cells of a picture.
"""

from collections import defaultdict
from collections.abc import Sequence
from html import escape

import torch
from torch import Tensor, nn

from gmmvit.building import build_model
from gmmvit.config import library_of
from gmmvit.masks import KINDS, Drawing, Mask
from gmmvit.report.page import colour_scale, paragraph, picture, row, table
from gmmvit.report.pictures import DIVERGING, hex_colour, levels, map_address
from gmmvit.runs.checkpoint import LoadedRun
from gmmvit.runs.run_folder import load_config, read_rows
from gmmvit.training.session import seed_everything

NEUTRAL = 1.0  # a mask of ones is plain attention


def mask_layers(model: nn.Module) -> list[tuple[str, Mask]]:
    """A model's masks with their module names, in layer order."""
    return [(name, module) for name, module in model.named_modules() if isinstance(module, Mask)]


def starting_model(run: LoadedRun) -> nn.Module | str:
    """A model with the masks the run's training started from, rebuilt from its configuration and seed, or a sentence
    why they are unknown. Its other weights may differ from those of the start."""
    recipe = run.recipe
    unknown = "The masks before training are not shown: "
    if not read_rows(run.folder):
        return f"{unknown}no epoch was trained in this run."
    if isinstance(recipe.pretrained, str):
        return f"{unknown}the training started from given weights, which are not part of the run."
    drawn = recipe.mask != "none" and recipe.mask_init in KINDS[recipe.mask].random_starts
    if drawn and library_of(recipe.model) is not None:
        return f"{unknown}they were drawn after the weights of {recipe.model}, so the seed alone does not give them."
    with torch.random.fork_rng(devices=[]):
        seed_everything(recipe.seed, 0)
        try:
            return build_model(load_config(run.folder)["model"])
        except MemoryError as error:
            return f"{unknown}{error}."


@torch.no_grad()
def colour_limits(masks: Sequence[Mask]) -> tuple[float, float, bool]:
    """The ends of the shared colour scale, symmetric around 1, and whether values lie beyond them: a few very large
    values must not wash out the rest."""
    distance = torch.cat([(mask.values().cpu().float() - NEUTRAL).abs().flatten() for mask in masks])
    distance = distance[distance.isfinite()]
    if not len(distance):
        return 0.0, 2.0, False
    reach = max(float(distance.sort().values[int(0.99 * (len(distance) - 1))]), 0.05)
    return NEUTRAL - reach, NEUTRAL + reach, bool(distance.max() > reach * (1 + 1e-6))


@torch.no_grad()
def mask_section(model: nn.Module, start: nn.Module | str = "") -> str:
    """HTML with all masks of a model, or a sentence if it has none.

    Each is shown beside that of `start`, the same model before training; if `start` is text, it says why not.
    """
    layers = mask_layers(model)
    if not layers:
        return paragraph("This model has no masks (mask none): its attention, if it has any, depends only on content.")
    starts = [] if isinstance(start, str) else [mask for _, mask in mask_layers(start)]
    low, high, beyond = colour_limits([mask for _, mask in layers] + starts)
    ends = _ends(low, high, beyond)
    scale = colour_scale(
        [hex_colour(DIVERGING[i]) for i in range(0, len(DIVERGING), 8)],
        ends[0],
        "White is 1, plain attention: orange strengthens, blue weakens. All layers share this scale.",
        ends[1],
    )
    pairs = "Left: the mask before training, right: after; “moved” is the mean distance between the two."
    note = paragraph(pairs) if starts else paragraph(start, "note") if isinstance(start, str) and start else ""
    began: Sequence[Mask | None] = starts or [None] * len(layers)
    drawn = []
    for index, ((name, mask), before) in enumerate(zip(layers, began, strict=True), 1):
        rows, cols = mask.grid
        drawn.append(f'<h3>Layer {index} <small class="note">{escape(name)}, {rows} × {cols} patches</small></h3>')
        drawn.append(_layer(index, mask.drawing(), None if before is None else before.drawing(), low, high))
    return paragraph(layers[0][1].shown) + note + scale + "".join(drawn)


def _ends(low: float, high: float, beyond: bool) -> tuple[str, str]:
    """The labels at the ends of the scale."""
    first, last = ("≤ ", "≥ ") if beyond else ("", "")
    return f"{first}{low:.2f}".replace("-", "−"), f"{last}{high:.2f}"


def _address(values: Tensor, low: float, high: float) -> str:
    return map_address(levels(values, low, high), DIVERGING)


def _span(values: Tensor) -> str:
    return f"{values.min():.2f} to {values.max():.2f}".replace("-", "−")


def _layer(index: int, now: Drawing, before: Drawing | None, low: float, high: float) -> str:
    """The pictures and the table of one mask, beside those of the start."""
    figures = []
    for head, pictures in enumerate(now.heads):
        for number, picture_now in enumerate(pictures):
            cells, label, words, dot = picture_now
            cells = cells.cpu().float()
            shown = [(_address(cells, low, high), f"layer {index}, {words}")]
            spans = _span(cells)
            if before is not None:
                began = before.heads[head][number].cells.cpu().float()
                start = f"layer {index}, {words.partition(':')[0]}, at the start"
                shown.insert(0, (_address(began, low, high), start))
                spans = f"{_span(began)} → {spans}<br>moved {(cells - began).abs().mean():.3f}"
            figures.append(picture(shown, f"{label}<br>{spans}", dot=dot))
    few = len(now.heads) <= 4
    kind = f"heads{' few' if few else ''}{' two' if before is not None else ''}"
    html = f'<div class="{kind}">{"".join(figures)}</div>'
    if not now.rows:
        return html
    rows = []
    for number, texts in enumerate(now.rows, 1):
        if before is not None:
            rows.append(row([f"{number}, start", *before.rows[number - 1]]))
        rows.append(row([f"{number}" if before is None else f"{number}, learned", *texts]))
    summary = f"<summary>{now.title} of layer {index}</summary>"
    return f"{html}<details>{summary}{table(['head', *now.columns], rows)}</details>"


_CELL, _GAP, _EDGE, _FOOT = 64, 10, 62, 46  # pixels of the stand-alone picture


@torch.no_grad()
def mask_picture(model: nn.Module, start: nn.Module | None = None) -> str:
    """A model's masks as one stand-alone SVG: a row per layer, a column per head, and the colour scale.

    With `start`, the same model before training, its masks are on the left, on the same scale.

    Raises ValueError for a model without masks.
    """
    sides = [[mask for _, mask in mask_layers(side)] for side in ([model] if start is None else [start, model])]
    if not sides[-1]:
        raise ValueError("the model has no masks to draw: it was made with mask 'none'")
    low, high, beyond = colour_limits([mask for side in sides for mask in side])
    drawn = [[mask.view().cpu() for mask in side] for side in sides]
    columns = max(map(len, drawn[-1]))
    shared = columns < sides[-1][0].num_heads
    step = max(columns, 4) * (_CELL + _GAP) + 2 * _GAP  # distance between the two sides
    top = 24 if start is None else 46
    width = _EDGE + step * len(sides) - 2 * _GAP
    height = top + len(sides[-1]) * (_CELL + _GAP) + _FOOT
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'role="img" aria-label="learned attention masks"><style>text{font:12px system-ui,sans-serif;fill:#5d666f}'
        "@media(prefers-color-scheme:dark){text{fill:#a2a9b0}}</style>"
    ]
    for index in range(len(sides[-1])):
        y = top + index * (_CELL + _GAP) + _CELL / 2 + 4
        parts.append(f'<text x="{_EDGE - 10}" y="{y:g}" text-anchor="end">layer {index + 1}</text>')
    titles = [""] if start is None else ["at the start", "after training"]
    for number, (title, views) in enumerate(zip(titles, drawn, strict=True)):
        left = _EDGE + number * step
        if title:
            parts.append(f'<text x="{left}" y="15" font-weight="bold">{title}</text>')
        for column in range(columns):
            x = left + column * (_CELL + _GAP)
            label = "all heads" if shared else f"head {column + 1}"
            parts.append(f'<text x="{x + _CELL / 2:g}" y="{top - 9}" text-anchor="middle">{label}</text>')
            for index, view in enumerate(views):
                parts.append(_cells(levels(view[column], low, high), x, top + index * (_CELL + _GAP)))
    parts.append(_standalone_scale(height - _FOOT + 10, low, high, beyond))
    return "".join(parts) + "</svg>\n"


def _cells(indices: Tensor, x: int, y: int) -> str:
    """One mask as squares, one path per colour: small, and sharp at every size."""
    rows, cols = indices.shape
    paths: dict[int, list[str]] = defaultdict(list)
    for r, line in enumerate(indices.tolist()):
        for c, level in enumerate(line):
            paths[level].append(f"M{c} {r}h1v1h-1z")
    side = _CELL / max(rows, cols)
    drawn = "".join(f'<path fill="{hex_colour(DIVERGING[level])}" d="{"".join(d)}"/>' for level, d in paths.items())
    return f'<g shape-rendering="crispEdges" transform="translate({x} {y}) scale({side:.5g})">{drawn}</g>'


def _standalone_scale(y: int, low: float, high: float, beyond: bool) -> str:
    stops = "".join(
        f'<stop offset="{i / (len(DIVERGING) - 1):.3g}" stop-color="{hex_colour(DIVERGING[i])}"/>'
        for i in range(0, len(DIVERGING), 8)
    )
    first, last = _ends(low, high, beyond)
    texts = ((0, "start", first), (80, "middle", "1"), (160, "end", last))
    labels = "".join(f'<text x="{_EDGE + x}" y="{y + 27}" text-anchor="{a}">{t}</text>' for x, a, t in texts)
    return (
        f'<linearGradient id="scale">{stops}</linearGradient>'
        f'<rect x="{_EDGE}" y="{y}" width="160" height="11" fill="url(#scale)"/>{labels}'
    )
