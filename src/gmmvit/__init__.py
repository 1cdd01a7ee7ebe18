"""gmmvit: vision transformers that learn from small datasets, with Gaussian mixture mask attention.

Names are loaded on first use, so that `gmmvit --help` need not wait for torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

from gmmvit.version import __version__

_HOME = {
    "gmm_attention": "gmmvit.attention",
    "OffsetTable": "gmmvit.attention",
    "GaussianMixtureMask": "gmmvit.masks",
    "ElementwiseMask": "gmmvit.masks",
    "MaskedAttention": "gmmvit.models.layers",
    "create_model": "gmmvit.models",
    "attach": "gmmvit.attach",
    "attention_maps": "gmmvit.attach",
    "detach": "gmmvit.attach",
    "describe": "gmmvit.attach",
    "load_masks": "gmmvit.attach",
    "mask_parameters": "gmmvit.attach",
    "load_reference": "gmmvit.original.weights",
    "load_dataset": "gmmvit.data",
    "load_recipe": "gmmvit.config",
    "load_run": "gmmvit.runs.checkpoint",
    "Predictions": "gmmvit.runs.predictions",
    "cross_validate": "gmmvit.training.folds",
    "resume_folds": "gmmvit.training.folds",
    "resume": "gmmvit.training.run",
    "train": "gmmvit.training.run",
    "train_several": "gmmvit.training.run",
    "unknown_threshold": "gmmvit.runs.evaluate",
}
__all__ = ["__version__", *_HOME]

if TYPE_CHECKING:
    from gmmvit.attach import attach, attention_maps, describe, detach, load_masks, mask_parameters
    from gmmvit.attention import OffsetTable, gmm_attention
    from gmmvit.config import load_recipe
    from gmmvit.data import load_dataset
    from gmmvit.masks import ElementwiseMask, GaussianMixtureMask
    from gmmvit.models import create_model
    from gmmvit.models.layers import MaskedAttention
    from gmmvit.original.weights import load_reference
    from gmmvit.runs.checkpoint import load_run
    from gmmvit.runs.evaluate import unknown_threshold
    from gmmvit.runs.predictions import Predictions
    from gmmvit.training.folds import cross_validate, resume_folds
    from gmmvit.training.run import resume, train, train_several


def __getattr__(name: str) -> Any:
    if name in ("attention", "masks", "models"):  # submodules loaded on first use
        return importlib.import_module(f"gmmvit.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'gmmvit' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
