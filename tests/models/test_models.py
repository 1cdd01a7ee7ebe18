"""The tables of families and sizes: parameters of the paper, the listing, saving, compiling, exporting."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub.errors import HFValidationError
from torch.utils.flop_counter import FlopCounterMode

from gmmvit.models import FAMILIES, SIZES, create_model, list_models
from gmmvit.models.vit import ViT

PAPER = {
    ("vit", "none", "cls"): 2_692_426,
    ("vit", "gmm", "mean"): 2_693_122,
    ("swin", "none", None): 7_073_188,
    ("swin", "gmm", None): 7_074_088,
    ("pit", "none", None): 6_972_586,
    ("pit", "gmm", None): 6_973_186,
    ("cait", "none", None): 5_078_834,
    ("cait", "gmm", None): 5_079_794,
    ("t2t", "none", None): 6_486_080 - 1_408,  # without the original's unused parameters
    ("t2t", "gmm", None): 6_486_570 - 1_408,
}


@pytest.mark.parametrize(("family", "mask", "pool"), PAPER)
def test_trainable_parameters_are_those_of_the_paper(family: str, mask: str, pool: str | None) -> None:
    with torch.device("meta"):
        model = create_model(family, mask=mask, **({"pool": pool} if pool else {}))
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == PAPER[family, mask, pool]


@pytest.mark.parametrize("family", FAMILIES)
def test_paper_sizes_take_64_pixels_with_the_same_grid(family: str) -> None:
    with torch.device("meta"):
        small, large = (create_model(family, image_size=size) for size in (32, 64))
    assert small.grid == large.grid


def test_listing_counts_parameters_and_work() -> None:
    rows = list_models(families=["vit"], sizes=["tiny", "small"])
    assert [(row["size"], row["mask"]) for row in rows] == [
        (s, m) for s in ("tiny", "small") for m in ("none", "elm", "gmm")
    ]
    tiny = {row["mask"]: row for row in rows if row["size"] == "tiny"}
    assert tiny["gmm"]["parameters"] == 2_693_122
    assert tiny["gmm"]["mask_parameters"] == 1_080
    assert tiny["none"]["mask_parameters"] == 0
    tokens, dim, depth = 64, 192, 9
    by_hand = tokens * 48 * dim + depth * (tokens * dim * dim * 8 + 2 * tokens * tokens * dim) + dim * 10
    assert tiny["none"]["macs"] == by_hand
    assert 21e6 < next(row["parameters"] for row in rows if row["size"] == "small") < 23e6
    json.dumps(rows)


def test_listing_says_why_a_size_does_not_fit() -> None:
    row = list_models((36, 44), families=["swin"])[0]
    assert row["parameters"] is None
    assert "nearest image size" in row["note"]
    row = list_models(1_000_000, families=["vit"], sizes=["d8"])[0]
    assert row["macs"] is None
    assert row["note"] == "its tensors for images of this size are larger than any memory"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"num_classes": -5}, "num_classes must be at least 2, got -5"),
        ({"channels": 0}, "channels must be at least 1, got 0"),
        ({"image_size": "32"}, "image_size must be .* got '32'"),
    ],
)
def test_listing_refuses_what_no_model_takes(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises((ValueError, TypeError), match=words):
        list_models(**arguments)


@pytest.mark.parametrize(("family", "size"), [(family, size) for family, sizes in SIZES.items() for size in sizes])
def test_every_size_runs(family: str, size: str) -> None:
    with torch.device("meta"):
        model = create_model(family, size=size, mask="gmm" if family in FAMILIES else "none", num_classes=3)
        assert model(torch.empty(1, 3, 32, 32)).shape == (1, 3)


def test_unknown_names_get_the_allowed_ones() -> None:
    with pytest.raises(ValueError, match=r"family must be one of .*'swin'.* got 'resnext'"):
        create_model("resnext")
    with pytest.raises(ValueError, match=r"family must be one of .* got \['vit'\]"):
        create_model(["vit"])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"size of swin must be one of \['tiny'\], got 'huge'"):
        create_model("swin", size="huge")
    with pytest.raises(TypeError, match="vit has no option 'dept'; the nearest is 'depth'"):
        create_model("vit", dept=3)


def test_options_go_before_the_size() -> None:
    assert len(create_model("vit", size="d15", dim=24, depth=1, num_heads=2).blocks) == 1


def test_saved_and_loaded_models_agree(build: Any, family: str, mask: str, tmp_path: Path) -> None:
    model = build(family, mask, image_size=(16, 32)).eval()
    images = torch.randn(2, 3, 16, 32)
    model.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    again = FAMILIES[family].from_pretrained(tmp_path)
    assert torch.equal(again(images), model(images))
    assert torch.equal(copy.deepcopy(model)(images), model(images))


def test_sizes_counted_with_numpy_can_be_saved(build: Any, tmp_path: Path) -> None:
    build("vit", num_classes=np.int64(5)).save_pretrained(tmp_path)
    assert ViT.from_pretrained(tmp_path).num_classes == 5


def test_a_model_without_classifier_can_be_saved(build: Any, tmp_path: Path) -> None:
    model = build("pit").eval()
    model.reset_classifier(0)
    model.save_pretrained(tmp_path)
    images = torch.randn(1, 3, 32, 32)
    assert torch.equal(FAMILIES["pit"].from_pretrained(tmp_path)(images), model(images))


def test_loading_names_what_is_wrong(build: Any, tmp_path: Path) -> None:
    build("pit").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="a model of family 'pit', ViT is 'vit'"):
        ViT.from_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no model\.safetensors"):
        FAMILIES["pit"].from_pretrained(tmp_path)


def test_a_name_that_the_hub_does_not_allow_is_refused_before_anything_is_sent(build: Any) -> None:
    with pytest.raises(HFValidationError, match="a/b/c"):
        build("vit").push_to_hub("a/b/c")


def test_models_export(build: Any, family: str, mask: str) -> None:
    model = build(family, mask).eval()
    images = torch.randn(2, 3, 32, 32)
    exported = torch.export.export(model, (images,))
    torch.testing.assert_close(exported.module()(images), model(images), rtol=1e-4, atol=1e-5)


def test_work_is_that_of_a_whole_pass(family: str) -> None:
    with torch.device("meta"):
        model, images = create_model(family, mask="gmm").eval().requires_grad_(False), torch.empty(1, 3, 32, 32)
    with FlopCounterMode(display=False) as counter:
        model(images)
    (row,) = [row for row in list_models(families=[family], sizes=["tiny"]) if row["mask"] == "gmm"]
    assert row["macs"] == counter.get_total_flops() // 2
