"""The learned masks as pictures: every layer and head as it began and as it is, beside the numbers they are made of.

Letters: H heads, K Gaussians per head, N patches, R x S cells of an offset table.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import torch
from torch import Tensor, nn

from gmmvit.building import build_model
from gmmvit.config import library_of
from gmmvit.masks import ElementwiseMask, GaussianMixtureMask
from gmmvit.report.page import colour_scale, paragraph, picture, row, table
from gmmvit.report.pictures import DIVERGING, hex_colour, levels, map_address
from gmmvit.runs.checkpoint import LoadedRun
from gmmvit.runs.run_folder import load_config, read_rows
from gmmvit.training.session import seed_everything

NEUTRAL = 1.0  # a mask of ones is plain attention
MATRIX_SIDE = 64  # larger element-wise masks are averaged down to this many cells a side


@dataclass(frozen=True)
class Layer:
    """One mask of a model: the name of its module, itself, and what is drawn of each head, [H, R, S].

    A Gaussian mixture mask is drawn over all offsets between two patches, an element-wise mask as the central patch
    sees it.
    """

    name: str
    mask: GaussianMixtureMask | ElementwiseMask
    views: Tensor


@torch.no_grad()
def mask_layers(model: nn.Module) -> list[Layer]:
    """The masks of a model in the order of its layers."""
    layers = []
    for name, module in model.named_modules():
        if isinstance(module, GaussianMixtureMask):
            layers.append(Layer(name, module, module.table().cpu()))
        elif isinstance(module, ElementwiseMask):
            layers.append(Layer(name, module, _seen_from_centre(module).cpu()))
    return layers


def starting_model(run: LoadedRun) -> nn.Module | str:
    """A model whose masks are those that the run's training began with, made anew from its configuration and its seed;
    or a sentence why there is none. Its other weights need not be those of the start."""
    recipe = run.recipe
    unknown = "The masks as they were at the start are not shown: "
    if not read_rows(run.folder):
        return f"{unknown}no epoch was trained in this run."
    if isinstance(recipe.pretrained, str):
        return f"{unknown}the training began from given weights, which are not part of the run."
    if recipe.mask == "gmm" and recipe.mask_init == "paper" and library_of(recipe.model) is not None:
        return f"{unknown}they were drawn after the weights of {recipe.model}, which the seed alone does not give."
    with torch.random.fork_rng(devices=[]):
        seed_everything(recipe.seed, 0)
        try:
            return build_model(load_config(run.folder)["model"])
        except MemoryError as error:
            return f"{unknown}{error}."


def _seen_from_centre(mask: ElementwiseMask) -> Tensor:
    """The row of the central patch as a picture: [H, rows, cols], or [1, rows, cols] where the heads share one."""
    rows, cols = mask.grid
    weight = mask.weight.reshape(-1, rows * cols, rows * cols)
    return weight[:, rows // 2 * cols + cols // 2].reshape(-1, rows, cols)


def colour_limits(layers: list[Layer]) -> tuple[float, float, bool]:
    """Ends of the colour scale that all layers share, the same distance below and above 1, and whether values lie
    beyond them: a few very large ones shall not drown the rest."""
    distance = torch.cat([(_values(layer) - NEUTRAL).abs().flatten() for layer in layers])
    distance = distance[distance.isfinite()]
    if not len(distance):
        return 0.0, 2.0, False
    reach = max(float(distance.sort().values[int(0.99 * (len(distance) - 1))]), 0.05)
    return NEUTRAL - reach, NEUTRAL + reach, bool(distance.max() > reach * (1 + 1e-6))


def _values(layer: Layer) -> Tensor:
    return (layer.views if isinstance(layer.mask, GaussianMixtureMask) else layer.mask.weight).detach().cpu().float()


def mask_section(model: nn.Module, start: nn.Module | str = "") -> str:
    """HTML of all masks of a model; a sentence where it has none.

    Beside each stands the one of `start`, the same model before its training, or else a sentence why there is none.
    """
    layers = mask_layers(model)
    if not layers:
        return paragraph(
            "This model has no masks (mask none): its attention, if it has any, is weighed by content alone."
        )
    starts = [] if isinstance(start, str) else mask_layers(start)
    low, high, beyond = colour_limits(layers + starts)
    offsets = isinstance(layers[0].mask, GaussianMixtureMask)
    what = (
        "Each picture shows the factor on the attention logits for every offset between two patches; the dot is the "
        "patch itself (offset 0), one cell is one grid step."
        if offsets
        else "Each layer has the learned matrix (rows are the patches that look, columns those looked at) and its row "
        "for the central patch, drawn over the grid."
    )
    ends = _ends(low, high, beyond)
    scale = colour_scale(
        [hex_colour(DIVERGING[i]) for i in range(0, len(DIVERGING), 8)],
        ends[0],
        "White is 1, plain attention: orange strengthens, blue weakens. All layers share this scale.",
        ends[1],
    )
    pairs = "Left the mask as the training began, right as it is now; “moved” is the mean distance between the two."
    note = paragraph(pairs) if starts else paragraph(start, "note") if isinstance(start, str) and start else ""
    draw = _mixture_layer if offsets else _elementwise_layer
    began: Sequence[Layer | None] = starts or [None] * len(layers)
    drawn = [
        draw(index, layer, before, low, high)
        for index, (layer, before) in enumerate(zip(layers, began, strict=True), 1)
    ]
    return paragraph(what) + note + scale + "".join(drawn)


def _ends(low: float, high: float, beyond: bool) -> tuple[str, str]:
    """Labels of the scale's ends."""
    first, last = ("≤ ", "≥ ") if beyond else ("", "")
    return f"{first}{low:.2f}".replace("-", "−"), f"{last}{high:.2f}"


def _address(values: Tensor, low: float, high: float) -> str:
    return map_address(levels(values, low, high), DIVERGING)


def _span(values: Tensor) -> str:
    return f"{values.min():.2f} to {values.max():.2f}".replace("-", "−")


def _heading(index: int, layer: Layer) -> str:
    rows, cols = layer.mask.grid
    return f'<h3>Layer {index} <small class="note">{escape(layer.name)}, {rows} × {cols} patches</small></h3>'


def _pair(began: Tensor | None, now: Tensor, low: float, high: float, text: str, label: str, *, dot: bool) -> str:
    """One picture, or two side by side: `began` and `now`."""
    pictures = [(_address(now, low, high), text)]
    spans = _span(now)
    if began is not None:
        pictures.insert(0, (_address(began, low, high), f"{text.partition(':')[0]}, at the start"))
        spans = f"{_span(began)} → {_span(now)}<br>moved {(now - began).abs().mean():.3f}"
    return picture(pictures, f"{label}<br>{spans}", dot=dot)


def _columns(figures: Sequence[str], few: int, paired: bool) -> str:
    kind = f"heads{' few' if len(figures) <= few else ''}{' two' if paired else ''}"
    return f'<div class="{kind}">{"".join(figures)}</div>'


def _mixture_layer(index: int, layer: Layer, before: Layer | None, low: float, high: float) -> str:
    """Pictures of the heads of a Gaussian mixture mask, and a table of its Gaussians."""
    mask = layer.mask
    assert isinstance(mask, GaussianMixtureMask)
    heads, kernels = mask.alpha.shape
    figures, rows = [], []
    for head, values in enumerate(layer.views):
        text = f"layer {index}, head {head + 1}: {'; '.join(gaussians(mask, head))}"
        began = None if before is None else before.views[head]
        figures.append(_pair(began, values, low, high, text, f"head {head + 1}", dot=True))
        if before is not None:
            assert isinstance(before.mask, GaussianMixtureMask)
            rows.append(row([f"{head + 1}, start", *gaussians(before.mask, head)]))
        rows.append(row([f"{head + 1}" if before is None else f"{head + 1}, learned", *gaussians(mask, head)]))
    columns = ["head", *(f"Gaussian {k}" for k in range(1, kernels + 1))]
    columns += ["centre"] if mask.center is not None else []
    return (
        f"{_heading(index, layer)}{_columns(figures, 4, before is not None)}<details>"
        f"<summary>σ (grid steps) and α of the {heads * kernels} Gaussians of layer {index}</summary>"
        f"{table(columns, rows)}</details>"
    )


def gaussians(mask: GaussianMixtureMask, head: int) -> list[str]:
    """A text for each Gaussian of a head: sigma in grid steps (rows × columns where there are two), alpha, correlation;
    then the head's centre, if it is learned. The sign of sigma has no meaning and is left out."""
    texts = []
    for k, alpha in enumerate(mask.alpha[head].tolist()):
        widths = mask.sigma[head, k].detach().abs().reshape(-1).tolist()
        text = f"σ {' × '.join(_width(w, max(mask.grid)) for w in widths)}, α {alpha:.2f}".replace("-", "−")
        if mask.correlation is not None:
            text += f", ρ {0.99 * mask.correlation[head, k].tanh().item():.2f}"
        texts.append(text)
    if mask.center is not None:
        down, right = mask.center[head].tolist()
        texts.append(f"{down:+.2f} rows, {right:+.2f} columns".replace("-", "−"))
    return texts


def _width(sigma: float, side: int) -> str:
    """A Gaussian a hundred times as wide as the grid is flat on it to four digits."""
    return "∞" if sigma > 100 * side else f"{sigma:.2f}"


def _elementwise_layer(index: int, layer: Layer, before: Layer | None, low: float, high: float) -> str:
    """The matrices of an element-wise mask, each beside the central patch's row."""
    mask = layer.mask
    assert isinstance(mask, ElementwiseMask)
    patches = mask.weight.shape[-1]
    place = f"row {mask.grid[0] // 2 + 1}, column {mask.grid[1] // 2 + 1}"
    size = f"{patches} × {patches}"
    if patches > MATRIX_SIDE:
        size += f", averaged to {MATRIX_SIDE} × {MATRIX_SIDE}"
    matrices, first = _matrices(layer), None if before is None else _matrices(before)
    figures = []
    for head, (matrix, view) in enumerate(zip(matrices, layer.views, strict=True)):
        who = f"head {head + 1}" if len(matrices) > 1 else "all heads"
        text = f"layer {index}, {who}"
        began = None if first is None else first[head]
        figures.append(_pair(began, matrix, low, high, f"{text}: matrix {size}", f"{who}, {size}", dot=False))
        began = None if before is None else before.views[head]
        what = f"{text}: what the central patch sees"
        figures.append(_pair(began, view, low, high, what, f"{who}, from {place}", dot=False))
    return _heading(index, layer) + _columns(figures, 8, before is not None)


def _matrices(layer: Layer) -> Tensor:
    """The matrix of each head, or the one of all, [H, side, side]; large ones averaged down."""
    weight = _values(layer)
    matrices = weight.reshape(-1, *weight.shape[-2:])
    if weight.shape[-1] > MATRIX_SIDE:
        return nn.functional.adaptive_avg_pool2d(matrices.unsqueeze(1), MATRIX_SIDE).squeeze(1)
    return matrices


_CELL, _GAP, _EDGE, _FOOT = 64, 10, 62, 46  # pixels of the stand-alone picture


def mask_picture(model: nn.Module) -> str:
    """The masks of a model as one stand-alone SVG: a row a layer, a column a head, and the colour scale.

    Raises ValueError for a model without masks.
    """
    layers = mask_layers(model)
    if not layers:
        raise ValueError("the model has no masks to draw: it was made with mask 'none'")
    low, high, beyond = colour_limits(layers)
    columns = max(len(layer.views) for layer in layers)
    shared = isinstance(layers[0].mask, ElementwiseMask) and columns < layers[0].mask.num_heads
    width = _EDGE + max(columns, 4) * (_CELL + _GAP)
    height = 24 + len(layers) * (_CELL + _GAP) + _FOOT
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'role="img" aria-label="learned attention masks"><style>text{font:12px system-ui,sans-serif;fill:#5d666f}'
        "@media(prefers-color-scheme:dark){text{fill:#a2a9b0}}</style>"
    ]
    for column in range(columns):
        x = _EDGE + column * (_CELL + _GAP) + _CELL / 2
        label = "all heads" if shared else f"head {column + 1}"
        parts.append(f'<text x="{x:g}" y="15" text-anchor="middle">{label}</text>')
    for index, layer in enumerate(layers):
        y = 24 + index * (_CELL + _GAP)
        parts.append(f'<text x="{_EDGE - 10}" y="{y + _CELL / 2 + 4:g}" text-anchor="end">layer {index + 1}</text>')
        for column, values in enumerate(layer.views):
            parts.append(_cells(levels(values, low, high), _EDGE + column * (_CELL + _GAP), y))
    parts.append(_standalone_scale(height - _FOOT + 10, low, high, beyond))
    return "".join(parts) + "</svg>\n"


def _cells(indices: Tensor, x: int, y: int) -> str:
    """One mask as squares, those of one colour in one path: small, and sharp at every size."""
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
