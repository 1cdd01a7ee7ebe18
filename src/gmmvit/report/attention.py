"""Where a model looks: attention weights of its last layers on test images, computed from q and k by the formula.

Letters: B images, T tokens (prefix first), N patches, H heads.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from typing import Any

import torch
from torch import Tensor, nn

from gmmvit.attach import attach
from gmmvit.attach.surgery import MaskedDonor, additive
from gmmvit.attention.reference import attention_weights, unpack, with_prefix
from gmmvit.augment import normalize
from gmmvit.config import library_of
from gmmvit.models.layers import QKV, Grid, MaskedAttention
from gmmvit.report.page import paragraph, picture
from gmmvit.report.pictures import about_view, heat_over, image_address
from gmmvit.runs.checkpoint import LoadedRun

LAYERS = 3  # how many of the last layers are drawn


@dataclass(frozen=True)
class AttentionMap:
    """Attention of one layer: weights [B, H, T, T] after the softmax, the grid of its patches, its prefix tokens."""

    name: str
    weights: Tensor
    grid: tuple[int, int]
    prefix_tokens: int

    def heat(self) -> tuple[Tensor, tuple[int, int] | None]:
        """The attention of one query averaged over heads, [B, rows, cols], and the query's cell.

        The query is the first prefix token (the class token), which has no cell, else the central patch.
        """
        rows, cols = self.grid
        cell = None if self.prefix_tokens else (rows // 2, cols // 2)
        query = 0 if cell is None else cell[0] * cols + cell[1]
        seen = self.weights[:, :, query, self.prefix_tokens :].mean(1)
        return seen.unflatten(1, self.grid), cell


def layer_weights(
    layer: MaskedAttention, q: Tensor, k: Tensor, grid: tuple[int, int] | None, bias: Tensor | None = None
) -> Tensor:
    """The attention weights [B, H, T, T] of one layer for q and k [B, H, T, D]."""
    mask = None if layer.mask is None else with_prefix(layer.mask.dense(grid), layer.prefix_tokens)
    return attention_weights(_scores(q, k, layer.scale), mask, bias, layer.mode)


def _scores(q: Tensor, k: Tensor, scale: float | None) -> Tensor:
    wide = torch.promote_types(q.dtype, torch.float32)
    return (q.shape[-1] ** -0.5 if scale is None else scale) * (q.to(wide) @ k.to(wide).transpose(-2, -1))


@contextmanager
def _recorded(model: nn.Module, images: int) -> Iterator[list[AttentionMap]]:
    """Collects the attention of every layer that sees whole images, while the model runs on a batch of `images`.

    It wraps the attention itself, not the module's forward, because a family may rearrange tokens and add a bias first.
    Subclasses that attend differently (talking heads) do not follow the formula and are left out.
    """
    maps: list[AttentionMap] = []
    wrapped: list[tuple[nn.Module, str]] = []
    for name, layer in model.named_modules():
        if isinstance(layer, MaskedAttention) and type(layer).attend is MaskedAttention.attend:
            wrapped.append((layer, "attend"))
            layer.attend = _recording(layer, name, getattr(model, "grid", None), images, maps)  # type: ignore[method-assign]
        elif isinstance(layer, MaskedDonor) and type(layer).gmm_attend is MaskedDonor.gmm_attend:
            wrapped.append((layer, "gmm_attend"))
            layer.gmm_attend = _recording_donor(layer, name, images, maps)  # type: ignore[method-assign]
    try:
        yield maps
    finally:
        for layer, method in wrapped:
            delattr(layer, method)


def _recording(layer: MaskedAttention, name: str, whole: Grid | None, images: int, maps: list[AttentionMap]) -> Any:
    """A `layer.attend` that also records its weights."""
    attend = layer.attend

    def recording(qkv: QKV, grid: Grid | None, bias: Tensor | None = None, **made: Tensor) -> Tensor:
        q, k, _ = unpack(qkv) if isinstance(qkv, Tensor) else qkv
        patches = grid or getattr(layer.mask, "grid", None) or whole
        # Windows enlarge the batch; a layer with other tokens than patches and prefix has another geometry.
        if patches and q.shape[0] == images and q.shape[2] == patches[0] * patches[1] + layer.prefix_tokens:
            weights = layer_weights(layer, q, k, grid, bias)
            maps.append(AttentionMap(name, weights.cpu(), (patches[0], patches[1]), layer.prefix_tokens))
        return attend(qkv, grid, bias, **made)

    return recording


def _recording_donor(layer: MaskedDonor, name: str, images: int, maps: list[AttentionMap]) -> Any:
    """A `layer.gmm_attend`, for another library's attention, that also records its weights."""
    attend, site = layer.gmm_attend, layer.gmm_site

    def recording(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, **options: Any) -> Tensor:
        # Leave out windows, pooled tokens and tokens that are not in row order.
        ordered = layer.gmm_window(layer) is None and options.get("mask") is None and site.box.positions is None
        if ordered and q.shape[0] == images and q.shape[2] == k.shape[2]:
            grid = options.get("grid") or layer.gmm_grid(q.shape[2])
            mask = with_prefix(layer.gmm_mask.dense(grid), site.prefix_tokens)
            weights = attention_weights(_scores(q, k, options.get("scale")), mask, additive(bias), site.mode)
            maps.append(AttentionMap(name, weights.cpu(), grid, site.prefix_tokens))
        return attend(q, k, v, bias, **options)

    return recording


@torch.no_grad()
def attention_maps(run: LoadedRun, images: Tensor) -> list[AttentionMap]:
    """The attention of every layer with plain masked attention over whole images [B, C, H, W], in order; empty if
    the model has none."""
    model = run.model
    if library_of(run.recipe.model) is not None and run.recipe.mask == "none":
        # Only attached masks are recorded, so attach identity masks, which change nothing.
        try:
            model = attach(copy.deepcopy(model))
        except ValueError:  # no attention can carry a mask
            return []
    with _recorded(model, len(images)) as maps:
        model(normalize(images.to(run.device), run.mean, run.std))
    return maps


def attention_section(run: LoadedRun, images: Tensor, captions: list[str]) -> str:
    """HTML with the last layers' attention beside each image, or a sentence if no layer sees whole images."""
    maps = attention_maps(run, images)[-LAYERS:]
    if not maps:
        return paragraph(
            f"Attention is not drawn for {run.recipe.model}: no layer has masked attention over the whole image.",
            "note",
        )
    query = "the class token" if maps[-1].prefix_tokens else "the central patch (framed)"
    blocks = []
    heats = [attention.heat() for attention in maps]
    for index, (image, caption) in enumerate(zip(images, captions, strict=True)):
        figures = [picture([(image_address(image), f"input: {caption}")], "input", smooth=max(image.shape) > 64)]
        for attention, (heat, cell) in zip(maps, heats, strict=True):
            address = image_address(heat_over(image, heat[index], cell))
            name = escape(attention.name)
            figures.append(picture([(address, f"attention in {attention.name}: {caption}")], name, smooth=True))
        columns = f"grid-template-columns:repeat({len(figures)},minmax(0,1fr))"
        blocks.append(f'<h3>{escape(caption)}</h3><div class="maps" style="{columns}">{"".join(figures)}</div>')
    intro = (
        f"Where {query} looks: attention averaged over the heads, in the last {len(maps)} layers. Patches that get "
        "more than an even share are orange; the brightest gets most."
    )
    return paragraph(intro + about_view(run.channels, run.bits)) + "".join(blocks)
