"""The results in the report: confusion, classes, calibration, mistakes."""

import base64
import dataclasses
import io
import json
from pathlib import Path

import pytest
import torch
from pages import Page
from PIL import Image
from scipy import stats
from sklearn.calibration import calibration_curve
from torch import nn
from torchmetrics.functional.classification import multiclass_calibration_error

from gmmvit.report.pictures import ERRORS, SEQUENTIAL, levels
from gmmvit.report.results import (
    Outcome,
    calibration_section,
    classes_section,
    confusion_section,
    measure,
    mistakes_section,
)
from gmmvit.runs.checkpoint import load_run
from gmmvit.runs.evaluate import calibration, confused_pairs, worst_mistakes
from gmmvit.runs.run_data import load_data
from gmmvit.tasks import confusion_counts


def test_the_confusion_matrix_counts_every_test_image(trained: Path, page: Page) -> None:
    matrix = next(t for t in page.tables if t[0] == ["", *"0123456789"])
    counts = torch.tensor([[int(cell.replace("·", "0")) for cell in line[1:]] for line in matrix[1:]])
    data = load_data(load_run(trained).recipe)
    assert data.test is not None
    assert counts.sum(1).tolist() == data.test.labels.bincount(minlength=10).tolist()
    summary = json.loads((trained / "summary.json").read_text())
    assert counts.diagonal().sum().item() / counts.sum().item() == pytest.approx(summary["test_top1_best"])


def test_the_worst_mistakes_come_first_with_their_names(trained: Path, page: Page) -> None:
    outcome = measure(load_run(trained), None)
    losses = nn.functional.cross_entropy(outcome.logits, outcome.split.labels, reduction="none")
    wrong = outcome.logits.argmax(1) != outcome.split.labels
    order = losses.masked_fill(~wrong, -1).argsort(descending=True)
    shown = [a["alt"].split(":")[0] for a in page.named("img") if " mistaken " in a["alt"] and "layer" not in a["alt"]]
    shown = [name for name in shown if name.startswith("digits")]
    assert shown == [outcome.split.names[i] for i in order[: min(24, int(wrong.sum()))].tolist()]


def test_many_classes_make_a_picture_and_a_list_of_pairs(trained: Path) -> None:
    labels = torch.arange(100).repeat(3)
    logits = nn.functional.one_hot(labels, 100).float()
    logits[[7, 107]] = nn.functional.one_hot(torch.tensor(9), 100).float()
    split = dataclasses.replace(measure(load_run(trained), None).split, labels=labels)
    run = dataclasses.replace(load_run(trained), classes=tuple(f"class {i}" for i in range(100)))
    page = Page(confusion_section(Outcome(run, "test", split, logits)))
    assert [a["alt"] for a in page.named("img")] == ["confusion matrix of 100 classes"]
    assert ["class 7", "class 9", "2", "66.7%"] in page.tables[0]


LONG = tuple(f"Cyanistes caeruleus, Eurasian blue tit, number {i}" for i in range(4))


def outcome_of(trained: Path, classes: tuple[str, ...], labels: list[int], guesses: list[int]) -> Outcome:
    """Confident answers `guesses`."""
    logits = 5.0 * nn.functional.one_hot(torch.tensor(guesses), len(classes)).float()
    split = measure(load_run(trained), None).split
    count = len(labels)
    split = dataclasses.replace(
        split, labels=torch.tensor(labels), images=split.images[:count], names=split.names[:count]
    )
    return Outcome(dataclasses.replace(load_run(trained), classes=classes), "test", split, logits)


@pytest.mark.parametrize("classes", [LONG, ("a" * 12, "b" * 16, "c", "d"), ("x", "y", "z", "w")])
def test_the_confusion_matrix_tells_whole_names_and_errors_by_colour(trained: Path, classes: tuple[str, ...]) -> None:
    outcome = outcome_of(trained, classes, [0, 0, 1, 2, 3], [0, 1, 1, 2, 3])
    content = confusion_section(outcome) + mistakes_section(outcome)
    page = Page(content)
    assert "…" not in content
    matrix = page.tables[0]
    numbered = classes is LONG
    assert matrix[0][1:] == (["1", "2", "3", "4"] if numbered else list(classes))
    assert [line[0] for line in matrix[1:]] == [
        f"{i} · {name}" if numbered else name for i, name in enumerate(classes, 1)
    ]
    assert [classes[0], classes[1], "1", "50.0%"] in page.tables[1]
    coloured = [a for a in page.named("td") if "background" in a.get("style", "")]
    assert [a["class"] for a in coloured] == ["hit", "miss", "hit", "hit", "hit"]
    assert len({a["style"].partition("(--")[2].partition(")")[0] for a in coloured}) == 2
    assert (" up" in content or 'class="up"' in content) == (len(classes[0]) == 12)


def test_the_picture_of_many_classes_has_errors_in_other_colours(trained: Path) -> None:
    classes = tuple(f"{LONG[0]}{i}" for i in range(30))
    page = Page(confusion_section(outcome_of(trained, classes, [0, 1, 1, 2], [0, 1, 2, 2])))
    address = page.named("img")[0]["src"]
    image = Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))).convert("RGB")
    assert image.getpixel((0, 0)) == SEQUENTIAL[-1]
    assert image.getpixel((2, 1)) == ERRORS[int(levels(torch.tensor(0.5).sqrt(), 0, 1))]
    assert image.getpixel((1, 0)) == image.getpixel((5, 5)) == SEQUENTIAL[0]
    assert all(name in page.text for name in classes)


def test_each_class_has_its_precision_recall_and_interval(trained: Path) -> None:
    labels, guesses = [0] * 10 + [1] * 4, [0] * 9 + [1] + [1] * 3 + [3]
    outcome = outcome_of(trained, ("a", "b", "c", "d"), labels, guesses)
    lines = {line[0]: line[1:6] for line in Page(classes_section(outcome)).tables[0][1:]}
    assert list(lines) == ["d", "b", "a"]  # c has no image and was never predicted
    low, high = stats.binomtest(9, 10).proportion_ci(0.95, "wilson")
    assert lines["a"] == ["9 / 10", "90.00%", f"{low:.1%} to {high:.1%}", "100.00%", "94.7%"]
    assert lines["b"][1:] == ["75.00%", "30.1% to 95.4%", "75.00%", "75.0%"]
    assert lines["d"] == ["0 / 0", "–", "–", "0.00%", "0.0%"]


def test_confidence_is_held_against_accuracy(trained: Path) -> None:
    # Of 20 images with a confidence of 0.75, 12 are right; of 4 with 0.9, all.
    sure = torch.tensor([0.75] * 20 + [0.9] * 4)
    logits = torch.stack([sure, 1 - sure], 1).log()
    labels = [0] * 12 + [1] * 8 + [0] * 4
    outcome = dataclasses.replace(outcome_of(trained, ("a", "b"), labels, labels), logits=logits)
    page = Page(calibration_section(outcome))
    assert f"calibration error {(20 * 0.15 + 4 * 0.1) / 24:.2%}" in page.text
    assert "the model is overconfident" in page.text
    low, high = stats.binomtest(12, 20).proportion_ci(0.95, "wilson")
    assert f"confidence 75.0%, accuracy 60.0% ({low:.1%} to {high:.1%}), 20 images" in page.text
    assert len(page.named("circle")) == 2


def test_calibration_is_that_of_libraries() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(500, 5, generator=generator)
    labels = torch.randint(5, (500,), generator=generator)
    found = calibration(logits, labels)
    expected = multiclass_calibration_error(logits.double().softmax(-1), labels, 5, n_bins=15)
    assert found.error == pytest.approx(expected.item())
    sure, predicted = logits.double().softmax(-1).max(-1)
    accuracy, confidence = calibration_curve(predicted == labels, sure, n_bins=15)
    assert found.accuracy == pytest.approx(accuracy.tolist())
    assert found.confidence == pytest.approx(confidence.tolist())
    assert calibration(torch.tensor([[1000.0, 0.0]]), torch.tensor([0])).error == 0


def test_mistakes_are_counted_and_ordered() -> None:
    logits = torch.tensor([[3.0, 0, 0], [0, 5, 0], [0, 9, 0], [0, 2, 0], [0, 0, 1]])
    labels = torch.tensor([0, 1, 0, 0, 1])
    counts = confusion_counts(logits, labels)
    assert counts.tolist() == [[1, 2, 0], [0, 1, 1], [0, 0, 0]]
    assert confused_pairs(counts, 5) == [(0, 1, 2), (1, 2, 1)]
    assert worst_mistakes(logits, labels, 2) == [2, 3]
