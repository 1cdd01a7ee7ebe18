"""Layouts of folders as people have them: those rows of `layouts.LAYOUTS`."""

from __future__ import annotations

from pathlib import Path

from layout import CUT, ROW, THREE, Layout, classes

FOLDERS = [
    Layout("`CLASS/*`", classes("."), CUT),
    Layout("`train/CLASS/*`, `val/...`, `test/...`", classes("train", "val", "test"), THREE, seen="vision#613"),
    Layout(
        "`training/...`, `testing/...`",
        classes("training", "testing"),
        CUT | {"train": 6, "test": 8},
        seen="fastai#1129",
    ),
    Layout(
        "`training_set/...`, `test_set/...`",
        classes("training_set", "test_set"),
        {"train": 6, "val": 2, "test": 8},
        seen="fastai#1552",
    ),
    Layout(
        "`train/...`, `valid/...`, `test/...`",
        classes("train", "valid", "test"),
        THREE,
        seen="roboflow-python#153, ultralytics#21321",
    ),
    Layout(
        "`train/...`, `validation/...`, `test/...`",
        classes("train", "validation", "test"),
        THREE,
        seen="ultralytics#4310",
    ),
    Layout(
        "`Train/...`, `Val2017/...`, `testImages/...`",
        classes("Train", "Val2017", "testImages"),
        THREE,
        seen="pytorch/examples#1039",
    ),
    Layout(
        "`seg_train/seg_train/CLASS/*`, `seg_test/seg_test/...`",
        classes("seg_train/seg_train", "seg_test/seg_test"),
        {"train": 6, "val": 2, "test": 8},
    ),
    Layout(
        "`flowers_train/CLASS/*`, `flowers_test/...`",
        classes("flowers_train", "flowers_test"),
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
        classes("train", "valid", "samples/train", "samples/valid"),
        {"train": 8, "val": 8},
        "ignored beside the parts of PATH: samples",
        "fastai2#210",
    ),
    Layout(
        "`train/...`, `test/*.jpg`",
        classes("train") | {"test": 3},
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
        classes(".") | {"labels.csv": "x", "more.zip": "x"},
        CUT,
        "ignored beside the class folders of PATH: labels.csv, more.zip",
        "datasets#8419",
    ),
    Layout(
        "`CLASS/train/*`, `CLASS/test/*`",
        classes("a", "b", names=("train", "test")),
        None,
        "the class folder PATH/a holds folders named like parts (train, test): put the parts outside, PATH/train/a/",
    ),
    Layout(
        "`CLASS/train/*`, `CLASS/test/*`, one class without `test`",
        classes("a", "b", names=("train", "test")) | {"c/train": 4},
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
        classes("train") | {"docs": 3, "figures/old": 3},
        CUT,
        "ignored beside the parts of PATH: docs, figures",
    ),
    Layout(
        "`data/train/CLASS/*`, `data/test/...`, `docs/*.png`",
        classes("data/train", "data/test") | {"docs": 3},
        None,
        "PATH/data holds parts with class folders (train, test), so it is not a class of PATH: give folder:PATH/data",
    ),
    Layout(
        "`data/CLASS/*`, `docs/*.png`",
        classes("data") | {"docs": 4},
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
        classes("Images") | {"Annotation/a/0": "x", "Annotation/b/0": "x"},
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
        classes("fold1", "fold2"),
        None,
        "the folders fold1, fold2 of PATH hold the same folders (a, b) but no images: give one of them (folder:PATH/",
        "ultralytics#2108",
    ),
    Layout(
        "`photos/CLASS/*` alone",
        classes("photos"),
        None,
        "PATH holds only the folder photos, with a, b in it: give folder:PATH/photos",
        "python-dlpy#215, vision#669",
    ),
    Layout(
        "`2019/CLASS/*`, `2020/CLASS/*`, classes not all the same",
        classes("2019", "2020") | {"2020/c": 4},
        None,
        "the folders 2019, 2020 of PATH hold the same folders (a, b) but no images: give one of them (folder:PATH/2019",
    ),
    Layout(
        "`images/CLASS/*`, `meta/train.txt`, `meta/test.txt`",
        classes("images") | {"meta/train.txt": "a/000", "meta/test.txt": "a/001"},
        None,
        "PATH holds images in images alone, with a, b in it: give folder:PATH/images",
    ),
    Layout(
        "`101_ObjectCategories/CLASS/*`, `Annotations/CLASS/*.mat`",
        classes("101_ObjectCategories") | {"Annotations/a/0.mat": "x"},
        None,
        "PATH holds images in 101_ObjectCategories alone, with a, b in it: give folder:PATH/101_",
    ),
    Layout(
        "`CLASS/*`, `train.txt`, `test.txt`, `film.mp4`",
        classes(".") | {"train.txt": "a/000.png", "test.txt": "b/000.png", "film.mp4": "x"},
        CUT,
        "ignored beside the class folders of PATH: film.mp4, test.txt, train.txt",
    ),
    Layout(
        "`train/...`, `train.zip`, `test/*.jpg`, `test.zip`, `sample_submission.csv`",
        classes("train") | {"test": 3, "train.zip": "x", "test.zip": "x", "sample_submission.csv": "x"},
        CUT,
        "ignored beside the parts of PATH: sample_submission.csv, test.zip, train.zip",
    ),
    Layout(
        "`train/...`, `val/*.JPEG`, `LOC_val_solution.csv`",
        classes("train") | {"val": 3, "LOC_val_solution.csv": "ImageId,PredictionString"},
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
        classes("train") | {"test/a": 4, "test/b": 0},
        {"train": 6, "val": 2, "test": 4},
        "no images in class folder 'b' of PATH/test",
    ),
    Layout("`1/*`, `01/*`, `2/*`", {"1": 4, "01": 4, "2": 4}, None, "'01' and '1' in PATH differ by zeros in front"),
    Layout(
        "`a/*`, `a/*.HEIC`, `b/*`, `b/*.mp4`",
        classes(".") | {"a/1.HEIC": "x", "b/1.mp4": "x"},
        CUT,
        "ignored 2 files that are not images: .heic 1, .mp4 1 (in PATH)",
    ),
    Layout(
        "`a/*`, `b/*`, `__MACOSX/a/*`, `a/@eaDir/*`",
        classes(".", "__MACOSX") | {"a/@eaDir": 2},
        CUT,
    ),
    Layout(
        "`a/*`, `b/*`, `extra/a/*`, `extra/b/*`",
        classes(".", "extra"),
        None,
        "PATH/extra holds folders named like its neighbours (a, b)",
        "fastai#2569",
    ),
    Layout(
        "`a/*`, `a/old/*`, `b/*`, `b/old/*`",
        classes(".") | {"a/old": 2, "b/old": 2},
        {"train": 6, "val": 3, "test": 3},
        "images in folders inside the classes of PATH count as those classes: a/old, b/old",
    ),
    Layout(
        "`train` of `train/...`, `test/...`",
        classes("train", "test"),
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
        classes("flowers_train", "flowers_test"),
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
        classes("train", "../other") | {"test": Path("../other")},
        {"train": 6, "val": 2, "test": 8},
    ),
    Layout(
        "`train/...` of 3 classes, `test/...` of 2",
        classes("train", names=("a", "b", "c")) | classes("test", names=("a", "c")),
        {"train": 9, "val": 3, "test": 8},
        seen="ultralytics#13936, #23566, #26192",
    ),
    Layout(
        "`.ipynb_checkpoints/*` beside `CLASS/*`",
        classes(".", names=("a", "b", ".ipynb_checkpoints")),
        CUT,
        seen="vision#2831, mmpretrain#507",
    ),
    Layout(
        "`CLASS/` without images",
        classes(".") | {"c/notes.txt": "x"},
        None,
        "no images in class folder 'c'",
        "vision#4925, #8297",
    ),
]
