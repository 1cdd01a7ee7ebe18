"""Turns a donor's module into a masked one and back by exchanging the instance's class and nothing else.

Weights, hooks, children and names stay in place, so state_dict, optimizers and checkpoints keep working.
Letters: B batch, T tokens (prefix first), H heads, D head width.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from gmmvit.attach import peft
from gmmvit.attach.place import Grid, GridBox, Record, Site
from gmmvit.attention import OffsetTable, gmm_attention, with_prefix
from gmmvit.attention.eager import eager_attention, eager_weights
from gmmvit.attention.reference import EVERY_PATCH, SOFTMAX, Steps, attention_weights, mask_at


class Swapped(nn.Module):
    """Base of the adapters that `swap` combines with a donor's class. Pickling and copying store the two classes."""

    gmm_donor: ClassVar[type[nn.Module]]
    gmm_adapter: ClassVar[type["Swapped"]]

    if TYPE_CHECKING:  # all other attributes are the donor's

        def __getattr__(self, name: str) -> Any: ...

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _rebuild, (self.gmm_adapter, self.gmm_donor), self.__getstate__()

    @classmethod
    def gmm_ready(cls) -> None:
        """Registers what the donor's library must know before an instance runs, also after unpickling."""

    @classmethod
    def gmm_prepare(cls, module: nn.Module) -> None:
        """Changes what must change on the instance besides its class."""

    @classmethod
    def gmm_undo(cls, module: nn.Module) -> None:
        """The inverse of `gmm_prepare`."""


class GridRecorder(Swapped):
    """A patch embedding's convolution that records the grid it makes, for each model it belongs to."""

    gmm_boxes: tuple[GridBox, ...] = ()  # empty in copies of the class that peft makes

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        out = super().forward(*args, **kwargs)
        self.gmm_note(out, *args, **kwargs)
        return out

    def gmm_note(self, out: Any, *args: Any, **kwargs: Any) -> None:
        """Writes the grid of `out`, the embedding's output for these arguments, into the boxes."""
        self.gmm_write((out.shape[-2], out.shape[-1]), None, out)

    def gmm_write(self, grid: Grid, positions: Tensor | None, made: Tensor) -> None:
        for box in self.gmm_boxes:
            box.note(grid, positions, made)

    def gmm_serve(self, *boxes: GridBox) -> None:
        """Makes it write into these boxes from now on."""
        self.gmm_boxes = boxes
        for box in boxes:
            box.written_by(self)

    def __setstate__(self, state: Any) -> None:
        super().__setstate__(state)
        self.gmm_serve(*self.gmm_boxes)


@dataclass(frozen=True)
class Tower:
    """The part of a model that cuts images into patches: the module `source`, the `recorder` that reads its outputs,
    the `grid` it makes of the model's own image size (None if the model has none), and the number of `prefix_tokens`
    before the patches (None if unknown)."""

    source: nn.Module
    grid: Grid | None
    prefix_tokens: int | None
    recorder: type[GridRecorder] = GridRecorder


class MaskedDonor(Swapped):
    """Base of the attentions with a mask. A subclass repeats the donor's forward with `gmm_attend` in the middle.

    `gmm_parts` names the children that its forward handles. A donor with any other child, from a newer version of its
    library, is refused rather than computed wrongly. None if the donor's own forward runs and was measured.
    """

    gmm_parts: ClassVar[frozenset[str] | None] = frozenset()
    gmm_rate: ClassVar[str | None] = "attn_drop"  # the donor's dropout of the weights, module or number; None without
    gmm_mask: Any
    gmm_site: Site
    gmm_seen: list[Tensor] | None = None  # collects the weights for `attention_maps`

    @classmethod
    def gmm_heads(cls, module: Any) -> int:
        heads = getattr(module, "num_attention_heads", None)
        return module.num_heads if heads is None else heads

    @classmethod
    def gmm_window(cls, module: Any) -> Grid | None:
        """The (rows, cols) of the window it attends in, None if it sees the whole image."""
        return None

    @classmethod
    def gmm_window_at(cls, module: Any, ancestors: list[nn.Module]) -> Grid | None:
        """`gmm_window` before the first image, from the module or the modules around it."""
        return cls.gmm_window(module)

    @classmethod
    def gmm_prefix(cls, module: Any) -> int | None:
        """The number of tokens before its patches; None for the model's number, or 0 inside a window."""
        return None

    @classmethod
    def gmm_steps(cls, module: Any, ancestors: list[nn.Module]) -> Steps:
        """Where its queries and keys lie on the grid."""
        return EVERY_PATCH

    @classmethod
    def gmm_state(cls, module: Any, ancestors: list[nn.Module]) -> dict[str, Any]:
        """What its forward needs from the modules around it, as attributes whose names start with `gmm_`."""
        return {}

    @classmethod
    def gmm_refusal(cls, module: Any, ancestors: list[nn.Module]) -> str:
        """Why this module cannot carry a mask although its class can; empty if it can."""
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
        """Updates the mask's record to its grid, which `resample` may have changed."""
        record = getattr(self.gmm_mask, "site", None)
        if isinstance(record, Record):
            record.mark = record.mark._replace(rows=self.gmm_mask.grid[0], cols=self.gmm_mask.grid[1])

    def gmm_now(self, tokens: int) -> tuple[Grid, Tensor | None]:
        """The grid of the incoming tokens (the window's, else the patch embedding's), and the patch positions if grids
        differ within the batch."""
        window = self.gmm_window(self)
        return self.gmm_site.now(tokens) if window is None else (window, None)

    def gmm_grid(self, tokens: int) -> Grid:
        return self.gmm_now(tokens)[0]

    def gmm_dropout(self) -> float:
        if not self.training or self.gmm_rate is None:
            return 0.0
        rate = getattr(self, self.gmm_rate)
        return getattr(rate, "p", rate)

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
        """Masked attention of q, k, v [B, H, T, D]. `bias` is as in `gmm_attention`, or boolean (True takes part);
        `mask` replaces that of the grid in row order."""
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
        """`gmm_attend`, and the weights [B, H, T, T] after dropout."""
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
        """Masked attention of q [B, H, Tq, D] and k, v [B, H, Tk, D]; the mask broadcasts to [B, H, Tq, Tk]."""
        if self.gmm_unfused():
            return self.gmm_weighed(mask, q, k, v, bias, scale=scale, dropout_p=dropout_p)[0]
        scale = q.shape[-1] ** -0.5 if scale is None else scale
        options: Any = {"scale": scale, "bias": additive(bias), "mode": self.gmm_site.mode, "dropout_p": dropout_p}
        return eager_attention(q.to(v.dtype), k.to(v.dtype), v, mask, **options)

    def gmm_unfused(self) -> bool:
        """Whether the weights must pass through the donor's softmax and dropout modules: on its unfused path, and when
        hooks or `attention_maps` watch them."""
        if self.gmm_seen is not None or not getattr(self, "fused_attn", True):
            return True
        return any(hooked(self._modules.get(name)) for name in ("softmax", "rel_pos", *_DROPOUTS))

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
        """`gmm_attend_by` on the unfused path, and the weights [B, H, Tq, Tk] after dropout."""
        scale = q.shape[-1] ** -0.5 if scale is None else scale
        options: Any = {"scale": scale, "bias": additive(bias), "mode": self.gmm_site.mode}
        softmax = self._modules.get("softmax") or SOFTMAX
        rel_pos = self._modules.get("rel_pos")
        if rel_pos is not None and hooked(rel_pos):  # the donor's module that adds the bias to the logits
            options["bias"], options["softmax"] = None, lambda logits: softmax(rel_pos(logits))
        else:
            options["softmax"] = softmax
        weights = eager_weights(q.to(v.dtype), k.to(v.dtype), mask, **options).to(v.dtype)
        weights = self.gmm_drop(weights, dropout_p)
        return weights @ v, weights

    def gmm_drop(self, weights: Tensor, dropout_p: float = 0.0) -> Tensor:
        """The weights after the donor's dropout."""
        drop = next((module for name in _DROPOUTS if (module := self._modules.get(name)) is not None), None)
        weights = nn.functional.dropout(weights, dropout_p) if drop is None else drop(weights)
        if self.gmm_seen is not None:
            self.gmm_seen.append(weights)
        return weights

    def gmm_full(self, grid: Grid, positions: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """The mask with its prefix: [H, T, T], or [B, H, T, T] for patch positions that differ per sample."""
        if positions is not None:
            return self.gmm_mask_at(positions, grid)
        return with_prefix(self.gmm_mask.dense(grid) if mask is None else mask, self.gmm_site.prefix_tokens)

    def gmm_mask_at(self, positions: Tensor, grid: Grid) -> Tensor:
        """The mask at each sample's own patch positions, with its prefix: [B, H, T, T]."""
        own = self.gmm_mask.grid
        if self.gmm_mask.one_grid and grid[0] <= own[0] and grid[1] <= own[1]:
            grid = own  # smaller images use a part of it
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
        """Attention weights from scaled scores [B, H, Tq, Tk] and a mask [..., Tq, Tk]."""
        return attention_weights(scores, mask, bias, self.gmm_site.mode)


_DROPOUTS = ("attn_drop", "dropout")  # donors' names for the dropout after softmax


def hooked(module: nn.Module | None) -> bool:
    """Whether the module has forward or backward hooks."""
    if module is None:
        return False
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks)


def additive(bias: Tensor | None) -> Tensor | None:
    """Turns a boolean mask into the bias of the same effect."""
    if bias is None or bias.dtype != torch.bool:
        return bias
    return torch.zeros_like(bias, dtype=torch.float32).masked_fill(~bias, float("-inf"))


_COMPOSED: dict[tuple[type[Swapped], type[nn.Module]], type[Swapped]] = {}


def _composed(adapter: type[Swapped], donor: type[nn.Module]) -> type[Swapped]:
    """The class of a swapped module; one per pair, so that a copy has its original's class."""
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
    """Gives `module` the behaviour of `adapter`; sets `state` as attributes, whose names must start with `gmm_`."""
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
    """Undoes `swap`."""
    adapter, donor = module.gmm_adapter, module.gmm_donor
    module.__class__ = donor  # type: ignore[assignment]
    adapter.gmm_undo(module)
    for name in [n for n in (*vars(module), *module._modules) if n.startswith("gmm_")]:
        delattr(module, name)
