"""A training outlives the terminal it tells of itself, and a finished run can be trained on."""

import os
import signal
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

import gmmvit
from gmmvit.cli import main
from gmmvit.config import RecipeError
from gmmvit.run_folder import read_rows, recipe_of
from gmmvit.training import resume, train

TINY = {"dim": 16, "depth": 1, "num_heads": 2, "passes": 1, "warmup_epochs": 0, "threads": 1, "epochs": 2}
FLAGS = [word for name, value in TINY.items() for word in (f"--{name.replace('_', '-')}", str(value))]


@pytest.mark.parametrize("stream", ["closed", "full"])
def test_a_training_goes_on_where_nobody_reads_what_it_says(tmp_path, stream):
    code = (
        "import os, sys\nfrom gmmvit.cli import main\n"
        + ("os.close(2)\n" if stream == "closed" else "os.dup2(os.open('/dev/full', os.O_WRONLY), 2)\n")
        + "sys.exit(main())\n"
    )
    command = [sys.executable, "-c", code, "train", "--out", str(tmp_path / "run"), *FLAGS]
    assert subprocess.run(command, check=False, timeout=120).returncode == 0
    assert (tmp_path / "run" / "summary.json").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_after_the_end_adds_no_traceback(number):
    code = (
        "import os, sys, time\nfrom gmmvit.cli import main\nsys.argv[1:] = ['recipes']\nstatus = main()\n"
        f"os.kill(os.getpid(), {int(number)})\ntime.sleep(0.05)\nsys.exit(status)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0
    assert done.stderr == ""


def test_a_finished_run_is_trained_on(tmp_path, capsys):
    recipe = gmmvit.load_recipe("digits", **TINY)
    train(recipe, tmp_path / "run", quiet=True)
    two = load_file(tmp_path / "run" / "last.safetensors")
    assert main(["resume", str(tmp_path / "run"), "--epochs", "3"]) == 0
    assert "was to end after 2 epochs and goes on to 3: the learning rate goes on as in a training of 3" in (
        capsys.readouterr().err
    )
    assert [row["epoch"] for row in read_rows(tmp_path / "run")] == [1, 2, 3]
    assert recipe_of(tmp_path / "run").epochs == 3
    three = load_file(tmp_path / "run" / "last.safetensors")
    assert any(not torch.equal(two[name], three[name]) for name in two)
    assert resume(tmp_path / "run", quiet=True)["epochs"] == 3
    with pytest.raises(RecipeError, match="above the 3 that"):
        resume(tmp_path / "run", epochs=2, quiet=True)


def test_an_extension_that_was_killed_goes_on(tmp_path, monkeypatch):
    train(gmmvit.load_recipe("digits", **TINY), tmp_path / "run", quiet=True)
    monkeypatch.setattr("gmmvit.training._finish", lambda *started: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        resume(tmp_path / "run", epochs=3, quiet=True)
    monkeypatch.undo()
    assert resume(tmp_path / "run", quiet=True)["epochs"] == 3
