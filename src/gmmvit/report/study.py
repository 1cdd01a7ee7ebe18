"""The page of a study: its table, its trials and its file."""

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from gmmvit.report.page import document, paragraph, percent, row, table
from gmmvit.runs.files import write_whole
from gmmvit.sweep.files import PAGE, table_cells
from gmmvit.sweep.plan import Plan
from gmmvit.sweep.table import metrics_of
from gmmvit.training.progress import clock

_TRIALS = ["trial", "validation, best", "test, last", "test, best", "epochs", "core-seconds", "wall time"]


def write_study_page(out: Path, plan: Plan, rows: Sequence[dict[str, Any]], lines: Sequence[dict[str, Any]]) -> Path:
    """Writes a study's report.html from the `rows` of its trials and the `lines` of its table. Returns the path."""
    heads, cells = table_cells(plan, lines)
    failed = [one for one in rows if one["status"] == "failed"]
    intro = (
        "Means over seeds ± standard deviation (n − 1). A difference is the mean over pairs of trials with the same "
        "data and seed, in points, with its 95 % interval by Student's t. Settings are chosen by the validation "
        "column; the test column is their result."
    )
    sections = [
        ("table", "Table", paragraph(intro) + table(heads, [row(line, left=2) for line in cells], left=2)),
        ("trials", "Trials", table(_TRIALS, [_trial(one) for one in rows if one["status"] == "done"])),
        ("failed", "Failed trials", _failures(failed) if failed else ""),
        ("study", "The study", f'<pre tabindex="0">{escape(plan.study.path.read_text(encoding="utf-8"))}</pre>'),
    ]
    name = plan.study.path.stem
    head = f"<h1>{escape(name)}</h1>" + paragraph(f"{len(rows) - len(failed)} trials, {len(failed)} failed", "note")
    path = out / PAGE
    write_whole(path, document(name, sections, head).encode(errors="backslashreplace"))
    return path


def _trial(one: dict[str, Any]) -> str:
    accuracies = [percent(one[name]) for name in metrics_of(one)]
    cost = "–" if one["core_s"] is None else f"{one['core_s']:,.0f}"
    return row([one["trial"], *accuracies, str(one["epochs"]), cost, clock(one["wall_s"])])


def _failures(failed: Sequence[dict[str, Any]]) -> str:
    return table(["trial", "why"], [row([one["trial"], one["sentence"]], left=2) for one in failed], left=2)
