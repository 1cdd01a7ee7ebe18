"""Small models of other libraries with random weights for the tests of `attach`, by library and kind of attention."""

from .donor import Donor, logits, naflex_batch, small_vit, with_dropout
from .timm import TIMM
from .timm_maps import MAPS
from .torchvision import TORCHVISION
from .transformers import TRANSFORMERS
from .transformers_explicit import EXPLICIT
from .transformers_measured import MEASURED
from .transformers_stages import STAGES

__all__ = ["DONORS", "MEASURED", "Donor", "logits", "naflex_batch", "small_vit", "with_dropout"]

DONORS = [*TIMM, *TORCHVISION, *TRANSFORMERS, *MAPS, *EXPLICIT, *STAGES]
