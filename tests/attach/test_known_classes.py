"""If a library renames a class, a test fails instead of a user losing the mask."""

import importlib
import importlib.util

import pytest

from gmmvit.attach.survey import ATTENTIONS, LEFT_ALONE

_OF_EARLIER_RELEASES = {"timm.models.vision_transformer.Attention"} | {
    f"transformers.models.{model}.modeling_{model}.{cls}"
    for model, cls in (
        ("vit", "ViTSelfAttention"),
        ("deit", "DeiTSelfAttention"),
        ("dinov2", "Dinov2SelfAttention"),
        ("dinov2_with_registers", "Dinov2WithRegistersSelfAttention"),
        ("beit", "BeitSelfAttention"),
        ("beit", "BeitSdpaSelfAttention"),
        ("swin", "SwinSelfAttention"),
    )
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", sorted({*ATTENTIONS, *LEFT_ALONE} - _OF_EARLIER_RELEASES))
def test_every_class_that_attach_names_exists_in_its_library(kind):
    module, _, cls = kind.rpartition(".")
    if importlib.util.find_spec(module.split(".")[0]) is None:
        pytest.skip("not installed")
    found = getattr(importlib.import_module(module), cls, None)
    assert found is not None, f"{kind} is gone: see what the library calls it now"
    assert f"{found.__module__}.{found.__qualname__}" == kind  # the name that `survey` sees
