"""The families equal the original implementation: logits and gradients of the stored reference vectors."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor
from torch.nn.functional import cross_entropy

from gmmvit.reference_weights import convert_tensors, load_reference

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
