"""Recipes: every shipped one, every field, and the messages for wrong ones."""

import dataclasses

import pytest
import yaml

from gmmvit.attention import MODES
from gmmvit.cli.flags import RecipeFlags
from gmmvit.config import (
    MASK_STARTS,
    RECIPES,
    Recipe,
    RecipeError,
    as_dict,
    load_recipe,
    make_recipe,
    masking_options,
    model_options,
    recipe_names,
)
from gmmvit.masks import KINDS, MASKS, create_mask
from gmmvit.models.stem import STEMS


def test_the_promised_recipes_are_there():
    assert {"digits", "quick", "paper"} <= set(recipe_names())


@pytest.mark.parametrize("name", recipe_names())
def test_every_shipped_recipe_loads_and_promises_figures_and_its_command(name):
    assert isinstance(load_recipe(name), Recipe)
    head = [line for line in (RECIPES / f"{name}.yaml").read_text().splitlines() if line.startswith("#")]
    assert any("Promised:" in line for line in head)
    assert any("gmmvit train" in line for line in head)


def test_the_paper_recipe_is_the_papers():
    recipe = load_recipe("paper")
    expected = {
        "lr": 1e-3, "weight_decay": 0.05, "batch_size": 128, "warmup_epochs": 10, "min_lr": 1e-6,
        "label_smoothing": 0.1, "drop_path": 0.1, "mix_prob": 0.5, "mixup_alpha": 1.0, "cutmix_alpha": 1.0,
        "erase_prob": 0.25, "erase_area": (0.02, 0.4), "erase_aspect": (0.3, 3.3), "crop_padding": 4,
        "epochs": 100, "passes": 3, "policy": None, "flip": None,
    }  # fmt: skip
    assert {name: getattr(recipe, name) for name in expected} == expected


def test_a_recipe_survives_yaml():
    recipe = load_recipe("paper", image_size="32x48", dim="96,192", ema=0.99, loggers="tensorboard")
    assert recipe.image_size == (32, 48)
    assert recipe.dim == (96, 192)
    assert make_recipe(yaml.safe_load(yaml.safe_dump(as_dict(recipe)))) == recipe


def test_a_name_that_is_no_text_is_a_type_error():
    with pytest.raises(TypeError, match="name must be a recipe's name or the path of a YAML file, got None"):
        load_recipe(None)


def test_nesting_without_end_is_told_in_a_sentence(tmp_path):
    (tmp_path / "deep.yaml").write_text("lr: " + "[" * 100_000)
    with pytest.raises(RecipeError, match=r"deep.yaml is not valid YAML: it is nested too deeply"):
        load_recipe(tmp_path / "deep.yaml")
    with pytest.raises(RecipeError, match="model_args must be names and values"):
        load_recipe(model="timm:vit", model_args="a=" + "-" * 100_000 + "1")


def test_a_file_with_overrides(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("lr: 1e-3\nepochs: 7\n")
    recipe = load_recipe(path, epochs=9)
    assert (recipe.lr, recipe.epochs) == (1e-3, 9)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"epoch": 3}, "unknown field 'epoch'; did you mean 'epochs'"),
        ({"lr": "fast"}, r"lr must be a number, got 'fast' \(str\)"),
        ({"epochs": 2.5}, "epochs must be a whole number, got 2.5"),
        ({"epochs": True}, "epochs must be a whole number"),
        ({"epochs": 0}, r"epochs must be 1 to 1e\+09, got 0"),
        ({"mask": "gmmm"}, "mask must be one of .* did you mean 'gmm'"),
        ({"flip": "yes"}, "flip must be true or false or null"),
        ({"image_size": "32x32x32"}, "image_size must be N or HEIGHTxWIDTH"),
        ({"image_size": [32, "b"]}, r"image_size must be a whole number"),
        ({"erase_area": [0.5, 0.1]}, "erase_area must be a minimum and a maximum"),
        ({"val_fraction": 1.5}, "val_fraction must be 0 to 0.9, got 1.5"),
        ({"lr": float("nan")}, "lr must be a number"),
        ({"channels": 13}, "channels must be 1 to 12, got 13"),
        ({"bits": 12}, "bits must be 8 or 16, got 12"),
        ({"loggers": "wandbb"}, "loggers must be from"),
        ({"ema": 1.0}, "ema must be"),
    ],
)
def test_a_wrong_field_is_named_with_what_fits(fields, words):
    with pytest.raises(RecipeError, match=words):
        load_recipe("digits", **fields)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("lr: [", "is not valid YAML"),
        ("- a\n- b\n", "must hold fields as `name: value`, got a list"),
        ("learning_rate: 1\n", "mine.yaml has an unknown field 'learning_rate'"),
        ("lr: abc\n", "recipe mine.yaml: lr must be a number"),
    ],
)
def test_a_wrong_file_is_named(tmp_path, content, words):
    path = tmp_path / "mine.yaml"
    path.write_text(content)
    with pytest.raises(RecipeError, match=words):
        load_recipe(path)


def test_an_unknown_recipe_names_the_shipped_ones():
    with pytest.raises(RecipeError, match=r"shipped are digits.* did you mean 'paper'"):
        load_recipe("papr")


def test_the_command_line_has_every_field():
    assert set(RecipeFlags.__annotations__) == {f.name for f in dataclasses.fields(Recipe)}


def test_model_options_leave_open_what_the_family_decides():
    options = model_options(load_recipe("paper"))
    assert options["mask_options"]["init"] == "paper"
    assert "dim" not in options
    assert model_options(load_recipe("paper", mask="none")).get("mask_options") is None
    assert model_options(load_recipe("digits", dim="96,192"))["dim"] == (96, 192)


def test_another_family_does_not_inherit_the_sizes_of_the_recipes_model():
    assert load_recipe("digits", model="vit").dim == (64,)
    other = load_recipe("digits", model="swin", depth="2,2")
    assert (other.dim, other.num_heads, other.patch_size, other.depth) == (None, None, None, (2, 2))


def test_a_field_named_twice_is_told(tmp_path):
    (tmp_path / "twice.yaml").write_text("lr: 0.1\nepochs: 1\nlr: 0.0002\n")
    with pytest.raises(RecipeError, match=r"twice\.yaml names 'lr' twice"):
        load_recipe(tmp_path / "twice.yaml")


def test_another_mask_does_not_take_over_what_the_recipe_says_of_its_own():
    assert load_recipe("small").mask_init == "conv"
    elm = load_recipe("small", mask="elm")
    assert (elm.mode, elm.mask_init) == ("multiply", None)
    assert load_recipe("small", mask="gmm", mode="multiply", mask_init="paper").mask_init == "paper"


def test_given_weights_are_not_trained_at_the_rate_of_a_start_from_nothing(tmp_path):
    (tmp_path / "mine.yaml").write_text("optimizer: muon\nlr: 6.0e-3\n")
    fine = load_recipe(tmp_path / "mine.yaml", pretrained="runs/mine")
    assert (fine.optimizer, fine.lr) == ("adamw", 1e-3)
    asked = load_recipe(tmp_path / "mine.yaml", pretrained="runs/mine", optimizer="muon", lr=2e-3)
    assert (asked.optimizer, asked.lr) == ("muon", 2e-3)


def test_a_pretrained_model_of_a_library_starts_with_the_identity_unless_asked_for():
    name = "timm:vit_tiny_patch16_224"
    assert load_recipe("small", model=name, pretrained=True).mask_init is None
    assert load_recipe("small", model=name).mask_init == "conv"
    assert load_recipe("small", model=name, pretrained=True, mask_init="local", mode="multiply").mask_init == "local"


def test_a_recipe_knows_the_masks_modes_and_stems_of_the_library():
    fields = {f.name: f for f in dataclasses.fields(Recipe)}
    assert fields["mask"].metadata["choices"] == MASKS
    assert fields["mode"].metadata["choices"] == tuple(MODES)
    assert fields["stem"].metadata["choices"] == STEMS
    for mask, kind in KINDS.items():
        options = {f.metadata["options"][mask]: f.name for f in fields.values() if mask in f.metadata["options"]}
        assert set(options) == set(kind.options)
        for start in MASK_STARTS[mask]:
            recipe = Recipe(mask=mask, mask_init=start, mode="log")
            create_mask(mask, (4, 4), 2, mode=recipe.mode, **masking_options(recipe)["mask_options"])
        with pytest.raises(ValueError, match="init of the mask must be one of"):
            create_mask(mask, (4, 4), 2, init="random")
