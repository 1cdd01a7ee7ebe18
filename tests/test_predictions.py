"""Answers to images: the CSV of `eval` and `predict`, and what Python gets."""

import csv
import json
import os

import numpy as np
import pytest
import torch
from PIL import Image

from gmmvit.cli import main
from gmmvit.evaluate import evaluate_run
from gmmvit.predictions import Predictions, write_csv
from gmmvit.run_folder import RunError

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
