"""Early stopping: when it ends a training, what it says, resuming and extending it."""

import dataclasses

import pytest
import torch
from safetensors.torch import load_file

import gmmvit
from gmmvit.cli import main
from gmmvit.config import RecipeError
from gmmvit.report import write_report
from gmmvit.runs.run_folder import read_rows, recipe_of
from gmmvit.training import loop
from gmmvit.training.run import resume, train

TINY = {"dim": 16, "depth": 1, "num_heads": 2, "passes": 1, "warmup_epochs": 0, "threads": 1}


def recipe(**fields):
    return gmmvit.load_recipe("digits", **(TINY | {"epochs": 30, "train_per_class": 20, "patience": 2} | fields))


def without_times(folder):
    return [{k: v for k, v in row.items() if k not in ("images_per_s", "wall_s")} for row in read_rows(folder)]


def waited(values):
    """The last epochs without a value above all earlier ones."""
    first_of_best = values.index(max(values))
    return len(values) - 1 - first_of_best


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stopped") / "run"
    return folder, train(recipe(), folder, quiet=True)


def test_it_ends_after_so_many_epochs_without_a_better_value(stopped, tmp_path):
    folder, summary = stopped
    values = [row["val_top1"] for row in read_rows(folder)]
    assert len(values) < 30, "nothing was stopped"
    assert waited(values) == 2
    assert all(waited(values[:epochs]) < 2 for epochs in range(1, len(values)))
    assert (summary["stopped_after"], summary["epochs"]) == (len(values), 30)
    assert summary["val_top1"] == max(values)
    whole = train(recipe(patience=None), tmp_path / "whole", quiet=True)
    assert whole["stopped_after"] is None
    assert without_times(tmp_path / "whole")[: len(values)] == without_times(folder), "until then nothing differs"


@pytest.mark.parametrize("after", ["first", "last"])
def test_interrupted_and_resumed_it_ends_with_the_same_bits(stopped, tmp_path, monkeypatch, after):
    """Also if the interruption comes after the last epoch and before the summary."""
    folder, summary = stopped
    cut = 1 if after == "first" else summary["stopped_after"]
    told = loop._epoch_line

    def stop(row, *rest):
        if row["epoch"] == cut:
            raise KeyboardInterrupt
        return told(row, *rest)

    monkeypatch.setattr(loop, "_epoch_line", stop)
    with pytest.raises(KeyboardInterrupt):
        train(recipe(), tmp_path / "cut", quiet=True)
    monkeypatch.undo()
    assert not (tmp_path / "cut" / "summary.json").exists()
    assert resume(tmp_path / "cut", quiet=True)["stopped_after"] == summary["stopped_after"]
    assert without_times(tmp_path / "cut") == without_times(folder)
    for name in ("last.safetensors", "model.safetensors"):
        one, other = load_file(folder / name), load_file(tmp_path / "cut" / name)
        assert all(torch.equal(one[key], other[key]) for key in one), name


def test_the_progress_and_the_report_say_so(tmp_path, capfd):
    summary = train(recipe(), tmp_path / "run")
    told = f"stopped early after epoch {summary['stopped_after']} of 30: val_top1 has not risen above "
    assert told in (err := capfd.readouterr().err)
    assert f"{summary['val_top1']:.2%} for 2 epochs" in err
    page = write_report(tmp_path / "run").read_text()
    assert f"epochs {summary['stopped_after']} of 30, stopped early" in page
    assert "Unfinished" not in page
    assert main(["resume", str(tmp_path / "run")]) == 0
    assert f"is finished after epoch {summary['stopped_after']} of 30, by its patience" in capfd.readouterr().err


def test_a_value_that_stays_the_same_is_no_better_one():
    """The best epoch is the later of equals, patience counts from the first of them."""
    best = {"epoch": 7, "risen": 5}
    assert not loop.is_over(recipe(patience=3), 7, best)
    assert loop.is_over(recipe(patience=2), 7, best)
    assert not loop.is_over(recipe(patience=None), 29, best)
    assert loop.is_over(recipe(patience=None), 30, best)


def test_more_epochs_give_a_stopped_training_its_patience_anew(tmp_path):
    first = train(recipe(), tmp_path / "run", quiet=True)["stopped_after"]
    more = resume(tmp_path / "run", epochs=first + 2, quiet=True)
    assert len(read_rows(tmp_path / "run")) == first + 2
    assert more["stopped_after"] is None
    assert recipe_of(tmp_path / "run").epochs == first + 2
    assert recipe_of(tmp_path / "run").restarts == (first,)
    assert resume(tmp_path / "run", quiet=True) == more


def test_a_stopped_training_takes_the_epochs_that_it_was_to_have(tmp_path, capfd):
    first = train(recipe(epochs=12), tmp_path / "run", quiet=True)["stopped_after"]
    assert first is not None
    resume(tmp_path / "run", epochs=12)
    assert f"restarts after epoch {first}, with warm-up and cosine over the {12 - first}" in capfd.readouterr().err
    assert len(read_rows(tmp_path / "run")) > first
    assert recipe_of(tmp_path / "run").restarts == (first,)


@pytest.mark.parametrize("patience", [0, -1, 1.5])
def test_a_patience_that_is_none_is_refused(patience):
    with pytest.raises(RecipeError, match="patience must be"):
        recipe(patience=patience)


def test_without_a_validation_part_it_is_refused(tmp_path, capsys):
    with pytest.raises(RecipeError, match="patience needs a validation part, and digits has none here"):
        train(dataclasses.replace(recipe(), val_fraction=0), tmp_path / "run", quiet=True)
    assert not (tmp_path / "run" / "config.yaml").exists()
    assert main(["train", "--patience", "3", "--val-fraction", "0", "--out", str(tmp_path / "b")]) == 2
    assert capsys.readouterr().err.count("\n") <= 2
