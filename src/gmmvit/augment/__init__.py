"""Batched augmentation: random per sample, on the images' device, reproducible from a generator."""

from gmmvit.augment.device import take_rows, to_device
from gmmvit.augment.normalize import from_0_to_1, normalize
from gmmvit.augment.pipeline import Augment, steps_at_once
from gmmvit.augment.policies import POLICIES

__all__ = ["POLICIES", "Augment", "from_0_to_1", "normalize", "steps_at_once", "take_rows", "to_device"]
