"""Batched augmentation: per-sample random, on the device of the images, reproducible from a generator."""

from gmmvit.augment.device import to_device
from gmmvit.augment.normalize import normalize
from gmmvit.augment.pipeline import POLICIES, Augment

__all__ = ["POLICIES", "Augment", "normalize", "to_device"]
