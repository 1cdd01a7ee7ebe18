"""Several labels per image, by the command: from a table to a trained model and everything after it."""

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from sklearn.metrics import average_precision_score, f1_score

import gmmvit
from gmmvit.augment import Augment
from gmmvit.cli import main
from gmmvit.runs.run_folder import load_config, read_rows, read_summary
from gmmvit.tasks import ONE_LABEL, SEVERAL_LABELS, SeveralLabels, positive_weights

LABELS = ("bar", "disc", "frame")
TINY = ["--dim", "32", "--depth", "2", "--num-heads", "4", "--patch-size", "4", "--image-size", "16", "--threads", "1"]


def draw_shapes(folder, count=300):
    """Images that each contain some of three shapes, and their table."""
    random = np.random.default_rng(0)
    lines = ["file_name,labels"]
    for index in range(count):
        there = random.random(3) < 0.4
        image = Image.fromarray(random.integers(0, 60, (16, 16, 3), dtype=np.uint8))
        pen, (x, y) = ImageDraw.Draw(image), random.integers(0, 8, (2, 3))
        if there[0]:
            pen.rectangle((x[0], 0, x[0] + 1, 15), fill=(40, 60, 230))
        if there[1]:
            pen.ellipse((x[1], y[1], x[1] + 6, y[1] + 6), fill=(230, 40, 40))
        if there[2]:
            pen.rectangle((x[2], y[2], x[2] + 7, y[2] + 7), outline=(50, 230, 50))
        image.save(folder / f"{index:03d}.png")
        lines.append(f"{index:03d}.png,{'|'.join(np.array(LABELS)[there])}")
    (folder / "metadata.csv").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("several")
    (folder / "shapes").mkdir()
    draw_shapes(folder / "shapes")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GMMVIT_CACHE", str(folder / "cache"))
        patch.chdir(folder)
        yield folder


@pytest.fixture(scope="module")
def run(place):
    fields = ["--recipe", "quick", "--epochs", "3", "--passes", "2", "--lr", "5e-3", "--warmup-epochs", "1"]
    fields += ["--erase-prob", "0", "--policy", "none", "--batch-size", "32", "--drop-path", "0", "--dtype", "float32"]
    assert main(["train", "--dataset", "folder:shapes", "--out", "runs/shapes", *TINY, *fields]) == 0
    return place / "runs" / "shapes"


def test_it_learns(run):
    summary = read_summary(run)
    assert summary["test_map_best"] > 0.9
    assert summary["select"] == "map"
    assert load_config(run)["data"]["task"] == "several_labels"
    assert {"train_label_accuracy", "val_map", "val_macro_f1", "val_micro_f1"} <= set(read_rows(run)[-1])


def table_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_the_inspection_counts_labels(place, capsys):
    assert main(["inspect", "shapes", "--image-size", "16", "--out", "look.html", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found["parts"]["train"]) == set(LABELS)
    assert sum(found["labels_an_image"]) == 300
    assert main(["inspect", "shapes", "--image-size", "16", "--out", "look.html", "--overwrite"]) == 0
    assert "labels an image: " in capsys.readouterr().out
    assert "Labels an image: " in (place / "look.html").read_text()


def test_eval_measures_labels_and_writes_them(run, capsys):
    assert main(["eval", str(run), "--csv", "test.csv", "--json"]) == 0
    found, rows = json.loads(capsys.readouterr().out), table_of("test.csv")
    assert list(rows[0]) == ["file", "true", "predicted", "p_bar", "p_disc", "p_frame"]
    truth = np.array([[name in row["true"].split("|") for name in LABELS] for row in rows])
    named = np.array([[name in row["predicted"].split("|") for name in LABELS] for row in rows])
    sure = np.array([[float(row[f"p_{name}"]) for name in LABELS] for row in rows])
    assert np.array_equal(named, sure >= 0.5)
    assert found["map"] == pytest.approx(average_precision_score(truth, sure, average="macro"), abs=1e-6)
    assert found["macro_f1"] == pytest.approx(f1_score(truth, named, average="macro"))
    assert found["micro_f1"] == pytest.approx(f1_score(truth, named, average="micro"))
    assert found["exact"] == pytest.approx((truth == named).all(1).mean())
    assert found["class_images"] == dict(zip(LABELS, truth.sum(0).tolist(), strict=True))
    assert found["map"] == pytest.approx(read_summary(run)["test_map_best"])
    assert main(["eval", str(run), "--threshold", "0.999", "--metrics"]) == 0
    out = capsys.readouterr().out
    assert "auroc_macro" in out
    assert "images      AP" in out


def test_predict_names_the_labels_above_the_threshold(place, run, capsys):
    images = [f"shapes/{index:03d}.png" for index in range(4)]
    assert main(["predict", str(run), *images, "--csv", "new.csv", "--json"]) == 0
    answers, rows = json.loads(capsys.readouterr().out), table_of("new.csv")
    assert [row["predicted"].split("|") if row["predicted"] else [] for row in rows] == [
        a["predicted"] for a in answers
    ]
    loaded = gmmvit.load_run(run)
    found = loaded.predict(images)
    assert found.predicted == [answer["predicted"] for answer in answers]
    assert torch.equal(found.probabilities, loaded.logits(torch.stack([*map(loaded.decode, images)])).sigmoid())
    assert main(["predict", str(run), images[0], "--threshold", "0.000001"]) == 0
    named = capsys.readouterr().out.removeprefix(f"{images[0]}: ").partition(" (")[0]
    assert sorted(named.split(", ")) == list(LABELS)
    assert main(["predict", str(run), images[0], "--threshold", "0.999999"]) == 0
    assert f"{images[0]}: no label (" in capsys.readouterr().out


def test_the_report_shows_labels_in_the_place_of_the_confusion_matrix(run):
    assert main(["report", str(run)]) == 0
    page = (run / "report.html").read_text()
    assert "Confusion matrix" not in page
    assert all(words in page for words in ("<h2>Labels</h2>", "test mAP, best epoch", "micro F1", "of a label and how"))


def test_an_export_is_checked_by_map(run, capsys):
    assert main(["export", str(run), "--format", "torch", "--check", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["task"] == "several_labels"
    assert "sigmoid" in found["output"]
    assert found["check"]["map_after"] == pytest.approx(found["check"]["map_before"], abs=1e-6)


@pytest.mark.slow
def test_the_page_to_try_a_model_answers(run):
    pytest.importorskip("gradio")
    from gmmvit.report.demo import make_demo

    demo = make_demo(gmmvit.load_run(run))
    [answer] = [f.fn for f in demo.fns.values() if f.api_name == "predict"]
    shares, html = answer("shapes/000.png")
    assert set(shares) == set(LABELS)
    assert "attention" in html


def test_an_interrupted_training_ends_with_the_same_weights(place, run):
    """With class weights, averaged weights and patience; and a training that starts from the run's weights."""
    from gmmvit.runs.checkpoint import load_checkpoint
    from gmmvit.training import resume, train

    recipe = gmmvit.load_recipe(
        run / "config.yaml",
        pretrained=str(run),
        epochs=2,
        passes=1,
        class_weights="balanced",
        ema=0.9,
        patience=2,
        select="micro_f1",
        mix_prob=1.0,
    )
    whole = train(recipe, "runs/whole", quiet=True)
    assert whole["select"] == "micro_f1"
    import gmmvit.training.loop as loop

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "_summary", lambda *_: 1 / 0)
        patch.setattr(loop, "is_over", lambda recipe, epoch, best: epoch >= 1)
        with pytest.raises(ZeroDivisionError):
            train(recipe, "runs/cut", quiet=True)
    resume("runs/cut", quiet=True)
    for name in ("model.safetensors", "last.safetensors"):
        assert (place / "runs/cut" / name).read_bytes() == (place / "runs/whole" / name).read_bytes()
    assert load_checkpoint(place / "runs/cut", recipe)["best"]["val_map"] == whole["val_map"]


def test_folds_and_their_ensemble(place, run, capsys):
    fields = ["--epochs", "1", "--recipe", str(run / "config.yaml"), "--folds", "2", "--quiet"]
    assert main(["train", *fields, "--out", "runs/cv"]) == 0
    assert "mAP, best epoch" in capsys.readouterr().out
    assert main(["report", "runs/cv"]) == 0
    assert "2 folds: mAP" in (place / "runs/cv/report.html").read_text()
    both, each = gmmvit.load_run("runs/cv"), [gmmvit.load_run(f"runs/cv/fold-{fold}") for fold in (1, 2)]
    mean = torch.stack([one.predict("shapes/000.png").probabilities for one in each]).mean(0)
    assert torch.allclose(both.predict("shapes/000.png").probabilities, mean, atol=1e-6)


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (["train", "--sampling", "balanced"], "take --class-weights balanced"),
        (["train", "--select", "balanced"], "select balanced is not measured if images have several labels"),
        (["train", "--train-per-class", "9"], "train_per_class takes the first images of each class"),
        (["predict", "RUN", "shapes/000.png", "--unknown-below", "auto"], "unknown_below needs one label an image"),
        (["predict", "RUN", "shapes/000.png", "--threshold", "1.5"], "threshold must be a number above 0 and below 1"),
        (["eval", "RUN", "--dataset", "folder:single"], "has one label, and"),
    ],
)
def test_what_makes_no_sense_is_refused_in_a_sentence(place, run, capsys, words, fault):
    for name in LABELS:
        (place / "single" / name).mkdir(parents=True, exist_ok=True)
        for index in range(5):
            (place / "single" / name / f"{index}.png").write_bytes((place / "shapes/000.png").read_bytes())
    more = ["--dataset", "folder:shapes", "--out", "runs/no", *TINY] if words[0] == "train" else []
    assert main([word.replace("RUN", str(run)) for word in words] + more) in (1, 2)
    assert fault in capsys.readouterr().err


def test_a_run_of_one_label_has_no_threshold_and_no_map(tmp_path, capsys):
    recipe = gmmvit.load_recipe("digits", dim=16, depth=1, num_heads=2, epochs=1, passes=1, val_fraction=0.5)
    gmmvit.train(recipe, tmp_path / "digits", quiet=True)
    assert load_config(tmp_path / "digits")["data"]["task"] == "one_label"
    with pytest.raises(ValueError, match="threshold is for models with several labels"):
        gmmvit.load_run(tmp_path / "digits").predict(torch.rand(1, 8, 8), threshold=0.3)
    assert main(["train", "--select", "map", "--out", str(tmp_path / "no")]) == 2
    assert "select map is not measured if images have one label" in capsys.readouterr().err
    config = tmp_path / "digits" / "config.yaml"
    config.write_text(config.read_text().replace("  task: one_label\n", ""))
    assert gmmvit.load_run(tmp_path / "digits").task is ONE_LABEL  # as older versions wrote it


def test_the_loss_is_that_of_its_definition():
    logits, labels = torch.randn(7, 4), (torch.rand(7, 4) < 0.5).to(torch.uint8)
    p, y = logits.double().sigmoid(), labels.double()
    weights = positive_weights(torch.tensor([1, 2, 5, 7]), 7)
    assert weights.tolist() == pytest.approx([6, 2.5, 0.4, 1 / 7])
    cells = -(weights.double() * y * p.log() + (1 - y) * (1 - p).log())
    assert SeveralLabels(positive=weights).loss(logits, labels.float()).item() == pytest.approx(cells.mean().item())
    assert SEVERAL_LABELS.scores(logits, labels)["loss"] == pytest.approx(
        -(y * p.log() + (1 - y) * (1 - p).log()).mean().item()
    )
    stack = torch.randn(3, 7, 4)
    assert torch.allclose(SEVERAL_LABELS.mean_logits(stack).sigmoid(), stack.sigmoid().mean(0), atol=1e-6)
    none = torch.zeros_like(labels)
    assert SEVERAL_LABELS.scores(logits, none)["map"] == 0.0
    assert SEVERAL_LABELS.class_values(logits, none) == [None] * 4


def test_targets_are_smoothed_to_both_sides_and_mixed():
    images = torch.randint(0, 256, (4, 1, 8, 8), dtype=torch.uint8)
    labels = torch.tensor([[1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0]], dtype=torch.uint8)
    plain = {"num_classes": 3, "mean": (0.5,), "std": (0.5,), "label_smoothing": 0.2}
    generator = torch.Generator().manual_seed(0)
    _, targets = Augment(**plain, mix_prob=0)(images, labels, generator)
    assert torch.allclose(targets, labels * 0.8 + 0.1)
    _, mixed = Augment(**plain, mix_prob=1)(images, labels, generator)
    assert (mixed >= 0.1 - 1e-6).all()
    assert (mixed <= 0.9 + 1e-6).all()
    assert not torch.allclose(mixed, targets)
    with pytest.raises(ValueError, match="must have the shape"):
        Augment(**plain)(images, labels[:, :2], generator)
    with pytest.raises(ValueError, match="must be 0 and 1"):
        Augment(**plain)(images, labels * 2, generator)
