"""Uneven classes: reported, measured, and weighted equally on request."""

import numpy as np
import pytest
import torch
from PIL import Image

import gmmvit
from gmmvit.augment import Augment
from gmmvit.cli import main
from gmmvit.runs.evaluate import evaluate_run, interval
from gmmvit.runs.run_folder import read_rows
from gmmvit.tasks import ONE_LABEL
from gmmvit.training.run import train
from gmmvit.training.sampling import balanced_weights, drawn

TINY = {"dim": 16, "depth": 1, "num_heads": 2, "passes": 1, "warmup_epochs": 0, "threads": 1, "epochs": 2}


@pytest.fixture(scope="module")
def uneven(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uneven") / "images"
    for level, (name, count) in enumerate((("many", 60), ("表", 8), ("loss", 8))):
        (folder / name).mkdir(parents=True)
        for index in range(count):
            pixels = np.random.default_rng(index).integers(60 * level, 60 * level + 90, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{index}.png")
    return folder


def recipe(folder, **fields):
    cache = {"cache_dir": str(folder.parent / "cache"), "image_size": 8, "batch_size": 8, "policy": "none"}
    return gmmvit.load_recipe("digits", dataset=f"folder:{folder}", **(TINY | cache | fields))


@pytest.fixture(scope="module")
def run(uneven, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "run"
    return folder, train(recipe(uneven), folder, quiet=True)


def test_the_numbers_of_the_classes_are_told_with_a_warning(uneven, tmp_path, capfd):
    train(recipe(uneven, epochs=1), tmp_path / "run")
    told = capfd.readouterr().err
    assert "training images of the classes: many 43, " in told
    assert "the classes are uneven (43 to " in told
    train(recipe(uneven, epochs=1, sampling="balanced"), tmp_path / "balanced")
    assert "classes are uneven" not in capfd.readouterr().err


def test_macro_f1_and_balanced_accuracy_stand_beside_top1(run):
    folder, summary = run
    rows = read_rows(folder)
    assert all({"val_top1", "val_macro_f1", "val_balanced"} <= set(row) for row in rows)
    assert {"test_macro_f1_best", "test_balanced_last", "val_macro_f1", "select"} <= set(summary)
    result = evaluate_run(folder)
    assert result["macro_f1"] == pytest.approx(summary["test_macro_f1_best"])
    assert main(["report", str(folder)]) == 0
    assert "balanced accuracy" in (folder / "report.html").read_text()


def test_the_scores_are_those_of_torchmetrics():
    functional = pytest.importorskip("torchmetrics.functional.classification")
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(50, 6, generator=generator), torch.randint(0, 4, (50,), generator=generator)
    ours, predicted = ONE_LABEL.scores(logits, labels), logits.argmax(1)
    f1 = functional.multiclass_f1_score(predicted, labels, 6, average="macro").item()
    assert ours["macro_f1"] == pytest.approx(f1, abs=1e-6)
    recall = functional.multiclass_recall(predicted, labels, 6, average="none")
    assert ours["balanced"] == pytest.approx(recall[:4].mean().item(), abs=1e-6)


def test_one_class_answered_always_scores_as_chance():
    labels = torch.tensor([0] * 500 + [1] * 12)
    logits = torch.tensor([[1.0, 0.0]]).expand(512, 2)
    measured = ONE_LABEL.scores(logits, labels)
    assert measured["top1"] == pytest.approx(500 / 512)
    assert measured["balanced"] == 0.5
    assert measured["macro_f1"] == pytest.approx(0.5 * 2 * 500 / 1012)


@pytest.mark.parametrize("select", ["top1", "macro_f1", "balanced"])
def test_the_best_epoch_is_chosen_by_what_is_asked_for(uneven, tmp_path, select):
    summary = train(recipe(uneven, epochs=4, lr=5e-3, select=select, sampling="balanced"), tmp_path / "run", quiet=True)
    rows = read_rows(tmp_path / "run")
    best = max(reversed(rows), key=lambda row: row[f"val_{select}"])  # of equal epochs the later one
    assert summary["best_epoch"] == best["epoch"]
    assert summary[f"val_{select}"] == best[f"val_{select}"]


def test_balanced_draws_hold_every_class_equally():
    labels = torch.tensor([0] * 900 + [2] * 90 + [3] * 10)
    generator = torch.Generator().manual_seed(0)
    rows = torch.cat(list(drawn(labels, 3, 3000, 64, balanced=True, generator=generator)))
    assert len(rows) == 3000
    counts = labels[rows].bincount()
    assert counts[1] == 0
    assert all(abs(count - 1000) < 100 for count in counts[[0, 2, 3]].tolist())
    assert len(rows[labels[rows] == 0].unique()) > 500


def test_shuffled_sweeps_hold_every_image_once_and_start_at_once(monkeypatch):
    labels = torch.zeros(100, dtype=torch.int64)
    rows = torch.cat(list(drawn(labels, 3, 256, 64, balanced=False, generator=torch.Generator().manual_seed(0))))
    order = torch.cat([torch.randperm(100, generator=g) for g in [torch.Generator().manual_seed(0)] for _ in range(3)])
    assert torch.equal(rows, order[:256])
    first = next(drawn(labels, 10**9, 10**11, 64, balanced=False, generator=torch.Generator()))
    assert len(first) == 64


def test_balanced_weights_give_every_class_the_same_sum():
    labels = torch.tensor([0] * 500 + [1] * 12)
    weights = balanced_weights(labels, 3)
    assert weights[0] * 500 == pytest.approx(weights[1] * 12)
    assert weights[labels].mean() == pytest.approx(1)
    augment = Augment(num_classes=3, mean=(0.5,), std=(0.5,), mix_prob=0, class_weights=weights.tolist())
    images = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
    _, targets = augment(images, torch.tensor([0, 1]), torch.Generator().manual_seed(0))
    torch.testing.assert_close(targets.sum(1), weights[:2])


def test_eval_prints_a_table_that_classes_do_not_disturb(run, capsys):
    folder, _ = run
    assert main(["eval", str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    head = lines.index("           class  images    top1")
    assert [line.split()[0] for line in lines[head + 1 :]] == ["loss", "many", "表"]
    assert lines[head + 3].startswith(" " * 14 + "表  ")
    assert not any("top5" in line for line in lines)
    assert main(["eval", str(folder), "--part", "val"]) == 0


def test_a_part_that_is_missing_is_told_with_those_that_are_there(uneven, tmp_path, capsys):
    train(recipe(uneven, epochs=1, test_fraction=0), tmp_path / "run", quiet=True)
    assert main(["eval", str(tmp_path / "run")]) == 1
    assert (
        "no test part in this run, but train and val: choose with --part (in Python part=)" in capsys.readouterr().err
    )


def test_a_page_folds_its_tables_names_no_place_and_tells_how_sure_it_is(run):
    folder, _ = run
    assert main(["report", str(folder)]) == 0
    page = (folder / "report.html").read_text()
    assert "<details open" not in page
    assert "<title>" in page
    assert "/images" not in page[page.index("<title>") : page.index("</title>")]
    assert "(95 % interval " in page


def test_the_interval_is_wilsons():
    low, high = interval(0.5, 100)
    assert (low, high) == pytest.approx((0.4038, 0.5962), abs=1e-4)
    assert interval(1.0, 16)[1] == pytest.approx(1)
