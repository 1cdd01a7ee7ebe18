"""AutoAugment, RandAugment and TrivialAugment: draw each sample's operations and magnitudes as torchvision does.

A policy turns uniform numbers, one row per sample, into stages for `apply_stages`. The tables of sub-policies and
magnitudes are torchvision's. B samples.
"""

from collections.abc import Callable, Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from gmmvit.augment.ops import OP_INDEX, Stage

Uniform = NDArray[np.float64]
AUTO_POLICIES = ("cifar10", "svhn", "imagenet")
POLICIES = ("none", *AUTO_POLICIES, "rand", "trivial")
MAGNITUDE_BINS = 31  # torchvision's default for RandAugment and TrivialAugmentWide
_AUTO_BINS = 10  # the AutoAugment tables count magnitudes 0..9


class Policy(Protocol):
    """`plan` reads `num_draws` uniform numbers per sample."""

    num_draws: int

    def plan(self, uniform: Uniform, height: int, width: int) -> list[Stage]:
        """[B, num_draws] in [0, 1) to the stages, in order; magnitudes may depend on the image size."""


class _Space:
    """The operations of a policy and their magnitudes, as arrays."""

    def __init__(self, space: Mapping[str, tuple[Tensor, bool]], bins: int) -> None:
        self.op = np.array([OP_INDEX[name] for name in space])
        self.magnitude = np.stack([values.double().expand(bins).numpy() for values, _ in space.values()])
        self.signed = np.array([signed for _, signed in space.values()])

    def choose(self, uniform: Uniform) -> NDArray[np.int64]:
        """Indices of operations in the space, all equally likely."""
        return (uniform * len(self.op)).astype(np.int64)

    def stage(self, choice: NDArray[np.int64], bin_index: NDArray[np.int64] | int, sign: Uniform) -> Stage:
        """The chosen operations with magnitudes; a signed operation is negative if `sign` is below one half."""
        magnitude = self.magnitude[choice, bin_index]
        return self.op[choice], np.where(self.signed[choice] & (sign < 0.5), -magnitude, magnitude)


class _Spaces:
    """The space of each image size, built once."""

    def __init__(self, tables: Callable[[int, tuple[int, int]], Mapping[str, tuple[Tensor, bool]]], bins: int) -> None:
        self._tables, self._bins = tables, bins
        self._known: dict[tuple[int, int], _Space] = {}

    def __call__(self, height: int, width: int) -> _Space:
        if (height, width) not in self._known:
            self._known[height, width] = _Space(self._tables(self._bins, (height, width)), self._bins)
        return self._known[height, width]


class AutoAugmentPolicy:
    """AutoAugment (Cubuk et al., arXiv 1805.09501): the two operations of one of 25 sub-policies."""

    num_draws = 5  # sub-policy, two probabilities, two signs

    def __init__(self, name: str) -> None:
        from torchvision.transforms import AutoAugment, AutoAugmentPolicy

        source = AutoAugment(AutoAugmentPolicy(name))
        self._spaces = _Spaces(source._augmentation_space, _AUTO_BINS)
        names = list(source._augmentation_space(_AUTO_BINS, (1, 1)))
        self._choice = np.array([[names.index(op) for op, _, _ in pair] for pair in source.policies])
        self._probability = np.array([[probability for _, probability, _ in pair] for pair in source.policies])
        self._bin = np.array([[index or 0 for _, _, index in pair] for pair in source.policies])

    def plan(self, uniform: Uniform, height: int, width: int) -> list[Stage]:
        space = self._spaces(height, width)
        row = (uniform[:, 0] * len(self._choice)).astype(np.int64)
        stages = []
        for slot in range(2):
            op, magnitude = space.stage(self._choice[row, slot], self._bin[row, slot], uniform[:, 3 + slot])
            applied = uniform[:, 1 + slot] < self._probability[row, slot]
            stages.append((np.where(applied, op, OP_INDEX["Identity"]), magnitude))
        return stages


class RandAugmentPolicy:
    """RandAugment (Cubuk et al., arXiv 1909.13719): `num_ops` operations of one magnitude."""

    def __init__(self, num_ops: int, magnitude: int) -> None:
        from torchvision.transforms import RandAugment

        source = RandAugment(num_ops, magnitude, MAGNITUDE_BINS)
        self._spaces = _Spaces(source._augmentation_space, MAGNITUDE_BINS)
        self._num_ops, self._magnitude = num_ops, magnitude
        self.num_draws = 2 * num_ops  # an operation and a sign each

    def plan(self, uniform: Uniform, height: int, width: int) -> list[Stage]:
        space = self._spaces(height, width)
        choice, sign = space.choose(uniform[:, : self._num_ops]), uniform[:, self._num_ops :]
        return [space.stage(choice[:, slot], self._magnitude, sign[:, slot]) for slot in range(self._num_ops)]


class TrivialAugmentPolicy:
    """TrivialAugment, wide (Müller and Hutter, arXiv 2103.10158): one operation of any magnitude."""

    num_draws = 3  # operation, magnitude, sign

    def __init__(self) -> None:
        from torchvision.transforms import TrivialAugmentWide

        self._space = _Space(TrivialAugmentWide(MAGNITUDE_BINS)._augmentation_space(MAGNITUDE_BINS), MAGNITUDE_BINS)

    def plan(self, uniform: Uniform, height: int, width: int) -> list[Stage]:
        bin_index = (uniform[:, 1] * MAGNITUDE_BINS).astype(np.int64)
        return [self._space.stage(self._space.choose(uniform[:, 0]), bin_index, uniform[:, 2])]


def make_policy(name: str, *, rand_ops: int = 2, rand_magnitude: int = 9) -> Policy | None:
    """The policy by name, None for "none"; `rand_ops` and `rand_magnitude` (0..30) are for "rand"."""
    if name not in POLICIES:
        raise ValueError(f"policy {name!r} is unknown; choose one of {', '.join(POLICIES)}")
    if name == "none":
        return None
    if name == "rand":
        return RandAugmentPolicy(rand_ops, rand_magnitude)
    return TrivialAugmentPolicy() if name == "trivial" else AutoAugmentPolicy(name)
