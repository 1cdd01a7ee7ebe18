"""Layouts of data sets as people have them, each with the report of it, and what becomes of each: the table in
docs/data.md, which `python tests/data/layouts.py --write` brings up to date."""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path

from drawing import draw, write_parquet
from folders import FOLDERS
from layout import CUT, FOUR, Layout, classes
from tables import TABLES

from gmmvit.data import DataError, load_dataset

DOCS = Path(__file__).parents[2] / "docs" / "data.md"
START, END = "<!-- table: python tests/data/layouts.py --write -->\n", "<!-- end of table -->"

HUB = [
    Layout(
        "`train-00000-of-00001.parquet`, `test-...`",
        {"train-00000-of-00001.parquet": FOUR * 2, "test-00000-of-00001.parquet": FOUR},
        {"train": 6, "val": 2, "test": 4},
        kind="hf",
    ),
    Layout(
        "`train/0000.parquet`, `test/...`, `validation/...`",
        {"train/0000.parquet": FOUR * 2, "test/0000.parquet": FOUR, "validation/0000.parquet": ["a", "b"]},
        {"train": 8, "val": 2, "test": 4},
        seen="datasets#4150",
        kind="hf",
    ),
    Layout(
        "`default/train/0000.parquet`, `0001.parquet`, `default/test/...`",
        {"default/train/0000.parquet": FOUR, "default/train/0001.parquet": FOUR, "default/test/0000.parquet": FOUR},
        {"train": 6, "val": 2, "test": 4},
        kind="hf",
    ),
    Layout(
        "`en/train.parquet`, `fr/train.parquet`",
        {"en/train.parquet": FOUR, "fr/train.parquet": FOUR},
        None,
        "holds 2 data sets (configurations): give one of them, hf:PATH/en or hf:PATH/fr",
        "datasets#4578",
        "hf",
    ),
    Layout(
        "`en/train/0.parquet`, `fr/train/0.parquet`",
        {"en/train/0.parquet": FOUR, "fr/train/0.parquet": FOUR},
        None,
        "holds 2 data sets (configurations)",
        "datasets#4578, #6721",
        "hf",
    ),
    Layout(
        "`en` of `en/train/0.parquet`, `fr/...`",
        {"en/train/0.parquet": FOUR, "fr/train/0.parquet": FOUR},
        {"train": 2, "val": 1, "test": 1},
        "",
        "datasets#4578",
        "hf",
        "en",
    ),
    Layout(
        "`train` of `train/0.parquet`, `test/0.parquet`",
        {"train/0.parquet": FOUR * 2, "test/0.parquet": FOUR},
        CUT,
        "PATH/train is one part of PATH: test beside it is not read, give hf:PATH for all of it",
        kind="hf",
        inner="train",
    ),
    Layout(
        "`train/train.parquet`, `test/test.parquet`",
        {"train/train.parquet": FOUR * 2, "test/test.parquet": FOUR},
        {"train": 6, "val": 2, "test": 4},
        kind="hf",
    ),
    Layout(
        "`data` linked to a folder of `train.parquet`, `round` to PATH",
        {"../other/train.parquet": FOUR * 2, ".": 0, "data": Path("../other"), "round": Path(".")},
        CUT,
        "ignored 1 link that leads nowhere or in a circle: round (in PATH)",
        kind="hf",
    ),
    Layout(
        "`train.parquet`, `more` linked to a folder of `test.parquet`",
        {"train.parquet": FOUR * 2, "../other/test.parquet": FOUR, "more": Path("../other")},
        None,
        "holds 2 data sets (configurations): give one of them, files directly in PATH or hf:PATH/more",
        kind="hf",
    ),
    Layout(
        "`train.parquet`, `data/train.parquet`",
        {"train.parquet": FOUR, "data/train.parquet": FOUR},
        None,
        "holds 2 data sets (configurations): give one of them, files directly in PATH or hf:PATH/data",
        "datasets#3221",
        "hf",
    ),
    Layout(
        "`train-0.parquet`, `random-0.parquet`",
        {"train-0.parquet": FOUR * 2, "random-0.parquet": FOUR},
        CUT,
        "ignored PATH/random-0.parquet: its name gives no part, while others are train",
        "datasets#3221",
        "hf",
    ),
    Layout(
        "`cats-train.parquet`, `dogs-train.parquet`",
        {"a-train.parquet": FOUR, "b-train.parquet": FOUR},
        CUT,
        "the train part is put together of files of different names: a-train.parquet, b-train.parquet",
        "datasets#5021",
        "hf",
    ),
    Layout("`0000.parquet`, `0001.parquet`", {"0000.parquet": FOUR, "0001.parquet": FOUR}, CUT, kind="hf"),
    Layout(
        "`train.parquet`, `test.csv`, `images.zip`",
        {"train.parquet": FOUR * 2, "test.csv": "x", "images.zip": "x"},
        CUT,
        "ignored beside the parquet files of PATH: .csv 1, .zip 1",
        "OpenRLHF#367",
        "hf",
    ),
    Layout(
        "`train/CLASS/*.jpg` as `hf:`",
        classes("train"),
        None,
        "it has images: did you mean folder:PATH?",
        "datasets#5650",
        "hf",
    ),
]
LAYOUTS = [*FOLDERS, *HUB, *(Layout(**row) for row in TABLES)]


def build(layout: Layout, root: Path) -> None:
    """Write the files of a layout."""
    for number, (place, content) in enumerate(layout.tree.items()):
        if isinstance(content, int):
            (root / place).mkdir(parents=True, exist_ok=True)
            for index in range(content):
                draw(root / place / f"{index:03d}.png", shade=(40 * number + index) % 256)
        elif isinstance(content, list):
            write_parquet(root / place, content, first=10 * number)
        elif isinstance(content, Path):
            (root / place).symlink_to(content)
        elif isinstance(content, dict):
            [(label, labels), *more] = content.items()
            write_parquet(root / place, labels, label=label, more=dict(more), first=10 * number)
        else:
            (root / place).parent.mkdir(parents=True, exist_ok=True)
            (root / place).write_text(content)


def become(layout: Layout, place: Path) -> tuple[dict[str, int] | None, str]:
    """The images of each part, or None for a refusal, and what was said."""
    root = place / "set"
    build(layout, root)
    told: list[str] = []
    try:
        data = load_dataset(
            f"{layout.kind}:{root / layout.inner}",
            image_size=4,
            cache_dir=place / "cache",
            report=told.append,
            **layout.options,
        )
    except DataError as error:
        return None, str(error).replace(str(root), "PATH")
    parts = {"train": data.train, "val": data.val, "test": data.test}
    said = [line for line in told if "decoding" not in line]
    return {name: len(part) for name, part in parts.items() if part}, "; ".join(said).replace(str(root), "PATH")


def table(places: list[tuple[dict[str, int] | None, str]]) -> str:
    """The rows of docs/data.md."""
    rows = ["| what lies there | images read, or why not | notice | reported in |", "| --- | --- | --- | --- |"]
    for layout, (parts, said) in zip(LAYOUTS, places, strict=True):
        read = f"refused: {said}" if parts is None else ", ".join(f"{part} {n}" for part, n in parts.items())
        notice = said if parts is not None else ""
        cells = [f"`{layout.kind}:` {layout.shown}", read, notice, layout.seen]
        rows.append(f"| {' | '.join(re.sub('[|]', ' ', cell) for cell in cells)} |".replace("|  |", "| |"))
    return "\n".join(rows) + "\n"


def in_docs() -> str:
    """The table that docs/data.md has."""
    text = DOCS.read_text(encoding="utf-8")
    return text[text.index(START) + len(START) : text.index(END)]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        made = table([become(layout, Path(folder) / str(i)) for i, layout in enumerate(LAYOUTS)])
    if "--write" in sys.argv:
        before, rest = DOCS.read_text(encoding="utf-8").split(START)
        DOCS.write_text(f"{before}{START}{made}{END}{rest.partition(END)[2]}", encoding="utf-8")
    else:
        print(made)
