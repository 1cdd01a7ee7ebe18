"""Whenever a writing command is killed, the next command can use its run folder, or says what to do."""

import dataclasses
import shutil

import numpy as np
import pytest
import torch
from killing import killed_everywhere
from PIL import Image
from safetensors.torch import load_file

import gmmvit
from gmmvit.data import load_dataset
from gmmvit.report import write_report
from gmmvit.runs import export
from gmmvit.runs.files import RunError
from gmmvit.runs.run_folder import is_folds, read_rows, read_summary, recipe_of
from gmmvit.training import loop
from gmmvit.training.folds import cross_validate, measured, resume_folds
from gmmvit.training.run import resume, train


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """A forked child has no other threads of torch."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kills") / "images"
    rng = np.random.default_rng(0)
    for level, name in enumerate(("a", "b")):
        (folder / name).mkdir(parents=True)
        for index in range(8):
            pixels = rng.integers(100 * level, 100 * level + 100, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{index}.png")
    return folder


def made(images, epochs):
    fields = {"dim": 8, "depth": 1, "num_heads": 2, "passes": 1, "warmup_epochs": 0, "threads": 1, "batch_size": 8}
    cache = {"cache_dir": str(images.parent / "cache"), "image_size": 8}
    return gmmvit.load_recipe("digits", dataset=f"folder:{images}", epochs=epochs, policy="none", **fields, **cache)


@pytest.fixture(scope="module")
def recipe(images):
    return made(images, epochs=1)


@pytest.fixture(scope="module")
def whole(recipe, tmp_path_factory):
    """An uninterrupted run of that recipe."""
    folder = tmp_path_factory.mktemp("kills") / "whole"
    train(recipe, folder, quiet=True)
    return folder


def same_weights(one, other):
    for name in ("model.safetensors", "last.safetensors"):
        first, second = load_file(one / name), load_file(other / name)
        assert all(torch.equal(first[key], second[key]) for key in first)


def overwritten(recipe, folder, whole):
    train(recipe, folder, overwrite=True, quiet=True)
    same_weights(folder, whole)


def refused(call, *arguments, **options):
    """The message of the RunError; None if the call works."""
    try:
        call(*arguments, **options)
    except RunError as error:
        return str(error)


def served(recipe, folder, whole, moment):
    """The next command: `resume` goes on to the bits of an uninterrupted run, or says that there is nothing to resume;
    then `train` starts anew, over what is left of a run with --overwrite, which is what the sentence tells."""
    if (said := refused(resume, folder, quiet=True)) is not None:
        assert "train" in said, moment
        if (said := refused(train, recipe, folder, quiet=True)) is not None:
            assert "--overwrite" in said, moment
            overwritten(recipe, folder, whole)
    same_weights(folder, whole)
    assert [row["epoch"] for row in read_rows(folder)] == [*range(1, recipe.epochs + 1)], moment
    assert read_summary(folder)["epochs"] == recipe.epochs, moment
    assert not list(folder.glob(".*.tmp")), moment


def test_a_kill_at_any_moment_of_a_training_leaves_a_folder_that_serves(recipe, whole, tmp_path):
    moments = []
    start = lambda folder: train(recipe, folder, quiet=True)  # noqa: E731
    for moment, folder in killed_everywhere(lambda n: tmp_path / f"run{n}", start):
        moments.append(moment)
        if len(moments) % 4 == 0:  # the other way to continue
            overwritten(recipe, folder, whole)
        elif folder.exists():
            served(recipe, folder, whole, moment)
    text = " ".join(moments)
    for name in ("config.yaml", "checkpoint.pt", "model.safetensors", "last.safetensors", "summary.json"):
        for change in ("open", "write", "fsync", "replace"):
            assert f"{change} .{name}." in text
    assert "write metrics.jsonl" in text


def test_a_kill_at_any_moment_of_an_overwrite_leaves_a_run_or_a_free_folder(recipe, whole, tmp_path):
    def old_run(trial):
        return shutil.copytree(whole, tmp_path / f"run{trial}")

    for moment, folder in killed_everywhere(old_run, lambda folder: train(recipe, folder, overwrite=True, quiet=True)):
        served(recipe, folder, whole, moment)


def stop_in_the_second_epoch(row, weights, recipe):
    if row["epoch"] == 2:
        raise KeyboardInterrupt


def test_a_kill_at_any_moment_of_a_resumption_leaves_a_folder_that_serves(images, tmp_path, monkeypatch):
    recipe = made(images, epochs=2)
    train(recipe, whole := tmp_path / "whole", quiet=True)
    monkeypatch.setattr(loop, "_check_good", stop_in_the_second_epoch)
    with pytest.raises(KeyboardInterrupt):
        train(recipe, half := tmp_path / "half", quiet=True)
    monkeypatch.undo()
    assert len(read_rows(half)) == 1

    def stopped(trial):
        return shutil.copytree(half, tmp_path / f"run{trial}")

    for moment, folder in killed_everywhere(stopped, lambda folder: resume(folder, quiet=True)):
        served(recipe, folder, whole, moment)


@pytest.mark.slow
def test_a_kill_at_any_moment_of_added_epochs_leaves_a_folder_that_serves(recipe, whole, tmp_path):
    resume(shutil.copytree(whole, longer := tmp_path / "longer"), epochs=2, quiet=True)

    def old_run(trial):
        return shutil.copytree(whole, tmp_path / f"run{trial}")

    start = lambda folder: resume(folder, epochs=2, quiet=True)  # noqa: E731
    for moment, folder in killed_everywhere(old_run, start, every=2):
        resume(folder, epochs=2, quiet=True)
        same_weights(folder, longer)
        assert recipe_of(folder) == recipe_of(longer), moment


@pytest.fixture(scope="module")
def crossed(images, tmp_path_factory):
    """An uninterrupted cross-validation, and its recipe."""
    recipe = dataclasses.replace(made(images, epochs=1), folds=2, val_fraction=0.0)
    folder = tmp_path_factory.mktemp("kills") / "crossed"
    cross_validate(recipe, folder, quiet=True)
    return recipe, folder


def crossed_again(recipe, folder, whole, moment):
    """The next command: `resume`, or the same command anew where nothing had begun; over a fold that was half removed
    with --overwrite, which is what the sentence says."""
    if not is_folds(folder):
        cross_validate(recipe, folder, quiet=True)
    elif (said := refused(resume_folds, folder, quiet=True)) is not None:
        assert "train again" in said or "--overwrite" in said, moment
        cross_validate(recipe, folder, overwrite=True, quiet=True)
    for fold in ("fold-1", "fold-2"):
        same_weights(folder / fold, whole / fold)
    assert measured(folder)["measured"] == measured(whole)["measured"], moment
    assert (folder / "folds.csv").is_file(), moment
    assert not list(folder.rglob(".*.tmp")), moment


@pytest.mark.slow
def test_a_kill_at_any_moment_of_a_cross_validation_leaves_a_folder_that_serves(crossed, tmp_path):
    recipe, whole = crossed
    start = lambda folder: cross_validate(recipe, folder, quiet=True)  # noqa: E731
    for moment, folder in killed_everywhere(lambda n: tmp_path / f"run{n}", start, every=5):
        crossed_again(recipe, folder, whole, moment)


@pytest.mark.slow
def test_a_kill_at_any_moment_of_its_overwrite_leaves_a_folder_that_serves(crossed, tmp_path):
    recipe, whole = crossed

    def old(trial):
        return shutil.copytree(whole, tmp_path / f"run{trial}")

    start = lambda folder: cross_validate(recipe, folder, overwrite=True, quiet=True)  # noqa: E731
    for moment, folder in killed_everywhere(old, start, every=3):
        crossed_again(recipe, folder, whole, moment)


def test_a_kill_at_any_moment_of_a_report_leaves_the_old_page_or_the_new_one(whole, tmp_path):
    write_report(whole)
    page = (whole / "report.html").read_bytes()

    def run(trial):
        return shutil.copytree(whole, tmp_path / f"run{trial}")

    for moment, folder in killed_everywhere(run, write_report):
        assert (folder / "report.html").read_bytes().startswith(page[:100]), moment
        write_report(folder)
        assert not list(folder.glob(".*.tmp")), moment


def test_a_kill_at_any_moment_of_an_export_leaves_no_torn_file(whole, tmp_path, monkeypatch):
    made = export.MAKERS["torch"]  # the program is made once; the test is about writing it
    kept = []
    once = lambda source: kept[0] if kept else kept.append(made(source)) or kept[0]  # noqa: E731
    monkeypatch.setitem(export.MAKERS, "torch", once)
    content = export.export_run(whole, tmp_path / "model.pt2", format="torch").path.read_bytes()

    def run(trial):
        return shutil.copytree(whole, tmp_path / f"run{trial}")

    for moment, folder in killed_everywhere(run, lambda folder: export.export_run(folder, format="torch")):
        path = folder / "model.pt2"
        assert not path.exists() or path.read_bytes() == content, moment
        export.export_run(folder, format="torch", overwrite=True)
        assert path.read_bytes() == content, moment
        assert not list(folder.glob(".*.tmp")), moment


def test_a_kill_at_any_moment_of_decoding_leaves_a_cache_that_is_whole_or_none(images, tmp_path):
    def load(folder):
        return load_dataset(f"folder:{images}", image_size=8, cache_dir=folder)

    expected = load(tmp_path / "whole").train.images

    def empty(trial):
        (folder := tmp_path / f"cache{trial}").mkdir()
        return folder

    for moment, folder in killed_everywhere(empty, load):
        assert torch.equal(load(folder).train.images, expected), moment
        assert len(list(folder.glob("*.images"))) == 1, moment
        assert not list(folder.glob(".*")), moment
