"""A tiny run for tests of the report, and its page."""

import json
from pathlib import Path

import yaml
from pages import Page

from gmmvit.report import write_report

TINY = {"epochs": 2, "passes": 1, "depth": 2, "dim": 16, "num_heads": 2, "warmup_epochs": 0, "device": "cpu"}


def page_of(*runs: Path, **options: str) -> Page:
    out = runs[0].parent / "page.html"
    return Page(write_report(runs, out, **options).read_text(encoding="utf-8"))


def edit_summary(folder: Path, **values: object) -> None:
    path = folder / "summary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def edit_recipe(folder: Path, **values: object) -> None:
    path = folder / "config.yaml"
    config = yaml.safe_load(path.read_text())
    config["recipe"] |= values
    path.write_text(yaml.safe_dump(config))
