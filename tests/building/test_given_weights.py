"""Given weights arrive unchanged; necessary differences are reported, and what does not fit is an error."""

from argparse import Namespace

import pytest
import torch
from safetensors.torch import save_file

import gmmvit
from gmmvit.building import start_model
from gmmvit.config import RecipeError, load_recipe

timm = pytest.importorskip("timm")
transformers = pytest.importorskip("transformers")

VIT = {"depth": 2, "embed_dim": 48, "num_heads": 3, "patch_size": 2}
HF = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 64, "patch_size": 2}
OURS = {"dim": 24, "depth": 2, "num_heads": 2, "patch_size": 2}


UNNAMED = "the given weights do not name their classes: their classifier is kept, in the order of its rows"


def digits(size=(8, 8), classes=10, channels=1):
    return {"image_size": list(size), "channels": channels, "classes": [str(i) for i in range(classes)]}


def start(data=None, **fields):
    told = []
    _, model = start_model(load_recipe("digits", **fields), data or digits(), told.append)
    return model.eval(), told


@pytest.fixture
def timm_file(tmp_path):
    torch.manual_seed(1)
    model = timm.create_model("deit_tiny_patch16_224", img_size=8, in_chans=1, num_classes=10, **VIT).eval()
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    return model, tmp_path / "weights.safetensors"


@pytest.mark.parametrize("mask", ["none", "elm", "gmm"])
def test_a_model_with_given_weights_starts_as_its_donor(timm_file, mask):
    """Masks then start as the identity."""
    donor, path = timm_file
    model, told = start(model="timm:deit_tiny_patch16_224", model_args=VIT, mask=mask, pretrained=str(path))
    images = torch.randn(3, 1, 8, 8)
    torch.testing.assert_close(model(images), donor(images), atol=1e-5, rtol=1e-4)
    assert told == [UNNAMED]


def test_a_pth_file_of_a_training_script_is_read(timm_file, tmp_path):
    donor, _ = timm_file
    state = {f"module.{name}": tensor for name, tensor in donor.state_dict().items()}
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "last.pth")
    fields = {"model": "timm:deit_tiny_patch16_224", "model_args": VIT, "mask": "none"}
    model, _ = start(**fields, pretrained=str(tmp_path / "last.pth"))
    torch.testing.assert_close(model(torch.ones(1, 1, 8, 8)), donor(torch.ones(1, 1, 8, 8)))


def test_another_classifier_starts_anew_and_is_told(timm_file):
    donor, path = timm_file
    fields = {"model": "timm:deit_tiny_patch16_224", "model_args": VIT, "mask": "none", "pretrained": str(path)}
    model, told = start(digits(classes=3), **fields)
    assert model.head.out_features == 3
    assert torch.equal(model.blocks[0].mlp.fc1.weight, donor.blocks[0].mlp.fc1.weight)
    assert told == ["the given weights have no classifier of this width: head.weight, head.bias are reinitialised"]


def test_positions_follow_the_image_size(timm_file, tmp_path):
    donor, path = timm_file
    fields = {"model": "timm:deit_tiny_patch16_224", "model_args": VIT, "mask": "none", "pretrained": str(path)}
    model, _ = start(digits((8, 12)), **fields)
    assert model.pos_embed.shape == (1, 1 + 4 * 6, 48)
    assert torch.equal(model.cls_token, donor.cls_token)
    torch.manual_seed(2)
    vit = transformers.ViTForImageClassification(transformers.ViTConfig(**HF, image_size=8, num_labels=10))
    vit.save_pretrained(tmp_path / "hf")
    model, told = start(digits((12, 8)), model=f"hf:{tmp_path / 'hf'}", mask="gmm", pretrained=True)
    assert model.vit.embeddings.position_embeddings.shape == (1, 1 + 6 * 4, 48)
    patch = vit.vit.embeddings.patch_embeddings.projection.weight
    torch.testing.assert_close(model.vit.embeddings.patch_embeddings.projection.weight, patch.sum(1, keepdim=True))
    assert [line.split(" is ")[1].split(" ")[0] for line in told if " is " in line] == [
        "summed",
        "interpolated",
    ] or told
    assert any("interpolated from 4 x 4 to 6 x 4 patches" in line for line in told)
    assert any("summed over its 3 channels for grey images" in line for line in told)


def test_a_folder_of_transformers_brings_its_own_weights(tmp_path):
    torch.manual_seed(3)
    config = transformers.ViTConfig(**HF, image_size=8, num_channels=1, num_labels=10)
    donor = transformers.ViTForImageClassification(config).eval()
    donor.save_pretrained(tmp_path)
    images = torch.randn(2, 1, 8, 8)
    for fields in ({"pretrained": True}, {"pretrained": str(tmp_path)}):
        model, told = start(model=f"hf:{tmp_path}", mask="gmm", **fields)
        torch.testing.assert_close(model(images), donor(images).logits, atol=1e-5, rtol=1e-4)
        assert [line for line in told if "drop_path" not in line] == [UNNAMED]
    masked, _ = start(model=f"hf:{tmp_path}", mask="gmm", mask_init="paper", pretrained=True)
    masked.save_pretrained(tmp_path / "masked")
    again, _ = start(model="hf:vit", model_args=HF, mask="gmm", pretrained=str(tmp_path / "masked"))
    torch.testing.assert_close(again(images), masked(images))
    scratch, _ = start(model=f"hf:{tmp_path}", mask="gmm")
    assert (scratch(images) - donor(images).logits).abs().max() > 1e-3


def test_masks_in_the_weights_are_kept_or_told(tmp_path):
    fields = {"model": "timm:deit_tiny_patch16_224", "model_args": VIT}
    torch.manual_seed(4)
    first, _ = start(**fields, mask="gmm", mask_init="paper")
    save_file(first.state_dict(), tmp_path / "w.safetensors")
    given = {"pretrained": str(tmp_path / "w.safetensors")}
    same, told = start(**fields, mask="gmm", **given)
    images = torch.randn(2, 1, 8, 8)
    torch.testing.assert_close(same(images), first(images))
    assert told == [UNNAMED]
    _, told = start(**fields, mask="elm", **given)
    assert [line.rsplit(" ", 2)[-2:] for line in told[1:]] == [["are", "ignored"], ["are", "initialised"]]
    for wrong, said in (({"num_kernels": 3}, r"\(3, 5\) there and \(3, 3\) here"), ({"mode": "log"}, "saved in mode")):
        with pytest.raises(RecipeError, match=said):
            start(**fields, mask="gmm", **given, **wrong)


def test_our_own_families_start_from_a_run(tmp_path):
    torch.manual_seed(5)
    options = {"mask": "gmm", "image_size": 8, "channels": 1, "num_classes": 10, **OURS}
    donor = gmmvit.create_model("vit", **options).eval()
    save_file(donor.state_dict(), tmp_path / "model.safetensors")
    model, told = start(**OURS, mask="gmm", pretrained=str(tmp_path))
    assert torch.equal(model(torch.ones(1, 1, 8, 8)), donor(torch.ones(1, 1, 8, 8)))
    assert told == [UNNAMED]
    model, told = start(digits((8, 12), classes=3), **OURS, mask="none", pretrained=str(tmp_path))
    assert model(torch.ones(1, 1, 8, 12)).shape == (1, 3)
    assert sum("pos_embed is interpolated from 4 x 4 to 4 x 6" in line for line in told) == 1


@pytest.mark.parametrize(
    "prefix",
    ["model.", "backbone.", "model.model.", "net.encoder."],  # pytorch-image-models#1349, LightningFSL#18, ViTPose#46
)
@pytest.mark.parametrize("family", ["timm", "ours", "hf"])
def test_a_prefix_of_all_names_is_left_out_and_told(tmp_path, prefix, family):
    fields = {
        "timm": {"model": "timm:deit_tiny_patch16_224", "model_args": VIT},
        "ours": OURS,
        "hf": {"model": "hf:vit", "model_args": HF},
    }[family]
    donor, _ = start(**fields, mask="none")
    state = {f"{prefix}{name}": tensor for name, tensor in donor.state_dict().items()}
    torch.save({"state_dict": state, "hyper_parameters": Namespace(lr=1)}, tmp_path / "last.ckpt")
    model, told = start(**fields, mask="none", pretrained=str(tmp_path / "last.ckpt"))
    torch.testing.assert_close(model(torch.ones(1, 1, 8, 8)), donor(torch.ones(1, 1, 8, 8)))
    assert [line for line in told if "dropped" in line] == [
        f"all names in the given weights start with {prefix!r}, which is dropped"
    ]


def test_names_that_differ_are_shown_of_both_sides(tmp_path):
    donor = transformers.ViTForImageClassification(transformers.ViTConfig(**HF, image_size=8, num_labels=10))
    torch.save(donor.vit.state_dict(), tmp_path / "encoder.pth")
    fields = {"model": "timm:deit_tiny_patch16_224", "model_args": VIT, "mask": "none"}
    with pytest.raises(
        RecipeError, match=r"they lack \d+ tensors: blocks\.0\..* and have besides \d+ tensors: embeddings"
    ):
        start(**fields, pretrained=str(tmp_path / "encoder.pth"))


def test_weights_of_another_model_are_refused(timm_file, tmp_path):
    _, path = timm_file
    fields = {"model": "timm:deit_tiny_patch16_224", "mask": "none"}
    with pytest.raises(RecipeError, match=r"lack .* tensors: blocks.2"):
        start(**fields, model_args=VIT | {"depth": 3}, pretrained=str(path))
    with pytest.raises(RecipeError, match=r"\(48,\) there and \(24,\) here"):
        start(**fields, model_args=VIT | {"embed_dim": 24}, pretrained=str(path))
    with pytest.raises(RecipeError, match="do not fit the model: they lack"):
        start(model="hf:vit", model_args=HF, mask="none", pretrained=str(path))
    (tmp_path / "torn.safetensors").write_bytes(b"torn")
    (tmp_path / "text.pth").write_text("hello")
    torch.save({"epoch": 1}, tmp_path / "empty.pth")
    (tmp_path / "folder").mkdir()
    for name, said in (
        ("torn.safetensors", "is damaged"),
        ("text.pth", "is damaged"),
        ("empty.pth", "holds no state_dict"),
        ("folder", "has no model.safetensors"),
        ("gone", "does not exist"),
    ):
        with pytest.raises(RecipeError, match=said):
            start(**fields, model_args=VIT, pretrained=str(tmp_path / name))


def test_timms_own_weights_come_from_its_cache(tmp_path, monkeypatch):
    """A snapshot as in the cache of the Hub's client, and no network."""
    name = "test_vit.r160_in1k"
    snapshot = tmp_path / f"models--timm--{name}" / "snapshots" / "1"
    snapshot.mkdir(parents=True)
    (tmp_path / f"models--timm--{name}" / "refs").mkdir()
    (tmp_path / f"models--timm--{name}" / "refs" / "main").write_text("1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    fields = {"model": f"timm:{name}", "mask": "gmm", "pretrained": True}
    data = digits((160, 160), channels=3)
    with pytest.raises(RecipeError, match=r"cannot be fetched .*--pretrained FILE"):
        start(data, **fields)
    torch.manual_seed(6)
    donor = timm.create_model(name).eval()
    save_file(donor.state_dict(), snapshot / "model.safetensors")
    model, told = start(data, **fields)
    images = torch.randn(1, 3, 160, 160)
    torch.testing.assert_close(model.forward_features(images), donor.forward_features(images), atol=1e-4, rtol=1e-3)
    assert any("another width: it is reinitialised" in line for line in told)
