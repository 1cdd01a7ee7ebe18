"""How a trained model performs on its test part: confusion matrix, class scores, calibration, worst mistakes. If an
image may have several labels, scores of the labels replace the first two.

Letters: N images.
"""

from dataclasses import dataclass
from html import escape
from pathlib import PurePath

from torch import Tensor

from gmmvit.data import DataError, Split
from gmmvit.data.records import listing as listing_of
from gmmvit.data.several import class_counts, numbers_of, words_of
from gmmvit.report.attention import attention_section
from gmmvit.report.charts import reliability_chart
from gmmvit.report.page import colour_scale, name_html, paragraph, percent, picture, row, scrolling, table
from gmmvit.report.pictures import (
    ERRORS,
    LEVELS,
    SEQUENTIAL,
    about_view,
    hex_colour,
    image_address,
    levels,
    map_address,
)
from gmmvit.runs.checkpoint import LoadedRun
from gmmvit.runs.evaluate import (
    CALIBRATION_BINS,
    calibration,
    check_unchanged,
    class_scores,
    confused_pairs,
    interval,
    load_parts,
    measured_logits,
    worst_mistakes,
)
from gmmvit.runs.files import RunError
from gmmvit.tasks import ONE_LABEL, THRESHOLD, Task, confusion_counts

WORST = 24
PAIRS = 15
TABLE_CLASSES = 20  # with more classes the confusion matrix is a picture
TURNED = 16  # letters; with longer class names the matrix numbers its columns
OPEN_CLASSES = 30  # with more classes the class table is folded
ATTENTION_EACH = 2  # right and wrong images, each, whose attention is drawn


@dataclass(frozen=True)
class Outcome:
    """A model's answers on one part of its data: `part` is "test" or "validation", logits [N, classes] on the CPU."""

    run: LoadedRun
    part: str
    split: Split
    logits: Tensor

    @property
    def task(self) -> Task:
        return self.run.task

    def named(self, index: int) -> str:
        """The labels that an image was given, of a model that gives several."""
        return words_of(self.task.answers(self.logits[index : index + 1])[0], self.run.classes)

    def caption(self, index: int) -> str:
        """An image's true class, and the predicted one with its probability; of several labels all of them."""
        if self.task is not ONE_LABEL:
            true, named = words_of(self.split.labels[index].cpu(), self.run.classes), self.named(index)
            return f"{true}, {'right' if true == named else f'mistaken for {named}'}"
        probabilities = self.logits[index].softmax(-1)
        predicted = int(probabilities.argmax())
        true, guess = self.run.classes[int(self.split.labels[index])], self.run.classes[predicted]
        verdict = "right" if predicted == int(self.split.labels[index]) else f"mistaken for {guess}"
        return f"{true}, {verdict} ({probabilities[predicted]:.1%})"


def measure(run: LoadedRun, data_dir: str | None) -> Outcome:
    """The model's answers on the test part of its data, or on the validation part if there is no test part.

    Raises DataError if the data set is gone, has changed, or has neither part.
    """
    try:
        data = load_parts(run, data_dir=data_dir, download=False)
        part = "val" if data.test is None else "test"
        check_unchanged(run, data, part)
    except (DataError, OSError, RunError) as error:
        raise DataError(f"the data set {run.recipe.dataset} cannot be used: {error}") from error
    split = getattr(data, part)
    if split is None or not len(split):
        raise DataError(f"the data set {data.name} has neither a test nor a validation part")
    logits = measured_logits(run, split)
    return Outcome(run, "validation" if data.test is None else "test", split, logits)


def confusion_section(outcome: Outcome) -> str:
    """The confusion matrix and the most confused pairs."""
    counts = confusion_counts(outcome.logits, outcome.split.labels)
    result = outcome.task.scores(outcome.logits, outcome.split.labels)
    classes = outcome.run.classes
    low, high = interval(result["top1"], len(outcome.split))
    intro = (
        f"{len(outcome.split):,} {outcome.part} images, weights of the best epoch: top-1 {result['top1']:.2%} "
        f"(95 % interval {low:.1%} to {high:.1%}), "
        f"macro F1 {result['macro_f1']:.2%}, balanced accuracy {result['balanced']:.2%}, "
        f"loss {result['loss']:.4f}. Rows are the true classes, columns the predicted ones."
    )
    few = len(classes) <= TABLE_CLASSES
    matrix = _matrix_table(counts, classes) if few else _matrix_picture(counts, classes)
    pairs = _pairs(counts, classes)
    return f"{paragraph(intro)}{matrix}{pairs}"


def labels_section(outcome: Outcome) -> str:
    """Average precision of each label with precision, recall and F1 at the threshold, the lowest first."""
    logits, truth, classes, task = outcome.logits, outcome.split.labels, outcome.run.classes, outcome.task
    result, precisions = task.scores(logits, truth), task.class_values(logits, truth)
    totals, found = class_counts(truth, len(classes)).tolist(), class_scores(logits, truth, task)
    known = {i: value for i, value in enumerate(precisions) if value is not None}
    rows = []
    for i in sorted(known, key=known.__getitem__):
        cells = [classes[i], f"{totals[i]:,}", f"{known[i]:.1%}"]
        cells += [percent(found[name][i]) for name in ("precision", "recall", "f1")]
        bar = f'<td class="track"><span class="bar" style="width:{known[i]:.1%}"></span></td></tr>'
        rows.append(row(cells).removesuffix("</tr>") + bar)
    listing = table(["label", "images", "AP", "precision", "recall", "F1", ""], rows)
    if len(known) > OPEN_CLASSES:
        listing = f"<details><summary>all {len(known)} labels, the weakest first</summary>{listing}</details>"
    lacking = [name for name, value in zip(classes, precisions, strict=True) if value is None]
    right = task.right(logits, truth).double().mean().item()
    intro = (
        f"{len(outcome.split):,} {outcome.part} images, weights of the best epoch: mAP {result['map']:.2%}, the mean "
        "over the labels of their average precision (AP), which depends on no threshold. At a threshold of "
        f"{THRESHOLD:g}: macro F1 {result['macro_f1']:.2%}, micro F1 {result['micro_f1']:.2%}, and {right:.2%} of the "
        f"images have all of their labels and no other. Loss {result['loss']:.4f}. The lowest AP comes first."
    )
    note = f"No {outcome.part} image has the label {listing_of(lacking)}, so no AP can be given." if lacking else ""
    return paragraph(intro) + listing + (paragraph(note, "note") if note else "")


def classes_section(outcome: Outcome) -> str:
    """Recall with its interval, precision and F1 of each class, lowest F1 first."""
    classes = outcome.run.classes
    counts = confusion_counts(outcome.logits, outcome.split.labels)
    totals, hits = counts.sum(1).tolist(), counts.diagonal().tolist()
    found = class_scores(outcome.logits, outcome.split.labels)
    known = {i: f1 for i, f1 in enumerate(found["f1"]) if f1 is not None}
    rows = []
    for i in sorted(known, key=known.__getitem__):
        low, high = interval(hits[i] / totals[i], totals[i]) if totals[i] else (0, 1)
        between = f"{low:.1%} to {high:.1%}" if totals[i] else "–"
        share = f"{known[i]:.1%}"
        cells = [classes[i], f"{hits[i]} / {totals[i]}", percent(found["recall"][i]), between]
        cells += [percent(found["precision"][i]), share]
        bar = f'<td class="track"><span class="bar" style="width:{share}"></span></td></tr>'
        rows.append(row(cells).removesuffix("</tr>") + bar)
    listing = table(["class", "right", "recall", "95 % interval", "precision", "F1", ""], rows)
    if len(known) > OPEN_CLASSES:
        listing = f"<details><summary>all {len(known)} classes, the weakest first</summary>{listing}</details>"
    intro = (
        "Recall is the fraction of a class's images that were recognised, with its 95 % interval (Wilson), wide for "
        "few images. Precision is the fraction of the images predicted as the class that belong to it; F1 is the "
        "harmonic mean of both. The lowest F1 comes first."
    )
    return paragraph(intro) + listing


def calibration_section(outcome: Outcome) -> str:
    """Whether the model's probabilities are trustworthy: calibration error and reliability plot."""
    found = calibration(outcome.logits, outcome.split.labels, outcome.task)
    points = [
        (confidence, accuracy, *interval(accuracy, images), images)
        for confidence, accuracy, images in zip(found.confidence, found.accuracy, found.images, strict=True)
    ]
    mean = sum(c * n for c, n in zip(found.confidence, found.images, strict=True)) / sum(found.images)
    top1 = sum(a * n for a, n in zip(found.accuracy, found.images, strict=True)) / sum(found.images)
    side = "underconfident" if mean < top1 else "overconfident"
    if outcome.task is not ONE_LABEL:
        intro = (
            f"Expected calibration error {found.error:.2%}: the mean distance between the probability of a label and "
            f"how often it is there, over all images and labels, in {CALIBRATION_BINS} steps. The mean probability is "
            f"{mean:.2%}; {top1:.2%} of the labels are there. Points below the line are probabilities too high, "
            "points above it too low; bars are 95 % intervals, larger points have more labels."
        )
        return paragraph(intro) + f'<div class="narrow">{reliability_chart("Frequency by probability", points)}</div>'
    intro = (
        f"Expected calibration error {found.error:.2%}: the mean distance between the probability of the predicted "
        f"class and how often it is right, in {CALIBRATION_BINS} bins. Mean confidence {mean:.2%}, accuracy "
        f"{top1:.2%}: the model is {side}. Points below the line are overconfident, points above it "
        "underconfident; bars are 95 % intervals, larger points have more images."
    )
    return paragraph(intro) + f'<div class="narrow">{reliability_chart("Accuracy by confidence", points)}</div>'


def _shares(counts: Tensor) -> Tensor:
    """Counts as fractions of their row."""
    return counts / counts.sum(1, keepdim=True).clamp_min(1)


def _matrix_table(counts: Tensor, classes: tuple[str, ...]) -> str:
    longest = max(map(len, classes))
    numbered = longest > TURNED  # long names would need too much height; the rows explain the numbers
    heads = "".join(
        f'<th scope="col" title="{escape(name)}">{number if numbered else _turned(name, longest)}</th>'
        for number, name in enumerate(classes, 1)
    )
    body = []
    for true, (line, shares) in enumerate(zip(counts.tolist(), _shares(counts).tolist(), strict=True)):
        cells = []
        for predicted, (count, share) in enumerate(zip(line, shares, strict=True)):
            kind, colour = ("hit", "heat") if true == predicted else ("miss", "miss")
            # Single mistakes stay visible beside a full diagonal; text is legible on a shade up to 60 %.
            shade = 0.55 * share**0.5 if true == predicted else 0.15 + 0.45 * share**0.5
            style = f' class="{kind}" style="background:rgba(var(--{colour}),{shade:.2f})"' if count else ""
            title = f"{classes[true]} mistaken for {classes[predicted]}: {count} ({share:.1%})"
            cells.append(f'<td{style} title="{escape(title)}">{count or "·"}</td>')
        name = name_html(f"{true + 1} · {classes[true]}" if numbered else classes[true])
        body.append(f'<tr><th scope="row">{name}</th>{"".join(cells)}</tr>')
    key = "Blue: right, orange: errors, shaded by their fraction of the true class."
    if numbered:
        key += " The columns are numbered like the rows."
    return paragraph(key, "note") + scrolling(
        f'<table class="matrix"><thead><tr><th></th>{heads}</tr></thead><tbody>{"".join(body)}</tbody></table>'
    )


def _turned(name: str, longest: int) -> str:
    return f'<div class="up">{escape(name)}</div>' if longest > 3 else escape(name)


def _matrix_picture(counts: Tensor, classes: tuple[str, ...]) -> str:
    """One pixel per cell, the diagonal in `SEQUENTIAL` colours, the rest in `ERRORS`."""
    shades = levels(_shares(counts).sqrt(), 0, 1) + LEVELS
    shades.diagonal().sub_(LEVELS)
    text = f"confusion matrix of {len(counts)} classes"
    caption = f"{text}, true downwards, predicted to the right, the first class at the top left"
    drawn = picture([(map_address(shades, SEQUENTIAL + ERRORS), text)], caption)
    scales = [
        colour_scale([hex_colour(ramp[i]) for i in range(0, LEVELS, 8)], "0%", middle, "100%")
        for ramp, middle in (
            (SEQUENTIAL, "Right, as a fraction of the true class."),
            (ERRORS, "Wrong, as a fraction of the true class."),
        )
    ]
    names = "".join(f"<li>{escape(name)}</li>" for name in classes)
    listing = f'<details><summary>the classes in this order</summary><ol class="names">{names}</ol></details>'
    return f'<div class="whole">{drawn}{"".join(scales)}</div>{listing}'


def _pairs(counts: Tensor, classes: tuple[str, ...]) -> str:
    totals = counts.sum(1).tolist()
    pairs = confused_pairs(counts, PAIRS)
    if not pairs:
        return "<h3>Most confused</h3>" + paragraph("No image was classified wrongly.")
    rows = [row([classes[t], classes[p], f"{n}", f"{n / totals[t]:.1%}"], left=2) for t, p, n in pairs]
    listing = table(["true", "taken for", "images", "of the class"], rows, left=2)
    return f'<h3>Most confused</h3><div class="narrow">{listing}</div>'


def mistakes_section(outcome: Outcome) -> str:
    """The wrongly classified images with the highest loss."""
    worst = worst_mistakes(outcome.logits, outcome.split.labels, WORST, outcome.task)
    if not worst:
        return paragraph(f"All {len(outcome.split):,} {outcome.part} images were classified right.")
    cards = []
    for index in worst:
        name = str(outcome.split.names[index])
        caption = f"{_mistake(outcome, index)}<small>{escape(short_name(name))}</small>"
        image = outcome.split.images[index]
        text = f"{name}: {outcome.caption(index)}"
        cards.append(picture([(image_address(image), text)], caption, smooth=max(image.shape) > 64))
    intro = f"The {len(cards)} wrong {outcome.part} images with the highest loss, the highest first."
    intro += about_view(outcome.run.channels, outcome.run.bits)
    return paragraph(intro) + f'<div class="cards">{"".join(cards)}</div>'


def _mistake(outcome: Outcome, index: int) -> str:
    """What an image is, and what it was mistaken for, as HTML."""
    classes, label = outcome.run.classes, outcome.split.labels[index].cpu()
    probabilities = outcome.task.probabilities(outcome.logits[index])
    if outcome.task is not ONE_LABEL:
        wrong = (outcome.task.answers(outcome.logits[index : index + 1])[0] != label).nonzero().flatten().tolist()
        shares = ", ".join(f"{classes[i]} {probabilities[i]:.1%}" for i in wrong)
        there, named = words_of(label, classes), outcome.named(index)
        return f"<b>{escape(there)}</b> mistaken for <b>{escape(named)}</b><small>{escape(shares)}</small>"
    true, predicted = int(label), int(probabilities.argmax())
    return (
        f"<b>{escape(classes[true])}</b> mistaken for <b>{escape(classes[predicted])}</b>"
        f"<small>{probabilities[predicted]:.1%}, true class {probabilities[true]:.1%}</small>"
    )


def short_name(name: str, length: int = 40) -> str:
    """A long path shortened to its end, which distinguishes images."""
    return name if len(name) <= length else "…" + str(PurePath(name))[1 - length :]


def looked_at(outcome: Outcome) -> list[int]:
    """Indices of the images whose attention is drawn: the most confident right ones, of different classes, then the
    worst mistakes."""
    task, labels = outcome.task, outcome.split.labels.cpu()
    sure = task.confidence(outcome.logits).masked_fill(~task.right(outcome.logits, labels), -1)
    chosen: dict[tuple[int, ...], int] = {}
    for index in sure.argsort(descending=True, stable=True).tolist():
        if sure[index] < 0 or len(chosen) == ATTENTION_EACH:
            break
        chosen.setdefault(numbers_of(labels[index]), index)
    return [*chosen.values(), *worst_mistakes(outcome.logits, labels, ATTENTION_EACH, task)]


def looking_section(outcome: Outcome) -> str:
    """Attention maps of a few images."""
    indices = looked_at(outcome)
    return attention_section(outcome.run, outcome.split.images[indices], [outcome.caption(i) for i in indices])
