"""Layouts of data sets as people have them, each with the report of it, and what becomes of each: the table in
docs/data.md, which `python tests/data/layouts.py --write` brings up to date."""

from __future__ import annotations

import re
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from drawing import draw, write_parquet
from tables import TABLES

from gmmvit.data import DataError, load_dataset

DOCS = Path(__file__).parents[2] / "docs" / "data.md"
START, END = "<!-- table: python tests/data/layouts.py --write -->\n", "<!-- end of table -->"
ROW = "file_name,label\n"
FOUR = ["a", "b"] * 2


@dataclass(frozen=True)
class Layout:
    """`tree`: a folder -> how many images lie in it, a parquet file -> its labels or its columns, that of the labels
    first, a link -> the path it leads to from its folder, another file -> its text. `read`: the images of each part,
    None where it is refused; `says`: what the refusal or a notice must say."""

    shown: str
    tree: dict[str, int | list | dict | str | Path]
    read: dict[str, int] | None
    says: str = ""
    seen: str = ""
    kind: str = "folder"
    inner: str = ""
    options: dict = field(default_factory=lambda: {"val_fraction": 0.25, "test_fraction": 0.25})


def _classes(*parts: str, count: int = 4, classes: tuple[str, ...] = ("a", "b")) -> dict[str, int]:
    return {f"{part}/{label}": count for part in parts for label in classes}


CUT = {"train": 4, "val": 2, "test": 2}
THREE = {"train": 8, "val": 8, "test": 8}
LAYOUTS = [
    Layout("`CLASS/*`", _classes("."), CUT),
    Layout("`train/CLASS/*`, `val/...`, `test/...`", _classes("train", "val", "test"), THREE, seen="vision#613"),
    Layout(
        "`training/...`, `testing/...`",
        _classes("training", "testing"),
        CUT | {"train": 6, "test": 8},
        seen="fastai#1129",
    ),
    Layout(
        "`training_set/...`, `test_set/...`",
        _classes("training_set", "test_set"),
        {"train": 6, "val": 2, "test": 8},
        seen="fastai#1552",
    ),
    Layout(
        "`train/...`, `valid/...`, `test/...`",
        _classes("train", "valid", "test"),
        THREE,
        seen="roboflow-python#153, ultralytics#21321",
    ),
    Layout(
        "`train/...`, `validation/...`, `test/...`",
        _classes("train", "validation", "test"),
        THREE,
        seen="ultralytics#4310",
    ),
    Layout(
        "`Train/...`, `Val2017/...`, `testImages/...`",
        _classes("Train", "Val2017", "testImages"),
        THREE,
        seen="pytorch/examples#1039",
    ),
    Layout(
        "`seg_train/seg_train/CLASS/*`, `seg_test/seg_test/...`",
        _classes("seg_train/seg_train", "seg_test/seg_test"),
        {"train": 6, "val": 2, "test": 8},
    ),
    Layout(
        "`flowers_train/CLASS/*`, `flowers_test/...`",
        _classes("flowers_train", "flowers_test"),
        {"train": 6, "val": 2, "test": 8},
    ),
    Layout(
        "`my_train/*.jpg`, `my_test/*.jpg`", {"my_train": 4, "my_test": 4}, None, "holds my_train, my_test, named like"
    ),
    Layout(
        "`animals/cat/*`, `animals/dog/*`, `plants/oak/*`",
        {"animals/cat": 4, "animals/dog": 4, "plants/oak": 8},
        {"train": 9, "val": 3, "test": 4},
        "images in folders inside the classes of PATH count as those classes: animals/cat, animals/dog, plants/oak",
    ),
    Layout(
        "`train/...`, `valid/...`, `samples/train/...`",
        _classes("train", "valid", "samples/train", "samples/valid"),
        {"train": 8, "val": 8},
        "ignored beside the parts of PATH: samples",
        "fastai2#210",
    ),
    Layout(
        "`train/...`, `test/*.jpg`",
        _classes("train") | {"test": 3},
        CUT,
        "ignored PATH/test, which holds no class folders with images",
        "fastai#3213",
    ),
    Layout(
        "`train/*.jpg`, `test/*.jpg`",
        {"train": 4, "test": 4},
        None,
        "PATH holds train, test, named like parts, with images but no class folders",
        "datasets#7880",
    ),
    Layout(
        "`training_set/*.jpg`, `test_set/*.jpg`, `notes/*.jpg`",
        {"training_set": 4, "test_set": 4, "notes": 2},
        None,
        "named like parts",
        "datasets#5153",
    ),
    Layout(
        "`valid/*.jpg`, `invalid/*.jpg` (classes)",
        {"valid": 4, "invalid": 4},
        CUT,
        "PATH/valid is read as a class, not as the val part",
    ),
    Layout(
        "`train/*.jpg`, `train/metadata.csv`, `test/...`",
        {
            "train": 4,
            "test": 2,
            "train/metadata.csv": ROW + "000.png,a\n001.png,b\n002.png,a\n003.png,b\n",
            "test/metadata.csv": ROW + "000.png,a\n001.png,b\n",
        },
        {"train": 3, "val": 1, "test": 2},
        seen="datasets#7880",
    ),
    Layout(
        "`train/*.jpg`, `train/metadata.jsonl`, `validation/...`",
        {
            "train": 2,
            "validation": 2,
            "train/metadata.jsonl": '{"file_name": "000.png", "label": "a"}\n{"file_name": "001.png", "label": 1}\n',
            "validation/metadata.jsonl": '{"file_name": "000.png", "label": "a"}\n\n'
            '{"file_name": "001.png", "label": "1"}\n',
        },
        {"train": 2, "val": 2},
        seen="datasets#4895",
    ),
    Layout(
        "`metadata.csv`, images it does not list",
        {"x": 6, "metadata.csv": ROW + "x/000.png,a\nx/001.png,b\nx/002.png,a\nx/003.png,b\n"},
        {"train": 2, "val": 1, "test": 1},
        "ignored 2 images that PATH/metadata.csv does not list: x/004.png, x/005.png",
        options={"val_fraction": 0.3, "test_fraction": 0.25},
    ),
    Layout(
        "`train photo.jpg`, `test tubes.jpg`, `metadata.jsonl`",
        {
            "train photos": 2,
            "test tubes": 2,
            "metadata.jsonl": "".join(
                f'{{"file_name": "{f}/00{i}.png", "label": "{f[-1]}{i % 2}"}}\n'
                for f in ("train photos", "test tubes")
                for i in range(2)
            ),
        },
        {"train": 4},
        seen="datasets#5021",
        options={"val_fraction": 0, "test_fraction": 0},
    ),
    Layout(
        "`metadata.csv` with semicolons",
        {"x": 4, "metadata.csv": "file_name;label\nx/000.png;a\nx/001.png;b\nx/002.png;a\nx/003.png;b\n"},
        {"train": 4},
        options={"val_fraction": 0, "test_fraction": 0},
    ),
    Layout(
        "`*.jpg`, `labels.csv`",
        {".": 3, "labels.csv": "x"},
        None,
        "has 3 images directly in it but no class folders; .* (labels.csv is not read)",
        "datasets#5153",
    ),
    Layout(
        "`CLASS/*`, `labels.csv`, `more.zip`",
        _classes(".") | {"labels.csv": "x", "more.zip": "x"},
        CUT,
        "ignored beside the class folders of PATH: labels.csv, more.zip",
        "datasets#8419",
    ),
    Layout(
        "`CLASS/train/*`, `CLASS/test/*`",
        _classes("a", "b", classes=("train", "test")),
        None,
        "the class folder PATH/a holds folders named like parts (train, test): put the parts outside, PATH/train/a/",
    ),
    Layout(
        "`CLASS/train/*`, `CLASS/test/*`, one class without `test`",
        _classes("a", "b", classes=("train", "test")) | {"c/train": 4},
        None,
        "the class folder PATH/a holds folders named like parts (train, test)",
    ),
    Layout(
        "`a/Train/*`, `a/Test/*`, `b/*`",
        {"a/Train": 4, "a/Test": 4, "b": 4},
        None,
        "the class folder PATH/a holds folders named like parts (Train, Test): put the parts outside, "
        "PATH/Train/a/*.jpg, or all its images directly into PATH/a",
    ),
    Layout(
        "`train/...`, `docs/*.png`, `figures/old/*.png`",
        _classes("train") | {"docs": 3, "figures/old": 3},
        CUT,
        "ignored beside the parts of PATH: docs, figures",
    ),
    Layout(
        "`data/train/CLASS/*`, `data/test/...`, `docs/*.png`",
        _classes("data/train", "data/test") | {"docs": 3},
        None,
        "PATH/data holds parts with class folders (train, test), so it is not a class of PATH: give folder:PATH/data",
    ),
    Layout(
        "`data/CLASS/*`, `docs/*.png`",
        _classes("data") | {"docs": 4},
        {"train": 6, "val": 3, "test": 3},
        "count as those classes: data/a, data/b; if they are the classes, give folder:PATH/data",
    ),
    Layout(
        "`images/*.jpg`, `masks/*.png`",
        {"images": 4, "masks": 4},
        None,
        "PATH holds images beside masks, as data for segmentation or detection do, and no classes: put each class into "
        "a folder of its own (PATH/CLASS/*.jpg), or list the images with their classes in PATH/metadata.csv",
    ),
    Layout(
        "`train/images/*.jpg`, `train/labels/*.txt`, `valid/...`",
        {f"{part}/images": 4 for part in ("train", "valid")}
        | {f"{part}/labels/000.txt": "0 0.5 0.5 1 1" for part in ("train", "valid")},
        None,
        "PATH/train holds images beside labels, as data for segmentation or detection do",
    ),
    Layout(
        "`JPEGImages/*`, `SegmentationClass/*`, `Annotations/*.xml`, `ImageSets/Main/*.txt`",
        {"JPEGImages": 4, "SegmentationClass": 2, "Annotations/0.xml": "x", "ImageSets/Main/train.txt": "x"},
        None,
        "PATH holds JPEGImages beside Annotations, SegmentationClass, as data for",
    ),
    Layout(
        "`train/*.jpg`, `train_masks/*.png`",
        {"train": 4, "train_masks": 4},
        None,
        "PATH holds train beside train_masks, as data for",
    ),
    Layout(
        "`Images/CLASS/*`, `Annotation/CLASS/*`",
        _classes("Images") | {"Annotation/a/0": "x", "Annotation/b/0": "x"},
        None,
        "PATH holds Images beside Annotation, .*: give folder:PATH/Images if it holds the class folders",
    ),
    Layout("`mask/*`, `no_mask/*` (classes)", {"mask": 4, "no_mask": 4}, CUT),
    Layout(
        "`images/*`, `labels/*`, `cables/*` (classes)",
        {"images": 4, "labels": 4, "cables": 4},
        {"train": 6, "val": 3, "test": 3},
    ),
    Layout(
        "`fold1/CLASS/*`, `fold2/CLASS/*`",
        _classes("fold1", "fold2"),
        None,
        "the folders fold1, fold2 of PATH hold the same folders (a, b) but no images: give one of them (folder:PATH/",
        "ultralytics#2108",
    ),
    Layout(
        "`photos/CLASS/*` alone",
        _classes("photos"),
        None,
        "PATH holds only the folder photos, with a, b in it: give folder:PATH/photos",
        "python-dlpy#215, vision#669",
    ),
    Layout(
        "`2019/CLASS/*`, `2020/CLASS/*`, classes not all the same",
        _classes("2019", "2020") | {"2020/c": 4},
        None,
        "the folders 2019, 2020 of PATH hold the same folders (a, b) but no images: give one of them (folder:PATH/2019",
    ),
    Layout(
        "`images/CLASS/*`, `meta/train.txt`, `meta/test.txt`",
        _classes("images") | {"meta/train.txt": "a/000", "meta/test.txt": "a/001"},
        None,
        "PATH holds images in images alone, with a, b in it: give folder:PATH/images",
    ),
    Layout(
        "`101_ObjectCategories/CLASS/*`, `Annotations/CLASS/*.mat`",
        _classes("101_ObjectCategories") | {"Annotations/a/0.mat": "x"},
        None,
        "PATH holds images in 101_ObjectCategories alone, with a, b in it: give folder:PATH/101_",
    ),
    Layout(
        "`CLASS/*`, `train.txt`, `test.txt`, `film.mp4`",
        _classes(".") | {"train.txt": "a/000.png", "test.txt": "b/000.png", "film.mp4": "x"},
        CUT,
        "ignored beside the class folders of PATH: film.mp4, test.txt, train.txt",
    ),
    Layout(
        "`train/...`, `train.zip`, `test/*.jpg`, `test.zip`, `sample_submission.csv`",
        _classes("train") | {"test": 3, "train.zip": "x", "test.zip": "x", "sample_submission.csv": "x"},
        CUT,
        "ignored beside the parts of PATH: sample_submission.csv, test.zip, train.zip",
    ),
    Layout(
        "`train/...`, `val/*.JPEG`, `LOC_val_solution.csv`",
        _classes("train") | {"val": 3, "LOC_val_solution.csv": "ImageId,PredictionString"},
        CUT,
        "ignored PATH/val, which holds no class folders with images: .* beside the parts of PATH: LOC_val_solution.csv",
    ),
    Layout(
        "`train/*.jpg`, `train/_classes.csv`, `valid/...`, `test/...`",
        dict.fromkeys(("train", "valid", "test"), 4) | {"train/_classes.csv": "filename, a, b"},
        None,
        "PATH holds train, test, valid, named like parts, with images but no class folders",
    ),
    Layout(
        "`cat/*`, `cat (1)/*`, `dog/*`",
        {"cat": 4, "cat (1)": 4, "dog": 4},
        {"train": 6, "val": 3, "test": 3},
        "PATH/cat (1) is read as a class of its own, though its name is that of a copy of cat",
    ),
    Layout(
        "`train/...`, `test/a/*`, `test/b/` empty",
        _classes("train") | {"test/a": 4, "test/b": 0},
        {"train": 6, "val": 2, "test": 4},
        "no images in class folder 'b' of PATH/test",
    ),
    Layout("`1/*`, `01/*`, `2/*`", {"1": 4, "01": 4, "2": 4}, None, "'01' and '1' in PATH differ by zeros in front"),
    Layout(
        "`a/*`, `a/*.HEIC`, `b/*`, `b/*.mp4`",
        _classes(".") | {"a/1.HEIC": "x", "b/1.mp4": "x"},
        CUT,
        "ignored 2 files that are not images: .heic 1, .mp4 1 (in PATH)",
    ),
    Layout(
        "`a/*`, `b/*`, `__MACOSX/a/*`, `a/@eaDir/*`",
        _classes(".", "__MACOSX") | {"a/@eaDir": 2},
        CUT,
    ),
    Layout(
        "`a/*`, `b/*`, `extra/a/*`, `extra/b/*`",
        _classes(".", "extra"),
        None,
        "PATH/extra holds folders named like its neighbours (a, b)",
        "fastai#2569",
    ),
    Layout(
        "`a/*`, `a/old/*`, `b/*`, `b/old/*`",
        _classes(".") | {"a/old": 2, "b/old": 2},
        {"train": 6, "val": 3, "test": 3},
        "images in folders inside the classes of PATH count as those classes: a/old, b/old",
    ),
    Layout(
        "`train` of `train/...`, `test/...`",
        _classes("train", "test"),
        CUT,
        "PATH/train is one part of PATH: test beside it is not read, give folder:PATH for all of it",
        "vision#669",
        inner="train",
    ),
    Layout(
        "`train/metadata.csv` of `train/...`, `test/...`",
        {"train": 4, "test": 2, "train/metadata.csv": ROW + "000.png,a\n001.png,b\n002.png,a\n003.png,b\n"},
        {"train": 2, "val": 1, "test": 1},
        "PATH/train is one part of PATH: test beside it is not read, give folder:PATH for all of it",
        inner="train/metadata.csv",
    ),
    Layout(
        "`flowers_train` of `flowers_train/...`, `flowers_test/...`",
        _classes("flowers_train", "flowers_test"),
        CUT,
        "PATH/flowers_train is one part of PATH: flowers_test beside it is not read, give folder:PATH for all of it",
        inner="flowers_train",
    ),
    Layout(
        "`a/*`, `b/*`, `a/more` linked to images, `b/round` to PATH",
        {"a": 4, "b": 4, "../more": 4, "a/more": Path("../../more"), "b/round": Path("..")},
        {"train": 6, "val": 3, "test": 3},
        "count as those classes: a/more; ignored 1 link that leads nowhere or in a circle: b/round (in PATH)",
    ),
    Layout(
        "`train/...`, `test` linked to class folders",
        _classes("train", "../other") | {"test": Path("../other")},
        {"train": 6, "val": 2, "test": 8},
    ),
    Layout(
        "`train/...` of 3 classes, `test/...` of 2",
        _classes("train", classes=("a", "b", "c")) | _classes("test", classes=("a", "c")),
        {"train": 9, "val": 3, "test": 8},
        seen="ultralytics#13936, #23566, #26192",
    ),
    Layout(
        "`.ipynb_checkpoints/*` beside `CLASS/*`",
        _classes(".", classes=("a", "b", ".ipynb_checkpoints")),
        CUT,
        seen="vision#2831, mmpretrain#507",
    ),
    Layout(
        "`CLASS/` without images",
        _classes(".") | {"c/notes.txt": "x"},
        None,
        "no images in class folder 'c'",
        "vision#4925, #8297",
    ),
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
        _classes("train"),
        None,
        "it has images: did you mean folder:PATH?",
        "datasets#5650",
        "hf",
    ),
]
LAYOUTS += [Layout(**row) for row in TABLES]


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
