"""Compares several runs: one row per arm (runs that differ only in their seed) and shared curves."""

import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from gmmvit.config import as_dict, fields_of
from gmmvit.report.charts import Line, line_chart
from gmmvit.report.page import paragraph, percent, row, table
from gmmvit.report.runs import RunRecord, count, epochs_of, figure_words, plain, seed_of, time_taken
from gmmvit.sweep.files import difference_words, spread_words
from gmmvit.sweep.table import difference

HEADS = ["mask", "data, model", "seeds", "test %, best", "test %, last", "validation %"]
HEADS += ["gain, points [95 %]", "parameters", "images/s", "wall time"]
RUN_HEADS = ["run", "mask", "data, model", "seed", "epochs", "test, best", "test, last", "validation"]
RUN_HEADS += ["images/s", "wall time"]

_MASK = {"mask", *fields_of("mask"), *fields_of("mask_training")}  # fields that only concern the mask


@dataclass(frozen=True)
class Arm:
    """Runs that differ only in seed or fold, in the given order; an unfinished run is a separate arm."""

    name: str
    records: list[RunRecord]

    @cached_property
    def recipe(self) -> dict[str, Any]:
        """The recipe fields that its runs share."""
        return _distinct_fields(self.records[0])

    @property
    def accuracies(self) -> tuple[str, str, str]:
        """The facts that are compared."""
        return accuracies_of(self.records[0])

    def values(self, fact: str) -> list[float]:
        """The values of a fact, from the runs that have it."""
        known = [record.facts.get(fact) for record in self.records]
        return [value for value in known if isinstance(value, int | float)]

    def mean(self, fact: str) -> float | None:
        values = self.values(fact)
        return statistics.mean(values) if values else None

    def spread(self, fact: str) -> str:
        """Mean and deviation in percent, with the number of runs if some lack the fact."""
        values = self.values(fact)
        if not values:
            return "–"
        few = f" (n={len(values)})" if len(values) < len(self.records) else ""
        return spread_words(statistics.mean(values), statistics.stdev(values) if len(values) > 1 else None) + few


def accuracies_of(record: RunRecord) -> tuple[str, str, str]:
    """The facts that runs like this one are compared by: on test, best and last epoch, and on validation."""
    main = record.task.main
    return f"test_{main}_best", f"test_{main}_last", f"val_{main}"


def _distinct_fields(record: RunRecord) -> dict[str, Any]:
    left_out = {"seed", "fold", *fields_of("incidental")}
    return {name: value for name, value in as_dict(record.recipe).items() if name not in left_out}


def _kind(record: RunRecord) -> str:
    """Data and model, with paths reduced to their last part."""
    return " ".join(name.rstrip("/").rpartition("/")[2] for name in (record.recipe.dataset, record.recipe.model))


def arms(records: Sequence[RunRecord]) -> list[Arm]:
    """The arms of these runs, grouped by data and model.

    An arm is named after its mask and whatever else distinguishes it from other arms of the same data, model and mask.
    """
    groups: dict[str, list[RunRecord]] = defaultdict(list)
    for record in records:
        groups[f"{_distinct_fields(record)}{'' if record.finished else record.folder}"].append(record)
    alike: dict[tuple[str, str], list[list[RunRecord]]] = defaultdict(list)
    for members in groups.values():
        alike[_kind(members[0]), members[0].recipe.mask].append(members)
    found = [Arm(_name(members, others), members) for others in alike.values() for members in others]
    order = list(dict.fromkeys(_kind(record) for record in records))
    return sorted(found, key=lambda arm: order.index(_kind(arm.records[0])))


def _name(members: list[RunRecord], others: list[list[RunRecord]]) -> str:
    mine, recipes = _distinct_fields(members[0]), [_distinct_fields(other[0]) for other in others]
    apart = [name for name in mine if any(recipe[name] != mine[name] for recipe in recipes)]
    words = [members[0].recipe.mask, *(f"{name} {plain(mine[name])}" for name in apart)]
    if not members[0].finished:
        words.append(f"unfinished: {epochs_of(members[0])} epochs")
    return ", ".join(words)


def names(records: Sequence[RunRecord]) -> list[str]:
    """The runs' folder names, with as many parent folders as distinguish them."""
    parts = [record.folder.resolve().parts for record in records]
    for last in range(1, max(map(len, parts)) + 1):
        short = ["/".join(path[-last:]) for path in parts]
        if len(set(short)) == len(short):
            break
    return short


def comparison(records: Sequence[RunRecord]) -> str:
    """Compares runs by mask: a table of means over seeds, the single runs folded below, and shared curves."""
    compared = arms(records)
    rows = [_arm_row(arm, compared) for arm in compared]
    intro = (
        "Means over the seeds ± standard deviation (n − 1); the runs of a row differ only in their seed. ★ marks the "
        "best mean of a data set. The gain compares the last epoch's test accuracy with the row that has no mask and "
        "is otherwise the same: the mean over pairs of the same seed, with its 95 % interval by Student's t. If it "
        "contains 0, these runs do not show that the mask helps. The sections below show the first run."
    )
    labels = names(records)
    singles = [_run_row(label, record) for label, record in zip(labels, records, strict=True)]
    runs = (
        f"<details><summary>the {len(records)} runs one by one</summary>{table(RUN_HEADS, singles, left=3)}</details>"
    )
    return paragraph(intro) + table(HEADS, rows, left=3) + runs + _shared_curves(compared)


def _arm_row(arm: Arm, compared: Sequence[Arm]) -> str:
    seeds = ", ".join(map(seed_of, arm.records))
    cells = [arm.name, _kind(arm.records[0]), seeds, *(arm.spread(name) for name in arm.accuracies)]
    counts = set(arm.values("num_parameters"))
    cells += [_gain(arm, compared), count(counts.pop() if len(counts) == 1 else None)]
    cells += [count(arm.mean("train_images_per_s")), time_taken(arm.mean("wall_s"))]
    return row(cells, left=3, best=_best_cells(arm, compared))


def _gain(arm: Arm, compared: Sequence[Arm]) -> str:
    """The difference to the arm without a mask that is otherwise the same."""
    if arm.recipe["mask"] == "none" or not arm.records[0].finished:
        return "–"

    def rest(other: Arm) -> dict[str, Any]:
        return {name: value for name, value in other.recipe.items() if name not in _MASK}

    def rows(other: Arm) -> list[dict[str, Any]]:
        fact = arm.accuracies[1]
        return [{"seed": (r.recipe.seed, r.recipe.fold), "test": r.facts.get(fact)} for r in other.records]

    controls = [other for other in compared if other.recipe["mask"] == "none" and other.records[0].finished]
    found = [difference(rows(arm), rows(other), "test") for other in controls if rest(other) == rest(arm)]
    if len(found) != 1 or found[0] is None:
        return "–"
    return difference_words(found[0].mean, found[0].low, found[0].high)


def _best_cells(arm: Arm, compared: Sequence[Arm]) -> list[int]:
    """Columns in which an arm has the best mean on its data set; empty if the data set has one arm."""
    cells = []
    for column, fact in enumerate(arm.accuracies, 3):
        rivals = [other.mean(fact) for other in compared if other.recipe["dataset"] == arm.recipe["dataset"]]
        known = [value for value in rivals if value is not None]
        if len(known) > 1 and arm.mean(fact) == max(known):
            cells.append(column)
    return cells


def _run_row(label: str, record: RunRecord) -> str:
    facts = record.facts
    cells = [label, record.recipe.mask, _kind(record), seed_of(record), epochs_of(record)]
    cells += [percent(facts.get(name)) for name in accuracies_of(record)]
    return row([*cells, count(facts.get("train_images_per_s")), time_taken(facts.get("wall_s"))], left=3)


def _shared_curves(compared: Sequence[Arm]) -> str:
    """Validation accuracy and loss of the arms, or training values for runs without validation."""
    several = len({_kind(arm.records[0]) for arm in compared}) > 1
    charts = []
    kinds = {arm.records[0].task.main for arm in compared}
    for key, heading in ((None, f"{figure_words(kinds)}, validation"), ("loss", "Loss, validation")):
        lines = [_mean_line(arm, key, several) for arm in compared]
        charts.append(line_chart(heading, lines, percent=key is None))
    intro = paragraph("Lines are means over the seeds, the shade reaches from the lowest run to the highest.", "note")
    return f'<h3>Curves by mask</h3>{intro}<div class="pair">{"".join(charts)}</div>'


def _mean_line(arm: Arm, given: str | None, several: bool) -> Line:
    """A column of metrics.jsonl, of the main figure where none is given."""
    task = arm.records[0].task
    held_out = all(record.has(f"val_{given or task.main}") for record in arm.records)
    key = given or (task.main if held_out else task.trained)
    label = f"{_kind(arm.records[0])}, {arm.name}" if several else arm.name
    if len(arm.records) > 1:
        label += f", {len(arm.records)} seeds"
    at: dict[float, list[float]] = defaultdict(list)
    for record in arm.records:
        for epoch, value in record.line(f"{'val' if held_out else 'train'}_{key}", "").finite():
            at[epoch].append(value)
    points = [(epoch, statistics.mean(values)) for epoch, values in sorted(at.items())]
    band = [(epoch, min(values), max(values)) for epoch, values in sorted(at.items())]
    return Line(label + ("" if held_out else " (training)"), points, band if len(arm.records) > 1 else [])
