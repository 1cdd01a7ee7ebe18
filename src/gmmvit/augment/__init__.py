"""Batched augmentation: per-sample random, on the device of the images, reproducible from a generator."""

from gmmvit.augment.device import take_rows, to_device
from gmmvit.augment.normalize import from_0_to_1, normalize
from gmmvit.augment.pipeline import POLICIES, Augment, steps_at_once

__all__ = ["POLICIES", "Augment", "from_0_to_1", "normalize", "steps_at_once", "take_rows", "to_device"]
