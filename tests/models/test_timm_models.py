"""The families in timm: registry, arguments, features, layer decay, saving and loading, timm's scripts."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

timm = pytest.importorskip("timm", reason="needs the timm extra")

from gmmvit import create_model  # noqa: E402
from gmmvit.models import FAMILIES, SIZES  # noqa: E402
from gmmvit.models.timm import MODELS  # noqa: E402
from gmmvit.models.vit import ViT  # noqa: E402

SMALL = {
    "vit": {"dim": 24, "depth": 3, "num_heads": 3},
    "swin": {"dim": 12, "depth": (1, 1, 2), "num_heads": 2},
    "cait": {"dim": 24, "depth": 3, "class_depth": 1, "num_heads": 3, "head_dim": 8, "mlp_ratio": 2.0},
    "pit": {"dim": 16, "depth": (1, 1, 1), "num_heads": 2},
    "t2t": {"dim": 24, "depth": 3, "num_heads": 3, "token_dim": 8},
}
DOCS = Path(__file__).parents[2] / "docs" / "timm.md"


@pytest.fixture(params=list(SMALL))
def family(request):
    return request.param


def small(family, mask="gmm", **options):
    torch.manual_seed(0)
    name = f"gmmvit_{family}_tiny" + ("" if mask == "none" else f"_{mask}")
    return timm.create_model(name, **{**SMALL[family], **options}).eval()


def images(channels=3, side=32, count=2):
    return torch.randn(count, channels, side, side, generator=torch.Generator().manual_seed(1))


def save(model, folder):
    if tuple(map(int, timm.__version__.split(".")[:3])) < (1, 0, 31):
        pytest.skip("before 1.0.31 timm does not save a model's arguments with it")
    timm.models.save_for_hf(model, folder, safe_serialization=True)
    return f"local-dir:{folder}"


def test_every_size_and_mask_is_in_the_registry():
    names = timm.list_models("gmmvit_*")
    assert set(names) == set(MODELS)
    assert len(names) == 3 * sum(len(SIZES[family]) for family in FAMILIES)
    assert set(timm.list_models("gmmvit_*", name_matches_cfg=True)) == set(names)
    assert {"gmmvit_vit_tiny", "gmmvit_vit_d8_256_elm", "gmmvit_cait_small_gmm"} <= set(names)


@pytest.mark.parametrize("name", MODELS)
def test_a_name_builds_what_it_says(name):
    family, size, mask = MODELS[name]
    depth = SMALL[family]["depth"]  # sixty layers are slow to build, even without memory
    with torch.device("meta"):
        ours, theirs = create_model(family, size=size, mask=mask, depth=depth), timm.create_model(name, depth=depth)
    assert {n: p.shape for n, p in theirs.named_parameters()} == {n: p.shape for n, p in ours.named_parameters()}
    assert theirs.default_cfg["input_size"] == (3, 32, 32)
    assert theirs.default_cfg["architecture"] == name


def test_timms_arguments_reach_the_model(family):
    model = small(family, num_classes=7, in_chans=2, img_size=(64, 32), drop_path_rate=0.2, drop_rate=0.3)
    assert model(torch.randn(2, 2, 64, 32)).shape == (2, 7)
    assert (model.in_chans, model.num_classes, model.head_drop.p) == (2, 7, 0.3)
    assert max(module.p for name, module in model.named_modules() if name.endswith("drop_path")) == 0.2
    with pytest.raises(TypeError, match="no_such_argument"):
        small(family, no_such_argument=1)
    with pytest.raises(RuntimeError, match="No pretrained weights exist"):
        small(family, pretrained=True)


def test_logits_are_those_of_the_family(family):
    theirs = small(family)
    ours = create_model(family, mask="gmm", **SMALL[family]).eval()
    ours.load_state_dict(theirs.state_dict())
    assert_close(theirs(images()), ours(images()), rtol=0, atol=0)
    tokens = theirs.forward_features(images())
    assert theirs.forward_head(tokens, pre_logits=True).shape == (2, theirs.num_features)


def test_pooling_can_be_chosen_and_changed():
    model = small("vit", global_pool="token")
    tokens = model.forward_features(images())
    assert_close(model.forward_head(tokens, pre_logits=True), model.norm(tokens[:, 0]))
    model.reset_classifier(0, "avg")
    assert_close(model(images()), model.norm(tokens[:, 1:].mean(1)))
    model.reset_classifier(0, "")
    assert_close(model(images()), model.norm(tokens))
    with pytest.raises(ValueError, match=r"global_pool must be one of .*'avg'.* got 'max'"):
        model.reset_classifier(5, "max")
    with pytest.raises(ValueError, match="needs a class token"):
        small("vit").reset_classifier(5, "token")


def test_classifier_keeps_device_type_and_mode(family):
    model = small(family, num_classes=0).to("meta", torch.float64)
    model.reset_classifier(4)
    assert (model.get_classifier().weight.device.type, model.get_classifier().weight.dtype) == ("meta", torch.float64)
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize("indices", [2, (0, 2), (-1,), [1]])
def test_features_only_gives_the_features_on_the_way(family, indices):
    whole = small(family)
    features = small(family, features_only=True, out_indices=indices)
    maps = features(images())
    assert_close(maps, whole.forward_intermediates(images(), indices=indices, intermediates_only=True))
    assert [m.shape[1] for m in maps] == features.feature_info.channels()
    assert [32 // m.shape[2] for m in maps] == features.feature_info.reduction()


def test_feature_info_names_modules_that_are_called(family):
    model, called = small(family), []
    for info in model.feature_info:
        model.get_submodule(info["module"]).register_forward_hook(lambda *_, name=info["module"]: called.append(name))
    model(images())
    assert called == [info["module"] for info in model.feature_info]


def test_pruning_leaves_no_parameter_without_use(family):
    model = small(family).train()
    taken = model.prune_intermediate_layers([1], prune_norm=True)
    tokens, maps = model.forward_intermediates(images(), indices=taken)
    (tokens.square().sum() + maps[0].square().sum()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    assert model(images()).shape == tokens.shape


def test_pruning_behind_the_last_feature_keeps_the_logits(family):
    model = small(family)
    before = model(images())
    assert model.prune_intermediate_layers([-1], prune_head=False) == [2]
    assert_close(model(images()), before, rtol=0, atol=0)


def test_gradient_checkpointing_keeps_gradients(family):
    gradients = []
    for enable in (False, True):
        model = small(family).train()
        model.set_grad_checkpointing(enable)
        model(images()).square().sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    assert_close(gradients[1], gradients[0])


@pytest.mark.parametrize("coarse", [False, True])
def test_layer_groups_grow_from_input_to_output(family, coarse):
    from timm.models import group_parameters

    model = small(family)
    group = group_parameters(model, model.group_matcher(coarse), reverse=True)
    order = [next(n for n in group if n.startswith("patch_embed"))]
    order += [next(n for n in group if n.startswith(info["module"])) for info in model.feature_info]
    order += ["head.weight"]
    assert [group[name] for name in order] == sorted({group[name] for name in order})
    assert group["norm.weight"] == group[order[-2]]


def test_layer_decay_spares_the_mask_from_weight_decay():
    from timm.optim import create_optimizer_v2

    model = small("vit")
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1.0, weight_decay=0.1, layer_decay=0.5)
    settings = {id(p): (g["lr_scale"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    place = {name: settings[id(p)] for name, p in model.named_parameters()}
    assert place["head.weight"] == (1.0, 0.1)
    assert place["blocks.2.attn.mask.alpha"] == (0.5, 0.0)
    assert place["blocks.1.attn.qkv.weight"] == (0.25, 0.1)
    assert place["pos_embed"] == (0.0625, 0.0)


@pytest.mark.parametrize("mask", ["elm", "gmm"])
def test_a_local_dir_gives_the_model_back(family, mask, tmp_path):
    model = small(family, mask, num_classes=5, in_chans=2)
    back = timm.create_model(save(model, tmp_path), pretrained=True).eval()
    assert_close(back(images(2)), model(images(2)), rtol=0, atol=0)
    assert back.pretrained_cfg["num_classes"] == 5


def test_a_local_dir_fits_another_task(family, tmp_path):
    source = save(small(family, "elm" if family != "swin" else "gmm", num_classes=5), tmp_path)
    assert timm.create_model(source, pretrained=True, num_classes=0)(images()).dim() == 2
    other = timm.create_model(source, pretrained=True, num_classes=4, img_size=64)
    assert other(images(side=64)).shape == (2, 4)
    if family == "t2t":
        with pytest.raises(ValueError, match="T2T weights for 3 channels do not fit images of 1 channels"):
            timm.create_model(source, pretrained=True, in_chans=1)
        return
    grey = images(1)
    model, one = (timm.create_model(source, pretrained=True, in_chans=channels).eval() for channels in (3, 1))
    assert_close(one(grey), model(grey.expand(-1, 3, -1, -1)))


def test_interpolated_weights_are_those_of_the_run_time(tmp_path):
    model = small("vit", "gmm")
    other = timm.create_model(save(model, tmp_path), pretrained=True, img_size=64).eval()
    assert_close(other(images(side=64)), model(images(side=64)))


def test_a_pool_changed_later_is_saved(tmp_path):
    model = small("pit")
    model.reset_classifier(6, "avg")
    back = timm.create_model(save(model, tmp_path), pretrained=True).eval()
    assert_close(back(images()), model(images()), rtol=0, atol=0)


def test_weights_of_another_model_are_named(tmp_path):
    with pytest.raises(RuntimeError, match=r"patch_embed\.proj\.weight"):
        timm.create_model(save(small("vit"), tmp_path), pretrained=True, patch_size=8)


def test_weights_of_this_library_load_by_path(family, tmp_path):
    ours = create_model(family, mask="elm", **SMALL[family]).eval()
    ours.save_pretrained(tmp_path)
    theirs = small(family, "elm", checkpoint_path=str(tmp_path / "model.safetensors"))
    assert_close(theirs(images()), ours(images()), rtol=0, atol=0)


def test_both_ways_of_saving_name_their_reader(tmp_path):
    model = small("vit")
    model.save_pretrained(tmp_path)
    assert_close(ViT.from_pretrained(tmp_path)(images()), model(images()), rtol=0, atol=0)
    with pytest.raises(TypeError, match=r"ViT\.from_pretrained .* timm\.create_model\('local-dir:"):
        type(model).from_pretrained(tmp_path)


@pytest.fixture
def picture_folder(tmp_path):
    from PIL import Image

    for split, count in (("train", 8), ("val", 4)):
        for label, grey in (("dark", 40), ("light", 200)):
            folder = tmp_path / "images" / split / label
            folder.mkdir(parents=True)
            for index in range(count):
                Image.new("RGB", (32, 32), (grey + index,) * 3).save(folder / f"{index}.png")
    return tmp_path / "images"


def test_timms_data_and_optimizer_train_a_model(picture_folder):
    from timm.data import create_dataset, create_loader, resolve_data_config
    from timm.optim import create_optimizer_v2

    model = small("vit", num_classes=2, drop_path_rate=0.1).train()
    config = resolve_data_config({}, model=model)
    dataset = create_dataset("", root=picture_folder, split="train", is_training=True)
    workers = {"num_workers": 0, "persistent_workers": False, "use_prefetcher": False}
    statistics = {"mean": config["mean"], "std": config["std"]}
    loader = create_loader(dataset, config["input_size"], 8, is_training=True, **workers, **statistics)
    optimizer = create_optimizer_v2(model, opt="adamw", lr=3e-3, layer_decay=0.9)
    losses = []
    for _ in range(10):
        for batch, labels in loader:
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(batch), labels)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert sum(losses[-4:]) < sum(losses[:4]) / 2


def run_as_documented(script, *arguments):
    prelude = re.search(r"^PRELUDE='(.+)'$", DOCS.read_text(), re.MULTILINE)
    assert prelude, f"{DOCS} no longer says how timm's scripts are started"
    command = [sys.executable, "-c", prelude.group(1), str(script), *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_script_started_as_documented_knows_the_models(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("import sys, timm\nif __name__ == '__main__': print(sys.argv[1:], timm.is_model(sys.argv[2]))\n")
    assert run_as_documented(script, "--model", "gmmvit_pit_tiny_gmm") == "['--model', 'gmmvit_pit_tiny_gmm'] True\n"


def test_timms_own_scripts_train_and_validate(picture_folder, tmp_path):
    scripts = os.environ.get("TIMM_SCRIPTS")
    if scripts is None:
        pytest.skip("TIMM_SCRIPTS does not name the folder of timm's train.py and validate.py")
    model = ["--model", "gmmvit_vit_tiny_gmm", "--num-classes", 2, "--model-kwargs", "depth=1"]
    model += ["--device", "cpu", "--workers", 0, "--batch-size", 8]
    train = [picture_folder, *model, "--epochs", 1, "--warmup-epochs", 0, "--output", tmp_path, "--experiment", "run"]
    run_as_documented(Path(scripts) / "train.py", *train)
    checkpoint = tmp_path / "run" / "model_best.pth.tar"
    validate = [picture_folder, "--split", "val", *model, "--checkpoint", checkpoint]
    assert '"top1"' in run_as_documented(Path(scripts) / "validate.py", *validate)


def test_the_old_place_still_registers_and_says_the_new_one():
    code = "import gmmvit.timm_models, timm; assert 'gmmvit_cait_tiny_gmm' in timm.list_models('gmmvit*')"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert "gmmvit.timm_models is now gmmvit.models.timm" in done.stderr
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
