"""An epoch's files are written while the next one trains, and no reported epoch is lost."""

import signal
import subprocess
import sys
import threading
import time

import pytest
import torch
from safetensors.torch import load_file

import gmmvit
from gmmvit.runs import checkpoint, files, run_folder
from gmmvit.runs.files import RunError
from gmmvit.training import loop
from gmmvit.training.run import resume, train, train_several
from gmmvit.training.step import TrainingError

TINY = {"dim": 16, "depth": 1, "num_heads": 2, "passes": 1, "warmup_epochs": 0, "threads": 1, "epochs": 3}


def tiny(**fields):
    return gmmvit.load_recipe("digits", **(TINY | fields))


def same_weights(one, other):
    for name in run_folder.WEIGHTS.values():
        first, second = load_file(one / name), load_file(other / name)
        assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("writer") / "whole"
    train(tiny(ema=0.9), folder, quiet=True)
    return folder


def test_the_next_epoch_trains_while_the_last_one_is_written(whole, tmp_path, monkeypatch):
    """Each checkpoint waits until the next epoch has taken steps; it still holds its own epoch."""
    save, original = checkpoint.save_checkpoint, loop.train_epoch
    steps, kept = threading.Semaphore(0), []

    def watched(setting, state, look):
        def stepped():
            steps.release()
            look()

        return original(setting, state, stepped)

    def slow(folder, state):
        if state["epoch"] < 3:
            while steps.acquire(blocking=False):  # those of the epochs before
                pass
            for _ in range(5):
                assert steps.acquire(timeout=60), "the next epoch waited for this write"
        kept.append(state["epoch"])
        save(folder, state)

    monkeypatch.setattr(loop, "train_epoch", watched)
    monkeypatch.setattr(checkpoint, "save_checkpoint", slow)
    train(tiny(ema=0.9), tmp_path / "run", quiet=True)
    assert kept == [1, 2, 3]
    same_weights(tmp_path / "run", whole)
    ours, theirs = (torch.load(folder / "checkpoint.pt", weights_only=True) for folder in (tmp_path / "run", whole))
    for part in ("model", "average"):
        assert all(torch.equal(ours[part][name], theirs[part][name]) for name in theirs[part])


def test_an_epoch_is_told_when_its_files_are_safe(tmp_path, monkeypatch, capsys):
    save = checkpoint.save_weights

    def slow(path, state, metadata):
        time.sleep(0.2)
        assert f"epoch   {len(run_folder.read_rows(path.parent))}/3" not in capsys.readouterr().err
        save(path, state, metadata)

    monkeypatch.setattr(checkpoint, "save_weights", slow)
    train(tiny(), tmp_path / "run")
    assert "epoch   3/3" in capsys.readouterr().err


@pytest.mark.parametrize("broken", [1, 3], ids=["first epoch", "last epoch"])
def test_an_error_of_the_writer_is_told_in_one_sentence(tmp_path, monkeypatch, broken):
    save = checkpoint.save_checkpoint

    def full(folder, state):
        if state["epoch"] == broken:
            (folder / files.temporary_name("checkpoint.pt")).mkdir()
        save(folder, state)

    monkeypatch.setattr(checkpoint, "save_checkpoint", full)
    with pytest.raises(RunError, match=r"cannot write .*checkpoint.pt: Is a directory"):
        train(tiny(), tmp_path / "run", quiet=True)
    assert not (tmp_path / "run" / "summary.json").exists()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("gmmvit-writer")]


def test_a_training_whose_files_cannot_be_written_does_not_end_the_others(tmp_path, monkeypatch):
    save = checkpoint.save_checkpoint

    def full(folder, state):
        if folder.name == "vit-gmm-s0":
            raise RunError("cannot write it: the disk is full")
        save(folder, state)

    monkeypatch.setattr(checkpoint, "save_checkpoint", full)
    with pytest.raises(TrainingError, match=r"1 of 2 trainings failed: .*the disk is full"):
        train_several([tiny(seed=0), tiny(seed=1)], tmp_path, quiet=True)
    assert (tmp_path / "vit-gmm-s1" / "summary.json").exists()


STOPPED = """
import os, signal, sys, time
from gmmvit.runs import checkpoint
from gmmvit.training import loop
from gmmvit.cli import main
save, train = checkpoint.save_checkpoint, loop.train_epoch
def slow(folder, state):
    if state["epoch"] == 2:
        open({flag!r}, "w").close()
        time.sleep(1)
    save(folder, state)
def watched(setting, state, look):
    def stop():
        look()
        if state.epoch == 2 and os.path.exists({flag!r}):
            os.remove({flag!r})
            os.kill(os.getpid(), signal.{name})
    return train(setting, state, stop)
checkpoint.save_checkpoint, loop.train_epoch = slow, watched
sys.exit(main(["train", "--out", {folder!r}, "--quiet", "--ema", "0.9", {flags}]))
"""


@pytest.mark.parametrize(("name", "kept"), [("SIGKILL", 1), ("SIGTERM", 2), ("SIGINT", 2)])
def test_a_training_ended_while_it_writes_resumes_bit_for_bit(whole, tmp_path, name, kept):
    """`kill -9` leaves the last complete epoch; a signal waits for the one being written and says so."""
    folder, flag = tmp_path / "run", tmp_path / "flag"
    flags = ", ".join(f"'--{field.replace('_', '-')}', '{value}'" for field, value in TINY.items())
    code = STOPPED.format(flag=str(flag), name=name, folder=str(folder), flags=flags)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == (-signal.SIGKILL if name == "SIGKILL" else 1), done.stderr
    if name != "SIGKILL":
        assert f"interrupted after epoch {kept};" in done.stderr
    assert torch.load(folder / "checkpoint.pt", weights_only=True)["epoch"] == kept
    resume(folder, quiet=True)
    same_weights(folder, whole)
    assert [row["epoch"] for row in run_folder.read_rows(folder)] == [1, 2, 3]
