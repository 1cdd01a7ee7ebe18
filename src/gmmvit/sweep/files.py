"""The files of a study's folder: one row per ended trial, and the tables made of them."""

import csv
import datetime
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gmmvit.runs.files import RunError, write_json, write_whole
from gmmvit.sweep.plan import Plan, Trial
from gmmvit.sweep.table import Row, make_table, metrics_of
from gmmvit.tasks import WORDS

TRIALS, TABLE, MARKDOWN, PAGE = "trials.csv", "table.csv", "table.md", "report.html"
_FROM_SUMMARY = ("best_epoch", "epochs", "passes", "train_images", "images_seen", "num_parameters",
                 "mask_parameters", "core_s", "wall_s", "device", "dtype")  # fmt: skip
_OF_MACHINE = ("machine", "threads", "commit")
HEAD = ("trial", "data", "arm", "seed", "setting", "status")


def make_row(trial: Trial, outcome: dict[str, Any]) -> Row:
    """The row of an ended trial; unknown values are None."""
    summary = outcome.get("summary", {})
    row: Row = {"trial": trial.name, "data": trial.data, "arm": trial.arm.name, "seed": trial.seed}
    row |= {"setting": trial.number, "status": "done" if summary else "failed", **trial.arm.levels, **trial.setting}
    row |= {name: summary.get(name) for name in (*metrics_of(summary), *_FROM_SUMMARY)}
    row |= {name: outcome.get(name) for name in _OF_MACHINE}
    row |= {"torch": summary.get("versions", {}).get("torch"), "date": datetime.date.today().isoformat()}
    return row | {"sentence": outcome.get("sentence")}


def remove_leftovers(out: Path) -> None:
    """Removes temporary files of a killed sweep. The caller holds the lock."""
    for name in (TRIALS, TABLE, MARKDOWN, PAGE, "rows/*.json"):
        folder, _, file = name.rpartition("/")
        for path in (out / folder).glob(f".{file}.*.tmp"):
            path.unlink(missing_ok=True)


def row_path(out: Path, name: str) -> Path:
    """The file of a trial's row."""
    return out / "rows" / f"{name}.json"


def write_row(out: Path, row: Row) -> None:
    """Writes a trial's row atomically."""
    path = row_path(out, row["trial"])
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, row)


def read_row(out: Path, name: str) -> Row | None:
    """A trial's row, None if it has none yet. Raises RunError for a damaged one."""
    path = row_path(out, name)
    if not path.exists():
        return None
    try:
        row = json.loads(path.read_bytes())
    except ValueError as error:
        raise RunError(f"{path} is not valid JSON: {error}; remove it to make the sweep write it again") from None
    if not isinstance(row, dict) or row.get("trial") != name or "status" not in row:
        raise RunError(f"{path} is not the row of trial {name}; remove it to make the sweep write it again")
    return row


def write_tables(out: Path, plan: Plan, rows: Sequence[Row]) -> list[Row]:
    """Writes the current rows and their table; returns the table."""
    table = make_table(plan, rows)
    write_csv(out / TRIALS, rows)
    write_csv(out / TABLE, table)
    write_whole(out / MARKDOWN, markdown(plan, table).encode())
    return table


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """Writes rows as CSV with the columns of all rows; None is an empty cell, fractions keep six digits."""
    text = io.StringIO()
    columns = dict.fromkeys(name for row in rows for name in row)
    writer = csv.DictWriter(text, list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: f"{v:.6g}" if isinstance(v, float) else v for name, v in row.items()} for row in rows)
    write_whole(path, text.getvalue().encode())


def table_cells(plan: Plan, table: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Header and cells of the table for readers: percent, and differences in points with their intervals."""
    controls, ranges = plan.study.controls, plan.study.ranges
    mains = " or ".join(dict.fromkeys(WORDS[_main(row)] for row in table)) or WORDS["top1"]
    heads = ["data", "arm", *ranges, "n", f"validation {mains} %", f"test {mains} %, last epoch"]
    heads += [f"test minus control {name}, points [95 %]" for name in controls] + ["core-seconds a trial"]
    cells = []
    for row in table:
        line = [row["data"], row["arm"], *(f"{row[name]:.4g}" if row[name] is not None else "–" for name in ranges)]
        line += [f"{row['n']}" + (f" ({row['failed']} failed)" if row["failed"] else "")]
        chosen_by, reported = f"val_{_main(row)}", f"test_{_main(row)}_last"
        line += [spread_words(row[f"{metric}_mean"], row[f"{metric}_sd"]) for metric in (chosen_by, reported)]
        line += [_difference(row, f"{reported}_minus_{name}") for name in controls]
        cells.append([*line, "–" if row["core_s_mean"] is None else f"{row['core_s_mean']:,.0f}"])
    return heads, cells


def _main(row: Row) -> str:
    """The main metric of a row of the table."""
    return "map" if "val_map_mean" in row else "top1"


def markdown(plan: Plan, table: Sequence[Row]) -> str:
    """The table as markdown."""
    heads, cells = table_cells(plan, table)
    lines = [heads, ["---"] * len(heads), *cells]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def spread_words(mean: float | None, deviation: float | None) -> str:
    """Mean and standard deviation of fractions, in percent."""
    if mean is None:
        return "–"
    return f"{100 * mean:.2f}" + ("" if deviation is None else f" ± {100 * deviation:.2f}")


def difference_words(mean: float | None, low: float | None, high: float | None) -> str:
    """A difference of fractions with its interval, in points."""
    if mean is None:
        return "–"
    interval = "one pair" if low is None or high is None else f"{100 * low:+.2f}, {100 * high:+.2f}"
    return f"{100 * mean:+.2f} [{interval}]"


def _difference(row: Row, name: str) -> str:
    return difference_words(row[name], row[f"{name}_low"], row[f"{name}_high"])
