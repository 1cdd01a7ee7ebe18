"""What a model learns: one label per image, or several. Whatever depends on that asks a `Task`.

Letters: M models, N images, K classes.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from gmmvit.checks import is_real
from gmmvit.text import short

THRESHOLD = 0.5  # the least probability of a label that is named
WORDS = {
    "top1": "top-1",
    "macro_f1": "macro F1",
    "balanced": "balanced accuracy",
    "map": "mAP",
    "micro_f1": "micro F1",
    "label_accuracy": "label accuracy",
}


class Task(ABC):
    """A kind of training.

    Attributes:
        name: as in config.yaml.
        metrics: what is measured besides the loss, as fractions; the first, `main`, chooses the best epoch unless the
            recipe selects another.
        trained: what is measured on training images.
        of_class: what is measured for each class.
        reading: how a program turns logits into probabilities.
    """

    name: ClassVar[str]
    metrics: ClassVar[tuple[str, ...]]
    trained: ClassVar[str]
    of_class: ClassVar[str]
    reading: ClassVar[str]

    @property
    def main(self) -> str:
        return self.metrics[0]

    @property
    def validated(self) -> tuple[str, ...]:
        """The columns of metrics.jsonl and summary.json that hold the metrics of the validation part."""
        return tuple(f"val_{name}" for name in self.metrics)

    def selected(self, select: str) -> str:
        """The metric that a recipe's `select` means: its default, top1, is the main one of every task.

        Raises ValueError for a metric of another task.
        """
        chosen = self.main if select == "top1" else select
        if chosen not in self.metrics:
            raise ValueError(
                f"select {select} is not measured if images have {self.words}: take {' or '.join(self.metrics)}"
            )
        return chosen

    @property
    def words(self) -> str:
        return self.name.replace("_", " ")

    @abstractmethod
    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The mean loss of logits and soft targets, float32 [N, K] both."""

    @abstractmethod
    def hits(self, logits: Tensor, targets: Tensor) -> Tensor:
        """How many images of a training step are right; `trained` is their mean."""

    @abstractmethod
    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss of each image, float32 [N]; here and below, `labels` are those of a `Split`."""

    @abstractmethod
    def probabilities(self, logits: Tensor) -> Tensor:
        """The probability of each class, [N, K]."""

    @abstractmethod
    def mean_logits(self, logits: Tensor) -> Tensor:
        """The logits [N, K] whose probabilities are the mean of those of several models, logits [M, N, K]."""

    @abstractmethod
    def answers(self, logits: Tensor) -> Tensor:
        """The answers, equal rows for equal answers: [N] or [N, K]."""

    @abstractmethod
    def confidence(self, logits: Tensor) -> Tensor:
        """The probability of the least sure part of each answer, [N]."""

    @abstractmethod
    def claims(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Predicted probabilities, and whether each came true: both float64, of equal length."""

    @abstractmethod
    def metric_values(self, logits: Tensor, labels: Tensor) -> dict[str, float]:
        """The `metrics`, as fractions."""

    @abstractmethod
    def class_values(self, logits: Tensor, labels: Tensor) -> list[float | None]:
        """`of_class` for each class; None if no image has it."""

    def right(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Which images have a completely right answer, bool [N]."""
        return self.same(self.answers(logits), labels.cpu())

    @staticmethod
    def same(answers: Tensor, others: Tensor) -> Tensor:
        """Which answers are equal, bool [N]."""
        equal = answers == others
        return equal.all(1) if equal.ndim == 2 else equal

    def scores(self, logits: Tensor, labels: Tensor) -> dict[str, float]:
        """The loss and the `metrics` of logits [N, K] on the CPU."""
        labels = labels.cpu()
        return {"loss": self.mean_loss(logits, labels), **self.metric_values(logits, labels)}

    @abstractmethod
    def mean_loss(self, logits: Tensor, labels: Tensor) -> float: ...


class OneLabel(Task):
    """Every image has one class: softmax and cross-entropy. Labels are int64 [N]."""

    name = "one_label"
    metrics = ("top1", "macro_f1", "balanced")
    trained = "top1"
    of_class = "top1"
    reading = "whose softmax gives the probabilities"

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.cross_entropy(logits, targets)

    def hits(self, logits: Tensor, targets: Tensor) -> Tensor:
        return (logits.argmax(1) == targets.argmax(1)).sum()

    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        return nn.functional.cross_entropy(logits, labels, reduction="none")

    def mean_loss(self, logits: Tensor, labels: Tensor) -> float:
        return nn.functional.cross_entropy(logits, labels).item()

    def probabilities(self, logits: Tensor) -> Tensor:
        return logits.softmax(-1)

    def mean_logits(self, logits: Tensor) -> Tensor:
        return logits.log_softmax(-1).logsumexp(0) - torch.tensor(float(len(logits))).log()

    def answers(self, logits: Tensor) -> Tensor:
        return logits.argmax(1)

    def confidence(self, logits: Tensor) -> Tensor:
        return logits.softmax(-1).amax(1)

    def claims(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        sure, predicted = logits.double().softmax(-1).max(-1)
        return sure, (predicted == labels.cpu()).double()

    def metric_values(self, logits: Tensor, labels: Tensor) -> dict[str, float]:
        """Top-1, macro F1 and balanced accuracy: the mean of F1 over classes that occur or were predicted, and of the
        top-1 of each class that occurs."""
        counts = confusion_counts(logits, labels).double()
        hits, there, said = counts.diagonal(), counts.sum(1), counts.sum(0)
        return {
            "top1": (logits.argmax(1) == labels).double().mean().item(),
            "macro_f1": (2 * hits / (there + said))[there + said > 0].mean().item(),
            "balanced": (hits / there)[there > 0].mean().item(),
        }

    def class_values(self, logits: Tensor, labels: Tensor) -> list[float | None]:
        counts = confusion_counts(logits, labels)
        totals, hits = counts.sum(1).tolist(), counts.diag().tolist()
        return [hit / total if total else None for hit, total in zip(hits, totals, strict=True)]


@dataclass(frozen=True, eq=False)
class SeveralLabels(Task):
    """An image may have several of the classes, or none: each has a sigmoid and a binary cross-entropy, and the loss is
    their mean. Labels are uint8 [N, K].

    Attributes:
        threshold: the least probability of a label that is named.
        positive: weight of each class's images in the loss of that class, float32 [K] on the device; 1 by default.
    """

    name = "several_labels"
    metrics = ("map", "macro_f1", "micro_f1")
    trained = "label_accuracy"
    of_class = "AP"
    reading = f"whose sigmoid gives the probabilities: an image has each label of at least {THRESHOLD:g}"

    threshold: float = THRESHOLD
    positive: Tensor | None = None

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.binary_cross_entropy_with_logits(logits, targets, pos_weight=self.positive)

    def hits(self, logits: Tensor, targets: Tensor) -> Tensor:
        return ((logits > 0) == (targets > 0.5)).float().mean(1).sum()

    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        return nn.functional.binary_cross_entropy_with_logits(logits, labels.float(), reduction="none").mean(1)

    def mean_loss(self, logits: Tensor, labels: Tensor) -> float:
        return self.losses(logits, labels).mean().item()

    def probabilities(self, logits: Tensor) -> Tensor:
        return logits.sigmoid()

    def mean_logits(self, logits: Tensor) -> Tensor:
        with_label, without = (nn.functional.logsigmoid(x).logsumexp(0) for x in (logits, -logits))
        return with_label - without

    def answers(self, logits: Tensor) -> Tensor:
        return (logits.sigmoid() >= self.threshold).to(torch.uint8)

    def confidence(self, logits: Tensor) -> Tensor:
        found = logits.sigmoid()
        return torch.maximum(found, 1 - found).amin(1)

    def claims(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        return logits.double().sigmoid().flatten(), labels.cpu().double().flatten()

    def metric_values(self, logits: Tensor, labels: Tensor) -> dict[str, float]:
        """Mean average precision over the classes that occur, and F1 at the threshold: macro over the classes that
        occur or were named, and micro over all images and classes."""
        hits, there, said = (count.double() for count in label_counts(self.answers(logits), labels))
        known = [value for value in self.class_values(logits, labels) if value is not None]
        each = (2 * hits / (there + said))[there + said > 0]
        return {
            "map": sum(known) / len(known) if known else 0.0,
            "macro_f1": each.mean().item() if len(each) else 0.0,
            "micro_f1": (2 * hits.sum() / (there + said).sum().clamp_min(1)).item(),
        }

    def class_values(self, logits: Tensor, labels: Tensor) -> list[float | None]:
        """The average precision of each class, by scikit-learn."""
        from sklearn.metrics import average_precision_score

        # NaN if training diverged, which the loss shows.
        ranked, truth = logits.nan_to_num().numpy(), labels.cpu().numpy()
        return [
            float(average_precision_score(truth[:, k], ranked[:, k])) if truth[:, k].any() else None
            for k in range(truth.shape[1])
        ]


ONE_LABEL, SEVERAL_LABELS = OneLabel(), SeveralLabels()
TASKS: dict[str, Task] = {task.name: task for task in (ONE_LABEL, SEVERAL_LABELS)}


def task_of(labels: Tensor) -> Task:
    """The task for the labels of a `Split`."""
    return SEVERAL_LABELS if labels.ndim == 2 else ONE_LABEL


def task_in(facts: Mapping[str, Any]) -> Task:
    """The task of a summary or of a trial's row."""
    return SEVERAL_LABELS if "val_map" in facts else ONE_LABEL


def at_threshold(task: Task, threshold: float | None) -> Task:
    """The task with that threshold; None leaves it.

    Raises ValueError if the task has no threshold, or it is not a number above 0 and below 1.
    """
    if threshold is None:
        return task
    if not isinstance(task, SeveralLabels):
        raise ValueError(
            "threshold is for models with several labels per image: this one answers with the likeliest class"
        )
    if not is_real(threshold) or not 0 < threshold < 1:
        raise ValueError(f"threshold must be a number above 0 and below 1, got {short(threshold)}")
    return SeveralLabels(float(threshold), task.positive)


def positive_weights(counts: Tensor, images: int) -> Tensor:
    """The weight of an image with a class against one without, float32 [K], which gives both sides of each class the
    same total; `counts` are the images that have each class."""
    return (images - counts).clamp_min(1).float() / counts.clamp_min(1)


def confusion_counts(logits: Tensor, labels: Tensor) -> Tensor:
    """The confusion matrix: int64 [K, K], rows true, columns predicted."""
    classes = logits.shape[1]
    cells = labels.cpu() * classes + logits.argmax(1).cpu()
    return cells.bincount(minlength=classes * classes).reshape(classes, classes)


def label_counts(answers: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """For each class, how many images have it and were given it, have it, were given it: int64 [K] each."""
    labels = labels.cpu().long()
    return (answers.long() * labels).sum(0), labels.sum(0), answers.long().sum(0)
