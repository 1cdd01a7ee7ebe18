"""Trainings that end within their minutes: epochs from the measured speed, fixed before the first step."""

import dataclasses
import re
import time

import pytest
from safetensors.torch import load_file

import gmmvit
from gmmvit.cli import main
from gmmvit.config import RecipeError, load_recipe
from gmmvit.runs import files, run_folder
from gmmvit.training import loop
from gmmvit.training.budget import Speed, fitting
from gmmvit.training.run import resume, train

TINY = {"dim": 16, "depth": 1, "num_heads": 2, "threads": 1}


def recipe(**fields):
    return load_recipe("digits", minutes=10, epochs=40, warmup_epochs=4, batch_size=100, **fields)


def seconds(chosen, images, speed):
    steps = chosen.epochs * (images * chosen.passes // 100)
    return steps * speed.step_s + chosen.epochs * speed.epoch_s + speed.test_s


@pytest.mark.parametrize("step_s", [1e-4, 1e-3, 0.03, 0.1, 1.0])
@pytest.mark.parametrize("passes", [1, 2, 8])
def test_what_is_chosen_fills_the_minutes_and_no_more(step_s, passes):
    """At least 85 % of them, unless one more pass would not fit; the warm-up stays a tenth."""
    speed = Speed(step_s, 3.0, 20.0)
    chosen = fitting(recipe(passes=passes), 4_000, 15.0, speed)
    taken = seconds(chosen, 4_000, speed)
    assert taken <= 600 - 15
    assert taken > 0.85 * 600 - 15 - 40 * step_s
    assert chosen.epochs <= 200
    assert chosen.warmup_epochs == pytest.approx(0.1 * chosen.epochs, abs=1e-3)


def test_few_epochs_become_more_with_fewer_passes_each():
    chosen = fitting(recipe(passes=20), 4_000, 0.0, Speed(0.1, 1.0, 1.0))
    assert 8 <= chosen.epochs <= 20
    assert chosen.passes < 20


def test_minutes_that_hold_no_pass_are_refused_with_those_that_would():
    speed = Speed(1.0, 5.0, 20.0)
    with pytest.raises(
        RecipeError, match=r"minutes 10 is too short for one pass over 100,000 images, .* at least (\S+),"
    ):
        fitting(recipe(), 100_000, 0.0, speed)
    enough = dataclasses.replace(recipe(), minutes=18.0)
    assert fitting(enough, 100_000, 0.0, speed).epochs == 1


@pytest.mark.parametrize(
    "fields", [{}, {"ema": 0.9}, {"model": "resnet", "mask": "none", "dim": 4, "depth": 8}], ids=str
)
def test_a_training_with_minutes_is_that_of_the_epochs_it_chose(tmp_path, fields):
    """Measuring leaves no trace: the same epochs without minutes end with the same bits."""
    given = (TINY if "model" not in fields else {"threads": 1}) | fields
    start = time.perf_counter()
    summary = train(load_recipe("digits", minutes=0.1, **given), tmp_path / "minutes", quiet=True)
    assert time.perf_counter() - start < 4 * 6, "even on a busy machine"
    kept = run_folder.recipe_of(tmp_path / "minutes")
    assert (kept.minutes, kept.epochs, kept.passes) == (0.1, summary["epochs"], summary["passes"])
    assert kept.epochs >= 2
    assert summary["images_seen"] == kept.epochs * (1293 * kept.passes // 64) * 64
    train(dataclasses.replace(kept, minutes=None), tmp_path / "epochs", quiet=True)
    for name in ("last.safetensors", "model.safetensors"):
        one, other = (load_file(tmp_path / run / name) for run in ("minutes", "epochs"))
        assert all(one[key].equal(other[key]) for key in one)


def test_a_resumed_training_keeps_what_was_chosen(tmp_path, monkeypatch):
    """Stopped after its second epoch, it continues with the epochs of config.yaml, whatever the speed then."""
    told = loop._epoch_line

    def stop(row, *rest):
        if row["epoch"] == 2:
            raise KeyboardInterrupt
        return told(row, *rest)

    monkeypatch.setattr(loop, "_epoch_line", stop)
    with pytest.raises(KeyboardInterrupt, match="interrupted after epoch 2"):
        train(load_recipe("digits", minutes=0.1, **TINY), tmp_path / "run", quiet=True)
    monkeypatch.undo()
    chosen = run_folder.recipe_of(tmp_path / "run")
    assert resume(tmp_path / "run", quiet=True)["epochs"] == chosen.epochs
    assert run_folder.recipe_of(tmp_path / "run") == chosen


def test_minutes_too_short_leave_no_folder(tmp_path):
    with pytest.raises(RecipeError, match="too short for one pass"):
        train(load_recipe("digits", minutes=0.01, **(TINY | {"dim": 128, "depth": 6})), tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_the_command_says_what_was_chosen_and_where_the_warm_up_was_cut(tmp_path, capsys):
    sizes = ["--dim=16", "--depth=1", "--num-heads=2", "--threads=1"]
    assert main(["train", *sizes, "--epochs=3", "--passes=1", "--out", str(tmp_path / "b")]) == 0
    assert "the warm-up is cut from 2 epochs to 0.75, a quarter of the training" in capsys.readouterr().err
    assert main(["train", *sizes, "--minutes=0.1", "--out", str(tmp_path / "a")]) == 0
    told = capsys.readouterr().err
    assert "0.1 minutes at " in told
    assert re.search(r"\ntakes up to \S+ [MG]iB of memory\n", told)
    assert main(["train", "--minutes=1", "--epochs=3", "--out", str(tmp_path / "c")]) == 2
    assert "give one of --minutes and --epochs" in capsys.readouterr().err


def test_a_sweep_goes_on_with_trials_that_have_minutes(tmp_path):
    from gmmvit.sweep import check_unchanged, make_plan, read_study

    path = tmp_path / "study.yaml"
    fields = "{minutes: 0.1, dim: 16, depth: 1, num_heads: 2, threads: 1}"
    path.write_text(f"recipe: digits\ndata: [digits]\nfields: {fields}\n")
    trial = make_plan(read_study(path)).trials()[0]
    train(trial.recipe, tmp_path / "out" / "trials" / trial.name, quiet=True)
    check_unchanged(tmp_path / "out", [trial])
    path.write_text(path.read_text().replace("minutes: 0.1", "minutes: 0.2"))
    with pytest.raises(files.RunError, match=r"minutes was 0\.1 and is 0\.2"):
        check_unchanged(tmp_path / "out", make_plan(read_study(path)).trials())


def test_minutes_are_a_field_of_python_too():
    assert gmmvit.load_recipe("small", minutes=20).minutes == 20.0
