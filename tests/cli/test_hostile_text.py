"""Small files that expand, invalid numbers and text that a terminal would obey: a short error line, at once."""

import os
import shutil
import time

import pytest
import torch
import yaml

import gmmvit
from gmmvit.cli import main
from gmmvit.config import RecipeError, as_dict, load_recipe
from gmmvit.runs.run_folder import save_config
from gmmvit.text import LONGEST
from gmmvit.training.run import train

TINY = {"dim": 16, "depth": 1, "num_heads": 2, "passes": 1, "warmup_epochs": 0, "threads": 1, "epochs": 1}
LAUGHS = "\n".join(f"  a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9) if i else 'x'}]" for i in range(12))
MANY = "\n".join(f"  a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9) if i else 'x'}]" for i in range(5))


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sound") / "run"
    train(gmmvit.load_recipe("digits", **TINY), folder, quiet=True)
    return folder


@pytest.fixture
def run(sound, tmp_path):
    return shutil.copytree(sound, tmp_path / "run")


def one_short_line(error):
    assert len(error.splitlines()) == 1
    assert len(error) < LONGEST + 100
    assert error.isprintable() or error.rstrip("\n").isprintable()
    return error


@pytest.mark.parametrize("text", [LAUGHS, MANY], ids=["without end", "59,049 values"])
@pytest.mark.parametrize("field", ["model_args", "dim", "dataset", "policy", "nosuchfield"])
def test_aliases_in_a_recipe_neither_hang_nor_flood(tmp_path, capsys, text, field):
    (tmp_path / "recipe.yaml").write_text(f"{field}:\n{text}\n")
    start = time.process_time()
    assert main(["train", "--recipe", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "run"), "--quiet"]) == 2
    assert time.process_time() - start < 5
    one_short_line(capsys.readouterr().err)


@pytest.mark.parametrize("text", [LAUGHS, MANY], ids=["without end", "59,049 values"])
@pytest.mark.parametrize("field", ["model", "versions", "data", "recipe"])
def test_aliases_in_a_run_neither_hang_nor_flood(run, capsys, text, field):
    content = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(content.replace(f"{field}:\n", f"{field}:\n{text}\n", 1))
    start = time.process_time()
    for command in ("resume", "eval", "report"):
        status = main([command, str(run)])
        error = capsys.readouterr().err
        if status:
            assert status == 1
            assert str(run / "config.yaml") in one_short_line(error)
    assert time.process_time() - start < 10


@pytest.mark.parametrize("text", ["model: &a {b: *a}", "x: [&a [*a]]"])
def test_a_value_that_holds_itself_is_told(tmp_path, text):
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(RecipeError, match="a value contains itself"):
        load_recipe(tmp_path / "recipe.yaml")


def test_short_aliases_serve_as_ever(tmp_path):
    (tmp_path / "recipe.yaml").write_text("image_size: &size [32, 48]\npatch_size: *size\n")
    assert load_recipe(tmp_path / "recipe.yaml").patch_size == (32, 48)


def test_a_run_is_written_without_aliases(tmp_path):
    size = [8, 8]
    save_config(tmp_path, load_recipe(), {"image_size": size}, {"image_size": size})
    text = (tmp_path / "config.yaml").read_text()
    assert "*" not in text
    assert yaml.safe_load(text)["recipe"] == as_dict(load_recipe())


VALUES = {"no date": "2024-13-45", "no time": "2024-01-01T99:99:99Z", "5,000 digits": "9" * 5000, "infinite": ".inf",
          "4,000 digits": "1" * 4000, "hexadecimal": "0x" + "f" * 4000, "code": "!!python/object:os.system x",
          "no bytes": "!!binary x", "a megabyte": "'" + "x" * 10**6 + "'"}  # fmt: skip


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
@pytest.mark.parametrize("field", ["epochs", "dataset", "lr", "model_args"])
def test_values_that_are_none_are_usage_errors_of_a_recipe(tmp_path, capsys, value, field):
    (tmp_path / "recipe.yaml").write_text(f"{field}: {value}\nout: 1\n")  # an unknown field, so that nothing trains
    assert main(["train", "--recipe", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "run"), "--quiet"]) == 2
    one_short_line(capsys.readouterr().err)


@pytest.mark.parametrize("value", ["no date", "5,000 digits", "4,000 digits", "infinite", "code"])
@pytest.mark.parametrize("place", ["data:\n  channels: ", "model:\n  dim: ", "recipe:\n  epochs: ", "versions:\n  x: "])
def test_values_that_are_none_are_faults_of_a_run(run, capsys, value, place):
    head, field = place.split("\n")
    lines = (run / "config.yaml").read_text().splitlines()
    name = field.split(":")[0]
    start = lines.index(head)
    at = next((i for i in range(start + 1, len(lines)) if lines[i].startswith(f"{name}:")), None)
    lines[start + 1 if at is None else at : start + 1 if at is None else at + 1] = [field + VALUES[value]]
    (run / "config.yaml").write_text("\n".join(lines))
    assert main(["eval", str(run)]) == 1
    assert str(run / "config.yaml") in one_short_line(capsys.readouterr().err)


@pytest.mark.parametrize("value", ["Infinity", "NaN", "-Infinity", "1e999", "9" * 5000, '"x"', "[]", "true"])
@pytest.mark.parametrize("column", ["val_top1", "train_loss", "images_per_s"])
def test_numbers_that_are_none_in_the_rows_are_told(run, capsys, value, column):
    row = f'{{"epoch": 1, "{column}": {value}}}\n'
    (run / "metrics.jsonl").write_text(row * 2)
    assert main(["report", str(run)]) == 1
    assert f"{run / 'metrics.jsonl'} is damaged in line 1" in one_short_line(capsys.readouterr().err)


@pytest.mark.parametrize("value", ["Infinity", "NaN", "1e999", "9" * 5000])
def test_numbers_that_are_none_in_the_summary_are_told(run, capsys, value):
    (run / "summary.json").write_text(f'{{"val_top1": {value}}}')
    assert main(["report", str(run)]) == 1
    assert f"{run / 'summary.json'} is not valid JSON" in one_short_line(capsys.readouterr().err)


@pytest.mark.parametrize("name", ["a\x1b[2Jb", "a\nb", "a\x9bb", "a\u202eb"])
def test_a_class_that_a_terminal_would_obey_is_refused(run, capsys, name):
    content = yaml.safe_load((run / "config.yaml").read_text())
    content["data"]["classes"][0] = name
    (run / "config.yaml").write_text(yaml.safe_dump(content))
    assert main(["eval", str(run)]) == 1
    assert "data.classes must be a list of two or more names without control" in one_short_line(capsys.readouterr().err)


def test_a_path_that_is_no_text_serves_like_any_other(tmp_path, capsys):
    from PIL import Image

    folder, image = tmp_path / os.fsdecode(b"r\xff"), tmp_path / os.fsdecode(b"i\xfe.png")
    Image.new("L", (8, 8)).save(image)
    train(gmmvit.load_recipe("digits", **TINY), folder, quiet=True)
    for command in (
        ["resume", "--epochs", "2"],
        ["eval"],
        ["report"],
        ["predict", str(image)],
        ["export", "--format", "torch"],
    ):
        assert main([command[0], str(folder), *command[1:]]) == 0, (command, capsys.readouterr().err)
    model = gmmvit.load_run(folder).model
    model.save_pretrained(folder / "pretrained")
    again = type(model).from_pretrained(folder / "pretrained")
    assert torch.equal(*(m(torch.zeros(1, 1, 8, 8)) for m in (model, again)))
    assert (
        main(
            [
                "train",
                "--recipe",
                "digits",
                "--epochs",
                "1",
                "--passes",
                "1",
                "--pretrained",
                str(folder),
                "--out",
                str(tmp_path / "tuned"),
            ]
        )
        == 0
    )
    printed = capsys.readouterr()
    assert "\\xff" in printed.out + printed.err
    assert "\\udc" not in printed.out + printed.err


def test_a_path_that_a_terminal_would_obey_is_shown_in_words(sound, tmp_path, capsys):
    from PIL import Image

    folder = shutil.copytree(sound, tmp_path / "a\x1b[31mrun")
    Image.new("L", (8, 8)).save(tmp_path / "x\x1b]0;y.png")
    assert main(["predict", str(folder), str(tmp_path / "x\x1b]0;y.png"), str(tmp_path / "no\x1b[2J.png")]) == 1
    assert main(["eval", str(folder)]) == 0
    assert main(["report", str(folder)]) == 0
    assert main(["resume", str(folder)]) == 0
    printed = capsys.readouterr()
    assert "\x1b" not in printed.out + printed.err
