"""The old name of `gmmvit.models.timm`, which registers gmmvit's families in timm."""

import warnings

from gmmvit.models.timm import *  # noqa: F403

warnings.warn("gmmvit.timm_models is now gmmvit.models.timm: import that", FutureWarning, stacklevel=2)
