"""Training end to end on the digits: the run folder, resuming after a kill, and one-sentence errors."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import gmmvit
from gmmvit.data import Split, load_dataset
from gmmvit.runs import checkpoint, run_data, run_folder
from gmmvit.runs.checkpoint import load_run
from gmmvit.runs.files import RunError
from gmmvit.training import session
from gmmvit.training.run import resume, train
from gmmvit.training.step import TrainingError

TINY = {"dim": 16, "depth": 2, "num_heads": 2, "passes": 1, "warmup_epochs": 0, "threads": 1}


def tiny(**fields):
    return gmmvit.load_recipe("digits", **(TINY | {"epochs": 2} | fields))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "one"
    return folder, train(tiny(epochs=3), folder, quiet=True)


def test_the_run_folder_holds_what_is_promised(run):
    folder, summary = run
    names = ["checkpoint.pt", "config.yaml", "last.safetensors", "metrics.jsonl", "model.safetensors", "summary.json"]
    assert sorted(path.name for path in folder.iterdir() if path.name[0] != ".") == names
    assert json.loads((folder / "summary.json").read_text()) == summary
    promised = """model mask dataset num_parameters mask_parameters epochs passes images_seen train_images_per_s wall_s
    core_s device dtype seed val_top1 test_top1_best test_top1_last"""
    assert set(promised.split()) <= set(summary)
    assert summary["mask_parameters"] == 2 * 2 * 5 * 2
    assert summary["images_seen"] == 3 * (1293 // 64) * 64
    rows = run_folder.read_rows(folder)
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert summary["val_top1"] == max(row["val_top1"] for row in rows)
    assert rows[-1]["train_loss"] < rows[0]["train_loss"]


def test_a_seed_decides_everything(run, tmp_path):
    folder, _ = run
    train(tiny(epochs=3), tmp_path / "again", quiet=True)
    train(tiny(epochs=3, seed=1), tmp_path / "other", quiet=True)
    same, again, other = (load_file(f / "last.safetensors") for f in (folder, tmp_path / "again", tmp_path / "other"))
    assert all(torch.equal(same[name], again[name]) for name in same)
    assert any(not torch.equal(same[name], other[name]) for name in same)


def test_the_config_repeats_the_run(run, tmp_path):
    folder, summary = run
    repeated = train(gmmvit.load_recipe(folder / "config.yaml"), tmp_path / "r", quiet=True)
    assert repeated["test_top1_last"] == summary["test_top1_last"]


def test_a_loaded_run_predicts_as_measured(run):
    folder, summary = run
    model = load_run(folder)
    data = session.load_data(model.recipe)
    top1 = (model.logits(data.test.images).argmax(1) == data.test.labels).double().mean().item()
    assert top1 == pytest.approx(summary["test_top1_best"])
    assert model.classes == tuple("0123456789")


@pytest.mark.parametrize(
    "fields",
    [{}, {"ema": 0.9, "clip_norm": 1.0, "drop_path": 0.2, "dropout": 0.1}, {"optimizer": "muon"}],
    ids=["plain", "ema", "muon"],
)
def test_killed_and_resumed_equals_uninterrupted_bit_for_bit(tmp_path, fields):
    recipe = tiny(epochs=6, mix_prob=0.5, erase_prob=0.5, **fields)
    train(recipe, tmp_path / "whole", quiet=True)
    options = [f"--{name.replace('_', '-')}={value}" for name, value in (TINY | fields).items()]
    command = [sys.executable, "-m", "gmmvit", "train", "--out", str(tmp_path / "cut"), "--epochs=6", *options]
    process = subprocess.Popen([*command, "--mix-prob=0.5", "--erase-prob=0.5", "--quiet"], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 90
    while len(run_folder.read_rows(tmp_path / "cut")) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert 2 <= len(run_folder.read_rows(tmp_path / "cut")) < 6, "the kill came too late to test anything"
    assert not (tmp_path / "cut" / "summary.json").exists()
    resume(tmp_path / "cut", quiet=True)
    for name in ("last.safetensors", "model.safetensors"):
        whole, cut = (load_file(tmp_path / run / name) for run in ("whole", "cut"))
        assert all(torch.equal(whole[key], cut[key]) for key in whole), name
    rows, cut_rows = (
        [{k: v for k, v in row.items() if k not in ("images_per_s", "wall_s")} for row in run_folder.read_rows(folder)]
        for folder in (tmp_path / "whole", tmp_path / "cut")
    )
    assert rows == cut_rows


def test_a_run_killed_before_its_first_epoch_resumes_from_the_start(tmp_path):
    recipe = tiny(epochs=1)
    train(recipe, tmp_path / "a", quiet=True)
    for name in ("checkpoint.pt", "summary.json", "model.safetensors", "last.safetensors"):
        (tmp_path / "a" / name).unlink()
    with (tmp_path / "a" / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 2, "tr')  # a torn line
    resume(tmp_path / "a", quiet=True)
    assert [row["epoch"] for row in run_folder.read_rows(tmp_path / "a")] == [1]
    assert (tmp_path / "a" / "summary.json").exists()


def test_resuming_a_finished_run_changes_no_weight(run):
    folder, summary = run
    before = (folder / "last.safetensors").read_bytes()
    again = resume(folder, quiet=True)
    assert (folder / "last.safetensors").read_bytes() == before
    assert again["test_top1_best"] == summary["test_top1_best"]


def test_an_existing_run_is_not_overwritten_unasked(run, tmp_path):
    folder, _ = run
    with pytest.raises(RunError, match=r"already holds a run; continue it with `gmmvit resume"):
        train(tiny(), folder, quiet=True)
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(RunError, match="is not empty"):
        train(tiny(), tmp_path, quiet=True)
    with pytest.raises(RunError, match="do not belong to a run, so --overwrite leaves it alone"):
        train(tiny(), tmp_path, overwrite=True, quiet=True)
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_overwrite_replaces_a_run_and_keeps_other_files(tmp_path):
    train(tiny(epochs=1), tmp_path / "a", quiet=True)
    (tmp_path / "a" / "notes.txt").write_text("mine")
    train(tiny(epochs=1, mask="none"), tmp_path / "a", overwrite=True, quiet=True)
    assert json.loads((tmp_path / "a" / "summary.json").read_text())["mask"] == "none"
    assert (tmp_path / "a" / "notes.txt").exists()


def test_a_refused_configuration_leaves_no_folder(tmp_path):
    with pytest.raises(ValueError, match="not a multiple of the patch size"):
        train(tiny(patch_size=3), tmp_path / "a", quiet=True)
    assert not (tmp_path / "a").exists()


def test_an_infinite_loss_stops_and_keeps_the_checkpoint(tmp_path, monkeypatch):
    recipe = tiny(epochs=3)
    original = session.Augment.several
    calls = []

    def poisoned(self, images, labels, sizes, generator, share):
        parts = original(self, images, labels, sizes, generator, share)
        calls.append(len(parts))
        late = sum(calls) > 25  # of 20 steps per epoch
        return [(inputs * float("nan"), targets) for inputs, targets in parts] if late else parts

    monkeypatch.setattr(session.Augment, "several", poisoned)
    with pytest.raises(TrainingError, match=r"the loss became nan in epoch 2 .*checkpoint of epoch 1 is kept"):
        train(recipe, tmp_path / "a", quiet=True)
    saved = checkpoint.load_checkpoint(tmp_path / "a", run_folder.recipe_of(tmp_path / "a"))
    assert saved["epoch"] == 1
    assert all(torch.isfinite(value).all() for value in saved["model"].values())
    monkeypatch.undo()
    assert resume(tmp_path / "a", quiet=True)["epochs"] == 3


def test_a_full_disk_is_told_and_the_old_file_stays(tmp_path):
    path = tmp_path / "checkpoint.pt"
    checkpoint.save_checkpoint(tmp_path, {"epoch": 1})
    code = f"""
import resource, torch
from pathlib import Path
from gmmvit.runs import checkpoint
from gmmvit.runs.files import RunError
import signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    checkpoint.save_checkpoint(Path({str(tmp_path)!r}), {{"epoch": 2, "w": torch.zeros(100_000)}})
except RunError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert f"cannot write {path}" in done.stdout, done.stderr
    assert torch.load(path, weights_only=True) == {"epoch": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_a_place_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot create"):
        train(tiny(), tmp_path / "file" / "run", quiet=True)
    with pytest.raises(RunError, match="is a file"):
        train(tiny(), tmp_path / "file", quiet=True)


def test_a_damaged_checkpoint_or_folder_is_told(tmp_path):
    with pytest.raises(RunError, match="is not a run folder"):
        resume(tmp_path, quiet=True)
    train(tiny(epochs=1), tmp_path / "a", quiet=True)
    (tmp_path / "a" / "checkpoint.pt").write_bytes(b"PK\x03\x04 torn")
    with pytest.raises(RunError, match="is damaged"):
        resume(tmp_path / "a", quiet=True)
    (tmp_path / "a" / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(RunError, match="does not hold the weights"):
        load_run(tmp_path / "a")
    (tmp_path / "a" / "model.safetensors").unlink()
    with pytest.raises(RunError, match="has not finished an epoch"):
        load_run(tmp_path / "a")


def test_a_checkpoint_cannot_run_code(tmp_path):
    train(tiny(epochs=1), tmp_path / "a", quiet=True)
    torch.save({"epoch": 1, "evil": Path("x")}, tmp_path / "a" / "checkpoint.pt")
    with pytest.raises(RunError, match="is damaged"):
        resume(tmp_path / "a", quiet=True)


@pytest.mark.parametrize(
    "fields",
    [
        {"val_fraction": 0.0},
        {"accumulate": 3, "batch_size": 20},
        {"batch_size": 100_000},
        {"dtype": "bfloat16"},
        {"mode": "log"},
        {"mode": "post", "mask_init": "identity"},
        {"mask": "elm", "elm_per_head": True},
        {"pool": "cls", "covariance": "full", "learn_center": True},
        {"image_size": (12, 16), "policy": "rand", "mix_prob": 1.0, "erase_prob": 1.0},
        {"channels": 3, "policy": "trivial"},
        {"loggers": "tensorboard"},
        pytest.param({"compile": True}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_every_kind_of_training_runs(tmp_path, fields):
    if "loggers" in fields:
        pytest.importorskip("tensorboard")
    summary = train(tiny(epochs=1, **fields), tmp_path / "a", quiet=True)
    assert 0 <= summary["test_top1_last"] <= 1
    assert (summary["val_top1"] is None) == (fields.get("val_fraction") == 0.0)
    if "loggers" in fields:
        assert list((tmp_path / "a" / "tensorboard").iterdir())


def test_accumulated_batches_make_the_gradient_of_the_whole(tmp_path):
    """Without random parts, 2 x 32 images make the same step as 64."""
    plain = {"epochs": 1, "crop_padding": 0, "drop_path": 0.0, "label_smoothing": 0.0}
    for name, fields in (("one", {"batch_size": 64}), ("two", {"batch_size": 32, "accumulate": 2})):
        train(tiny(**plain, **fields), tmp_path / name, quiet=True)
    one, two = (load_file(tmp_path / name / "last.safetensors") for name in ("one", "two"))
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-3, atol=1e-3)


def test_progress_is_plain_lines_without_a_terminal(tmp_path):
    command = [
        sys.executable,
        "-m",
        "gmmvit",
        "train",
        "--out",
        str(tmp_path / "a"),
        "--epochs=1",
        "--dim=16",
        "--threads=1",
        "--json",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "\r" not in done.stderr
    assert re.search(r"epoch +1/1 +loss \d.* train .* val .* images/s +left", done.stderr)
    assert json.loads(done.stdout)["epochs"] == 1


SMALL_FAMILY = {
    "vit": {"dim": 16, "depth": 2, "num_heads": 2, "patch_size": 2},
    "swin": {"dim": 16, "depth": (2, 2), "num_heads": (2, 2), "patch_size": 2},
    "cait": {"dim": 16, "depth": 2, "num_heads": 2, "patch_size": 2},
    "pit": {"dim": 16, "depth": (1, 1), "num_heads": (2, 2), "patch_size": 2},
    "t2t": {"dim": 16, "depth": 2, "num_heads": 2},
}


@pytest.fixture
def thousand_images(monkeypatch):
    """The first thousand images of each part of a data set: real ones, in seconds."""

    def load(*args, **kwargs):
        data = load_dataset(*args, **kwargs)
        parts = {name: getattr(data, name) for name in ("train", "val", "test")}
        cut = {name: Split(p.images[:1000], p.labels[:1000], p.names[:1000]) for name, p in parts.items()}
        return dataclasses.replace(data, **cut)

    monkeypatch.setattr(run_data, "load_dataset", load)


@pytest.mark.usefixtures("thousand_images")
@pytest.mark.parametrize("mask", ["none", "elm", "gmm"])
@pytest.mark.parametrize("family", SMALL_FAMILY)
@pytest.mark.parametrize("dataset", ["digits", pytest.param("cifar10", marks=pytest.mark.slow)])
def test_every_family_trains_with_every_mask(tmp_path, request, dataset, family, mask):
    """On CIFAR-10 the loss of the third epoch is lower than that of the first."""
    fields = {
        "epochs": 3,
        "passes": 1,
        "warmup_epochs": 0,
        "threads": 1,
        "model": family,
        "mask": mask,
        "image_size": 16,
    }
    if dataset == "cifar10":
        fields |= {"data_dir": str(request.getfixturevalue("cifar10_dir"))}
    else:
        fields |= {"val_fraction": 0.8, "epochs": 1}
    recipe = gmmvit.load_recipe("digits", dataset=dataset, **fields, **SMALL_FAMILY[family])
    summary = train(recipe, tmp_path / "a", quiet=True)
    rows = run_folder.read_rows(tmp_path / "a")
    assert (summary["model"], summary["mask"]) == (family, mask)
    assert (summary["mask_parameters"] == 0) == (mask == "none")
    if dataset == "cifar10":
        assert rows[2]["train_loss"] < rows[0]["train_loss"]


def test_of_equally_good_epochs_the_later_is_the_best(tmp_path, monkeypatch):
    from gmmvit.config import load_recipe
    from gmmvit.tasks import OneLabel

    real = OneLabel.scores
    monkeypatch.setattr(OneLabel, "scores", lambda task, logits, labels: real(task, logits, labels) | {"top1": 0.5})
    recipe = load_recipe("digits", epochs=3, passes=1, dim=16, depth=1, num_heads=2)
    assert train(recipe, tmp_path / "a", quiet=True)["best_epoch"] == 3
