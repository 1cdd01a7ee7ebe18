"""Cross-validation: the folds, its table, kills, the report, and the ensemble that predicts."""

import csv
import dataclasses
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import gmmvit
from gmmvit.cli import main
from gmmvit.config import RecipeError
from gmmvit.data import DataError, load_dataset
from gmmvit.data.copies import find_copies
from gmmvit.report import write_report
from gmmvit.runs.checkpoint import load_run
from gmmvit.runs.evaluate import evaluate_run
from gmmvit.runs.export import export_run
from gmmvit.runs.files import RunError
from gmmvit.training import folds
from gmmvit.training.folds import cross_validate, measured, resume_folds
from gmmvit.training.run import train

TINY = {"dim": 16, "depth": 1, "num_heads": 2, "passes": 1, "warmup_epochs": 0, "threads": 1, "dtype": "float32"}


def recipe(**fields):
    return gmmvit.load_recipe("digits", **(TINY | {"epochs": 2, "train_per_class": 20, "folds": 3} | fields))


def write_images(folder, number=12, copies=0):
    """Noise around one level per class; `copies` copies of the first three images of each class."""
    for level, name in enumerate(("dark", "light", "pale")):
        (folder / name).mkdir(parents=True)
        for index in range(number):
            pixels = np.random.default_rng(100 * level + index).integers(70 * level, 70 * level + 100, (12, 12, 3))
            image = Image.fromarray(pixels.astype(np.uint8))
            image.save(folder / name / f"{index:02}.png")
            for copy in range(copies if index < 3 else 0):
                image.save(folder / name / f"copy-{index:02}-{copy}.png")
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images") / "all")


@pytest.fixture
def cache(tmp_path):
    return {"cache_dir": tmp_path / "cache", "image_size": 12, "channels": 3}


@pytest.fixture(scope="module")
def crossed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("crossed") / "cv"
    return folder, cross_validate(recipe(), folder, quiet=True)


def parts(data):
    return {name: set(getattr(data, name).names) for name in ("train", "val", "test") if getattr(data, name)}


def test_every_image_is_measured_in_one_fold_and_classes_are_even(images, cache):
    name, seen = f"folder:{images}", []
    for fold in range(1, 5):
        data = load_dataset(name, folds=4, fold=fold, **cache)
        found = parts(data)
        assert not found["train"] & found["test"]
        assert not found["val"] & (found["train"] | found["test"])
        assert len(found["train"] | found["val"] | found["test"]) == 36
        assert data.test.labels.bincount().tolist() == [3, 3, 3]
        seen += found["test"]
    assert len(seen) == len(set(seen)) == 36
    other = load_dataset(name, folds=4, fold=1, split_seed=1, **cache)
    assert parts(other)["test"] != parts(load_dataset(name, folds=4, fold=1, **cache))["test"]
    together = load_dataset(name, folds=4, **cache)
    assert (len(together.train), together.val, together.test) == (36, None, None)


def test_a_given_test_part_stays_out_of_the_folds(tmp_path, cache):
    for part, number in (("train", 9), ("val", 3), ("test", 6)):
        write_images(tmp_path / "data" / part, number)
    name = f"folder:{tmp_path / 'data'}"
    for fold in (1, 2, 3):
        found = parts(load_dataset(name, folds=3, fold=fold, **cache))
        assert not any("test/" in image for part in found.values() for image in part)
        assert sum(map(len, found.values())) == 36
    assert len(load_dataset(name, folds=3, **cache).test) == 18


def test_copies_stay_in_one_fold(tmp_path, cache):
    name = f"folder:{write_images(tmp_path / 'data', copies=3)}"
    everything = load_dataset(name, folds=3, **cache)
    of_name = dict(zip(everything.train.names, find_copies(everything.train.images.numpy()), strict=True))
    assert len(set(of_name.values())) < len(of_name), "there are copies"

    def shared(fold, **options):
        found = parts(load_dataset(name, folds=3, fold=fold, **cache, **options))
        groups = {part: {of_name[image] for image in names} for part, names in found.items()}
        return (groups["train"] | groups["val"]) & groups["test"] | groups["train"] & groups["val"]

    assert any(shared(fold) for fold in (1, 2, 3)), "without dedupe they would be apart"
    assert not any(shared(fold, dedupe=True) for fold in (1, 2, 3))
    measured_names = [parts(load_dataset(name, folds=3, fold=f, dedupe=True, **cache))["test"] for f in (1, 2, 3)]
    assert sum(map(len, measured_names)) == len(set().union(*measured_names)) == len(of_name)


def test_a_class_of_too_few_images_is_refused(images, cache, tmp_path, capsys):
    with pytest.raises(DataError, match=r"13 folds need at least 13 images of every class.*'dark' \(12\)"):
        load_dataset(f"folder:{images}", folds=13, fold=1, **cache)
    out = ["--out", str(tmp_path / "cv")]
    size = ["--image-size=12", f"--cache-dir={tmp_path / 'cache'}", "--dim=16", "--depth=1", "--num-heads=2"]
    assert main(["train", "--dataset", f"folder:{images}", "--folds=13", *size, *out]) == 1
    assert "13 folds need at least 13 images" in capsys.readouterr().err
    assert not (tmp_path / "cv").exists()


def test_the_table_holds_mean_deviation_and_interval(crossed):
    folder, result = crossed
    rows = list(csv.DictReader((folder / "folds.csv").open()))
    assert [row["fold"] for row in rows] == ["1", "2", "3", "mean", "deviation", "low", "high"]
    assert sum(int(row["test_images"]) for row in rows[:3]) == 200
    for name in ("test_top1_best", "test_macro_f1_last"):
        values = [float(row[name]) for row in rows[:3]]
        mean, deviation = statistics.mean(values), statistics.stdev(values)
        half = 4.302653 * deviation / 3**0.5  # of Student's t with two degrees of freedom
        expected = [mean, deviation, max(0, mean - half), min(1, mean + half)]
        assert [float(row[name]) for row in rows[3:]] == pytest.approx(expected, abs=1e-6)
        assert result["measured"][name]["mean"] == pytest.approx(mean)
    assert measured(folder) == result


def test_each_fold_is_the_run_that_it_would_be_alone(crossed, tmp_path):
    folder, result = crossed
    alone = train(recipe(fold=2), tmp_path / "alone", quiet=True)
    one, other = (load_file(place / "last.safetensors") for place in (folder / "fold-2", tmp_path / "alone"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert alone["test_top1_last"] == result["rows"][1]["test_top1_last"]
    assert evaluate_run(folder / "fold-2")["top1"] == pytest.approx(alone["test_top1_best"])


def test_killed_and_resumed_it_ends_with_the_same_table(crossed, tmp_path, capsys):
    _, result = crossed
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in TINY.items()]
    flags += ["--recipe=digits", "--train-per-class=20", "--folds=3", "--epochs=2", "--quiet"]
    command = [sys.executable, "-m", "gmmvit", "train", "--out", str(tmp_path / "cv"), *flags]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 90
    while not (tmp_path / "cv" / "fold-2" / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "cv" / "folds.csv").exists(), "the kill came too late to test anything"
    first = (tmp_path / "cv" / "fold-1" / "summary.json").stat().st_mtime_ns
    assert main(["eval", str(tmp_path / "cv")]) == 1
    assert "is not finished: fold-" in capsys.readouterr().err
    assert "of 3 folds are finished" in write_report(tmp_path / "cv").read_text()
    assert main(["resume", str(tmp_path / "cv")]) == 0
    told = capsys.readouterr()
    assert f"fold 1/3: {tmp_path / 'cv' / 'fold-1'} is finished after epoch 2" in told.err
    assert "95 % interval of the mean, over 3 folds" in told.out
    assert (tmp_path / "cv" / "fold-1" / "summary.json").stat().st_mtime_ns == first
    assert measured(tmp_path / "cv")["measured"] == result["measured"]


def test_the_models_answer_together_by_their_mean_probability(crossed, tmp_path):
    folder, _ = crossed
    data = load_dataset("digits", folds=3, train_per_class=20)
    together, members = load_run(folder), [load_run(folder / f"fold-{fold}") for fold in (1, 2, 3)]
    expected = torch.stack([run.logits(data.test.images).softmax(-1) for run in members]).mean(0)
    torch.testing.assert_close(together.logits(data.test.images).softmax(-1), expected, atol=1e-5, rtol=1e-4)
    told = evaluate_run(folder)
    hits = (expected.argmax(1) == data.test.labels).double().mean().item()
    assert (told["images"], told["top1"]) == (360, pytest.approx(hits, abs=1 / 360))
    Image.fromarray(data.test.images[0, 0].numpy()).save(tmp_path / "digit.png")
    assert main(["predict", str(folder), str(tmp_path / "digit.png")]) == 0
    check = export_run(folder, tmp_path / "model.onnx", dtype="float16", check=True).check
    assert (check.part, check.images, check.before) == ("test", 360, round(told["top1"] * 360))
    assert abs(check.drop) <= 0.01


def test_on_the_images_of_its_folds_an_ensemble_is_not_measured(images, tmp_path, capsys):
    fields = {"dataset": f"folder:{images}", "image_size": 12, "cache_dir": str(tmp_path / "cache"), "epochs": 1}
    cross_validate(recipe(**fields, train_per_class=None, batch_size=8), tmp_path / "cv", quiet=True)
    for part in ("test", "train"):
        assert main(["eval", str(tmp_path / "cv"), "--part", part]) == 1
        assert "was trained on every image of" in capsys.readouterr().err
    assert main(["export", str(tmp_path / "cv"), "--format", "torch", "--check"]) == 1
    assert "no image is left to check the file on" in capsys.readouterr().err
    for place in ("cv", "cv/fold-1"):  # for other data, the usual test part
        result = evaluate_run(tmp_path / place, dataset=f"folder:{images}")
        assert (result["images"], result["part"]) == (8, "test")


def test_the_report_begins_with_the_folds(crossed, tmp_path):
    folder, result = crossed
    page = write_report(folder, tmp_path / "page.html").read_text()
    assert f"cv, 3 folds: accuracy {result['measured']['test_top1_best']['mean']:.2%} ± " in page
    assert "0 (fold 1), 0 (fold 2), 0 (fold 3)" in page
    assert str(folder.parent) not in page


def test_masks_are_compared_by_pairs_of_folds(crossed, tmp_path):
    folder, _ = crossed
    plain = cross_validate(recipe(mask="none"), tmp_path / "plain", quiet=True)
    with_mask = measured(folder)
    page = write_report([folder, tmp_path / "plain"], tmp_path / "page.html").read_text()
    pairs = zip(with_mask["rows"], plain["rows"], strict=True)
    gain = statistics.mean(a["test_top1_last"] - b["test_top1_last"] for a, b in pairs)
    assert f"{100 * gain:+.2f} [" in page


def test_an_old_one_is_replaced_on_request_alone(tmp_path, capsys):
    cross_validate(recipe(epochs=1), tmp_path / "cv", quiet=True)
    (tmp_path / "cv" / "fold-3" / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match="already holds a cross-validation; continue it with"):
        cross_validate(recipe(epochs=1), tmp_path / "cv", quiet=True)
    with pytest.raises(ValueError, match="num_heads"):
        cross_validate(recipe(num_heads=3), tmp_path / "cv", overwrite=True, quiet=True)
    assert len(measured(tmp_path / "cv")["rows"]) == 3, "what cannot be trained replaces nothing"
    with pytest.raises(RunError, match=r"fold-3 is not empty|files"):
        cross_validate(recipe(epochs=1), tmp_path / "cv", overwrite=True, quiet=True)
    assert (tmp_path / "cv" / "fold-3" / "notes.txt").read_text() == "mine"
    (tmp_path / "cv" / "fold-3" / "notes.txt").unlink()
    cross_validate(recipe(epochs=1, folds=2), tmp_path / "cv", overwrite=True, quiet=True)
    assert sorted(place.name for place in (tmp_path / "cv").glob("fold-*")) == ["fold-1", "fold-2"]


def test_the_minutes_are_those_of_all_folds():
    assert [folds._of_fold(recipe(minutes=6), fold).minutes for fold in (1, 2, 3)] == [2, 2, 2]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"folds": 1}, "folds must be 2 to 1000"),
        ({"folds": 3, "fold": 4}, "fold must be one of 1 to folds, got 4 of 3 folds"),
        ({"folds": None, "fold": 1}, "fold must be one of 1 to folds, got 1 of no folds"),
    ],
)
def test_folds_that_are_none_are_refused(fields, words):
    with pytest.raises(RecipeError, match=words):
        recipe(**fields)


def test_wrong_usage_is_told(crossed, tmp_path, capsys):
    folder, _ = crossed
    for arguments, words in (
        (["train", "--folds", "3", "--seeds", "0,1"], "--folds takes one seed and one mask"),
        (["resume", str(folder), "--epochs", "9"], "resume a cross-validation alone"),
        (["resume", str(folder), str(folder / "fold-1")], "resume a cross-validation alone"),
    ):
        assert main(arguments) == 2
        assert words in capsys.readouterr().err
    with pytest.raises(RecipeError, match="trains all folds"):
        train(recipe(), tmp_path / "run")
    with pytest.raises(RunError, match=r"it has no folds\.yaml"):
        resume_folds(folder / "fold-1")


@pytest.mark.parametrize("content", ["recipe: {epochs: 2}", "{", "recipe: 3", "recipe: {folds: 3, fold: 1}"])
def test_a_damaged_folder_is_told(tmp_path, content, capsys):
    (tmp_path / "folds.yaml").write_text(content)
    for command in ("resume", "report", "eval"):
        assert main([command, str(tmp_path)]) == 1
        told = capsys.readouterr().err
        assert "folds.yaml" in told
        assert told.count("\n") == 1


def test_all_images_can_be_learned(images, cache, tmp_path, capfd):
    name = f"folder:{images}"
    data, usual = load_dataset(name, train_on_all=True, **cache), load_dataset(name, **cache)
    assert data.val is None
    assert parts(data) == {"train": parts(usual)["train"] | parts(usual)["val"], "test": parts(usual)["test"]}
    for part, number in (("train", 4), ("val", 2), ("test", 2)):
        write_images(tmp_path / "given" / part, number)
    given = load_dataset(f"folder:{tmp_path / 'given'}", train_on_all=True, **cache)
    assert (len(given.train), given.val, len(given.test)) == (18, None, 6)
    whole = dataclasses.replace(recipe(folds=None), train_on_all=True)
    summary = train(whole, tmp_path / "run")
    assert "nothing chooses a best epoch, the last one is kept" in capfd.readouterr().err
    assert (summary["train_images"], summary["best_epoch"], summary["val_top1"]) == (200, 2, None)
    assert (
        Path(tmp_path / "run" / "model.safetensors").read_bytes()
        == (tmp_path / "run" / "last.safetensors").read_bytes()
    )
    with pytest.raises(RecipeError, match="patience needs validation images"):
        dataclasses.replace(whole, patience=3)
