"""Batched augmentation: per-sample random, on the device of the images, reproducible from a generator."""

from gmmvit.augment.device import to_device
from gmmvit.augment.normalize import normalize
from gmmvit.augment.pipeline import POLICIES, Augment, steps_at_once

__all__ = ["POLICIES", "Augment", "normalize", "steps_at_once", "to_device"]
