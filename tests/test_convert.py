"""Checkpoints of the original code as run folders."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from gmmvit.checkpoint import load_run
from gmmvit.cli import main
from gmmvit.convert import convert

SHARED = Path(__file__).parents[2] / "shared"

REFERENCE = SHARED / "reference"
pytestmark = pytest.mark.skipif(not REFERENCE.is_dir(), reason=f"the reference vectors are not at {REFERENCE}")


def original(family, mask, num_classes=10):
    """State of the original's model, its head widened to a data set's classes, saved as its training saves it."""
    with safe_open(REFERENCE / f"{family}-{mask}.safetensors", "pt") as file:
        names = [name for name in file.keys() if name.startswith("state/")]  # noqa: SIM118
        state = {name.removeprefix("state/"): file.get_tensor(name) for name in names}
        sizes = json.loads(file.metadata()["config"])
    for name, tensor in state.items():
        if tensor.shape[:1] == (sizes["num_classes"],) and ("head" in name):
            state[name] = torch.randn(num_classes, *tensor.shape[1:])
    return state


@pytest.mark.parametrize(
    ("family", "mask"),
    [("vit", "gmm"), ("vit", "elm"), ("pit", "gmm"), ("t2t", "gmm"), ("swin", "gmm"), ("cait", "gmm")],
)
def test_a_checkpoint_becomes_a_run_that_predicts(tmp_path, capsys, family, mask):
    state = {f"module.{name}": tensor for name, tensor in original(family, mask).items()}
    torch.save({"model_state_dict": state, "epoch": 3, "optimizer_state_dict": {}}, tmp_path / "best.pth")
    heads = {} if mask == "gmm" else {"heads": 3}
    convert(tmp_path / "best.pth", tmp_path / "run", family=family, mask=mask, dataset="cifar10", **heads)
    run = load_run(tmp_path / "run")
    assert run.classes[0] == "airplane"
    assert run.logits(torch.zeros(2, 3, 32, 32, dtype=torch.uint8)).shape == (2, 10)


def test_a_converted_run_is_measured_on_real_images(tmp_path, capsys, cifar10_dir):
    torch.save({"model_state_dict": original("vit", "gmm")}, tmp_path / "best.pth")
    arguments = ["--family", "vit", "--mask", "gmm", "--dataset", "cifar10", "--data-dir", str(cifar10_dir)]
    assert main(["convert", str(tmp_path / "best.pth"), "--out", str(tmp_path / "run"), *arguments]) == 0
    capsys.readouterr()
    assert main(["eval", str(tmp_path / "run"), "--json"]) == 0
    assert 0.02 < json.loads(capsys.readouterr().out)["top1"] < 0.3


def test_what_does_not_fit_is_named(tmp_path, capsys):
    state = original("vit", "gmm")
    torch.save({"model_state_dict": state}, tmp_path / "best.pth")
    for family, words in (("swin", "tensor"), ("pit", "tensor")):
        with pytest.raises(ValueError, match=words):
            convert(tmp_path / "best.pth", tmp_path / "run", family=family, mask="gmm", dataset="cifar10")
    with pytest.raises(ValueError, match="10 classes apart, cifar100 has 100"):
        convert(tmp_path / "best.pth", tmp_path / "run", family="vit", mask="gmm", dataset="cifar100")
    with pytest.raises(ValueError, match="dataset must be one of"):
        convert(tmp_path / "best.pth", tmp_path / "run", family="vit", mask="gmm", dataset="mnist")
    del state["mlp_head.1.weight"]
    torch.save({"model_state_dict": state}, tmp_path / "best.pth")
    with pytest.raises(ValueError, match="tensor"):
        convert(tmp_path / "best.pth", tmp_path / "run", family="vit", mask="gmm", dataset="cifar10")
    assert not (tmp_path / "run").exists()
    (tmp_path / "text.pth").write_text("no checkpoint")
    arguments = ["--family", "vit", "--mask", "gmm", "--dataset", "cifar10", "--out", str(tmp_path / "run")]
    for name in ("text.pth", "missing.pth"):
        assert main(["convert", str(tmp_path / name), *arguments]) == 1
        assert len(capsys.readouterr().err.splitlines()) <= 2
