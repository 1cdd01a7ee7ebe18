"""No file of the user is lost, and no result silently comes from other data or broken weights."""

import json
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import gmmvit
from gmmvit.cli import main
from gmmvit.runs import checkpoint, claim, run_folder
from gmmvit.runs.evaluate import evaluate_run
from gmmvit.runs.files import RunError
from gmmvit.training import session
from gmmvit.training.run import resume, train
from gmmvit.training.step import Step, TrainingError

TINY = {"dim": 16, "depth": 1, "num_heads": 2, "passes": 1, "warmup_epochs": 0, "threads": 1, "epochs": 2}


def images(folder, classes=("a", "b"), count=12):
    rng = np.random.default_rng(0)
    for level, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for index in range(count):
            pixels = rng.integers(100 * level, 100 * level + 100, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{index}.png")
    return folder


def folder_recipe(folder, **fields):
    cache = {"cache_dir": str(folder.parent / "cache"), "image_size": 8, "batch_size": 8}
    return gmmvit.load_recipe("digits", dataset=f"folder:{folder}", **(TINY | cache | fields))


def test_training_twice_in_one_process_works(tmp_path):
    recipe = gmmvit.load_recipe("digits", **(TINY | {"epochs": 1}))
    for name in ("a", "b"):
        assert gmmvit.train(recipe, tmp_path / name, quiet=True)["epochs"] == 1


def test_a_kill_between_checkpoint_and_weights_loses_nothing(tmp_path, monkeypatch):
    recipe = folder_recipe(images(tmp_path / "images"))
    train(recipe, tmp_path / "whole", quiet=True)
    calls = []

    def killed(path, state, metadata):
        calls.append(path)
        if len(calls) > 2:  # both files of the first epoch are written, none of the second
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "save_weights", killed)
    with pytest.raises(KeyboardInterrupt):
        train(recipe, tmp_path / "cut", quiet=True)
    monkeypatch.undo()
    resume(tmp_path / "cut", quiet=True)
    for name in run_folder.WEIGHTS.values():
        whole, cut = (load_file(tmp_path / run / name) for run in ("whole", "cut"))
        assert all(torch.equal(whole[key], cut[key]) for key in whole)


@pytest.mark.parametrize("change", ["class renamed", "images added", "class added"])
def test_changed_data_is_not_resumed_or_measured_as_if_it_were_the_same(tmp_path, change):
    folder = images(tmp_path / "images")
    train(folder_recipe(folder), tmp_path / "run", quiet=True)
    if change == "class renamed":
        (folder / "a").rename(folder / "c")
    elif change == "class added":
        images(folder, ["z"])
    else:
        Image.new("RGB", (8, 8)).save(folder / "a" / "new.png")
    (tmp_path / "run" / "summary.json").unlink()  # as after a kill before the end
    with pytest.raises(RunError, match=r"data of .* has changed"):
        resume(tmp_path / "run", quiet=True)
    with pytest.raises(RunError, match="other classes" if "class" in change else "may contain training images"):
        evaluate_run(tmp_path / "run")


def test_a_run_is_measured_from_everywhere_after_a_move_and_on_other_data(tmp_path, monkeypatch):
    images(tmp_path / "images")
    monkeypatch.chdir(tmp_path)
    relative = folder_recipe(tmp_path / "images")
    summary = train(
        gmmvit.load_recipe("digits", **(TINY | {"dataset": "folder:images", "image_size": 8})), "run", quiet=True
    )
    assert relative.dataset == f"folder:{tmp_path / 'images'}"
    images(tmp_path / "elsewhere" / "images", count=5)
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert evaluate_run("../run")["top1"] == summary["test_top1_best"]
    (tmp_path / "images").rename(tmp_path / "moved")
    assert evaluate_run("../run", data_dir=str(tmp_path / "moved"))["top1"] == summary["test_top1_best"]
    assert evaluate_run("../run", dataset="folder:images")["images"] == 2


@pytest.mark.parametrize("val_fraction", [0.1, 0.0])
def test_weights_that_are_not_finite_are_never_kept(tmp_path, monkeypatch, val_fraction):
    """The loss of the last step is finite, its update is not."""
    original = Step.take
    steps = []

    def take(self, parts, images):
        original(self, parts, images)
        steps.append(1)
        if len(steps) == 4:
            with torch.no_grad():
                next(self.model.parameters()).fill_(float("nan"))

    monkeypatch.setattr(Step, "take", take)
    recipe = folder_recipe(images(tmp_path / "images"), val_fraction=val_fraction)
    assert session.step_images(recipe, 19) == 8  # two steps per epoch
    with pytest.raises(TrainingError, match=r"not finite after epoch 2; train again .* checkpoint of epoch 1 is kept"):
        train(recipe, tmp_path / "run", quiet=True)
    monkeypatch.undo()
    assert resume(tmp_path / "run", quiet=True)["epochs"] == 2


def test_one_folder_takes_one_training_at_a_time(tmp_path):
    train(folder_recipe(images(tmp_path / "images")), tmp_path / "run", quiet=True)
    code = f"from gmmvit.cli import main; import sys; sys.exit(main(['resume', {str(tmp_path / 'run')!r}, '--quiet']))"
    with claim.locked(tmp_path / "run"):
        second = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert second.returncode == 1
    assert "another training is writing to" in second.stderr


def test_overwrite_leaves_the_old_run_until_the_new_one_can_start(tmp_path):
    folder = images(tmp_path / "images")
    train(folder_recipe(folder), tmp_path / "run", quiet=True)
    before = (tmp_path / "run" / "model.safetensors").read_bytes()
    for fields, error in (
        ({"device": "meta"}, ValueError),
        ({"model": "vitt"}, ValueError),
        ({"patch_size": 3}, ValueError),
    ):
        with pytest.raises(error):
            train(folder_recipe(folder, **fields), tmp_path / "run", overwrite=True, quiet=True)
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == before


def test_a_missing_logger_is_told_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install wandb"):
        train(gmmvit.load_recipe("digits", **TINY, loggers="wandb"), tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_a_folder_with_somebody_elses_config_is_no_run(tmp_path):
    names = ("config.yaml", "model.safetensors", "report.html")
    for name in names:
        (tmp_path / name).write_text("my: settings")
    with pytest.raises(RunError, match="do not belong to a run"):
        train(gmmvit.load_recipe("digits", **TINY), tmp_path, overwrite=True, quiet=True)
    assert all((tmp_path / name).read_text() == "my: settings" for name in names)


def test_leftovers_of_killed_trainings_are_removed(tmp_path):
    train(gmmvit.load_recipe("digits", **(TINY | {"epochs": 1})), tmp_path / "run", quiet=True)
    (tmp_path / "run" / ".checkpoint.pt.123.tmp").write_text("torn")
    resume(tmp_path / "run", quiet=True)
    assert not list((tmp_path / "run").glob(".*.tmp"))


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sound") / "run"
    train(gmmvit.load_recipe("digits", **TINY), folder, quiet=True)
    return folder


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("checkpoint.pt", b"", "is damaged"),
        ("checkpoint.pt", None, "is missing"),
        ("metrics.jsonl", b'{"a": 1}\n{"epoch": 2}\n', "damaged in line 1"),
        ("metrics.jsonl", b"\xff\n{}\n", "damaged in line 1"),
        ("config.yaml", ("recipe:", "other:"), "no mapping 'recipe'"),
        ("config.yaml", ("mean:", "means:"), "data.mean must be a list"),
        ("config.yaml", ("batch_size: 64", "batch_size: 32"), "batch_size was 64 and is 32"),
        ("config.yaml", ("  dim:\n  - 16", "  dim:\n  - 32"), "dim was .* and is"),
        ("config.yaml", ("  lr:", "  learning: 1\n  lr:"), "unknown field 'learning'"),
    ],
    ids=str,
)
def test_a_damaged_or_edited_run_is_told_by_file(sound, tmp_path, capsys, file, content, words):
    for path in sound.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    target = tmp_path / file
    if content is None:
        target.unlink()
    elif isinstance(content, tuple):
        assert content[0] in target.read_text()
        target.write_text(target.read_text().replace(*content, 1))
    else:
        target.write_bytes(content)
    assert main(["resume", str(tmp_path), "--quiet"]) == 1
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert file in error or str(tmp_path) in error
    import re

    assert re.search(words, error), error


def test_sigterm_ends_a_training_as_ctrl_c_does(tmp_path):
    code = (
        "import os, signal, sys, threading, time\nfrom gmmvit.cli import main\nfrom gmmvit.runs import run_folder\n"
        f"folder = {str(tmp_path / 'a')!r}\n"
        "def stop():\n"
        "    while not run_folder.read_rows(folder): time.sleep(0.01)\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "threading.Thread(target=stop, daemon=True).start()\n"
        "sys.exit(main(['train', '--out', folder, '--epochs', '500', '--dim', '16', '--threads', '1', '--quiet']))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 1, done.stderr
    assert "interrupted after epoch" in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [["--image-size", ""], ["--image-size", "x"], ["--dim", ""], ["--epochs", "1e30"], ["--threads", "99999999"],
     ["--crop-padding", "1000000"], ["--num-kernels", "1000000000"], ["--model", "foo"], ["--size", "foo"],
     ["--mask-init", "foo"]],
    ids=str,
)  # fmt: skip
def test_values_out_of_reason_are_usage_errors_with_the_fields_name(capsys, tmp_path, arguments):
    assert main(["train", "--quiet", "--out", str(tmp_path / "never"), *arguments]) == 2
    error = capsys.readouterr().err
    assert arguments[0].strip("-").replace("-", "_") in error.replace("-", "_")
    assert len(error.splitlines()) == 1


def test_numbers_in_exponent_form_are_numbers(tmp_path):
    assert gmmvit.load_recipe("digits", epochs="1e2", dim="1e1").epochs == 100
    assert json.loads(json.dumps(gmmvit.load_recipe("digits", seed=2**40).seed)) == 2**40


def test_other_images_under_the_old_names_are_noticed_when_a_training_goes_on(tmp_path):
    folder = images(tmp_path / "images")
    train(folder_recipe(folder), tmp_path / "run", quiet=True)
    (tmp_path / "run" / "summary.json").unlink()
    state = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    torch.save({**state, "epoch": 1}, tmp_path / "run" / "checkpoint.pt")
    for path in folder.rglob("*.png"):
        Image.open(path).rotate(180).save(path)
    with pytest.raises(RunError, match=r"has changed since the training started \(pixels"):
        resume(tmp_path / "run", quiet=True)


def test_a_training_goes_on_where_its_data_moved(tmp_path):
    train(folder_recipe(images(tmp_path / "images")), tmp_path / "run", quiet=True)
    (tmp_path / "run" / "summary.json").unlink()
    (tmp_path / "images").rename(tmp_path / "moved")
    assert resume(tmp_path / "run", data_dir=str(tmp_path / "moved"), quiet=True)["epochs"] == 2


def test_a_report_replaces_no_file_unasked(tmp_path, capsys):
    train(folder_recipe(images(tmp_path / "images")), tmp_path / "run", quiet=True)
    config = (tmp_path / "run" / "config.yaml").read_text()
    assert main(["report", str(tmp_path / "run"), "--out", str(tmp_path / "run" / "config.yaml")]) == 1
    assert "exists; replace it with --overwrite" in capsys.readouterr().err
    assert (tmp_path / "run" / "config.yaml").read_text() == config
    for _ in range(2):
        assert main(["report", str(tmp_path / "run")]) == 0


def test_equal_runs_are_equal_files(tmp_path):
    for name in ("a", "b"):
        train(folder_recipe(images(tmp_path / name / "images")), tmp_path / name / "run", quiet=True)
    for file in ("model.safetensors", "last.safetensors"):
        assert (tmp_path / "a" / "run" / file).read_bytes() == (tmp_path / "b" / "run" / file).read_bytes()


@pytest.fixture
def copy(sound, tmp_path):
    return shutil.copytree(sound, tmp_path / "run")


def test_a_file_that_cannot_be_removed_leaves_a_run(copy):
    (copy / "model.safetensors").unlink()
    (copy / "model.safetensors").mkdir()
    recipe = gmmvit.load_recipe("digits", **(TINY | {"epochs": 1}))
    with pytest.raises(RunError, match=r"cannot remove .*model.safetensors"):
        train(recipe, copy, overwrite=True, quiet=True)
    (copy / "model.safetensors").rmdir()
    assert train(recipe, copy, overwrite=True, quiet=True)["epochs"] == 1


@pytest.mark.parametrize("name", ["tensorboard/mine.txt", "tensorboard/events.out.tfevents.1.host", "report.html",
                                  "model.onnx", "notes.txt"])  # fmt: skip
def test_overwrite_removes_nothing_that_the_run_did_not_write(copy, name):
    (copy / name).parent.mkdir(exist_ok=True)
    (copy / name).write_text("mine")
    train(gmmvit.load_recipe("digits", **(TINY | {"epochs": 1})), copy, overwrite=True, quiet=True)
    assert (copy / name).read_text() == "mine"


def test_a_list_of_files_that_names_other_places_removes_nothing_there(copy, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with (copy / ".files").open("a") as file:
        file.write("../mine.txt\ntensorboard/../../mine.txt\n" + str(tmp_path / "mine.txt") + "\n")
    train(gmmvit.load_recipe("digits", **(TINY | {"epochs": 1})), copy, overwrite=True, quiet=True)
    assert (tmp_path / "mine.txt").exists()


def test_overwrite_removes_what_the_run_wrote_later(copy):
    recipe = gmmvit.load_recipe("digits", **(TINY | {"epochs": 1, "loggers": "tensorboard"}))
    train(recipe, copy, overwrite=True, quiet=True)
    assert main(["report", str(copy)]) == 0
    assert list((copy / "tensorboard").iterdir())
    train(gmmvit.load_recipe("digits", **(TINY | {"epochs": 1})), copy, overwrite=True, quiet=True)
    assert not (copy / "tensorboard").exists()
    assert not (copy / "report.html").exists()


@pytest.mark.parametrize("name", ["summary.json", "metrics.jsonl", "checkpoint.pt", "config.yaml", ".lock", ".files"])
def test_a_pipe_in_place_of_a_file_is_told_and_not_waited_for(copy, name, capsys):
    (copy / name).unlink()
    os.mkfifo(copy / name)
    before = signal.signal(signal.SIGALRM, lambda *told: pytest.fail(f"{name} was waited for"))
    signal.alarm(20)
    try:
        told = [main([command, str(copy)]) for command in ("resume", "report")]
        train_again = ["train", "--out", str(copy), "--overwrite", "--epochs", "1", "--dim", "16", "--quiet"]
        told.append(main(train_again))
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    assert any(told)
    assert capsys.readouterr().err.count(str(copy / name)) >= (name != "config.yaml")


def test_a_folder_of_a_training_that_never_began_says_so(tmp_path, capsys):
    (tmp_path / ".config.yaml.123.tmp").write_text("rec")
    assert main(["resume", str(tmp_path)]) == 1
    assert "ended before it began: train again with --out" in capsys.readouterr().err
    assert train(gmmvit.load_recipe("digits", **(TINY | {"epochs": 1})), tmp_path, quiet=True)["epochs"] == 1
    assert not (tmp_path / ".config.yaml.123.tmp").exists()
