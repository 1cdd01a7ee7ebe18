"""Checkpoints of the original code as run folders."""

import json
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from gmmvit.cli import main
from gmmvit.original.convert import DATASETS, convert
from gmmvit.runs.checkpoint import load_run
from gmmvit.runs.evaluate import evaluate_run

SHARED = Path(__file__).parents[3] / "shared"

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
    if family == "t2t":  # its fixed positions are in checkpoints, but not among the trained tensors
        state["pos_embed"] = torch.zeros(1, 64, sizes["dim"])
    return state


def checkpoint(folder, state):
    file = folder / "best.pth"
    torch.save({"model_state_dict": {f"module.{name}": tensor for name, tensor in state.items()}, "epoch": 3}, file)
    return file


def colours(folder):
    Image.new("RGB", (40, 30), (200, 60, 20)).save(folder / "image.png")
    return folder / "image.png"


FAMILIES = [("vit", "gmm"), ("vit", "elm"), ("pit", "none"), ("t2t", "gmm"), ("swin", "gmm"), ("cait", "gmm")]


@pytest.mark.parametrize(("family", "mask"), FAMILIES)
def test_the_command_turns_a_checkpoint_into_a_run_that_predicts(tmp_path, capsys, family, mask):
    file, run = checkpoint(tmp_path, original(family, mask)), tmp_path / "run"
    heads = {"vit": ["--num-heads", "3"], "pit": ["--num-heads", "2,4"]}.get(family, []) if mask != "gmm" else []
    assert main(["convert", str(file), "--family", family, "--mask", mask, "--out", str(run), *heads]) == 0
    printed = capsys.readouterr()
    assert printed.out == f"{run}\n"
    assert "assumed to be cifar10 (svhn looks the same: choose with --dataset)" in printed.err
    assert main(["predict", str(run), str(colours(tmp_path)), "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert {c["class"] for c in row["classes"]} < set(load_run(run).classes)
    assert load_run(run).classes[0] == "airplane"


def test_a_prefix_of_all_names_and_the_arguments_of_the_training_are_left_out(tmp_path):
    """pytorch-image-models#1349, #2003."""
    state = original("vit", "gmm")
    file = tmp_path / "last.ckpt"
    named = {f"model._orig_mod.{name}": tensor for name, tensor in state.items()}
    torch.save({"state_dict": named, "args": Namespace(lr=0.1), "best": np.float64(0.5)}, file)
    told = []
    convert(file, tmp_path / "a", family="vit", mask="gmm", dataset="cifar10", report=told.append)
    assert told == ["all names in the given weights start with 'model.', which is dropped"]
    plain = convert(checkpoint(tmp_path, state), tmp_path / "b", family="vit", mask="gmm", dataset="cifar10")
    expected, got = (load_file(run / "model.safetensors") for run in (plain, tmp_path / "a"))
    assert sorted(got) == sorted(expected)
    assert all(torch.equal(got[name], tensor) for name, tensor in expected.items())


def test_a_converted_run_is_measured_on_real_images(tmp_path, capsys, cifar10_dir):
    file, run = checkpoint(tmp_path, original("vit", "gmm")), tmp_path / "run"
    assert main(["convert", str(file), "--family", "vit", "--mask", "gmm", "--out", str(run)]) == 0
    capsys.readouterr()
    assert main(["eval", str(run), "--data-dir", str(cifar10_dir), "--json"]) == 0
    assert 0.02 < json.loads(capsys.readouterr().out)["top1"] < 0.3


@pytest.mark.parametrize(
    ("classes", "patches", "dataset", "notice"),
    [
        (10, 64, "cifar10", "10 classes of 32 x 32 pixels: assumed to be cifar10 (svhn looks the same"),
        (100, 64, "cifar100", "100 classes of 32 x 32 pixels: assumed to be cifar100"),
        (200, 256, "tiny-imagenet", "200 classes of 64 x 64 pixels: assumed to be tiny-imagenet"),
    ],
)
def test_images_and_classes_tell_the_data_set(tmp_path, classes, patches, dataset, notice):
    state = original("t2t", "gmm", classes)
    state["pos_embed"] = torch.zeros(1, patches, state["head.weight"].shape[1])
    told = []
    run = load_run(convert(checkpoint(tmp_path, state), tmp_path / "run", family="t2t", mask="gmm", report=told.append))
    assert told[0].startswith(notice)
    assert (run.recipe.dataset, len(run.classes)) == (dataset, classes)
    assert run.mean == DATASETS[dataset].mean


def test_a_data_set_that_is_named_goes_before_the_likeliest(tmp_path):
    told = []
    file = checkpoint(tmp_path, original("vit", "gmm"))
    run = load_run(convert(file, tmp_path / "run", family="vit", mask="gmm", dataset="svhn", report=told.append))
    assert (run.recipe.dataset, run.mean, told) == ("svhn", DATASETS["svhn"].mean, [])
    assert run.classes == tuple("0123456789")


def test_classes_without_known_names_take_those_of_the_data(tmp_path, cifar10_dir):
    file = checkpoint(tmp_path, original("vit", "gmm"))
    folder = convert(file, tmp_path / "run", family="vit", mask="gmm", dataset="cifar10")
    config = (folder / "config.yaml").read_text()
    for index, name in enumerate(load_run(folder).classes):
        config = config.replace(f"- {name}\n", f"- class {index}\n")
    (folder / "config.yaml").write_text(config)
    assert load_run(folder).predict(colours(tmp_path)).predicted[0].startswith("class ")
    assert "airplane" in evaluate_run(folder, data_dir=str(cifar10_dir))["per_class"]


def test_what_does_not_fit_is_named(tmp_path, capsys):
    state = original("vit", "gmm")
    torch.save({"model_state_dict": state}, tmp_path / "best.pth")
    for family, words in (("swin", "tensor"), ("pit", "tensor")):
        with pytest.raises(ValueError, match=words):
            convert(tmp_path / "best.pth", tmp_path / "run", family=family, mask="gmm", dataset="cifar10")
    seven = checkpoint(tmp_path, original("vit", "gmm", 7))
    with pytest.raises(ValueError, match=r"has 7 classes of 32 x 32 pixels, unlike .*'cifar10'.*: name"):
        convert(seven, tmp_path / "run", family="vit", mask="gmm")
    torch.save({"model_state_dict": state}, tmp_path / "best.pth")
    with pytest.raises(ValueError, match="10 classes, cifar100 has 100"):
        convert(tmp_path / "best.pth", tmp_path / "run", family="vit", mask="gmm", dataset="cifar100")
    with pytest.raises(ValueError, match="dataset must be one of"):
        convert(tmp_path / "best.pth", tmp_path / "run", family="vit", mask="gmm", dataset="mnist")
    torch.save({"model_state_dict": {name: t / 0 for name, t in state.items()}}, tmp_path / "best.pth")
    with pytest.raises(ValueError, match=r"tensor '.+' of .*best.pth is not finite: the training diverged"):
        convert(tmp_path / "best.pth", tmp_path / "run", family="vit", mask="gmm")
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


def test_a_converted_run_is_not_resumed(tmp_path, capsys):
    run = convert(
        checkpoint(tmp_path, original("vit", "gmm")), tmp_path / "run", family="vit", mask="gmm", dataset="cifar10"
    )
    assert main(["resume", str(run)]) == 1
    assert "cannot be resumed: its weights are from" in capsys.readouterr().err
