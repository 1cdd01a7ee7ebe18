"""The families equal the original implementation: logits and gradients of the stored reference vectors."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor
from torch.nn.functional import cross_entropy

from gmmvit.original.weights import convert_tensors, load_reference
from gmmvit.weight_files import read_tensors

FOLDER = Path(__file__).resolve().parents[3] / "shared" / "reference"
FILES = sorted(path.stem for path in FOLDER.glob("*.safetensors"))
pytestmark = pytest.mark.skipif(not FILES, reason=f"no reference vectors in {FOLDER}")


def read(name: str) -> tuple[dict[str, str], dict[str, Any], dict[str, Tensor]]:
    with safe_open(FOLDER / f"{name}.safetensors", "pt") as file:
        metadata = file.metadata()
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 the file is no mapping
    return metadata, json.loads(metadata["config"]), tensors


def part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def test_all_files_are_there() -> None:
    assert len(FILES) == 14


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 1e-4)])
@pytest.mark.parametrize("name", FILES)
def test_logits_and_gradients_equal_the_original(name: str, dtype: torch.dtype, tolerance: float) -> None:
    metadata, sizes, tensors = read(name)
    model = load_reference(part(tensors, "state/"), family=metadata["family"], mask=metadata["mask"], **sizes)
    model.to(dtype)
    logits = model(tensors["input"].to(dtype))
    torch.testing.assert_close(logits.double(), tensors["logits"], rtol=0, atol=tolerance)
    cross_entropy(logits, tensors["target"]).backward()
    gradients = convert_tensors(part(tensors, "grad/"), metadata["family"])
    assert any(key.startswith("head.") for key in gradients)
    parameters = dict(model.named_parameters())
    for key, expected in gradients.items():
        torch.testing.assert_close(parameters[key].grad.double(), expected, rtol=0, atol=tolerance, msg=key)


@pytest.mark.parametrize("name", FILES)
def test_sizes_come_from_the_tensors(name: str) -> None:
    metadata, sizes, tensors = read(name)
    family, mask = metadata["family"], metadata["mask"]
    told = {"heads": sizes["heads"]} if mask != "gmm" and family in ("vit", "pit", "t2t") else {}
    if family == "t2t":
        told["img_size"] = sizes["img_size"]
    model = load_reference(part(tensors, "state/"), family=family, mask=mask, **told)
    logits = model.double()(tensors["input"].double())
    torch.testing.assert_close(logits, tensors["logits"], rtol=0, atol=1e-6)


def as_trained(name: str) -> dict[str, Any]:
    """A checkpoint as the original's training writes it, including what our models cannot hold."""
    metadata, _, tensors = read(name)
    state = part(tensors, "state/")
    table = distance_table(8)
    frozen = {
        "vit": {"mask": table, "transformer.layers.0.0.fn.mask.mask": table},
        "swin": {
            "mask": distance_table(4),
            "layers.0.blocks.0.attn.relative_position_index": torch.zeros(16, 16, dtype=torch.long),
            "layers.0.blocks.1.attn_mask": torch.zeros(16, 16, 16),
        },
        "cait": {"mask": table},
        "pit": {"layers.0.mask": distance_table(16), "layers.2.mask": table},
        "t2t": {"mask": table, "pos_embed": torch.zeros(1, 64, 256), "tokens_to_token.attention1.mask": table},
    }[metadata["family"]]
    if metadata["mask"] != "gmm":
        frozen.pop("transformer.layers.0.0.fn.mask.mask", None)
    model = {f"module.{key}": value for key, value in (state | frozen).items()}
    return {"epoch": 3, "model_state_dict": model, "optimizer_state_dict": {"state": {}}, "scheduler": {"lr": 1e-3}}


def distance_table(side: int) -> Tensor:
    """exp(-d2 / 2) between all patches of a square grid, as the original stores it in float32."""
    index = torch.arange(side * side)
    rows, cols = index // side, index % side
    squared = (rows.unsqueeze(1) - rows).square() + (cols.unsqueeze(1) - cols).square()
    return ((-squared.float()).exp() ** 0.5).expand(1, 1, -1, -1).contiguous()


@pytest.mark.parametrize("name", FILES)
def test_a_checkpoint_of_the_original_training_loads(name: str, tmp_path: Path) -> None:
    metadata, sizes, tensors = read(name)
    torch.save(as_trained(name), tmp_path / "best.pth")
    state = read_tensors(tmp_path / "best.pth")
    given = {key: value for key, value in sizes.items() if key in ("heads", "depths")}
    model = load_reference(state, family=metadata["family"], mask=metadata["mask"], **given)
    logits = model.double()(tensors["input"].double())
    if name != "pit-gmm":  # its table ends after ten patches, see the next test
        torch.testing.assert_close(logits, tensors["logits"], rtol=0, atol=1e-6)


def test_masks_are_those_of_the_table_they_were_trained_with() -> None:
    model = load_reference(as_trained("pit-gmm"), family="pit", mask="gmm")
    mask = model.stages[0].blocks[0].attn.mask.double()
    with torch.no_grad():
        mask.sigma.normal_(10, 10)
    table = distance_table(16)[0, 0]
    assert (table == 0).any()
    rounded = ((table > 0) & (table < 2**-63)).sum()  # roots of numbers that float32 cannot hold precisely
    assert rounded > 0
    expected = sum(
        mask.alpha[:, k, None, None] * table.double().pow(1 / (mask.sigma[:, k, None, None] ** 2 + 1e-5))
        for k in range(3)
    )
    torch.testing.assert_close(mask.dense(), expected, rtol=0, atol=1e-6)
    assert mask.dense()[0, 0, -1] == 0


def test_a_wrong_family_names_a_tensor() -> None:
    with pytest.raises(ValueError, match=r"tensor 'mlp_head.0.bias' does not belong to a swin"):
        load_reference(as_trained("vit-gmm"), family="swin", mask="gmm")


def test_a_wrong_mask_names_a_tensor() -> None:
    with pytest.raises(ValueError, match=r"tensor 'blocks.0.attn.mask.(sigma|alpha)' .* is not expected"):
        load_reference(as_trained("vit-gmm"), family="vit", mask="none", heads=3)
    with pytest.raises(ValueError, match=r"attn.mask.alpha' .* is missing"):
        load_reference(as_trained("vit-none"), family="vit", mask="gmm", heads=3)
    with pytest.raises(ValueError, match=r"attn.mask.alpha' .* is missing"):
        load_reference(as_trained("vit-elm"), family="vit", mask="gmm", heads=3)


def test_a_missing_tensor_and_a_wrong_shape_are_named() -> None:
    checkpoint = as_trained("cait-gmm")
    del checkpoint["model_state_dict"]["module.cls_transformer.layers.0.0.fn.fn.to_out.0.bias"]
    with pytest.raises(ValueError, match=r"tensor 'class_blocks.0.attn.proj.bias' .* is missing"):
        load_reference(checkpoint, family="cait", mask="gmm")
    with pytest.raises(ValueError, match=r"'head.weight' .* is \(7, 24\) in the checkpoint, \(9, 24\)"):
        load_reference(as_trained("cait-gmm"), family="cait", mask="gmm", num_classes=9)


@pytest.mark.parametrize("name", ["vit-gmm", "cait-none", "pit-elm", "swin-gmm", "t2t-none"])
def test_a_tensor_that_cannot_be_the_originals_is_refused_in_words(name: str) -> None:
    metadata, sizes, tensors = read(name)
    state = part(tensors, "state/")
    used = [key for key in state if metadata["family"] != "t2t" or not re.search(r"^cls_token|token.norm", key)]
    words = r"tensor '.+'|give \w+=|must be|must leave|is not a multiple"
    for key in used:
        more_rows = torch.cat([state[key].flatten(), torch.ones(1)])
        for changed in (torch.tensor(1.0), state[key][:0], state[key].long(), more_rows):
            for given in ({}, sizes):
                with pytest.raises(ValueError, match=words):
                    load_reference({**state, key: changed}, family=metadata["family"], mask=metadata["mask"], **given)


def test_sizes_that_tensors_cannot_tell_are_asked_for() -> None:
    with pytest.raises(ValueError, match=r"the size 'heads' of this model cannot be inferred"):
        load_reference(as_trained("vit-none"), family="vit", mask="none")
    with pytest.raises(TypeError, match="vit has no size 'window_size'"):
        load_reference(as_trained("vit-none"), family="vit", mask="none", window_size=4)


@pytest.mark.parametrize(
    ("name", "sizes", "words"),
    [
        ("vit-gmm", {"img_size": 0}, "img_size must be between 1 and 65536, got 0"),
        ("vit-gmm", {"img_size": "32"}, "img_size must be one int, got '32'"),
        ("vit-gmm", {"img_size": 60_000}, "grid must have at most 1,048,576 patches, got 15000 x 15000"),
        ("vit-gmm", {"depth": 60_000}, r"depth must be 2, as the checkpoint has tensors 'blocks.0.\*'"),
        ("pit-gmm", {"depths": [1, 2, 3]}, "depths must be 2 numbers, one per stage of the checkpoint"),
        ("pit-none", {"heads": 7}, "attn.qkv.weight' .* in a model of these sizes"),
        ("cait-gmm", {"mlp_dim": 2.5}, "mlp_dim must be one int, got 2.5"),
    ],
)
def test_wrong_sizes_are_named(name: str, sizes: dict[str, Any], words: str) -> None:
    family, mask = name.split("-")
    with pytest.raises((TypeError, ValueError), match=words):
        load_reference(as_trained(name), family=family, mask=mask, **sizes)


def test_a_state_that_is_no_mapping_is_refused() -> None:
    for state in (5, [torch.ones(1)]):
        with pytest.raises(TypeError, match="state_dict must be a mapping of names to tensors, got"):
            load_reference(state, family="vit")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"holds no state_dict: .* it has \['model_state_dict'\]"):
        load_reference({"model_state_dict": 3}, family="vit")
