"""Masks go through the files of each library and come back by one call."""

import pytest
import torch
from donor import logits, small_vit
from donors import DONORS
from torch import nn

from gmmvit.attach import attach, describe, load_masks, mask_parameters

timm = pytest.importorskip("timm")
TABLE = {(d.library, d.name): d for d in DONORS}


@pytest.mark.parametrize("options", [{"mask": "elm", "per_head": True}, {"covariance": "full", "learn_center": True}])
def test_masks_come_back_from_a_folder_of_transformers(tmp_path, options):
    donor = TABLE["transformers", "vit"]
    if donor.missing():
        pytest.skip(donor.missing())
    model = attach(donor.make(), mode="log", layers=[1], **options)
    for parameter in mask_parameters(model):
        nn.init.uniform_(parameter, 0.5, 1.5)
    expected = logits(model, donor.images())
    model.save_pretrained(tmp_path)
    again = load_masks(type(model).from_pretrained(tmp_path), tmp_path).eval()
    assert [item.action for item in describe(again)] == ["free", describe(model)[1].action]
    torch.testing.assert_close(logits(again, donor.images()), expected, atol=1e-6, rtol=1e-6)


def test_masks_come_back_from_a_folder_of_timm(tmp_path):
    from timm.models import save_for_hf

    model, images = attach(small_vit(), init="paper"), torch.randn(1, 3, 32, 32)
    model.pretrained_cfg = {**model.pretrained_cfg, "num_classes": 5, "input_size": (3, 32, 32)}
    args = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}
    save_for_hf(model, tmp_path, model_args=args, safe_serialization=True)
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, pretrained_strict=False).eval()
    assert torch.equal(load_masks(again, tmp_path)(images), model(images))


def test_a_file_without_masks_says_so(tmp_path):
    from safetensors.torch import save_file

    with pytest.raises(FileNotFoundError, match="no safetensors file"):
        load_masks(small_vit(), tmp_path)
    save_file({"weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="no masks in it"):
        load_masks(small_vit(), tmp_path)


def test_masks_come_back_from_a_state_dict_and_its_file(tmp_path):
    model, images = attach(small_vit(), init="paper", layers=[1]), torch.randn(1, 3, 32, 32)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    for source in (model.state_dict(), tmp_path / "weights.pt", str(tmp_path / "weights.pt")):
        again = load_masks(small_vit(), source)
        again.load_state_dict(torch.load(tmp_path / "weights.pt"))
        assert torch.equal(again(images), model(images))


def test_masks_of_another_model_are_refused_and_leave_it_as_it_was():
    model = small_vit()
    for options, message in (
        ({"num_heads": 6}, r"does not fit 'blocks\.0\.attn': sigma must be of \(3, 5\), is of \(6, 5\)"),
        ({"depth": 3}, "layers must name some of the 2 attentions"),
    ):
        with pytest.raises(ValueError, match=message):
            load_masks(model, attach(small_vit(**options)).state_dict())
        assert not mask_parameters(model)
    with pytest.raises(ValueError, match="has no 'site'"):
        load_masks(model, {"blocks.0.attn.gmm_mask.sigma": torch.ones(3, 5)})
