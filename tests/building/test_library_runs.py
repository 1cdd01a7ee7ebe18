"""`gmmvit train --model timm:NAME` and `hf:NAME_OR_PATH`, through the command and on the digits: every mask, what comes
after training, and what is said of a model that does not fit."""

import dataclasses
import json
import re
import subprocess
import sys

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from gmmvit.attach import describe
from gmmvit.building import build_model, start_model
from gmmvit.cli import main
from gmmvit.config import load_recipe
from gmmvit.report.attention import attention_maps
from gmmvit.runs import checkpoint, run_folder
from gmmvit.runs.checkpoint import load_run
from gmmvit.runs.export import export_run
from gmmvit.training.optim import parameter_groups
from gmmvit.training.run import resume, train

timm = pytest.importorskip("timm")
transformers = pytest.importorskip("transformers")

VIT = "depth=2,embed_dim=48,num_heads=3,patch_size=2"
SWIN = "embed_dim=12,depths=(1,1),num_heads=(2,2),patch_size=1,window_size=4"
HF = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 64, "patch_size": 2}
FAST = ["--epochs", "1", "--passes", "1", "--val-fraction", "0.8", "--threads", "1", "--quiet"]
LIBRARY = {
    "timm-vit": ["--model", "timm:deit_tiny_patch16_224", "--model-args", VIT],
    "timm-swin": ["--model", "timm:swin_tiny_patch4_window7_224", "--model-args", SWIN],
    "hf-vit": ["--model", "hf:FOLDER"],
}


@pytest.fixture(scope="module")
def vit_folder(tmp_path_factory):
    """A folder with the configuration of a transformers ViT for other images and classes, and its weights."""
    folder = tmp_path_factory.mktemp("hf") / "my-vit"
    torch.manual_seed(0)
    config = transformers.ViTConfig(**HF, image_size=16, num_channels=3, num_labels=4)
    transformers.ViTForImageClassification(config).save_pretrained(folder)
    return folder


def arguments(kind, vit_folder):
    return [word.replace("FOLDER", str(vit_folder)) for word in LIBRARY[kind]]


@pytest.fixture(scope="module")
def runs(tmp_path_factory, vit_folder):
    """The run of each kind of model and mask, trained on first use."""
    folder, made = tmp_path_factory.mktemp("runs"), {}

    def run(kind, mask):
        path = folder / f"{kind}-{mask}"
        if (kind, mask) not in made:
            command = ["train", *arguments(kind, vit_folder), "--mask", mask, "--out", str(path), *FAST]
            assert main(command) == 0
            made[kind, mask] = path
        return path

    return run


def donor_of(run):
    """The model that its library builds from config.yaml alone."""
    told = yaml.safe_load((run / "config.yaml").read_text())["model"]
    if told["library"] == "timm":
        return timm.create_model(told["name"], **told["arguments"])
    config = transformers.AutoConfig.for_model(**told["arguments"])
    return transformers.AutoModelForImageClassification.from_config(config)


@pytest.mark.parametrize("mask", ["none", "elm", "gmm"])
@pytest.mark.parametrize("kind", LIBRARY)
def test_every_mask_trains_and_the_weights_go_back_into_the_library(runs, kind, mask, capsys):
    run = runs(kind, mask)
    summary = json.loads((run / "summary.json").read_text())
    assert summary["model"].startswith(kind.partition("-")[0] + ":")
    assert (summary["mask_parameters"] == 0) == (mask == "none")
    loaded = load_run(run)
    assert summary["num_parameters"] == sum(p.numel() for p in loaded.model.parameters())
    assert sum(layer.action == mask for layer in describe(loaded.model)) == (0 if mask == "none" else 2)
    donor = donor_of(run)
    names = set(load_file(run / "model.safetensors"))
    assert {name for name in names if "gmm_mask" not in name} == set(donor.state_dict())
    assert any("gmm_mask" in name for name in names) == (mask != "none")
    capsys.readouterr()
    assert main(["eval", str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["top1"] == pytest.approx(summary["test_top1_best"])
    if mask == "none":
        donor.load_state_dict(load_file(run / "model.safetensors"))
        images = torch.randn(3, 1, 8, 8)
        out = donor.eval()(images)
        torch.testing.assert_close(loaded.model(images), getattr(out, "logits", out))


def test_element_wise_masks_have_the_grids_of_the_images_where_the_model_was_made_for_others():
    data = {"image_size": [32, 64], "channels": 3, "classes": list("abc")}
    recipe = load_recipe("digits", model="timm:mobilevit_xxs", mask="elm")
    options, model = start_model(recipe, data)
    grids = {layer.name: layer.grid for layer in describe(model) if layer.action == "elm"}
    assert list(grids.values()) == [(2, 4)] * 2 + [(1, 2)] * 4 + [(1, 1)] * 3
    again = build_model(yaml.safe_load(yaml.safe_dump(options)))  # as read back from a run
    again.load_state_dict(model.state_dict())
    images = torch.randn(2, 3, 32, 64)
    assert torch.equal(again.eval()(images), model.eval()(images))
    options, _ = start_model(recipe, data | {"image_size": [256, 256]})
    assert "grid" not in options["mask_options"]


@pytest.mark.parametrize(("kind", "mask"), [("timm-vit", "gmm"), ("timm-swin", "elm"), ("hf-vit", "none")])
def test_the_report_shows_masks_and_attention(runs, kind, mask):
    run = runs(kind, mask)
    assert main(["report", str(run)]) == 0
    page = (run / "report.html").read_text()
    assert ('alt="layer 2, ' in page) == (mask != "none")
    assert ("attention in " in page) == (kind != "timm-swin")
    assert (kind != "timm-swin") or "Attention is not drawn for timm:swin_tiny" in page


@pytest.mark.parametrize("kind", ["timm-vit", "hf-vit"])
def test_predicting_an_image_works(runs, kind, tmp_path, capsys):
    from PIL import Image

    Image.new("L", (20, 30), 90).save(tmp_path / "grey.png")
    assert main(["predict", str(runs(kind, "gmm")), str(tmp_path / "grey.png"), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)[0]["classes"]) == 5


@pytest.mark.parametrize("kind", LIBRARY)
def test_a_program_of_torch_computes_its_logits(runs, kind, tmp_path):
    exported = export_run(runs(kind, "gmm"), tmp_path, format="torch")
    assert exported.comparison.difference <= 1e-5
    assert torch.export.load(str(exported.path)).module()(torch.rand(3, 1, 8, 8)).shape == (3, 10)


@pytest.mark.parametrize("kind", ["timm-vit", "hf-vit"])
def test_onnxruntime_computes_its_logits_in_float16(runs, kind, tmp_path):
    pytest.importorskip("onnxruntime")
    exported = export_run(runs(kind, "gmm"), tmp_path, dtype="float16")
    assert exported.comparison.difference <= 0.01


def test_the_attention_drawn_is_that_of_the_library(runs):
    """Attention of a model without a mask, against the weights that transformers itself returns."""
    run = load_run(runs("hf-vit", "none"))
    images = torch.randint(256, (2, 1, 8, 8), dtype=torch.uint8)
    maps = attention_maps(run, images)
    assert not any("gmm_attend" in vars(module) for module in run.model.modules())
    donor = donor_of(runs("hf-vit", "none"))
    donor.load_state_dict(run.model.state_dict())
    donor.set_attn_implementation("eager")
    with torch.no_grad():
        inputs = (images / 255 - torch.tensor(run.mean)) / torch.tensor(run.std)
        expected = donor.eval()(inputs, output_attentions=True).attentions
    assert [attention.grid for attention in maps] == [(4, 4)] * 2
    for attention, weights in zip(maps, expected, strict=True):
        torch.testing.assert_close(attention.weights, weights, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", LIBRARY)
def test_interrupted_and_resumed_equals_uninterrupted_bit_for_bit(tmp_path, kind, vit_folder, monkeypatch):
    fields = dict(zip(*[iter(arguments(kind, vit_folder))] * 2, strict=True))
    fields = {name.removeprefix("--").replace("-", "_"): value for name, value in fields.items()}
    fields |= {"epochs": 3, "passes": 1, "val_fraction": 0.8, "threads": 1, "drop_path": 0.2, "mix_prob": 0.5}
    recipe = load_recipe("digits", **fields)
    train(recipe, tmp_path / "whole", quiet=True)
    saves = []

    def killed(folder, state):
        saves.append(state["epoch"])
        if state["epoch"] == 2:
            raise KeyboardInterrupt
        save(folder, state)

    save = checkpoint.save_checkpoint
    monkeypatch.setattr(checkpoint, "save_checkpoint", killed)
    with pytest.raises(KeyboardInterrupt):
        train(recipe, tmp_path / "cut", quiet=True)
    monkeypatch.undo()
    assert saves == [1, 2]
    resume(tmp_path / "cut", quiet=True)
    for name in ("last.safetensors", "model.safetensors"):
        whole, cut = (load_file(tmp_path / run / name) for run in ("whole", "cut"))
        assert all(torch.equal(whole[key], cut[key]) for key in whole), name


def test_a_run_of_before_modes_were_saved_by_name_goes_on_and_is_given_on(tmp_path, vit_folder):
    """Its marks are nine numbers, of which the first is the mode."""
    old, given = tmp_path / "old", tmp_path / "given"
    command = ["train", *arguments("timm-vit", vit_folder), *FAST]
    assert main([*command, "--out", str(old)]) == 0
    expected = load_run(old).logits(torch.zeros(1, 1, 8, 8, dtype=torch.uint8))

    def numbered(state):
        return {
            n: torch.tensor([0, *t[:8].tolist()]) if n.endswith("site._extra_state") else t for n, t in state.items()
        }

    for path in (old / "model.safetensors", old / "last.safetensors"):
        save_file(numbered(load_file(path)), path)
    saved = torch.load(old / "checkpoint.pt")
    saved["model"], saved["best"]["weights"] = numbered(saved["model"]), numbered(saved["best"]["weights"])
    torch.save(saved, old / "checkpoint.pt")
    assert torch.equal(load_run(old).logits(torch.zeros(1, 1, 8, 8, dtype=torch.uint8)), expected)
    assert main([*command, "--out", str(given), "--pretrained", str(old)]) == 0
    for epochs in ("2", "3"):
        assert main(["resume", str(old), "--epochs", epochs, "--quiet"]) == 0


def test_the_config_repeats_the_run(runs, tmp_path):
    run = runs("timm-vit", "gmm")
    assert main(["train", "--recipe", str(run / "config.yaml"), "--out", str(tmp_path / "again"), "--quiet"]) == 0
    first, again = (load_file(folder / "last.safetensors") for folder in (run, tmp_path / "again"))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert yaml.safe_load((run / "config.yaml").read_text())["versions"]["timm"] == timm.__version__


def test_a_run_needs_neither_the_network_nor_the_folder_its_model_came_from(vit_folder, tmp_path):
    moved = vit_folder.parent / "moved"
    command = ["train", "--model", f"hf:{vit_folder}", "--out", str(tmp_path / "run"), *FAST]
    assert main(command) == 0
    vit_folder.rename(moved)
    try:
        assert main(["eval", str(tmp_path / "run")]) == 0
        (tmp_path / "run" / "summary.json").unlink()
        resume(tmp_path / "run", quiet=True)
    finally:
        moved.rename(vit_folder)


def test_masks_positions_and_tokens_have_no_weight_decay(runs):
    for kind in ("timm-vit", "hf-vit"):
        run = runs(kind, "gmm")
        model, recipe = load_run(run).model, run_folder.recipe_of(run)
        groups = {group["name"]: {id(p) for p in group["params"]} for group in parameter_groups(model, recipe)}
        kinds = {name: next(g for g, ids in groups.items() if id(p) in ids) for name, p in model.named_parameters()}
        assert {kinds[name] for name in kinds if "gmm_mask" in name} == {"mask"}
        spared = [name for name in kinds if "pos" in name or "token" in name]
        assert len(spared) == 2
        assert {kinds[name] for name in spared} == {"no_decay"}
        decayed = [name for name in kinds if kinds[name] == "decay"]
        assert all(name.endswith(".weight") for name in decayed)
        assert recipe.mask_weight_decay == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["timm:deit_tinny_patch16_224"], "did you mean 'deit_tiny_patch16_224'"),
        (["timm:local-dir:/x"], "is not timm's own name; give the architecture here, weights with --pretrained"),
        (["timm:deit_tiny_patch16_224"], r"cannot take images of 8 x 8 .* designed for 224 x 224"),
        (["timm:deit_tiny_patch16_224", "--dim", "12"], "dim is a field of gmmvit's own families"),
        (["timm:deit_tiny_patch16_224", "--model-args", "foo=1"], "has no argument 'foo'"),
        (["timm:deit_tiny_patch16_224", "--model-args", "num_heads=5"], "dim should be divisible by num_heads"),
        (["timm:deit_tiny_patch16_224", "--model-args", "num_classes=5"], "the data or another field .* decides it"),
        (
            ["timm:deit_tiny_patch16_224", "--model-args", "embed_dim=3000000"],
            "embed_dim=3000000.* were asked for at once",
        ),
        (["timm:deit_tiny_patch16_224", "--model-args", "depth"], "names and values like depth=4,embed_dim=64"),
        (["timm:resnet18"], r"cannot carry a mask \(--mask none trains it\): .*no attention at all"),
        (["timm:xcit_nano_12_p8_224", "--image-size", "16"], "attends across channels, not patches"),
        (["timm:deit_tiny_patch16_224", "--model-args", VIT, "--pretrained", "no.pth"], "no.pth does not exist"),
        (["hf:vitt"], "no image classifier 'vitt'; did you mean 'vit'"),
        (["hf:./nowhere"], "needs a config.json|not a folder with a config.json"),
        (["hf:vit", "--model-args", "hiden_size=4"], "did you mean 'hidden_size'"),
        (["hf:vit", "--model-args", "hidden_size=many"], "hidden_size=many.*: Validation error"),
        (["hf:vit", "--model-args", "hidden_size=1200000"], "hidden_size=1200000.* were asked for at once"),
        (["hf:vit", "--pretrained", "true"], "a model type without weights"),
        (["vit", "--model-args", "depth=1"], "model_args are for models of timm: and hf:"),
        (["vit", "--pretrained", "true"], "pretrained must be false or a file or folder of weights"),
    ],
    ids=" ".join,
)
def test_what_does_not_fit_is_one_sentence(words, said, tmp_path, monkeypatch, capsys):
    if words[0] == "hf:vit":
        words = [*words, "--mask", "none"]
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--model", *words, "--out", "never", *FAST]) == 2
    error = capsys.readouterr().err
    assert re.search(said, error), error
    assert error.startswith("gmmvit: ")
    assert len(error.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_folder_named_like_a_type_of_models_is_no_hindrance(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "vit").mkdir()
    command = ["train", "--model", "hf:vit", "--model-args", ",".join(f"{k}={v}" for k, v in HF.items())]
    assert main([*command, "--out", "run", *FAST]) == 0
    (tmp_path / "mine").mkdir()
    assert main(["train", "--model", "hf:mine", "--out", "other", *FAST]) == 2


@pytest.mark.parametrize(("model", "package"), [("timm:x", "timm"), ("hf:x", "transformers")])
def test_a_missing_library_is_named_with_the_command_that_installs_it(model, package):
    code = f"import sys; sys.modules[{package!r}] = None; from gmmvit.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "train", "--quiet", "--model", model]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == (f"gmmvit: models of {model[:-2]}: need {package}; install it: pip install {package}\n")


def test_arguments_are_typed_and_survive_yaml():
    text = "depth=2,drop=0.5,act=gelu,depths=(2,2),flag=True,none=None,name='a b'"
    recipe = load_recipe("digits", model="timm:x", model_args=text)
    expected = {"depth": 2, "drop": 0.5, "act": "gelu", "depths": [2, 2], "flag": True, "none": None, "name": "a b"}
    assert recipe.model_args == expected
    assert dataclasses.replace(recipe, model_args=expected) == recipe
    assert (recipe.dim, recipe.patch_size) == (None, None)  # those in the recipe file belong to another model


def test_the_default_folder_is_named_after_the_model(tmp_path, monkeypatch, vit_folder):
    monkeypatch.chdir(tmp_path)
    for kind in ("timm-vit", "hf-vit"):
        assert main(["train", *arguments(kind, vit_folder), "--mask", "none", *FAST]) == 0
    names = sorted(path.name for path in (tmp_path / "runs").iterdir())
    assert names == ["digits-my-vit-none-s0", "digits-timm-deit_tiny_patch16_224-none-s0"]
