"""The results of a cross-validation: means over its folds with intervals, and the single folds."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gmmvit.report.page import paragraph, percent, row, table
from gmmvit.report.runs import count
from gmmvit.tasks import WORDS, task_in
from gmmvit.training.folds import MEASURED, measured


def folds_section(folder: Path) -> str:
    """The figures of a cross-validation as HTML."""
    result = measured(folder)
    found, folds = result["measured"], result["folds"]
    done = len(result["rows"])
    state = "" if done == folds else f" {done} of {folds} folds are finished: gmmvit resume {folder.resolve().name}"
    if not found:
        return paragraph(f"{folder.resolve().name}: no fold is finished.{state}", "warn")
    main = task_in(result["rows"][0]).main
    kind = "accuracy" if main == "top1" else WORDS[main]
    accuracy, f1 = (_words(found[name]) for name in (f"test_{main}_best", "test_macro_f1_best"))
    intro = (
        f"{folder.resolve().name}, {folds} folds: {kind} {accuracy}, macro F1 {f1} (best epochs; mean ± standard "
        "deviation over the folds, n − 1, and the 95 % interval of the mean by Student's t). Each fold was measured "
        "with the model that was not trained on it. The models share most of their images, so the interval is rather "
        "too narrow. "
        f"The sections below show the first fold.{state}"
    )
    rows = [_row(f"fold {fold['fold']}", fold, count(fold.get("test_images")), found) for fold in result["rows"]]
    for key in ("mean", "deviation", "low", "high"):
        name = {"low": "95 % interval, low", "high": "95 % interval, high"}.get(key, key)
        rows.append(_row(name, {metric: spread[key] for metric, spread in found.items()}, "", found))
    return paragraph(intro) + table(["", "images", *(MEASURED[metric] for metric in found)], rows)


def _words(spread: dict[str, Any]) -> str:
    if spread["deviation"] is None:
        return percent(spread["mean"])
    return f"{percent(spread['mean'])} ± {percent(spread['deviation'])} [{spread['low']:.1%} to {spread['high']:.1%}]"


def _row(name: str, values: dict[str, Any], images: str, metrics: Iterable[str]) -> str:
    return row([name, images, *(percent(values.get(metric)) for metric in metrics)])
