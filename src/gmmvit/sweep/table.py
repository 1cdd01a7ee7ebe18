"""Makes a study's table from the trials' rows: means, deviations, paired differences to controls, cost."""

import math
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gmmvit.sweep.plan import Plan
from gmmvit.tasks import task_in

CONFIDENCE = 0.95
Row = dict[str, Any]


def metrics_of(row: Row) -> tuple[str, str, str]:
    """What the row of a trial, or a summary, measured: the metric that settings are chosen by, the one that is
    reported, and that of the best epoch."""
    main = task_in(row).main
    return f"val_{main}", f"test_{main}_last", f"test_{main}_best"


@dataclass(frozen=True)
class Difference:
    """The mean of paired differences; `low` and `high` bound its 95 % interval, None for a single pair."""

    mean: float
    low: float | None
    high: float | None
    pairs: int


def paired(values: Sequence[float]) -> Difference:
    """Mean and Student's t interval (n - 1 degrees of freedom) of paired differences."""
    mean = statistics.mean(values)
    if len(values) < 2:
        return Difference(mean, None, None, len(values))
    from scipy.special import stdtrit  # the quantile of Student's t

    half = float(stdtrit(len(values) - 1, (1 + CONFIDENCE) / 2)) * statistics.stdev(values) / math.sqrt(len(values))
    return Difference(mean, mean - half, mean + half, len(values))


def make_table(plan: Plan, rows: Sequence[Row]) -> list[Row]:
    """One row per arm and data set, in the study's order; accuracies are fractions.

    With ranges an arm is represented by its best setting: the highest mean validation top-1 among settings without
    failed trials. Differences pair trials of the same data and seed.
    """
    of_arm: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        of_arm[row["data"], row["arm"]].append(row)
    chosen = {key: _chosen(plan, members) for key, members in of_arm.items()}
    return [
        _line(plan, data, arm.name, of_arm[data, arm.name], chosen)
        for data in plan.study.data
        for arm in plan.arms.values()
        if (data, arm.name) in chosen
    ]


def _chosen(plan: Plan, rows: list[Row]) -> list[Row]:
    """The finished rows that represent an arm."""
    done = [row for row in rows if row["status"] == "done"]
    if not plan.study.ranges:
        return done
    settings: dict[int, list[Row]] = defaultdict(list)
    for row in done:
        settings[row["setting"]].append(row)
    known = [s for s in settings.values() if len(s) == len(plan.study.seeds) and worth(s[0]) is not None]
    return max(known, key=lambda members: statistics.mean(worth(row) or 0 for row in members), default=[])


def worth(row: Row) -> float | None:
    """By what settings are chosen: the validation metric of a trial; None where it has none."""
    return row.get(metrics_of(row)[0])


def _line(plan: Plan, data: str, arm: str, rows: list[Row], chosen: dict[tuple[str, str], list[Row]]) -> Row:
    mine = chosen[data, arm]
    levels = plan.arms[arm].levels
    line: Row = {"data": data, "arm": arm, **{factor: levels.get(factor, "") for factor in plan.study.factors}}
    for name in plan.study.ranges:
        line[name] = mine[0][name] if mine else None
    line |= {"n": len(mine), "failed": sum(row["status"] == "failed" for row in rows)}
    metrics = metrics_of(mine[0] if mine else {})
    for metric in metrics:
        values = _known(mine, metric)
        line[f"{metric}_mean"] = statistics.mean(values) if values else None
        line[f"{metric}_sd"] = statistics.stdev(values) if len(values) > 1 else None
    for control in plan.study.controls:
        other = plan.control(plan.arms[arm], control)
        for metric in metrics[:2]:
            found = None if other is None else difference(mine, chosen.get((data, other.name), []), metric)
            line |= _difference_cells(f"{metric}_minus_{control}", found)
    line["settings"] = len({row["setting"] for row in rows}) if plan.study.ranges else 1
    for cost in ("core_s", "wall_s"):  # of one trial, and of the whole search
        line[f"{cost}_mean"] = statistics.mean(_known(mine, cost)) if _known(mine, cost) else None
    line["core_s_all"] = sum(_known(rows, "core_s"))
    line |= {name: _same(mine, name) for name in ("num_parameters", "train_images", "epochs", "passes")}
    return line | {name: _same(mine, name) for name in ("machine", "dtype", "torch", "date", "commit")}


def difference(mine: Sequence[Row], others: Sequence[Row], metric: str) -> Difference | None:
    """The paired difference of a metric, mine minus theirs; None without a pair."""
    theirs = {row["seed"]: row[metric] for row in others if row[metric] is not None}
    pairs = [row[metric] - theirs[row["seed"]] for row in mine if row[metric] is not None and row["seed"] in theirs]
    return paired(pairs) if pairs else None


def _difference_cells(name: str, found: Difference | None) -> Row:
    cells = (None, None, None, None) if found is None else (found.mean, found.low, found.high, found.pairs)
    return dict(zip((name, f"{name}_low", f"{name}_high", f"{name}_pairs"), cells, strict=True))


def _known(rows: Sequence[Row], name: str) -> list[float]:
    return [row[name] for row in rows if row.get(name) is not None]


def _same(rows: Sequence[Row], name: str) -> str:
    """The value of a column, or all its values if they differ."""
    return "; ".join(dict.fromkeys(str(row[name]) for row in rows if row.get(name) is not None))
