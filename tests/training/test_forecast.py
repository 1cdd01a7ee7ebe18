"""Training first reports how long it takes and how much memory, and refuses what memory cannot hold."""

import dataclasses
import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from gmmvit.config import load_recipe
from gmmvit.distributed import Team
from gmmvit.training import budget, memory
from gmmvit.training.budget import forecast
from gmmvit.training.progress import Progress, bar
from gmmvit.training.run import resume, train
from gmmvit.training.session import prepare

TINY = {"dim": 16, "depth": 1, "num_heads": 2, "threads": 1, "epochs": 1, "passes": 1}
RESNET = {"model": "resnet", "mask": "none", "dim": 4, "depth": 8, "threads": 1, "epochs": 1, "passes": 1}


def prepared(tmp_path, **fields):
    return prepare(load_recipe("digits", **(TINY | fields)), tmp_path, Progress(quiet=True))[:2]


@pytest.mark.parametrize("fields", [TINY | {"ema": 0.9}, RESNET], ids=["ema", "batch norm"])
def test_a_training_that_was_measured_has_the_same_bits(tmp_path, capsys, fields):
    train(load_recipe("digits", **fields), tmp_path / "said")
    line = re.search(
        r"\d+ steps at [\d,]+ images/s: about \S+; takes up to [\d.]+ [MG]iB of memory", capsys.readouterr().err
    )
    assert line is not None
    train(load_recipe("digits", **fields), tmp_path / "quiet", quiet=True)
    one, other = (load_file(tmp_path / run / "last.safetensors") for run in ("said", "quiet"))
    assert all(one[key].equal(other[key]) for key in one)


def test_what_a_long_training_measures_leaves_its_state_as_it_was(tmp_path):
    """The forecast covers more than the steps of one epoch: validation, test and checkpoints too."""
    setting, state = prepared(tmp_path, epochs=100_000)
    before = {name: value.clone() for name, value in state.model.state_dict().items()}
    seconds, images_per_s = forecast(setting, state)
    steps_alone = 100_000 * setting.steps_per_epoch * 64 / images_per_s
    assert steps_alone < seconds < 100 * steps_alone
    assert all(value.equal(before[name]) for name, value in state.model.state_dict().items())
    assert not state.optimizer.state
    assert state.images_seen == 0


def test_every_process_evaluates_as_many_images_as_the_leader(tmp_path, monkeypatch):
    """Times differ between processes; numbers of images that followed them made parts of two lengths (gloo aborted)."""

    class Follower(Team):
        def from_leader(self, work):
            return 37 if type(work()) is int else work()

    counts = set()
    real = budget.predict
    monkeypatch.setattr(budget, "predict", lambda model, part, *rest: counts.add(len(part)) or real(model, part, *rest))
    setting, state = prepared(tmp_path, epochs=100_000)
    forecast(dataclasses.replace(setting, team=Follower()), state)
    assert counts == {37}


def test_folds_and_several_trainings_are_added_up(tmp_path, capsys):
    from gmmvit.training.folds import cross_validate
    from gmmvit.training.run import train_several

    cross_validate(load_recipe("digits", folds=2, **TINY), tmp_path / "folds")
    assert len(re.findall(r"about \S+, all 2 folds \S+; takes up to", capsys.readouterr().err)) == 1
    train_several([load_recipe("digits", seed=seed, **TINY) for seed in (0, 1)], tmp_path / "several")
    assert re.search(r"all 2 trainings take about \d+s", capsys.readouterr().err)


def test_a_resumed_training_says_what_is_left(tmp_path, capsys):
    train(load_recipe("digits", **TINY), tmp_path / "run", quiet=True)
    resume(tmp_path / "run", epochs=2)
    assert re.search(r"after epoch 1 of 2: about \d+s more at the speed so far", capsys.readouterr().err)


def test_what_a_step_keeps_is_what_its_layers_save(tmp_path):
    """For linear, ReLU, linear: the input and the output of the ReLU, 64 + 100 float32 per image; not the weights."""
    setting, state = prepared(tmp_path, channels=1, batch_size=200)
    layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 10))
    state = dataclasses.replace(state, model=layers)
    parameters = 64 * 100 + 100 + 100 * 10 + 10
    need = memory.least(setting, state)
    assert need == memory.Need(200 * (64 + 100) * 4, 2 * 4 * parameters, 4 * 4 * parameters)
    halves = dataclasses.replace(setting, recipe=dataclasses.replace(setting.recipe, batch_size=100, accumulate=2))
    assert memory.least(halves, state).images == need.images // 2


def test_looking_at_the_memory_moves_no_running_mean(tmp_path):
    setting, state = prepared(tmp_path, **RESNET | {"dim": 4, "depth": 8}, num_heads=None)
    before = [buffer.clone() for buffer in state.model.buffers()]
    assert before
    assert memory.check_memory(setting, state).images > 0
    assert all(torch.equal(now, then) for now, then in zip(state.model.buffers(), before, strict=True))


def test_too_little_memory_is_said_before_an_old_run_goes(tmp_path):
    """Under a limit of 8 GB a step of 40 GB is refused within seconds, before --overwrite removes anything."""
    train(load_recipe("digits", **TINY), tmp_path / "run", quiet=True)
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    large = ["--image-size=64", "--patch-size=2", "--batch-size=512", "--threads=1", "--quiet"]
    code = (
        "import resource, sys\nresource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))\n"
        "from gmmvit.cli import main\nsys.exit(main())\n"
    )
    command = [sys.executable, "-c", code, "train", *large, "--overwrite", "--out", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 1
    assert re.fullmatch(
        r"gmmvit: training needs at least \S+ GiB of memory, \S+ GiB of it for a step of 512 images 64 x 64 through "
        r"vit, and \S+ [GM]iB are free; take a smaller --batch-size .*\n",
        done.stderr,
    )
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


def test_memory_that_may_not_suffice_is_said(tmp_path, monkeypatch, capsys):
    setting, state = prepared(tmp_path)
    setting = dataclasses.replace(setting, progress=Progress())
    need = memory.least(setting, state)
    least = need.images + need.moments + need.copies
    monkeypatch.setattr(memory, "free_memory", lambda: int(1.5 * least))
    memory.check_memory(setting, state)
    assert "of memory may not suffice: training needs at least" in capsys.readouterr().err
    monkeypatch.setattr(memory, "free_memory", lambda: least - 1)
    with pytest.raises(MemoryError, match="training needs at least"):
        memory.check_memory(setting, state)


def test_a_terminal_shows_a_bar_that_fits_into_its_line(tmp_path):
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 90, 0, 0))
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in (TINY | {"epochs": 2, "passes": 20}).items()]
    command = [sys.executable, "-m", "gmmvit", "train", *flags, "--out", str(tmp_path / "run")]
    with subprocess.Popen(command, stderr=theirs) as child:
        os.close(theirs)
        shown = b""
        while True:
            try:
                part = os.read(ours, 1 << 16)
            except OSError:  # the terminal's other end is closed
                break
            if not part:
                break
            shown += part
    os.close(ours)
    assert child.returncode == 0
    bars = [text.split("\x1b")[0] for text in shown.decode().split("\r\x1b[K") if text.startswith("[")]
    assert bars
    assert all(re.match(r"\[#*-*\] +\d+% epoch \d/2 step \d+/\d+  loss \d+\.\d+  train ", text) for text in bars)
    assert max(map(len, bars)) <= 89


def test_the_bar_counts():
    assert bar(0, 8, 4) == "[----]   0%"
    assert bar(3, 8, 4) == "[#---]  37%"
    assert bar(8, 8, 4) == "[####] 100%"
