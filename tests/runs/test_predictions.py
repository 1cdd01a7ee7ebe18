"""Predictions: the CSV of `eval` and `predict`, and the Python interface."""

import csv
import json
import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from gmmvit.cli import main
from gmmvit.data import DataError
from gmmvit.runs.checkpoint import load_run
from gmmvit.runs.evaluate import evaluate_run, unknown_threshold
from gmmvit.runs.files import RunError
from gmmvit.runs.predictions import Predictions, write_csv
from gmmvit.runs.run_data import load_data

TINY = ["--dim", "16", "--depth", "2", "--num-heads", "2", "--passes", "1", "--threads", "1", "--quiet"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "digits"
    assert main(["train", "--out", str(folder), "--epochs", "2", *TINY]) == 0
    return folder


@pytest.fixture
def files(tmp_path):
    """Noise in three files of different kinds."""
    rng = np.random.default_rng(0)
    paths = [tmp_path / name for name in ("a,b.png", "c.jpg", "d.png")]
    for path, shape in zip(paths, ((20, 30, 3), (8, 8, 3), (9, 7)), strict=True):
        Image.fromarray(rng.integers(0, 255, shape, dtype=np.uint8)).save(path)
    return paths


def rows(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_eval_writes_what_its_figures_are_made_of(run, tmp_path, capsys):
    path = tmp_path / "new" / "test.csv"
    assert main(["eval", str(run), "--csv", str(path), "--json"]) == 0
    told, table = json.loads(capsys.readouterr().out), rows(path)
    assert list(table[0]) == ["file", "true", "predicted", *(f"p_{digit}" for digit in range(10))]
    assert len(table) == len({row["file"] for row in table}) == told["images"] == 360
    assert np.mean([row["true"] == row["predicted"] for row in table]) == pytest.approx(told["top1"])
    for row in table:
        chances = {name[2:]: float(value) for name, value in row.items() if name.startswith("p_")}
        assert sum(chances.values()) == pytest.approx(1, abs=1e-4)
        assert max(chances, key=chances.get) == row["predicted"]


def test_predict_writes_the_files_that_could_be_read(run, files, tmp_path, capsys):
    broken, path = tmp_path / "broken.png", tmp_path / "out.csv"
    broken.write_bytes(b"\x89PNG torn")
    assert main(["predict", str(run), *map(str, [*files, broken]), "--csv", str(path), "--json", "--top", "10"]) == 1
    told, table = json.loads(capsys.readouterr().out), rows(path)
    assert list(table[0])[:2] == ["file", "predicted"]
    assert [row["file"] for row in table] == [str(file) for file in files] == [row["image"] for row in told]
    for row, answer in zip(table, told, strict=True):
        assert row["predicted"] == answer["classes"][0]["class"]
        for chance in answer["classes"]:
            assert float(row[f"p_{chance['class']}"]) == pytest.approx(chance["probability"], rel=1e-5)


def test_images_of_several_batches_get_the_answers_they_get_alone(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("gmmvit.cli.predict._BATCH", 3)
    for number in range(7):
        Image.new("L", (8, 8), 30 * number).save(tmp_path / f"{number}.png")
    assert main(["predict", str(run), str(tmp_path), "--json"]) == 0
    together = json.loads(capsys.readouterr().out)
    assert [row["image"] for row in together] == [str(tmp_path / f"{number}.png") for number in range(7)]
    for row in together:
        assert main(["predict", str(run), row["image"], "--json"]) == 0
        [alone] = json.loads(capsys.readouterr().out)
        for a, b in zip(alone["classes"], row["classes"], strict=True):
            assert a["probability"] == pytest.approx(b["probability"], rel=1e-4)


@pytest.mark.parametrize("command", ["eval", "predict"])
def test_a_file_that_is_there_is_replaced_on_request_only(run, files, tmp_path, capsys, command):
    path = tmp_path / "mine.csv"
    path.write_text("mine")
    arguments = [command, str(run), *([str(files[0])] if command == "predict" else []), "--csv", str(path)]
    assert main(arguments) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == (
        f"gmmvit: {path} exists; replace it with --overwrite (in Python overwrite=True), or choose another file with "
        "--csv (csv=)\n"
    )
    assert path.read_text() == "mine"
    assert main([*arguments, "--overwrite"]) == 0
    assert path.read_text().startswith("file,")
    assert main([*arguments[:-1], str(tmp_path), "--overwrite"]) == 1
    assert f"{tmp_path} is a folder; give a file with --csv" in capsys.readouterr().err


def test_a_csv_that_cannot_be_written_leaves_the_old_one(run, tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("mine")
    answers = Predictions(("a", "b"), torch.tensor([[0.5, 0.5]]))
    with pytest.raises(ValueError, match="zip"):
        write_csv(path, ["one", "two"], answers)
    assert path.read_text() == "mine"
    with pytest.raises(RunError, match="cannot write"):
        write_csv(path / "below.csv", ["one"], answers)
    assert [file.name for file in tmp_path.iterdir()] == ["mine.csv"]


def test_class_and_file_names_survive_the_csv(tmp_path):
    names = ("true", "file", 'a "b", c', "naïve")
    write_csv(tmp_path / "x.csv", [os.fsdecode(b"i\xfe.png")], Predictions(names, torch.eye(4)[3:]), ["file"])
    [row] = rows(tmp_path / "x.csv")
    assert row == {
        "file": "i\\xfe.png",
        "true": "file",
        "predicted": "naïve",
        **{f"p_{name}": "1" if name == "naïve" else "0" for name in names},
    }


def test_python_evaluates_into_a_csv_too(run, tmp_path):
    result = evaluate_run(run, part="val", csv=tmp_path / "val.csv")
    assert len(rows(tmp_path / "val.csv")) == result["images"]
    with pytest.raises(RunError, match=r"overwrite=True.*csv="):
        evaluate_run(run, part="val", csv=tmp_path / "val.csv")


def test_python_takes_images_of_every_kind_one_or_many(run, files):
    model = load_run(run)
    pixels = [np.array(Image.open(file).convert("RGB")) for file in files]
    one_by_one = torch.cat([model.predict(file).probabilities for file in files])
    kinds = [
        files,
        (str(file) for file in files),
        np.array([str(file) for file in files]),
        [file.read_bytes() for file in files],
        [Image.open(file) for file in files],
        pixels,
        [torch.from_numpy(image).permute(2, 0, 1) for image in pixels],
        [(image / 255).astype(np.float32) for image in pixels],
        [files[0], pixels[1], torch.from_numpy(pixels[2]).permute(2, 0, 1)],
    ]
    for kind in kinds:
        answers = model.predict(kind, batch_size=2)
        assert len(answers) == 3
        assert torch.allclose(answers.probabilities, one_by_one, atol=1e-6)
    batch = np.stack([pixels[1], pixels[1][::-1]])
    expected = model.predict([pixels[1], pixels[1][::-1]]).probabilities
    for given in (
        batch,
        torch.from_numpy(batch).permute(0, 3, 1, 2),
        torch.from_numpy(batch / 255).permute(0, 3, 1, 2),
    ):
        assert torch.equal(model.predict(given).probabilities, expected)
    assert len(model.predict([])) == len(model.predict(batch[:0])) == 0
    assert model.predict([]).predicted == model.predict([]).top() == []


def test_answers_agree_with_the_measured_logits(run):
    model = load_run(run)
    test = load_data(model.recipe).test
    answers = model.predict(test.images, batch_size=100)
    assert torch.equal(answers.probabilities, model.logits(test.images).softmax(-1))
    assert answers.predicted == [model.classes[i] for i in answers.probabilities.argmax(1)]
    assert torch.equal(answers.confidence, answers.probabilities.max(1).values)
    [first, *_] = answers.top(3)
    assert [p for _, p in first] == sorted(answers.probabilities[0].tolist(), reverse=True)[:3]
    assert first[0] == (answers.predicted[0], answers.confidence[0].item())
    assert len(answers.top(99)[0]) == 10


def test_an_image_that_is_none_is_named(run, files, tmp_path):
    model = load_run(run)
    with pytest.raises(DataError, match=r"image .*missing.png cannot be read: No such file"):
        model.predict([files[0], tmp_path / "missing.png"])
    with pytest.raises(DataError, match=r"images\[1\]: image cannot be read: not a JPEG"):
        model.predict([files[0], b"no image"])
    with pytest.raises(TypeError, match=r"images\[2\]: source must be a path, .* got NoneType"):
        model.predict([*files[:2], None])
    with pytest.raises(ValueError, match=r"images\[0\]: .*from 0 to 1, got -1 to 1"):
        model.predict(torch.tensor([[[-1.0, 1.0]]]))
    with pytest.raises(TypeError, match=r"images\[0\]: source must be a path.*got int"):
        model.predict(7)
    with pytest.raises(ValueError, match=r"batch_size must be a whole number of at least 1 and below 2\^31, got 0"):
        model.predict(files, batch_size=0)


@pytest.fixture(scope="module")
def halves(tmp_path_factory):
    """A model of the digits 0 to 4 with its data, and the unseen digits 5 to 9."""
    from sklearn.datasets import load_digits

    folder, digits = tmp_path_factory.mktemp("halves"), load_digits()
    for number, (image, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        place = folder / ("known" if label < 5 else "new") / str(label)
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray((image * 15.9).astype(np.uint8)).save(place / f"{number}.png")
    sizes = ["--image-size", "8", "--channels", "1", "--patch-size", "2", "--lr", "3e-3", "--epochs", "12"]
    data = ["--dataset", f"folder:{folder / 'known'}", "--cache-dir", str(folder / "cache"), "--recipe", "digits"]
    assert main(["train", "--out", str(folder / "run"), *data, *sizes, *TINY]) == 0
    return folder


def test_auto_keeps_95_percent_of_the_validation_images_and_finds_some_of_the_unseen_classes(halves, capsys):
    model = load_run(halves / "run")
    found = unknown_threshold(model)
    val = load_data(model.recipe).val
    known = model.predict(val.images, unknown_below=found.value).predicted
    kept = sum(answer != "unknown" for answer in known)
    assert (kept, len(known)) == (found.kept, found.images)
    assert 0.95 <= kept / len(known) < 0.95 + 2 / len(known)
    assert main(["predict", str(halves / "run"), str(halves / "new"), "--unknown-below", "auto", "--json"]) == 0
    said = capsys.readouterr()
    assert said.err == (
        f"unknown below {found.value:g}: {found.kept} of {found.images} validation images keep their class "
        f"({found.kept / found.images:.1%})\n"
    )
    new = [row["predicted"] for row in json.loads(said.out)]
    test = model.predict(load_data(model.recipe).test.images, unknown_below=found.value).predicted
    assert new.count("unknown") / len(new) > 2 * test.count("unknown") / len(test)


def test_a_number_decides_what_is_unknown(run, files, tmp_path, capsys):
    model = load_run(run)
    sure = model.predict(files).confidence
    limit = f"{sure.sort().values[1].item():.6f}"  # between the first and the third of three
    arguments = ["predict", str(run), *map(str, files), "--unknown-below", limit, "--csv", str(tmp_path / "x.csv")]
    assert main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    expected = model.predict(files, unknown_below=float(limit)).predicted
    assert 1 <= expected.count("unknown") <= 2
    assert [row["predicted"] for row in rows(tmp_path / "x.csv")] == expected
    for line, file, answer in zip(lines, files, expected, strict=True):
        assert line.startswith(f"{file}: {answer} (") if answer == "unknown" else line.startswith(f"{file}: {answer} ")
    assert "unknown" not in model.predict(files, unknown_below=1e-9).predicted


@pytest.mark.parametrize("value", ["0", "1.5", "-1", "nan", "often"])
def test_an_impossible_threshold_is_refused(run, files, capsys, value):
    assert main(["predict", str(run), str(files[0]), f"--unknown-below={value}"]) == 2
    words = f"--unknown-below must be auto or a number above 0 and at most 1, got {value!r}"
    assert capsys.readouterr().err == f"gmmvit: {words}\n"
    assert main(["predict", str(run), str(files[0]), "--data-dir", "there"]) == 2
    assert "for the validation images of --unknown-below auto" in capsys.readouterr().err


def test_python_refuses_thresholds_that_cannot_be(run, files):
    model = load_run(run)
    for value in (0, 1.01, float("nan"), True, "0.5"):
        with pytest.raises(ValueError, match="unknown_below must be a number above 0 and at most 1, got"):
            model.predict(files, unknown_below=value)
    with pytest.raises(ValueError, match="has a class 'unknown' of its own"):
        Predictions(("known", "unknown"), torch.eye(2), 0.5)
    with pytest.raises(ValueError, match="keep must be above 0"):
        unknown_threshold(model, keep=0)


def test_auto_needs_the_validation_images_of_the_training(halves, tmp_path, capsys):
    arguments = ["predict", str(halves / "run"), str(halves / "new" / "5"), "--unknown-below", "auto", "--json"]
    moved = shutil.copytree(halves / "known", tmp_path / "moved")
    assert main([*arguments, "--data-dir", str(moved)]) == 0
    next((moved / "3").iterdir()).unlink()
    assert main([*arguments, "--data-dir", str(moved)]) == 1
    assert "without validation images: the val part of folder:" in capsys.readouterr().err
    assert main([*arguments, "--data-dir", str(tmp_path / "gone")]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert f"without validation images: folder {tmp_path / 'gone'} does not exist" in said.err


def test_auto_needs_a_validation_part(tmp_path, capsys):
    folder = tmp_path / "run"
    assert main(["train", "--out", str(folder), "--epochs", "1", "--val-fraction", "0", *TINY]) == 0
    assert main(["predict", str(folder), "x.png", "--unknown-below", "auto"]) == 1
    assert "digits has no val part in this run; give a number, or take a run that" in capsys.readouterr().err
