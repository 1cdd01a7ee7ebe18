"""Every command refuses a damaged or edited run folder, naming file and field."""

import shutil

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import gmmvit
from gmmvit.cli import main
from gmmvit.runs.files import RunError
from gmmvit.runs.run_folder import read_rows
from gmmvit.training.run import resume, resume_several, train, train_several

TINY = {"dim": 16, "depth": 1, "num_heads": 2, "passes": 1, "warmup_epochs": 0, "threads": 1, "epochs": 2}
DEEP = "[" * 100_000
NAN, INFINITE = float("nan"), float("inf")


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sound") / "run"
    train(gmmvit.load_recipe("digits", **TINY), folder, quiet=True)
    return folder


@pytest.fixture
def run(sound, tmp_path):
    return shutil.copytree(sound, tmp_path / "run")


def stopped(folder):
    """The run as it was after its first epoch."""
    (folder / "summary.json").unlink()
    return edit_checkpoint(folder, lambda state: state.update(epoch=1))


def edit_checkpoint(folder, change):
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    change(state)
    torch.save(state, folder / "checkpoint.pt")
    return folder


def fails(capsys, *arguments):
    """The single error line of a command that ends with status 1."""
    assert main([str(argument) for argument in arguments]) == 1
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    return error


@pytest.mark.parametrize("value", [NAN, INFINITE])
def test_weights_that_are_not_finite_are_refused_by_name(run, capsys, tmp_path, value):
    weights = load_file(run / "model.safetensors")
    weights["head.bias"][3] = value
    save_file(weights, run / "model.safetensors")
    told = (
        f"gmmvit: {run / 'model.safetensors'} is damaged: head.bias holds numbers that are not finite; restore a copy"
    )
    for command in (["eval", run], ["predict", run, "any.png"], ["export", run, "--format", "torch"]):
        assert fails(capsys, *command).startswith(told)
    assert main(["eval", str(run), "--weights", "last"]) == 0
    assert main(["report", str(run)]) == 0
    assert "head.bias holds numbers that are not finite" in (run / "report.html").read_text()


CHECKPOINTS = {
    "no optimizer state": (lambda s: s["optimizer"].update(state={}), "it has no state of the optimizer"),
    "no optimizer": (lambda s: s["optimizer"].clear(), "it lacks 'state'"),
    "moment of another shape": (lambda s: s["optimizer"]["state"][2].update(exp_avg=torch.zeros(1)), "exp_avg of para"),
    "moment that is NaN": (lambda s: s["optimizer"]["state"][2]["exp_avg_sq"].fill_(NAN), "exp_avg_sq of parameter 2"),
    "moment that is missing": (lambda s: s["optimizer"]["state"][2].pop("exp_avg"), "exp_avg of parameter 2"),
    "no step": (lambda s: s["optimizer"]["state"][2].pop("step"), "step of parameter 2"),
    "a parameter too many": (
        lambda s: s["optimizer"]["state"].update({999: s["optimizer"]["state"][0]}),
        "exp_avg of parameter 999",
    ),
    "infinite weights": (lambda s: s["model"]["head.bias"].fill_(INFINITE), "head.bias (model) holds numbers that are"),
    "best weights NaN": (lambda s: s["best"]["weights"]["head.bias"].fill_(NAN), "head.bias (best) holds numbers that"),
    "no best weights": (lambda s: s["best"].update(weights={}), "its best weights do not belong to its model"),
    "best weights of another model": (lambda s: s["best"]["weights"].update({"head.bias": torch.zeros(3)}), "its best"),
    "no scaler": (lambda s: s.pop("scaler"), "it is not a training state"),
}


@pytest.mark.parametrize(("change", "words"), CHECKPOINTS.values(), ids=CHECKPOINTS)
def test_a_checkpoint_is_taken_whole_or_not_at_all(run, capsys, change, words):
    edit_checkpoint(stopped(run), change)
    kept = (run / "model.safetensors").read_bytes()
    error = fails(capsys, "resume", run, "--quiet")
    assert str(run / "checkpoint.pt") in error
    assert words in error
    assert (run / "model.safetensors").read_bytes() == kept


def test_a_sound_checkpoint_goes_on(run):
    assert resume(stopped(run), quiet=True)["epochs"] == 2


CONFIGS = {
    "mean of two": (lambda c: c["data"].update(mean=[0.1, 0.2]), "data.mean must hold a number for each of 1 channels"),
    "mean of words": (lambda c: c["data"].update(mean=["grey"]), "data.mean must be a list of finite numbers"),
    "mean NaN": (lambda c: c["data"].update(mean=[NAN]), "data.mean must be a list of finite numbers, got [nan]"),
    "std 0": (lambda c: c["data"].update(std=[0.0]), "data.std must be a list of finite numbers above 0, got [0.0]"),
    "std true": (lambda c: c["data"].update(std=[True]), "data.std must be a list of finite numbers above 0"),
    "no std": (lambda c: c["data"].pop("std"), "data.std must be a list"),
    "no classes": (lambda c: c["data"].update(classes=[]), "data.classes must be a list of two or more names"),
    "class 7": (lambda c: c["data"]["classes"].append(7), "data.classes must be a list of two or more names"),
    "a class less": (lambda c: c["data"]["classes"].pop(), "with num_classes 10, and data.classes says 9"),
    "channels": (lambda c: c["data"].update(channels=3, mean=[0.5] * 3, std=[0.5] * 3), "data.channels says 3"),
    "image size": (lambda c: c["data"].update(image_size=[8, 16]), "image_size [8, 8], and data.image_size says"),
    "fit": (lambda c: c["data"].update(fit="cut"), "data.fit must be crop, stretch or pad, got 'cut'"),
    "task": (lambda c: c["data"].update(task=[]), "data.task must be one_label or several_labels, got []"),
    "larger than memory": (lambda c: c["model"].update(dim=2**25), "dim 33554432, depth 1, num_heads 2"),
}


@pytest.mark.parametrize(("change", "words"), CONFIGS.values(), ids=CONFIGS)
def test_an_edited_config_is_told_by_its_field(run, capsys, change, words):
    content = yaml.safe_load((run / "config.yaml").read_text())
    change(content)
    (run / "config.yaml").write_text(yaml.safe_dump(content))
    assert words in fails(capsys, "eval", run)


def test_classes_that_the_weights_do_not_have_are_told(run, capsys):
    content = yaml.safe_load((run / "config.yaml").read_text())
    content["data"]["classes"].pop()
    content["model"]["num_classes"] = 9
    (run / "config.yaml").write_text(yaml.safe_dump(content))
    error = fails(capsys, "eval", run)
    assert f"{run / 'model.safetensors'} does not hold the weights of this run" in error
    assert "size mismatch for head.weight" in error


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("config.yaml", DEEP, "config.yaml is not valid YAML: it is nested too deeply"),
        ("summary.json", DEEP, "summary.json is not valid JSON: it is nested too deeply"),
        ("metrics.jsonl", f"{DEEP}\n{{}}\n", "metrics.jsonl is damaged in line 1"),
    ],
    ids=["config", "summary", "metrics"],
)
def test_nesting_without_end_is_told_in_a_sentence(run, capsys, file, content, words):
    (run / file).write_text(content)
    assert words in fails(capsys, "report", run)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: gmmvit.train("digits"), "recipe must be a Recipe, as gmmvit.load_recipe.* makes it, got 'digits'"),
        (lambda: gmmvit.train_several(["digits"]), "recipe must be a Recipe"),
        (lambda: gmmvit.load_run(None), "a run folder must be given as a path, got None"),
        (lambda: gmmvit.resume(None), "a run folder must be given as a path, got None"),
    ],
)
def test_arguments_of_another_type_are_told_in_a_sentence(call, words):
    with pytest.raises(TypeError, match=words):
        call()


@pytest.mark.parametrize("device", ["junk", "meta", "cuda:99", 3.5, None])
def test_a_device_that_is_not_there_is_told_in_a_sentence(run, device):
    with pytest.raises(ValueError, match="device must exist"):
        gmmvit.load_run(run, device=device)


@pytest.mark.parametrize("length", [245, 250, 255])
def test_a_file_of_the_longest_name_is_written(run, tmp_path, length):
    out = tmp_path / ("x" * (length - 5) + ".html")
    assert main(["report", str(run), "--out", str(out)]) == 0
    assert out.is_file()


@pytest.fixture
def several(tmp_path):
    """Two runs stopped after their first epoch."""
    recipes = [gmmvit.load_recipe("digits", seed=seed, **TINY) for seed in (0, 1)]
    train_several(recipes, tmp_path / "several", quiet=True)
    return [stopped(folder) for folder in sorted((tmp_path / "several").iterdir())]


def test_the_other_runs_resume_where_one_cannot(several, capsys):
    damaged = shutil.copytree(several[0], several[0].with_name("damaged"))
    (damaged / "checkpoint.pt").write_bytes(b"torn")
    stray = damaged.with_name("comparison.md")
    stray.write_text("| seed |")
    assert main(["resume", "--quiet", *map(str, [damaged, stray, *several])]) == 1
    error = capsys.readouterr().err.splitlines()
    assert error[0] == f"skipped {stray}: a file, not a run folder"
    assert error[1].startswith(f"{damaged} cannot be resumed and is left out: ")
    assert error[2].startswith(f"gmmvit: 1 of 3 trainings failed: {damaged}: ")
    for folder in several:
        assert [row["epoch"] for row in read_rows(folder)] == [1, 2]
        assert (folder / "summary.json").is_file()


def test_files_beside_the_runs_are_no_failure(several, capsys):
    (several[0].parent / "figures.csv").write_text("a,b")
    assert main(["resume", "--quiet", *map(str, sorted(several[0].parent.iterdir()))]) == 0
    assert "gmm        2" in capsys.readouterr().out


def test_finished_runs_beside_a_damaged_one_count_as_trainings(several, sound):
    (several[0] / "config.yaml").unlink()
    with pytest.raises(RuntimeError, match=r"1 of 2 trainings failed: .* it has no config.yaml"):
        resume_several([sound, several[0]], quiet=True)
    with pytest.raises(RunError, match=r"it has no config.yaml"):
        resume(several[0], quiet=True)
