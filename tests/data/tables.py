"""Data sets given as tables, as people have them: those rows of `layouts.LAYOUTS`, as its arguments."""

from __future__ import annotations

from collections.abc import Sequence

from layout import CUT, FOUR

PARTED = {"train": 3, "val": 1, "test": 2}


def rows(folders: dict[str, int], header: str = "file_name,label", more: Sequence[str] = ()) -> str:
    """A table of the first images of each folder, of the classes a and b in turns, and further cells of its rows."""
    files = [
        (f"{folder}/{index:03d}.png", "ab"[index % 2]) for folder, count in folders.items() for index in range(count)
    ]
    cells = [*more, *[""] * (len(files) - len(more))]
    return f"{header}\n" + "".join(
        f"{','.join(filter(None, (*row, cell)))}\n" for row, cell in zip(files, cells, strict=True)
    )


def _saved(folders: dict[str, int], **more) -> dict[str, int | str]:
    """The folders with a table at the top."""
    return folders | {"metadata.csv": rows(folders, **more)}


TABLES = [
    {
        "shown": "`metadata.csv` of `train/*.jpg` and `test/*.jpg`",
        "tree": _saved({"train": 4, "test": 2}),
        "read": PARTED,
    },
    {
        "shown": "`metadata.csv` of `a/training_set/*.jpg`, `b/validation/*.jpg`, `b/testing/*.jpg`",
        "tree": _saved({"a/training_set": 4, "b/validation": 2, "b/testing": 2}),
        "read": {"train": 4, "val": 2, "test": 2},
    },
    {
        "shown": "`metadata.csv` of `train/*.jpg`, `test/*.jpg` and `new/*.jpg`",
        "tree": _saved({"train": 4, "test": 2, "new": 2}),
        "read": None,
        "says": "PATH/metadata.csv, row 8: new/000.png lies in no part, while the folders of others, such as",
    },
    {
        "shown": "`metadata.csv` of `photos/*.jpg` and `test/*.jpg`",
        "tree": _saved({"photos": 4, "test": 4}),
        "read": CUT,
        "says": "files in a folder called like the test part, such as test/000.png, are read like the others",
    },
    {
        "shown": "`metadata.csv` of `train/*.jpg` and `test/*.jpg`, where `train` and `test` are the labels",
        "tree": {
            "train": 4,
            "test": 4,
            "metadata.csv": "file_name,label\n"
            + "".join(f"{label}/{index:03d}.png,{label}\n" for label in ("train", "test") for index in range(4)),
        },
        "read": CUT,
    },
    {
        "shown": "`metadata.csv` with a column `split` that moves images out of `test/`",
        "tree": _saved(
            {"train": 4, "test": 4}, header="file_name,label,split", more=["train"] * 4 + ["val", "val", "test", "test"]
        ),
        "read": {"train": 4, "val": 2, "test": 2},
        "says": "the column split makes the parts, though the folders of 2 images name others: test/000.png",
    },
    {
        "shown": "`metadata.csv` with a column `subset` of `train` and `Testing`",
        "tree": _saved({"x": 6}, header="file_name,label,subset", more=["train"] * 4 + ["Testing"] * 2),
        "read": PARTED,
        "says": "the column subset of PATH/metadata.csv is read as split",
    },
    {
        "shown": "`metadata.csv` with a column `Usage` of `Training` and `PublicTest`",
        "tree": _saved({"x": 6}, header="file_name,label,Usage", more=["Training"] * 4 + ["PublicTest"] * 2),
        "read": None,
        "says": "row 6: Usage is 'PublicTest', not a part as in other rows: name train, val or test",
    },
    {
        "shown": "`metadata.csv` with columns `set` and `phase` that differ",
        "tree": _saved(
            {"x": 6}, header="file_name,label,set,phase", more=["train,train"] * 4 + ["test,train"] + ["test,test"]
        ),
        "read": None,
        "says": "row 6: set is 'test' and phase is 'train': call the column that gives the parts split",
    },
    {
        "shown": "`metadata.csv` with a column `fold` of numbers",
        "tree": _saved({"x": 8}, header="file_name,label,fold", more=list("01230123")),
        "read": CUT,
        "says": "ignored columns of PATH/metadata.csv: fold (file_name, label are read)",
    },
    {
        "shown": "`metadata.csv` with columns `label` and `species`",
        "tree": _saved({"x": 8}, header="file_name,label,species", more=list("pqrspqrs")),
        "read": CUT,
        "says": "ignored columns of PATH/metadata.csv: species (file_name, label are read)",
    },
    {
        "shown": "`metadata.csv`, and `test/metadata.csv` with images of its own",
        "tree": _saved({"x": 8}) | {"test": 2, "test/metadata.csv": "file_name,label\n000.png,a\n001.png,b\n"},
        "read": None,
        "says": "PATH/metadata.csv does not list the images of PATH/test/metadata.csv: put all rows into one table",
    },
    {
        "shown": "`metadata.csv`, and `x/metadata.csv` with the same images",
        "tree": _saved({"x": 8}) | {"x/metadata.csv": "file_name,label\n000.png,b\n"},
        "read": CUT,
        "says": "ignored PATH/x/metadata.csv: PATH/metadata.csv is read",
    },
    {
        "shown": "`metadata.csv` and `more.csv`",
        "tree": _saved({"x": 8}) | {"more.csv": "x"},
        "read": CUT,
        "says": "ignored beside PATH/metadata.csv: more.csv",
    },
    {
        "shown": "`batch1/metadata.csv`, `batch2/metadata.csv`",
        "tree": {
            f"batch{number}{name}": content
            for number in (1, 2)
            for name, content in {"": 4, "/metadata.csv": rows({".": 4})}.items()
        },
        "read": CUT,
        "says": "the tables in batch1, batch2 of PATH are read as one",
    },
    {
        "shown": "`batch1/metadata.csv`, `batch2/*.jpg`",
        "tree": {"batch1": 4, "batch1/metadata.csv": rows({".": 4}), "batch2": 4},
        "read": None,
        "says": "PATH/batch1/metadata.csv is a table of images, and PATH/batch2 has images and no table: give each",
    },
    {
        "shown": "`2025/batch1/metadata.csv`, `2026/batch2/metadata.csv`",
        "tree": {
            f"{place}{name}": content
            for place in ("2025/batch1", "2026/batch2")
            for name, content in {"": 4, "/metadata.csv": rows({".": 4})}.items()
        },
        "read": None,
        "says": "PATH/2025/batch1/metadata.csv is a table of images inside a class folder of PATH: list all images in",
    },
    {
        "shown": "`metadata.jsonl` whose test labels are null",
        "tree": {
            "x": 8,
            "y": 2,
            "metadata.jsonl": "".join(
                f'{{"file_name": "{folder}/{index:03d}.png", "label": {label}, "split": "{part}"}}\n'
                for folder, count, part in (("x", 8, "train"), ("y", 2, "test"))
                for index in range(count)
                for label in [("0", "1")[index % 2] if part == "train" else "null"]
            ),
        },
        "read": CUT,
        "says": "PATH/metadata.jsonl: the test part carries no labels and is left out",
    },
    {
        "shown": "`train/metadata.csv`, `test/metadata.csv` without labels",
        "tree": {
            "train": 8,
            "test": 2,
            "train/metadata.csv": rows({".": 8}),
            "test/metadata.csv": "file_name,label\n000.png,\n001.png,\n",
        },
        "read": CUT,
        "says": "PATH/test/metadata.csv: the test part carries no labels and is left out",
    },
    {
        "shown": "`metadata.csv` with columns `cat` and `dog` of 1.0 and 0.0, a single 1.0 in each row",
        "tree": {
            "x": 8,
            "metadata.csv": "file_name,cat,dog\n"
            + "".join(f"x/{index:03d}.png,{('1.0,0.0', '0.0,1.0')[index % 2]}\n" for index in range(8)),
        },
        "read": CUT,
        "says": "has neither label nor labels: its columns of 0 and 1 are the classes, one per image, cat, dog",
    },
    {
        "shown": "`metadata.csv` with columns `cat` and `dog` of 0 and 1, and `age`",
        "tree": {"x": 2, "metadata.csv": "file_name,cat,dog,age\nx/000.png,1,0,3\nx/001.png,0,1,7\n"},
        "read": None,
        "says": "columns of 0 and 1 for each class, as cat, dog, are read as labels only where no others stand beside",
    },
    {
        "shown": "`train.parquet` with a column `split` of `train` and `test`",
        "tree": {"train.parquet": {"label": FOUR + FOUR, "split": ["train"] * 6 + ["test"] * 2}},
        "read": {"train": 4, "val": 2, "test": 2},
        "says": "set: the column split makes the parts, train 6, test 2",
        "kind": "hf",
    },
    {
        "shown": "`train.parquet`, `test.parquet` with a column `split` that says `train`",
        "tree": {
            "train.parquet": {"label": FOUR, "split": ["train"] * 4},
            "test.parquet": {"label": FOUR, "split": ["test"] * 3 + ["train"]},
        },
        "read": None,
        "says": "the test part of set, row 3: split says train, and train is a part of its own: correct the column",
        "kind": "hf",
    },
    {
        "shown": "`0000.parquet` with columns `fold` of numbers and `note`",
        "tree": {"0000.parquet": {"label": FOUR * 2, "fold": [0, 1] * 4, "note": list("abcdefgh")}},
        "read": CUT,
        "says": "ignored columns of set: fold, note (img, label are read)",
        "kind": "hf",
    },
    {
        "shown": "`train.parquet` with `label`, `test.parquet` with `target`",
        "tree": {"train.parquet": {"label": FOUR * 2}, "test.parquet": {"target": FOUR}},
        "read": {"train": 6, "val": 2, "test": 4},
        "says": "labels are read from columns of different names: label in PATH/train.parquet and target in PATH/test",
        "kind": "hf",
    },
    {
        "shown": "`train.parquet` with `label` and `class`, `test.parquet` with `target`",
        "tree": {"train.parquet": {"label": FOUR * 2, "class": list("pqrspqrs")}, "test.parquet": {"target": FOUR}},
        "read": None,
        "says": "labels may be label, class in PATH/train.parquet and target in PATH/test.parquet: give their column",
        "kind": "hf",
    },
    {
        "shown": "`0000.parquet` with columns `cat` and `dog` of 0 and 1",
        "tree": {"0000.parquet": {"cat": [0, 1] * 4, "dog": [1, 0] * 4}},
        "read": None,
        "says": "; if cat, dog hold 0 and 1 for each class, write a column label with the class of each image instead",
        "kind": "hf",
    },
]
