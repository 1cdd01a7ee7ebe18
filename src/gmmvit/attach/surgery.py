"""How a donor's module becomes a masked one and back: its class is exchanged on the instance, nothing else is touched.

Weights, hooks, children and their names stay where they are, so that state_dict, optimizers and checkpoints go on
working; `restore` puts the class back. Letters: B batch, T tokens (prefix first), H heads, D head width.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from gmmvit.attach import peft
from gmmvit.attach.place import Grid, GridBox, Record, Site
from gmmvit.attention import OffsetTable, gmm_attention, with_prefix
from gmmvit.attention.eager import eager_attention, eager_weights
from gmmvit.attention.reference import EVERY_PATCH, Steps, attention_weights, mask_at


class Swapped(nn.Module):
    """Base of the classes that `swap` puts before a donor's class; they pickle and copy by their two halves."""

    gmm_donor: ClassVar[type[nn.Module]]
    gmm_adapter: ClassVar[type["Swapped"]]

    if TYPE_CHECKING:  # what else there is comes from the donor

        def __getattr__(self, name: str) -> Any: ...

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _rebuild, (self.gmm_adapter, self.gmm_donor), self.__getstate__()

    @classmethod
    def gmm_ready(cls) -> None:
        """What has to be known to the donor's library before an instance runs, also in a process that unpickles it."""

    @classmethod
    def gmm_prepare(cls, module: nn.Module) -> None:
        """What has to be changed on the instance beside its class."""

    @classmethod
    def gmm_undo(cls, module: nn.Module) -> None:
        """The inverse of `gmm_prepare`."""


class GridRecorder(Swapped):
    """A patch embedding's convolution that notes the grid it makes, for each model that it is a part of."""

    gmm_boxes: tuple[GridBox, ...] = ()  # peft makes further convolutions of its class, which report to nobody

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        out = super().forward(*args, **kwargs)
        self.gmm_note(out, *args, **kwargs)
        return out

    def gmm_note(self, out: Any, *args: Any, **kwargs: Any) -> None:
        """Writes the grid of `out`, which the embedding made of its arguments, into the boxes."""
        self.gmm_write((out.shape[-2], out.shape[-1]), None, out)

    def gmm_write(self, grid: Grid, positions: Tensor | None, made: Tensor) -> None:
        for box in self.gmm_boxes:
            box.note(grid, positions, made)

    def gmm_serve(self, *boxes: GridBox) -> None:
        """From now on it writes into these boxes."""
        self.gmm_boxes = boxes
        for box in boxes:
            box.told_by(self)

    def __setstate__(self, state: Any) -> None:
        super().__setstate__(state)
        self.gmm_serve(*self.gmm_boxes)


@dataclass(frozen=True)
class Tower:
    """The part of a model that cuts images into patches: `source` is the module that does it, `recorder` knows its
    outputs, `grid` is what it makes of the model's own image size (None if it has none), `prefix_tokens` what is put
    before the patches (None if not known)."""

    source: nn.Module
    grid: Grid | None
    prefix_tokens: int | None
    recorder: type[GridRecorder] = GridRecorder


class MaskedDonor(Swapped):
    """Base of the attentions with a mask. A subclass repeats the donor's forward and calls `gmm_attend` in its middle.

    `gmm_parts` are the children that its forward knows: a donor with another one, from a newer version of its library,
    is refused instead of computed wrongly. None where the donor's own forward runs and was measured.
    """

    gmm_parts: ClassVar[frozenset[str] | None] = frozenset()
    gmm_mask: Any
    gmm_site: Site
    gmm_seen: list[Tensor] | None = None  # where its weights go while somebody asks for them

    @classmethod
    def gmm_heads(cls, module: Any) -> int:
        return module.num_heads

    @classmethod
    def gmm_window(cls, module: Any) -> Grid | None:
        """The window inside which this attention works, None if it sees the whole image."""
        return None

    @classmethod
    def gmm_window_at(cls, module: Any, ancestors: list[nn.Module]) -> Grid | None:
        """The same before the first image, from the module or those round it."""
        return cls.gmm_window(module)

    @classmethod
    def gmm_prefix(cls, module: Any) -> int | None:
        """The tokens before its patches; None for those of the model, or none inside a window."""
        return None

    @classmethod
    def gmm_steps(cls, module: Any, ancestors: list[nn.Module]) -> Steps:
        """Where its queries and keys stand on the grid."""
        return EVERY_PATCH

    @classmethod
    def gmm_state(cls, module: Any, ancestors: list[nn.Module]) -> dict[str, Any]:
        """What else its forward needs to know from the modules round it, as attributes that start with `gmm_`."""
        return {}

    @classmethod
    def gmm_refusal(cls, module: Any, ancestors: list[nn.Module]) -> str:
        """Why this one module cannot carry a mask though its class can; empty if it can."""
        return ""

    def _save_to_state_dict(self, *args: Any) -> None:
        self.gmm_refresh()
        super()._save_to_state_dict(*args)

    def _load_from_state_dict(self, *args: Any) -> None:
        self.gmm_refresh()
        super()._load_from_state_dict(*args)

    def train(self, mode: bool = True) -> Any:
        if mode:
            model = self.gmm_site.model
            peft.warn_if_left_out(self, self.gmm_mask, None if model is None else model())
        return super().train(mode)

    def gmm_refresh(self) -> None:
        """Brings the mask's record up to its grid, which `resample` may have changed."""
        record = getattr(self.gmm_mask, "site", None)
        if isinstance(record, Record):
            record.mark = record.mark._replace(rows=self.gmm_mask.grid[0], cols=self.gmm_mask.grid[1])

    def gmm_now(self, tokens: int) -> tuple[Grid, Tensor | None]:
        """The grid of the tokens that came in, the window if there is one, else that of the patch embedding; and the
        positions of the patches where each sample has its own."""
        window = self.gmm_window(self)
        return self.gmm_site.now(tokens) if window is None else (window, None)

    def gmm_grid(self, tokens: int) -> Grid:
        return self.gmm_now(tokens)[0]

    def gmm_dropout(self) -> float:
        return self.attn_drop.p if self.training else 0.0

    def gmm_attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        bias: Tensor | None = None,
        *,
        scale: float | None = None,
        dropout_p: float | None = None,
        grid: Grid | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Masked attention of q, k, v [B, H, T, D]; `bias` as in `gmm_attention`, or boolean (True takes part); `mask`
        where it is not that of the grid row by row."""
        site, dropout_p = self.gmm_site, self.gmm_dropout() if dropout_p is None else dropout_p
        positions = None
        if grid is None:
            grid, positions = self.gmm_now(q.shape[2])
        if positions is not None or self.gmm_unfused():
            each = self.gmm_full(grid, positions, mask)
            return self.gmm_attend_by(each, q, k, v, bias, scale=scale, dropout_p=dropout_p)
        return gmm_attention(
            q.to(v.dtype),
            k.to(v.dtype),
            v,
            self.gmm_mask(grid) if mask is None else mask,
            scale=scale,
            bias=additive(bias),
            prefix_tokens=site.prefix_tokens,
            mode=site.mode,
            dropout_p=dropout_p,
        )

    def gmm_attend_and_show(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        bias: Tensor | None = None,
        *,
        scale: float | None = None,
        grid: Grid | None = None,
    ) -> tuple[Tensor, Tensor]:
        """`gmm_attend`, and the weights [B, H, T, T] behind the dropout."""
        mask = self.gmm_full(*(self.gmm_now(q.shape[2]) if grid is None else (grid, None)))
        return self.gmm_weighed(mask, q, k, v, bias, scale=scale, dropout_p=self.gmm_dropout())

    def gmm_attend_by(
        self,
        mask: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        bias: Tensor | None = None,
        *,
        scale: float | None = None,
        dropout_p: float = 0.0,
    ) -> Tensor:
        """Masked attention of q [B, H, Tq, D] and k, v [B, H, Tk, D] by a mask [B or 1, H or 1, Tq, Tk] or less."""
        if self.gmm_unfused():
            return self.gmm_weighed(mask, q, k, v, bias, scale=scale, dropout_p=dropout_p)[0]
        scale = q.shape[-1] ** -0.5 if scale is None else scale
        options: Any = {"scale": scale, "bias": additive(bias), "mode": self.gmm_site.mode, "dropout_p": dropout_p}
        return eager_attention(q.to(v.dtype), k.to(v.dtype), v, mask, **options)

    def gmm_unfused(self) -> bool:
        """Whether the weights pass through the donor's own softmax and dropout: its unfused path, and wherever hooks
        look at them."""
        if self.gmm_seen is not None or not getattr(self, "fused_attn", True):
            return True
        return any(hooked(self._modules.get(name)) for name in ("softmax", *_DROPOUTS))

    def gmm_weighed(
        self,
        mask: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        bias: Tensor | None = None,
        *,
        scale: float | None = None,
        dropout_p: float = 0.0,
    ) -> tuple[Tensor, Tensor]:
        """`gmm_attend_by` on the unfused path, and the weights [B, H, Tq, Tk] behind the dropout."""
        scale = q.shape[-1] ** -0.5 if scale is None else scale
        options: Any = {"scale": scale, "bias": additive(bias), "mode": self.gmm_site.mode}
        if self._modules.get("softmax") is not None:
            options["softmax"] = self.softmax
        weights = eager_weights(q.to(v.dtype), k.to(v.dtype), mask, **options).to(v.dtype)
        weights = self.gmm_drop(weights, dropout_p)
        return weights @ v, weights

    def gmm_drop(self, weights: Tensor, dropout_p: float = 0.0) -> Tensor:
        """The weights behind the donor's dropout, with which the values are weighed."""
        drop = next((module for name in _DROPOUTS if (module := self._modules.get(name)) is not None), None)
        weights = nn.functional.dropout(weights, dropout_p) if drop is None else drop(weights)
        if self.gmm_seen is not None:
            self.gmm_seen.append(weights)
        return weights

    def gmm_full(self, grid: Grid, positions: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """The mask with its prefix: [H, T, T], or [B, H, T, T] of patches that each sample has elsewhere."""
        if positions is not None:
            return self.gmm_mask_at(positions, grid)
        return with_prefix(self.gmm_mask.dense(grid) if mask is None else mask, self.gmm_site.prefix_tokens)

    def gmm_mask_at(self, positions: Tensor, grid: Grid) -> Tensor:
        """The mask of patches that each sample has elsewhere, with its prefix: [B, H, T, T]."""
        own = self.gmm_mask.grid
        if self.gmm_mask.one_grid and grid[0] <= own[0] and grid[1] <= own[1]:
            grid = own  # the images that are smaller than its grid take a part of it
        mask = self.gmm_mask(grid)
        if isinstance(mask, OffsetTable):
            return with_prefix(mask_at(mask, positions), self.gmm_site.prefix_tokens)
        cells = positions[..., 0] * grid[1] + positions[..., 1]
        pairs = self.gmm_mask.dense(grid)[:, cells.unsqueeze(2), cells.unsqueeze(1)]  # [H, B, N, N]
        return with_prefix(pairs.transpose(0, 1), self.gmm_site.prefix_tokens)

    def gmm_dense(self, grid: Grid, like: Tensor) -> Tensor:
        """The mask as [H, Tq, Tk] in the dtype of `like`."""
        return with_prefix(self.gmm_mask.dense(grid), self.gmm_site.prefix_tokens).to(like.dtype)

    def gmm_softmax(self, scores: Tensor, mask: Tensor, bias: Tensor | None = None) -> Tensor:
        """Attention weights from scaled scores [B, H, Tq, Tk] and a mask of the same last sizes."""
        return attention_weights(scores, mask, bias, self.gmm_site.mode)


_DROPOUTS = ("attn_drop", "dropout")  # what donors call the dropout behind their softmax


def hooked(module: nn.Module | None) -> bool:
    """Whether somebody looks at what the module is given or gives."""
    if module is None:
        return False
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks)


def additive(bias: Tensor | None) -> Tensor | None:
    """A boolean mask as the bias that has the same effect."""
    if bias is None or bias.dtype != torch.bool:
        return bias
    return torch.zeros_like(bias, dtype=torch.float32).masked_fill(~bias, float("-inf"))


_COMPOSED: dict[tuple[type[Swapped], type[nn.Module]], type[Swapped]] = {}


def _composed(adapter: type[Swapped], donor: type[nn.Module]) -> type[Swapped]:
    """The class of a swapped module: one for each pair, so that copies are of the class of their original."""
    body = {"gmm_donor": donor, "gmm_adapter": adapter, "__module__": donor.__module__, "__doc__": donor.__doc__}
    if (adapter, donor) not in _COMPOSED:
        _COMPOSED[adapter, donor] = type(f"Masked{donor.__name__}", (adapter, donor), body)
    return _COMPOSED[adapter, donor]


def _rebuild(adapter: type[Swapped], donor: type[nn.Module]) -> nn.Module:
    """An empty instance for pickle and deepcopy to fill."""
    adapter.gmm_ready()
    cls = _composed(adapter, donor)
    return cls.__new__(cls)


def swap(module: nn.Module, adapter: type[Swapped], **state: Any) -> None:
    """Gives `module` the behaviour of `adapter`; `state` are attributes, which must start with `gmm_`."""
    adapter.gmm_ready()
    adapter.gmm_prepare(module)
    for name, value in state.items():
        setattr(module, name, value)
    module.__class__ = _composed(adapter, type(module))


def unrestorable(module: Swapped) -> str:
    """Why `restore` would destroy it; empty if it would not."""
    if type(module) is not _COMPOSED.get((module.gmm_adapter, module.gmm_donor)):  # parametrizations, for one
        return f"became a {type(module).__name__} after attach"
    return "had its forward replaced after attach" if "forward" in vars(module) else ""


def restore(module: Swapped) -> None:
    """The module as it was before `swap`."""
    adapter, donor = module.gmm_adapter, module.gmm_donor
    module.__class__ = donor  # type: ignore[assignment]
    adapter.gmm_undo(module)
    for name in [n for n in (*vars(module), *module._modules) if n.startswith("gmm_")]:
        delattr(module, name)
