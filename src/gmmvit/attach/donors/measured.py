"""Attentions of transformers that no table lists: a rule finds them, and a measurement confirms each.

The rule: the class calls transformers' attention interface, in a model that cuts images with one convolution. The
measurement: the model runs on noise with some patches changed, and the queries and keys that reach the attentions show
where each patch went.
Letters: B batch, T tokens, H heads, D head width, N patches.
"""

import copy
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from gmmvit.attach.donors.transformers import InterfaceAttention, bias_of, refuse_unmaskable
from gmmvit.attach.place import Grid
from gmmvit.attach.surgery import MaskedDonor, Swapped, Tower
from gmmvit.checks import pair

PROBE = "gmmvit_probe"
_PACKED = {"cu_seqlens", "grid_thw"}
_ASKS = "ALL_ATTENTION_FUNCTIONS"


class MeasuredAttention(InterfaceAttention):
    """Any attention of transformers that calls the interface; `Measures` decides whether it may carry a mask."""

    gmm_parts: ClassVar[frozenset[str] | None] = None  # the donor's own forward runs

    @classmethod
    def gmm_heads(cls, module: Any) -> int:
        names = ("num_attention_heads", "num_heads", "n_heads")
        owners = (module, module.config)
        return next(n for owner in owners for name in names if (n := getattr(owner, name, None)) is not None)

    @classmethod
    def gmm_refusal(cls, module: Any, ancestors: list[nn.Module]) -> str:
        donor = module.gmm_donor if isinstance(module, Swapped) else type(module)
        if _PACKED & set(inspect.signature(donor.forward).parameters):
            return "takes the patches of several images as one sequence, so their grids are unknown"
        if not hasattr(module.config, "patch_size"):
            return "its configuration has no patch_size: words, detector queries or patches of varying size"
        return ""


def by_rule(module: nn.Module) -> type[MaskedDonor] | None:
    """The adapter of an attention that no table lists, None if the rule does not hold for its class."""
    cls = type(module)
    if not cls.__module__.startswith("transformers.models."):
        return None
    config, forward = getattr(module, "config", None), inspect.unwrap(cls.forward)
    names = getattr(getattr(forward, "__code__", None), "co_names", ())
    return MeasuredAttention if _ASKS in names and hasattr(config, "_attn_implementation") else None


@dataclass
class Measure:
    """What was measured behind one patch embedding: its `grid`, the number of tokens before the patches, and the `id`s
    of the attentions that get the patches in row order; or the `reason` why no mask fits."""

    grid: Grid = (0, 0)
    prefix_tokens: int = 0
    reason: str = ""
    fit: dict[int, bool] = field(default_factory=dict)


class Measures:
    """The measures of one model, each taken once."""

    def __init__(self) -> None:
        self._taken: dict[int, Measure] = {}

    def tower(self, module: Any, tower: Tower | None, ancestors: list[nn.Module]) -> tuple[Tower | None, str]:
        """An attention's tower, completed by the measurement, or why it cannot carry a mask."""
        if tower is None:
            if any(isinstance(m, nn.Conv3d) for m in ancestors[0].modules()):
                return None, "its patches have time as a third axis, the mask has two"
            return None, "its images are not cut by one convolution, so the order of its patches cannot be checked"
        model = next(a for a in reversed(ancestors) if any(m is tower.source for m in a.modules()))
        key = id(tower.source)
        if key not in self._taken:
            self._taken[key] = measure(model, tower)
        taken = self._taken[key]
        if taken.reason:
            return tower, taken.reason
        if not taken.fit.get(id(module), False):
            how = "its tokens are not those of the patch embedding" if id(module) in taken.fit else "is not reached"
            return tower, f"{how} in a pass with images only"
        return replace(tower, grid=taken.grid, prefix_tokens=taken.prefix_tokens), ""


def measure(model: Any, tower: Tower) -> Measure:
    """Runs `model` on noise; its weights and settings stay unchanged."""
    source: Any = tower.source
    size = getattr(model.config, "image_size", None)
    probe = _Probe(model, source, (4 * source.stride[0], 5 * source.stride[1]) if size is None else pair(size, "size"))
    try:
        with probe.ready(), torch.no_grad():
            return probe.measure()
    except Exception as error:  # an unknown model may raise anything
        what = str(error).strip().split("\n")[0][:100]
        return Measure(reason=f"its model needs more than images, so its tokens cannot be checked ({what})")


class _Given(NamedTuple):
    """The queries, keys and values [2, H, T, D] that an attention passed to the interface."""

    module: Any
    query: Tensor
    key: Tensor
    value: Tensor
    attention_mask: Any = None
    options: Any = None


class _Reached(Exception):
    """Ends a pass at an attention."""

    def __init__(self, given: _Given) -> None:
        super().__init__("a pass that measures the order of the tokens")
        self.given = given


class _Probe:
    """Runs a model on two images that differ, after the patch embedding, only in some patches."""

    def __init__(self, model: Any, source: Any, size: Grid) -> None:
        self.model, self.source = model, source
        noise = torch.Generator().manual_seed(0)
        self.images = torch.randn(1, source.in_channels, *size, generator=noise).to(source.weight).expand(2, -1, -1, -1)
        self.step = torch.randn(source.out_channels, 1, 1, generator=noise).to(source.weight)
        self.bit, self.batch, self.grid = 0, 0, (0, 0)
        self.look: Callable[..., Any] = self.stop

    @contextmanager
    def ready(self) -> Iterator[None]:
        """Within this context the model is in evaluation mode and its attentions call `look`."""
        from transformers import AttentionInterface

        AttentionInterface.register(PROBE, _look)
        training = [module for module in self.model.modules() if module.training]
        asking = [m for m in self.model.modules() if by_rule(m) or isinstance(m, InterfaceAttention)]
        configs, boxes = [module.config for module in asking], getattr(self.source, "gmm_boxes", None)
        handle = self.source.register_forward_hook(self.change)
        try:
            with torch.random.fork_rng([p.device for p in self.model.parameters() if p.is_cuda][:1]):
                self.model.eval()
                if boxes is not None:  # hide these images from masks already attached
                    self.source.gmm_boxes = ()
                for module in asking:
                    module.config = copy.copy(module.config)
                    module.config._attn_implementation, module.config.gmm_probe = PROBE, self
                yield
        finally:
            handle.remove()
            if boxes is not None:
                self.source.gmm_boxes = boxes
            for module, config in zip(asking, configs, strict=True):
                module.config = config
            for module in training:
                module.training = True

    def change(self, _: Any, __: Any, out: Tensor) -> Tensor:
        """Changes the patches of the second image whose number, counted from 1, has the bit set."""
        self.batch, self.grid = out.shape[0], (out.shape[2], out.shape[3])
        if self.batch != 2:
            return out
        which = self.expected(0).to(out.dtype).unflatten(0, self.grid)
        return out + torch.stack((torch.zeros_like(which), which)).unsqueeze(1) * self.step * 3 * out.abs().mean()

    def expected(self, prefix: int) -> Tensor:
        """Which tokens differ if the patches are in row order: [prefix + N] of 0 and 1."""
        numbers = torch.arange(1 - prefix, self.grid[0] * self.grid[1] + 1, device=self.source.weight.device)
        return (numbers.clamp(min=0) >> self.bit) & 1

    def stop(
        self, module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any = None, **options: Any
    ) -> None:
        raise _Reached(_Given(module, query, key, value, attention_mask, options))

    def measure(self) -> Measure:
        codes: list[Tensor] = []
        while self.bit == 0 or self.grid[0] * self.grid[1] >> self.bit:
            try:
                self.model(pixel_values=self.images)
            except _Reached as reached:
                given = reached.given
            else:
                return Measure(reason="its model runs without the attention interface of transformers")
            if given.query.shape[0] != 2 or self.batch != 2:
                return Measure(reason="does not keep one sequence of patches an image")
            codes.append(_differ(given.query) << self.bit)
            if not torch.equal(codes[-1], _differ(given.key) << self.bit):
                return Measure(reason="its keys are not its patches one by one")
            self.bit += 1
        numbers = torch.stack(codes).sum(0)
        reason = _disorder(numbers, self.grid) or _other_sum(given)
        if reason:
            return Measure(reason=reason)
        measure = Measure(self.grid, int((numbers != 0).long().argmax()))
        self.check_each(measure)
        return measure

    def check_each(self, measure: Measure) -> None:
        """Runs all layers with attention outputs of zero, so that no token sees another."""
        self.bit = 0
        expected = self.expected(measure.prefix_tokens)

        def look(module: Any, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> tuple[Tensor, None]:
            same = query.shape[:2] == key.shape[:2] == (2, MeasuredAttention.gmm_heads(module))
            fits = same and all(torch.equal(_differ(x), expected) for x in (query, key))
            measure.fit[id(module)] = fits and measure.fit.get(id(module), True)
            if isinstance(module, InterfaceAttention):
                module.gmm_site.ran.set(True)
            return torch.zeros_like(value).transpose(1, 2), None

        self.look = look
        with suppress(Exception):  # a head after the last attention may need more than images
            self.model(pixel_values=self.images)


def _look(module: Any, *given: Any, **options: Any) -> Any:
    return module.config.gmm_probe.look(module, *given, **options)


def _differ(x: Tensor) -> Tensor:
    """Which tokens of [2, H, T, D] differ between the two images: [T] of 0 and 1."""
    far = (x[1] - x[0]).float().abs().amax((0, 2))
    return (far > 1e-2 * far.max()).long()


def _disorder(numbers: Tensor, grid: Grid) -> str:
    """Why a mask over the grid would be wrong for tokens that depend on these patch numbers (0: on no patch)."""
    patches = grid[0] * grid[1]
    first = int((numbers != 0).long().argmax())
    there, expected = numbers[numbers != 0], torch.arange(1, patches + 1, device=numbers.device)
    if len(there) < patches:
        return "keeps only some of the patches"
    if not torch.equal(there, expected) or not torch.equal(numbers[first : first + patches], expected):
        return "its tokens are not the patches row by row"
    behind = len(numbers) - first - patches
    return f"has {behind} tokens after the patches" if behind else ""


def _other_sum(given: _Given) -> str:
    """Why an attached attention would differ from the donor; empty if it would not."""
    module, query, key, value, attention_mask, options = given
    if query.shape != key.shape or query.shape[1] != MeasuredAttention.gmm_heads(module):
        return "shares its keys among several heads"
    try:
        refuse_unmaskable(module, attention_mask, options)
    except ValueError as error:
        return str(error)
    scores = query @ key.mT * (options.get("scaling") or query.shape[-1] ** -0.5)
    bias = bias_of(attention_mask, options.get("position_bias"))
    ours = ((scores if bias is None else scores + bias).softmax(-1) @ value).transpose(1, 2)
    donor = module.gmm_donor if isinstance(module, Swapped) else type(module)
    eager = inspect.unwrap(donor.forward).__globals__["eager_attention_forward"]
    theirs = eager(module, query, key, value, attention_mask, **{**options, "dropout": 0.0})[0]
    same = torch.allclose(ours.float(), theirs.float(), atol=1e-2 * float(theirs.abs().max()))
    return "" if same else "computes something other than the softmax of queries times keys"
