"""The sections that need no model: the head of the page and the curves."""

import shlex
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from html import escape
from pathlib import Path, PurePath
from typing import Any

from torch import nn

from gmmvit.config import Recipe, as_dict
from gmmvit.masks import KINDS, is_mask_parameter
from gmmvit.report.charts import Line, line_chart
from gmmvit.report.page import paragraph, percent, row, table
from gmmvit.runs.evaluate import interval
from gmmvit.runs.run_folder import CONFIG, load_config, read_rows, read_summary, recipe_of
from gmmvit.tasks import TASKS, WORDS, Task
from gmmvit.training.progress import clock


@dataclass(frozen=True)
class RunRecord:
    """The contents of a run folder. `facts` come from summary.json or, for an unfinished run, from the rows."""

    folder: Path
    recipe: Recipe
    versions: dict[str, str]
    rows: list[dict[str, Any]]
    finished: bool
    facts: dict[str, Any]
    task: Task

    def line(self, key: str, label: str) -> Line:
        """A column of metrics.jsonl over the epochs."""
        points = [(float(r["epoch"]), float(r[key])) for r in self.rows if isinstance(r.get(key), int | float)]
        return Line(label, points)

    def has(self, key: str) -> bool:
        return any(isinstance(r.get(key), int | float) for r in self.rows)


def read_run(folder: str | Path) -> RunRecord:
    """Reads everything about a run except its weights. Raises RunError if the folder is not a run."""
    folder = Path(folder)
    config = load_config(folder)
    versions, task = config["versions"], TASKS[config["data"]["task"]]
    rows = read_rows(folder)
    summary = read_summary(folder)
    facts = summary or _facts_so_far(rows, task)
    return RunRecord(folder, recipe_of(folder), versions, rows, bool(summary), facts, task)


def figure_words(metrics: Iterable[str]) -> str:
    """The title of the curve of the main metrics."""
    return " or ".join("Accuracy (top-1)" if name == "top1" else WORDS[name] for name in sorted(metrics, reverse=True))


def _facts_so_far(rows: list[dict[str, Any]], task: Task) -> dict[str, Any]:
    """The facts of an unfinished run, from its rows."""
    facts: dict[str, Any] = {}
    main = f"val_{task.main}"
    measured = [r for r in rows if isinstance(r.get(main), int | float)]
    if measured:
        best = max(measured, key=lambda r: r[main])
        facts |= {main: best[main], "best_epoch": best["epoch"]}
    if rows:
        speeds = [r["images_per_s"] for r in rows if "images_per_s" in r]
        facts |= {"wall_s": rows[-1].get("wall_s"), "train_images_per_s": statistics.median(speeds) if speeds else None}
    return facts


def count_parameters(record: RunRecord, model: nn.Module) -> None:
    """Adds the parameter counts if the run's summary lacks them."""
    sizes = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
    record.facts.setdefault("num_parameters", sum(sizes.values()))
    record.facts.setdefault("mask_parameters", sum(size for name, size in sizes.items() if is_mask_parameter(name)))


def count(value: Any) -> str:
    """A number with thousands separators, a dash for None."""
    return f"{value:,.0f}" if isinstance(value, int | float) else "–"


def time_taken(value: Any) -> str:
    """Seconds as hours and minutes, a dash for None."""
    return clock(value) if isinstance(value, int | float) else "–"


def title(record: RunRecord) -> str:
    """One line: what was trained, and whether it is unfinished."""
    recipe = record.recipe
    masks = "plain attention" if recipe.mask == "none" else KINDS[recipe.mask].words
    state = "" if record.finished else "Unfinished: "
    return f"{state}{last_name(recipe.model)} with {masks} on {last_name(recipe.dataset)}"


def last_name(name: str) -> str:
    """folder:/a/b as folder:b, because pages are shared."""
    kind, colon, place = name.partition(":")
    return f"{kind}:{PurePath(place).name or place}" if colon and "/" in place else name


def head(record: RunRecord) -> str:
    """Title, state, main figures and the command that repeats the run."""
    facts, recipe = record.facts, record.recipe
    folder, notice = record.folder.resolve().name, ""
    if not record.finished:
        done = record.rows[-1]["epoch"] if record.rows else 0
        command = shlex.join(["gmmvit", "resume", folder])
        text = f"This training is not finished: {done} of {recipe.epochs} epochs. Continue it with: {command}"
        notice = paragraph(text, "warn")
    number = f" ({facts['best_epoch']})" if facts.get("best_epoch") else ""
    main, *others = record.task.metrics
    best, ended = f"test_{main}_best", f"test_{main}_last"
    cards = [
        (f"test {WORDS[main]}, best epoch{number}{_between(facts, best)}", percent(facts.get(best))),
        (f"test {WORDS[main]}, last epoch{_between(facts, ended)}", percent(facts.get(ended))),
        (f"validation {WORDS[main]}, best", percent(facts.get(f"val_{main}"))),
        *((f"test {WORDS[name]}, best epoch", percent(facts.get(f"test_{name}_best"))) for name in others),
        ("parameters", count(facts.get("num_parameters"))),
        ("of these in masks", count(facts.get("mask_parameters"))),
        ("training images/s", count(facts.get("train_images_per_s"))),
        ("wall time", time_taken(facts.get("wall_s"))),
        ("device", " ".join(str(facts[key]) for key in ("device", "dtype") if facts.get(key)) or "–"),
    ]
    listing = "".join(f"<li><span>{escape(name)}</span><b>{escape(value)}</b></li>" for name, value in cards)
    repeat = ["gmmvit", "train", "--recipe", f"{folder}/{CONFIG}", "--out", f"{folder}-again"]
    about = (
        f"run {folder} · seed {seed_of(record)} · epochs {epochs_of(record)} · passes in each {recipe.passes} · "
        f"mode {recipe.mode} · gmmvit {record.versions.get('gmmvit', '?')}, torch {record.versions.get('torch', '?')}"
    )
    return (
        f"{notice}<h1>{escape(title(record))}</h1>{paragraph(about, 'note')}"
        f'<ul class="facts">{listing}</ul>{paragraph("To repeat it, run where the run folder lies:", "note")}'
        f'<pre tabindex="0">{escape(shlex.join(repeat))}</pre>{_recipe_details(recipe)}'
    )


def seed_of(record: RunRecord) -> str:
    """A run's seed, and its fold."""
    return f"{record.recipe.seed}" + (f" (fold {record.recipe.fold})" if record.recipe.fold else "")


def epochs_of(record: RunRecord) -> str:
    """The planned epochs, and how many were done if the training stopped early or is unfinished."""
    planned = record.recipe.epochs
    if not record.finished:
        return f"{record.rows[-1]['epoch'] if record.rows else 0} of {planned}"
    stopped = record.facts.get("stopped_after")
    return f"{planned}" if stopped is None else f"{stopped} of {planned}, stopped early"


def _between(facts: dict[str, Any], name: str) -> str:
    """The 95 % interval of an accuracy as text, if the number of test images is known; mAP has none."""
    if facts.get(name) is None or "test_images" not in facts or "_map_" in name:
        return ""
    low, high = interval(facts[name], facts["test_images"])
    return f"; 95 % interval {low:.1%} to {high:.1%}"


def _recipe_details(recipe: Recipe) -> str:
    rows = [row([name, plain(value)], left=2) for name, value in as_dict(recipe).items() if value is not None]
    return f"<details><summary>the whole recipe</summary>{table(['field', 'value'], rows, left=2)}</details>"


def plain(value: Any) -> str:
    """A recipe field as text, with paths reduced to their last part."""
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    kind, colon, place = str(value).rpartition(":")
    return f"{kind}{colon}{PurePath(place).name}" if PurePath(place).is_absolute() else str(value)


def curves(record: RunRecord) -> str:
    """Loss, accuracy and learning rates of one run over its epochs."""
    if not record.rows:
        return paragraph("No epoch has been finished yet.")
    kinds = [("train_{}", "training, augmented images"), ("val_{}", "validation")]
    kept = [(key, label) for key, label in kinds if record.has(key.format("loss"))]
    loss = [record.line(key.format("loss"), label) for key, label in kept]
    names = {"train_{}": record.task.trained, "val_{}": record.task.main}
    words = "" if record.task.trained == record.task.main else f", {WORDS[record.task.trained]}"
    right = [record.line(key.format(names[key]), label + (words if key == "train_{}" else "")) for key, label in kept]
    note = "" if record.has("val_loss") else paragraph("Nothing was held out for validation.", "note")
    charts = line_chart("Loss", loss) + line_chart(figure_words([record.task.main]), right, percent=True)
    charts += line_chart("Learning rate at the end of the epoch", _rates(record))
    return f'{note}<div class="pair">{charts}</div>'


def _rates(record: RunRecord) -> list[Line]:
    """The learning rate, and those of masks and Muon's matrices if they differ."""
    recipe, rate = record.recipe, record.line("lr", "all parameters")
    scales = {"masks": recipe.mask_lr_scale if recipe.mask != "none" else 1}
    scales["Muon's matrices"] = recipe.muon_lr_scale if recipe.optimizer == "muon" else 1
    own = {name: scale for name, scale in scales.items() if scale != 1}
    if not own:
        return [rate]
    others = [Line(f"{n} (× {k:g})", [(epoch, k * value) for epoch, value in rate.points]) for n, k in own.items()]
    return [Line("all others", rate.points), *others]
