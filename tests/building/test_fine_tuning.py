"""Training from a run's weights: its model is taken over, its classes are compared by name."""

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import gmmvit
from gmmvit.building import start_model
from gmmvit.cli import main
from gmmvit.config import RecipeError, load_recipe
from gmmvit.runs.checkpoint import load_run
from gmmvit.training.run import train

OURS = {"dim": 16, "depth": 1, "num_heads": 2, "patch_size": 2}


def data(classes, size=(8, 8)):
    return {"image_size": list(size), "channels": 1, "classes": list(classes)}


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """A run that distinguishes bar, line and pie."""
    folder = tmp_path_factory.mktemp("given")
    for name in ("bar", "line", "pie"):
        (folder / "images" / name).mkdir(parents=True)
        for index in range(6):
            pixels = np.random.default_rng(index).integers(0, 255, (8, 8), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "images" / name / f"{index}.png")
    fields = {"epochs": 1, "warmup_epochs": 0, "threads": 1, "image_size": 8, "channels": 1, "policy": "none"}
    recipe = load_recipe("digits", dataset=f"folder:{folder / 'images'}", cache_dir=str(folder), **OURS, **fields)
    train(recipe, folder / "run", quiet=True)
    return folder / "run"


def start(given, classes, size=(8, 8), recipe="digits", **fields):
    told = []
    _, model = start_model(load_recipe(recipe, pretrained=str(given), **fields), data(classes, size), told.append)
    return model, told


def test_other_classes_of_the_same_number_start_anew(given):
    model, told = start(given, ["artefact", "lesion", "normal"], **OURS)
    old = load_run(given).model
    assert torch.equal(model.blocks[0].mlp[0].weight, old.blocks[0].mlp[0].weight)
    assert not torch.equal(model.head.weight, old.head.weight)
    assert told == ["the given run has other classes (bar, line, pie): the classifier is reinitialised"]


@pytest.mark.parametrize("place", ["run", "file"])
def test_classes_of_the_same_name_keep_their_rows(given, place):
    model, told = start(given if place == "run" else given / "last.safetensors", ["pie", "chart", "bar"], **OURS)
    old = load_run(given, weights="best" if place == "run" else "last").model.head.weight
    assert torch.equal(model.head.weight[[0, 2]], old[[2, 0]])
    assert not (model.head.weight[1] == old).all(1).any()
    assert told == ["the classifier keeps its rows for pie, bar; chart is reinitialised"]


def test_the_same_classes_start_as_they_ended(given):
    model, told = start(given, ["bar", "line", "pie"], **OURS)
    images = torch.rand(2, 1, 8, 8)
    torch.testing.assert_close(model.eval()(images), load_run(given).model(images))
    assert told == ["the classifier keeps its rows for bar, line, pie"]


def test_a_file_without_names_says_so(given, tmp_path):
    torch.save(load_file(given / "model.safetensors"), tmp_path / "weights.pth")
    _, told = start(tmp_path / "weights.pth", ["a", "b", "c"], **OURS)
    assert told == ["the given weights do not name their classes: their classifier is kept, in the order of "
                    "its rows"]  # fmt: skip


@pytest.mark.parametrize("mask", ["none", "elm", "gmm"])
@pytest.mark.parametrize("family", ["vit", "swin", "cait", "pit", "t2t"])
def test_a_run_is_trained_on_at_another_image_size(tmp_path, family, mask):
    """The run's patch is kept, although the family would choose another for larger images."""
    options = {"family": family, "mask": mask, "image_size": [32, 32], "num_classes": 3, "channels": 1}
    torch.manual_seed(1)
    model = gmmvit.create_model(**options)
    from gmmvit.runs import checkpoint, run_folder

    told = {"classes": ["a", "b", "c"], "image_size": [32, 32], "channels": 1, "mean": [0.5], "std": [0.5]}
    recipe = load_recipe("paper", model=family, mask=mask)
    run_folder.save_config(tmp_path, recipe, options, told | {"fit": "crop", "fingerprints": {}})
    checkpoint.save_weights(tmp_path / "model.safetensors", model.state_dict(), {})
    started, _ = start(
        tmp_path, ["a", "b", "c"], (64, 48) if family != "swin" else (64, 64), "paper", model=family, mask=mask
    )
    own, given = started.state_dict(), model.state_dict()
    same = [name for name in given if torch.equal(given[name], own[name]) and given[name].numel() > 1]
    assert len(same) > 0.8 * len(given)
    assert {name for name in given if given[name].shape != own[name].shape} <= {
        name for name in given if "pos" in name or name.endswith("mask.weight")
    }


def test_the_command_takes_the_model_of_the_run(given, tmp_path, capsys):
    fields = ["--epochs", "1", "--passes", "1", "--val-fraction", "0.8", "--threads", "1", "--image-size", "12"]
    assert main(["train", "--pretrained", str(given), "--out", str(tmp_path / "on"), *fields]) == 0
    error = capsys.readouterr().err
    assert f"vit with mask gmm and its sizes are taken from {given}" in error
    assert "the given run has other classes (bar, line, pie): the classifier is reinitialised" in error
    assert "interpolated from 4 x 4 to 6 x 6" in error
    assert load_run(tmp_path / "on").recipe.dim == (16,)


def test_a_damaged_run_is_told(given, tmp_path):
    (tmp_path / "config.yaml").write_text("a: 1")
    with pytest.raises(RecipeError, match=r"pretrained: .*config.yaml is not the configuration of a run"):
        start(tmp_path, ["a", "b"])
