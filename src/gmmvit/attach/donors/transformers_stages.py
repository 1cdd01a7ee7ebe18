"""Attentions of transformers' multi-stage models with the mask: SegFormer, PVT, PVT 2, CvT, LeViT and SAM 2.

Letters: B batch, G windows an image, T tokens (q: queries), C channels, H heads, D head width.
"""

import itertools
import math
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from gmmvit.attach.donors.timm_windows import BiasedAttention
from gmmvit.attach.place import Grid
from gmmvit.attach.surgery import MaskedDonor, Tower
from gmmvit.attention import with_prefix
from gmmvit.attention.reference import EVERY_PATCH, Steps
from gmmvit.checks import pair

_USUAL = 224  # image size if the configuration gives none, as for SegFormer and CvT


class _ReducedAttention(MaskedDonor):
    """Each key summarises a square of tokens."""

    gmm_rate = "dropout"

    @staticmethod
    def gmm_ratio(module: Any) -> int:
        """The side of the square."""
        raise NotImplementedError

    @classmethod
    def gmm_steps(cls, module: Any, ancestors: list[nn.Module]) -> Steps:
        step = cls.gmm_ratio(module)
        return Steps(key=(step, step), shift=((1 - step) / 2, (1 - step) / 2))

    def gmm_split(self, x: Tensor) -> Tensor:
        """[B, T, C] -> [B, H, T, D]."""
        return x.unflatten(-1, (self.num_attention_heads, -1)).transpose(1, 2)

    def gmm_output(
        self, q: Tensor, k: Tensor, v: Tensor, size: Grid, show: bool | None
    ) -> tuple[Tensor, Tensor | None]:
        """q [B, Tq, C] and reduced k, v [B, Tk, C] -> [B, Tq, C], and the weights [B, H, Tq, Tk] if `show`."""
        (rows, cols), step = size, self.gmm_ratio(self)
        # Leftover rows and columns have no key.
        keys = self.gmm_mask.dense(size).unflatten(-1, (-(-rows // step), -(-cols // step)))
        mask = with_prefix(keys[..., : rows // step, : cols // step].flatten(-2), self.gmm_site.prefix_tokens)
        q, k, v = self.gmm_split(q), self.gmm_split(k), self.gmm_split(v)
        weights, dropout_p = None, self.gmm_dropout()
        if show:
            out, weights = self.gmm_weighed(mask, q, k, v, dropout_p=dropout_p)
        else:
            out = self.gmm_attend_by(mask, q, k, v, dropout_p=dropout_p)
        return out.transpose(1, 2).flatten(2), weights


class SegmentingAttention(_ReducedAttention):
    """segformer."""

    gmm_parts = frozenset({"q_proj", "k_proj", "v_proj", "o_proj", "sequence_reduction"})
    gmm_rate = "attention_dropout"

    @staticmethod
    def gmm_ratio(module: Any) -> int:
        return module.sequence_reduction_ratio

    def forward(
        self, hidden_states: Tensor, height: int, width: int, attention_mask: Tensor | None = None, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        if attention_mask is not None:
            raise ValueError("an attached attention of SegFormer takes no attention_mask: detach(model)")
        x, eager = hidden_states, self.config._attn_implementation == "eager"
        if self.gmm_ratio(self) > 1:
            x = self.sequence_reduction(x, height, width)
        qkv = (self.q_proj(hidden_states), self.k_proj(x), self.v_proj(x))
        out, weights = self.gmm_output(*qkv, (height, width), eager)
        return self.o_proj(out), weights


class PyramidAttention(_ReducedAttention):
    """pvt: the last stage has a class token and reduces nothing."""

    gmm_parts = frozenset({"query", "key", "value", "dropout", "sequence_reduction", "layer_norm"})

    @staticmethod
    def gmm_ratio(module: Any) -> int:
        return int(module.sequences_reduction_ratio)

    def gmm_reduce(self, x: Tensor, size: Grid) -> Tensor:
        """[B, T, C] -> [B, Tk, C]."""
        if self.gmm_ratio(self) == 1:
            return x
        return self.layer_norm(self.sequence_reduction(x.transpose(1, 2).unflatten(2, size)).flatten(2).transpose(1, 2))

    def gmm_look(self, x: Tensor, size: Grid, show: bool | None) -> tuple[Tensor, Tensor | None]:
        """[B, T, C] -> the same, and the weights if `show`."""
        few = self.gmm_reduce(x, size)
        return self.gmm_output(self.query(x), self.key(few), self.value(few), size, show)

    def forward(
        self, hidden_states: Tensor, height: int, width: int, output_attentions: bool = False
    ) -> tuple[Tensor, ...]:
        out, weights = self.gmm_look(hidden_states, (height, width), output_attentions)
        return (out,) if weights is None else (out, weights)


class SecondPyramidAttention(PyramidAttention):
    """pvt 2."""

    gmm_parts = frozenset(
        {"query", "key", "value", "attn_drop", "proj", "proj_drop", "spatial_reduction", "layer_norm", "pool", "act"}
    )
    gmm_rate = "attn_drop"

    @staticmethod
    def gmm_ratio(module: Any) -> int:
        return int(module.spatial_reduction_ratio)

    @classmethod
    def gmm_refusal(cls, module: Any, ancestors: list[nn.Module]) -> str:
        return "its keys are 7 x 7 whatever the size of the image" if module.linear_attention else ""

    def gmm_reduce(self, x: Tensor, size: Grid) -> Tensor:
        if self.gmm_ratio(self) == 1:
            return x
        return self.layer_norm(self.spatial_reduction(x.transpose(1, 2).unflatten(2, size)).flatten(2).transpose(1, 2))

    def forward(
        self, hidden_states: Tensor, height: int, width: int, output_attentions: bool = False
    ) -> tuple[Tensor, ...]:
        out, weights = self.gmm_look(hidden_states, (height, width), output_attentions)
        out = self.proj_drop(self.proj(out))
        return (out,) if weights is None else (out, weights)


class ConvolvedAttention(MaskedDonor):
    """cvt: queries, keys and values come from convolutions, strided for the keys."""

    gmm_parts = frozenset(
        {f"{how}_{what}" for how in ("convolution_projection", "projection") for what in ("query", "key", "value")}
        | {"dropout"}
    )
    gmm_rate = "dropout"

    @classmethod
    def gmm_prefix(cls, module: Any) -> int:
        return int(module.with_cls_token)

    @classmethod
    def gmm_refusal(cls, module: Any, ancestors: list[nn.Module]) -> str:
        for conv in _convolutions(module):
            if conv is None or any(2 * p != k - 1 for p, k in zip(conv.padding, conv.kernel_size, strict=True)):
                return "its queries and keys do not lie at the centres of whole convolutions"
        return ""

    @classmethod
    def gmm_steps(cls, module: Any, ancestors: list[nn.Module]) -> Steps:
        query, key = (pair(conv.stride, "stride") for conv in _convolutions(module))
        return Steps(query=query, key=key)

    def forward(self, hidden_state: Tensor, height: int, width: int) -> Tensor:
        """[B, T, C] -> the same."""
        prefix, tokens = hidden_state.split([self.gmm_prefix(self), height * width], 1)
        maps = tokens.transpose(1, 2).unflatten(2, (height, width))
        q, k, v = (
            project(torch.cat((prefix, convolve(maps)), 1)).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for convolve, project in (
                (self.convolution_projection_query, self.projection_query),
                (self.convolution_projection_key, self.projection_key),
                (self.convolution_projection_value, self.projection_value),
            )
        )
        mask = self.gmm_dense((height, width), q)
        out = self.gmm_attend_by(mask, q, k, v, scale=self.scale, dropout_p=self.gmm_dropout())
        return out.transpose(1, 2).flatten(2)


def _convolutions(module: Any) -> list[Any]:
    """The convolutions of queries and keys, None where absent."""
    both = (module.convolution_projection_query, module.convolution_projection_key)
    return [getattr(getattr(one, "convolution_projection", None), "convolution", None) for one in both]


class SquareAttention(BiasedAttention):
    """levit: values wider than keys, a bias per distance on one square map."""

    gmm_parts = frozenset({"queries_keys_values", "activation", "projection"})

    @classmethod
    def gmm_window(cls, module: Any) -> Grid:
        side = math.isqrt(module.len_points)
        return side, side

    def gmm_sum(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """[B, T, H, D] each -> [B, Tq, C]."""
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        out = (self.gmm_weights(q, k, self.gmm_dense(self.gmm_window(self), q)) @ v).transpose(1, 2).flatten(2)
        return self.projection(self.activation(out))

    def forward(self, hidden_state: Tensor) -> Tensor:
        """[B, T, C] -> the same."""
        sizes = [self.key_dim, self.key_dim, self.attention_ratio * self.key_dim]
        qkv = self.queries_keys_values(hidden_state).unflatten(-1, (self.num_attention_heads, -1))
        return self.gmm_sum(*qkv.split(sizes, dim=3))


class StridedSquareAttention(SquareAttention):
    """levit between stages: only every second row and column queries."""

    gmm_parts = frozenset({"keys_values", "queries_subsample", "queries", "activation", "projection"})

    @classmethod
    def gmm_steps(cls, module: Any, ancestors: list[nn.Module]) -> Steps:
        return Steps(query=pair(module.queries_subsample.stride, "stride"))

    def forward(self, hidden_state: Tensor) -> Tensor:
        """[B, T, C] -> [B, Tq, C']."""
        heads = (self.num_attention_heads, -1)
        k, v = (
            self.keys_values(hidden_state)
            .unflatten(-1, heads)
            .split([self.key_dim, self.attention_ratio * self.key_dim], dim=3)
        )
        return self.gmm_sum(self.queries(self.queries_subsample(hidden_state)).unflatten(-1, heads), k, v)


class MultiScaleAttention(MaskedDonor):
    """sam2's Hiera: whole maps and windows, channels last; between stages queries are max-pooled 2 x 2."""

    gmm_parts = frozenset({"qkv", "proj"})
    gmm_rate = None

    @classmethod
    def gmm_window_at(cls, module: Any, ancestors: list[nn.Module]) -> Grid | None:
        block: Any = ancestors[-1] if ancestors else None
        if side := getattr(block, "window_size", 0):
            return side, side
        model: Any = next((a for a in ancestors if hasattr(a, "blocks") and hasattr(a, "patch_embed")), None)
        if model is None:
            return None
        rows, cols = _convolved(pair(module.config.image_size, "image_size"), [model.patch_embed.projection])
        for before in itertools.takewhile(lambda b: b is not block, model.blocks):
            rows, cols = (n // s for n, s in zip((rows, cols), before.query_stride or (1, 1), strict=True))
        return rows, cols

    @classmethod
    def gmm_steps(cls, module: Any, ancestors: list[nn.Module]) -> Steps:
        if not module.query_stride:
            return EVERY_PATCH
        rows, cols = pair(module.query_stride, "stride")
        return Steps(query=(rows, cols), shift=((rows - 1) / 2, (cols - 1) / 2))

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        """[B*G, rows, cols, C] -> [B*G, rows', cols', C']."""
        size = (hidden_states.shape[1], hidden_states.shape[2])
        qkv = self.qkv(hidden_states).flatten(1, 2).unflatten(-1, (3, self.num_attention_heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        if not self.query_stride:
            out = self.gmm_attend(q, k, v, scale=self.scale, grid=size)
        else:
            mask = self.gmm_dense(size, q)
            maps = q.transpose(2, 3).flatten(1, 2).unflatten(2, size)
            maps = nn.functional.max_pool2d(maps, kernel_size=self.query_stride, stride=self.query_stride)
            size = (maps.shape[2], maps.shape[3])
            q = maps.flatten(2).unflatten(1, (self.num_attention_heads, -1)).transpose(2, 3)
            out = self.gmm_attend_by(mask, q, k, v, scale=self.scale)
        return self.proj(out.transpose(1, 2).flatten(2).unflatten(1, size))


def _name(model: str, cls: str) -> str:
    return f"transformers.models.{model}.modeling_{model}.{cls}"


ATTENTIONS: dict[str, type[MaskedDonor]] = {
    _name("segformer", "SegformerAttention"): SegmentingAttention,
    _name("pvt", "PvtEfficientSelfAttention"): PyramidAttention,
    _name("pvt_v2", "PvtV2SelfAttention"): SecondPyramidAttention,
    _name("cvt", "CvtSelfAttention"): ConvolvedAttention,
    _name("levit", "LevitAttention"): SquareAttention,
    _name("levit", "LevitAttentionSubsample"): StridedSquareAttention,
    _name("sam2", "Sam2MultiScaleAttention"): MultiScaleAttention,
}
LEFT_ALONE: dict[str, str] = {}
# The convolution at the start of each stage.
_BEGINS: dict[str, Callable[[Any], nn.Conv2d]] = {
    "SegformerStage": lambda stage: stage.patch_embeddings.proj,
    "PvtV2EncoderLayer": lambda stage: stage.patch_embedding.proj,
    "CvtStage": lambda stage: stage.embedding.convolution_embeddings.projection,
}


def tower(ancestors: list[nn.Module]) -> Tower | None:
    """The stage's convolution; `ancestors` run from the whole model down to the attention's parent."""
    config: Any = next((a.config for a in ancestors if hasattr(a, "config")), None)
    size = pair(getattr(config, "image_size", _USUAL), "image_size")
    for i, module in enumerate(ancestors):
        kind, part = type(module).__name__, cast(Any, module)
        if kind == "PvtEncoder":
            last = next(n for n, blocks in enumerate(part.block) if any(blocks is a for a in ancestors))
            embeddings = list(part.patch_embeddings)[: last + 1]
            convolutions = [embedding.projection for embedding in embeddings]
            prefix = int(embeddings[-1].cls_token is not None)
            return Tower(convolutions[-1], _convolved(size, convolutions), prefix)
        if kind in _BEGINS:
            beside: Any = ancestors[i - 1] if i and isinstance(ancestors[i - 1], nn.ModuleList) else [module]
            stages = list(beside)[: next(n for n, stage in enumerate(beside) if stage is module) + 1]
            convolutions = [_BEGINS[kind](stage) for stage in stages]
            return Tower(convolutions[-1], _convolved(size, convolutions), 0)
    return None


def _convolved(size: Grid, convolutions: list[Any]) -> Grid:
    """The size of a map after these convolutions."""
    for conv in convolutions:
        sides = zip(size, conv.padding, conv.kernel_size, conv.stride, strict=True)
        rows, cols = ((side + 2 * padding - kernel) // stride + 1 for side, padding, kernel, stride in sides)
        size = (max(rows, 1), max(cols, 1))
    return size
