"""Somebody else's recipe or run names a model of timm or transformers: nothing is opened, fetched or executed."""

import shutil

import pytest
import torch
import yaml

from gmmvit.building import build_model
from gmmvit.building.timm import known_arguments
from gmmvit.cli import main
from gmmvit.config import load_recipe
from gmmvit.training.run import train

timm = pytest.importorskip("timm")
transformers = pytest.importorskip("transformers")

VIT = "depth=1,embed_dim=24,num_heads=2,patch_size=4"
HF = "hidden_size=24,num_hidden_layers=1,num_attention_heads=2,intermediate_size=32,patch_size=4"
TIMM = {"model": "timm:vit_tiny_patch16_224", "model_args": VIT}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A sound run of each library."""
    folder = tmp_path_factory.mktemp("runs")
    fields = {"epochs": 1, "passes": 1, "threads": 1, "val_fraction": 0.8}
    for name, model in (("timm", TIMM), ("hf", {"model": "hf:vit", "model_args": HF})):
        train(load_recipe("digits", **fields, **model), folder / name, quiet=True)
    return folder


@pytest.fixture
def weights(runs, tmp_path):
    """A file that any library would read: if only its content were refused, the test would miss a fault."""
    made = timm.create_model("vit_tiny_patch16_224", num_classes=10, in_chans=1, img_size=8, depth=1, embed_dim=24,
                             num_heads=2, patch_size=4)  # fmt: skip
    torch.save(made.state_dict(), tmp_path / "weights.pth")
    return str(tmp_path / "weights.pth")


def edited(run, target, change):
    shutil.copytree(run, target)
    content = yaml.safe_load((target / "config.yaml").read_text())
    change(content["model"])
    (target / "config.yaml").write_text(yaml.safe_dump(content))
    return target


TIMM_PLACES = {
    "checkpoint_path": {"checkpoint_path": "FILE"},
    "pretrained": {"pretrained": True},
    "pretrained_cfg": {"pretrained_cfg": {"file": "FILE"}, "pretrained": True},
    "pretrained_cfg_overlay": {"pretrained_cfg_overlay": {"url": "http://localhost/x"}},
    "cache_dir": {"cache_dir": "FILE"},
    "pruned": {"pruned": True},
    "global_pool": {"global_pool": "../avg"},
    "norm_layer": {"norm_layer": {"__class__": "os.system"}},
}


@pytest.mark.parametrize(
    ("name", "command"),
    [*((name, "predict") for name in TIMM_PLACES), ("checkpoint_path", "report"), ("checkpoint_path", "resume")],
)
def test_a_run_of_timm_that_names_a_file_is_refused(runs, tmp_path, weights, capsys, name, command):
    places = {k: weights if v == "FILE" else v for k, v in TIMM_PLACES[name].items()}
    run = edited(runs / "timm", tmp_path / "run", lambda model: model["arguments"].update(places))
    if command == "resume":
        (run / "summary.json").unlink()
        state = torch.load(run / "checkpoint.pt", weights_only=True)
        torch.save({**state, "epoch": 0}, run / "checkpoint.pt")
    status = main([command, str(run), *(["x.png"] if command == "predict" else [])])
    error = capsys.readouterr().err
    if command == "report":  # the page is written, with the error in place of what needs the model
        assert name in (run / "report.html").read_text()
    else:
        assert status == 1
        assert "does not describe a model: timm:vit_tiny_patch16_224 " in error
        assert any(str(word) in error for word in ("has no argument", "cannot hold"))


@pytest.mark.parametrize(
    "arguments",
    [
        {"_attn_implementation": "org/kernel"},
        {"attn_implementation": "org/kernel"},
        {"auto_map": {"AutoModelForImageClassification": "org/repo--code.Model"}},
        {"model_type": "timm_wrapper", "architecture": "local-dir:/etc"},
        {"model_type": "timm_wrapper", "architecture": "resnet18", "model_args": {"checkpoint_path": "evil.pth"}},
        {"model_type": "llama"},
        {"hidden_act": "org/activation"},
        {"quantization_config": {"quant_method": "x"}},
    ],
    ids=str,
)
def test_a_run_of_transformers_that_names_a_place_is_refused(runs, tmp_path, capsys, arguments):
    def change(model):
        if arguments.get("model_type", "vit") != "vit":
            model["arguments"].clear()
        model["arguments"].update(arguments)

    run = edited(runs / "hf", tmp_path / "run", change)
    assert main(["predict", str(run), "x.png"]) == 1
    error = capsys.readouterr().err
    assert "does not describe a model: " in error
    assert "hf:" in error or "timm:" in error or "transformers has no image classifier" in error


@pytest.mark.parametrize("name", ["hf-hub:org/repo", "local-dir:/etc", "../x", 7])
def test_a_name_that_is_a_place_is_refused_when_a_run_is_loaded(runs, tmp_path, capsys, name):
    run = edited(runs / "timm", tmp_path / "run", lambda model: model.update(name=name))
    assert main(["predict", str(run), "x.png"]) == 1
    assert "does not describe a model: " in capsys.readouterr().err


@pytest.mark.parametrize("name", [name for name in TIMM_PLACES if name != "pruned"])
def test_a_recipe_that_names_a_file_is_refused(tmp_path, weights, capsys, name):
    places = {k: weights if v == "FILE" else v for k, v in TIMM_PLACES[name].items()}
    recipe = {"model": TIMM["model"], "model_args": {"depth": 1, "embed_dim": 24, "num_heads": 2} | places}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert main(["train", "--recipe", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "run"), "--quiet"]) == 2
    assert "(model_args) " in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.fixture
def hf_folder(tmp_path):
    config = transformers.ViTConfig(hidden_size=24, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
                                    patch_size=4, image_size=8, num_channels=1)  # fmt: skip
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path / "vit")
    return tmp_path / "vit"


def test_a_folder_of_transformers_brings_no_code(tmp_path, hf_folder, monkeypatch):
    """Its config.json names code for the model, and an attention on the Hub: both are ignored."""
    text = (hf_folder / "config.json").read_text()
    named = '"auto_map": {"AutoModelForImageClassification": "code.Model"}, "_attn_implementation": "org/kernel",'
    (hf_folder / "config.json").write_text(text.replace("{", "{" + named, 1))
    (hf_folder / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Model: pass\n")
    monkeypatch.setattr("builtins.input", lambda *text: "y")  # if it asked whether to run the code
    fields = {"epochs": 1, "passes": 1, "threads": 1, "val_fraction": 0.8, "pretrained": True}
    train(load_recipe("digits", model=f"hf:{hf_folder}", **fields), tmp_path / "run", quiet=True)
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert not {"auto_map", "_attn_implementation"} & set(config["model"]["arguments"])
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("vit_tiny_patch16_224.augreg_in21k", {"depth": 1, "embed_dim": 24, "num_heads": 2, "class_token": False,
                                              "global_pool": "avg", "act_layer": "gelu_tanh"}),
        ("swinv2_tiny_window8_256", {"depths": [1, 1], "embed_dim": 12, "num_heads": [2, 2], "window_size": 4,
                                     "patch_size": 2, "img_size": 16, "pretrained_window_sizes": [4, 4]}),
        ("naflexvit_base_patch16_gap", {"depth": 1, "embed_dim": 24, "num_heads": 2, "patch_size": 4}),
        ("resnet18", {"base_width": 64}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_arguments_of_every_kind_of_model_are_let_in(name, arguments):
    options = {"library": "timm", "name": name, "arguments": {"num_classes": 3} | arguments}
    assert build_model(options | {"mask": "none", "mode": "multiply"}) is not None


def test_every_type_of_transformers_is_let_in():
    from gmmvit.building.transformers import _checked, _harmless, _types, known_fields

    for name in _types():
        config = transformers.AutoConfig.for_model(name)
        arguments = _harmless(config.to_dict(), known_fields(name))
        assert _checked(arguments, name).model_type == name


def test_nothing_of_timms_machinery_is_an_argument():
    taken = known_arguments("vit_tiny_patch16_224")
    assert {"depth", "img_size", "drop_path_rate"} <= taken
    assert not taken & {"checkpoint_path", "pretrained", "pretrained_cfg", "cache_dir", "features_only", "pruned"}
