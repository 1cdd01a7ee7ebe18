"""More epochs for a run: a fresh learning rate schedule, resuming after a kill, config.yaml repeats it all."""

import dataclasses
import os
import signal

import pytest
import torch
from safetensors.torch import load_file

import gmmvit
from gmmvit.cli import main
from gmmvit.config import RecipeError
from gmmvit.runs.run_folder import read_rows, recipe_of
from gmmvit.training import loop
from gmmvit.training.optim import learning_rate
from gmmvit.training.run import resume, train

TINY = {"dim": 16, "depth": 1, "num_heads": 2, "passes": 1, "warmup_epochs": 1, "threads": 1, "epochs": 2}
TINY |= {"train_per_class": 20}


def recipe(**fields):
    return gmmvit.load_recipe("digits", **(TINY | fields))


def same_weights(one, other):
    for name in ("last.safetensors", "model.safetensors"):
        mine, theirs = load_file(one / name), load_file(other / name)
        assert all(torch.equal(mine[key], theirs[key]) for key in mine), name


def interrupt_after(epoch, monkeypatch):
    told = loop._epoch_line

    def stop(row, *rest):
        if row["epoch"] == epoch:
            raise KeyboardInterrupt
        return told(row, *rest)

    monkeypatch.setattr(loop, "_epoch_line", stop)


def test_the_rate_between_two_restarts_is_that_of_a_training_of_that_length():
    whole = recipe(epochs=17, restarts="4,12", warmup_epochs=2)
    rates = [learning_rate(step, 3, whole) for step in range(17 * 3)]
    alone = [learning_rate(s, 3, recipe(epochs=n, warmup_epochs=2)) for n in (4, 8, 5) for s in range(n * 3)]
    assert rates == alone
    assert rates[11] < rates[14], "it rises again"


def test_a_finished_run_is_trained_on(tmp_path, capsys):
    train(recipe(), tmp_path / "run", quiet=True)
    two = load_file(tmp_path / "run" / "last.safetensors")
    assert main(["resume", str(tmp_path / "run"), "--epochs", "3"]) == 0
    told = "was to end after 2 epochs and now trains to 3: the learning rate restarts after epoch 2, with warm-up and "
    assert f"{told}cosine over the 1 added" in capsys.readouterr().err
    assert [row["epoch"] for row in read_rows(tmp_path / "run")] == [1, 2, 3]
    assert recipe_of(tmp_path / "run").epochs == 3
    three = load_file(tmp_path / "run" / "last.safetensors")
    assert any(not torch.equal(two[name], three[name]) for name in two)
    assert resume(tmp_path / "run", quiet=True)["epochs"] == 3
    for epochs in (2, torch.zeros(3)):
        with pytest.raises(RecipeError, match="above the 3 that"):
            resume(tmp_path / "run", epochs=epochs, quiet=True)


def test_an_extension_that_was_killed_goes_on(tmp_path, monkeypatch):
    train(recipe(), tmp_path / "run", quiet=True)
    monkeypatch.setattr("gmmvit.training.run._finish", lambda *started: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        resume(tmp_path / "run", epochs=3, quiet=True)
    monkeypatch.undo()
    assert resume(tmp_path / "run", quiet=True)["epochs"] == 3


@pytest.mark.parametrize("fields", [{}, {"optimizer": "muon", "ema": 0.9}], ids=["plain", "muon"])
def test_the_config_of_a_longer_run_repeats_it_bit_for_bit(tmp_path, monkeypatch, fields):
    train(recipe(**fields), tmp_path / "run", quiet=True)
    resume(tmp_path / "run", epochs=4, quiet=True)
    interrupt_after(5, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        resume(tmp_path / "run", epochs=7, quiet=True)
    monkeypatch.undo()
    resume(tmp_path / "run", quiet=True)
    kept = recipe_of(tmp_path / "run")
    assert (kept.epochs, kept.restarts) == (7, (2, 4))
    train(kept, tmp_path / "again", quiet=True)
    same_weights(tmp_path / "run", tmp_path / "again")
    rates = [[row["lr"] for row in read_rows(tmp_path / name)] for name in ("run", "again")]
    assert rates[0] == rates[1]


def test_an_interrupted_run_first_ends_as_it_was_to(tmp_path, monkeypatch, capfd):
    interrupt_after(1, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        train(recipe(epochs=3), tmp_path / "run", quiet=True)
    monkeypatch.undo()
    resume(tmp_path / "run", epochs=5)
    assert "restarts after epoch 3, with warm-up and cosine over the 2 added" in capfd.readouterr().err
    train(recipe(epochs=5, restarts=(3,)), tmp_path / "again", quiet=True)
    same_weights(tmp_path / "run", tmp_path / "again")


def test_fewer_epochs_than_planned_are_taken_too(tmp_path, monkeypatch, capfd):
    interrupt_after(1, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        train(recipe(epochs=9), tmp_path / "run", quiet=True)
    monkeypatch.undo()
    resume(tmp_path / "run", epochs=3)
    assert "now trains to 3: the learning rate continues as in a training of 3" in capfd.readouterr().err
    assert recipe_of(tmp_path / "run").restarts is None
    assert len(read_rows(tmp_path / "run")) == 3


def test_restarts_that_are_none_are_refused(tmp_path):
    for restarts in ("0", "5", "3,2", "2,2"):
        with pytest.raises(RecipeError, match="restarts must be increasing epoch numbers below the training's 5"):
            recipe(epochs=5, restarts=restarts)
    with pytest.raises(RecipeError, match="restarts must be"):
        dataclasses.replace(recipe(epochs=5, restarts=(4,)), epochs=4)
