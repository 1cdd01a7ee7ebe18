"""`gmmvit inspect`: its lines, its page, and that nothing is overwritten."""

import base64
import io
import json
import os
import shutil

import numpy as np
import pytest
import torch
from pages import Page
from PIL import Image

from gmmvit.cli import main
from gmmvit.config import load_recipe
from gmmvit.data import load_dataset
from gmmvit.report.inspection import write_inspection
from gmmvit.report.preview import previews, spread_rows
from gmmvit.runs.files import RunError
from gmmvit.runs.run_data import inspect_data


@pytest.fixture(scope="module")
def pets(tmp_path_factory):
    """30 cats, 5 dogs, another dog in a torn file, and a cat among the dogs."""
    root = tmp_path_factory.mktemp("inspected") / "pets"
    for number, (name, count) in enumerate((("cat <b>", 30), ("dog", 5))):
        (root / name).mkdir(parents=True)
        for index in range(count):
            small = np.random.default_rng(100 * number + index).integers(0, 256, (6, 6, 3), dtype=np.uint8)
            Image.fromarray(small).resize((40, 30), Image.Resampling.BICUBIC).save(root / name / f"{index}.png")
    (root / "dog" / "torn.png").write_bytes((root / "dog" / "0.png").read_bytes()[:90])
    (root / "dog" / "notes.txt").write_text("no image")
    shutil.copy(root / "cat <b>" / "3.png", root / "dog" / "stray.png")
    return root


@pytest.fixture
def call(pets, tmp_path, monkeypatch, capsys):
    """Runs `gmmvit inspect` in an empty folder; returns its status, output and notices."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("GMMVIT_CACHE", str(pets.parent / "cache"))

    def inspected(*arguments):
        status = main(["inspect", *map(str, arguments)])
        said = capsys.readouterr()
        return status, said.out, said.err

    return inspected


def test_the_lines_say_what_is_there(call, pets):
    status, out, err = call(pets, "--image-size", "32")
    assert status == 0
    assert out.splitlines() == [
        f"folder:{pets}: 36 images, 2 classes, read at 32 x 32 in colour: train 25, val 3, test 8",
        "training images of the classes: cat <b> 21, dog 4",
        "the classes are uneven (21 to 4 images): top-1 hardly sees the small ones, macro F1 does; --class-weights "
        "balanced or --sampling balanced weighs all alike, --select macro_f1 chooses by it",
        "sizes: 30 x 40 (height x width), all of them; 36 are smaller than 32 x 32 and are enlarged",
        "kinds: PNG, colour 36",
        "broken images: 1: dog/torn.png (image file is truncated); --skip-broken trains without them",
        "copies: 1 picture occurs more than once, exact or near (2 images)",
        *[line for line in out.splitlines() if "copies of training images" in line],
        "copies with different classes: 1, such as dog/stray.png and cat <b>/3.png",
        "augmentation as in recipe few, for 29 images to learn from",
        "inspect.html",
    ]
    assert f"ignored 1 file that is not an image: .txt 1 (in {pets})" in err


def test_the_page_is_whole_and_names_no_place(call, pets, tmp_path):
    assert call(f"folder:{pets}", "--image-size", "32", "--out", "new/page.html")[0] == 0
    content = (tmp_path / "work" / "new" / "page.html").read_text(encoding="utf-8")
    page = Page(content)
    assert page.open == []
    assert page.sections() == {"classes", "images", "broken", "copies", "sheet", "augmentation"}
    assert str(pets.parent) not in content
    assert "cat <b>" in page.text
    addresses = [attrs[key] for _, attrs in page.tags for key in ("src", "href", "srcset") if key in attrs]
    assert all(address.startswith(("data:image/", "#")) for address in addresses)
    assert ["cat <b>", "30", "21", "3", "6", ""] in page.tables[0]
    assert ["dog/torn.png", "image file is truncated"] in page.tables[3]
    assert "ignored 1 file that is not an image: .txt 1 (in pets)" in page.text
    assert page.text.count("(dog, ") == page.text.count("(cat <b>, ") == 1  # the pair of copies
    pictures = page.named("img")
    assert len(pictures) == 2 + 7 + 6 + 4 * (1 + 6)
    for one in pictures:
        image = Image.open(io.BytesIO(base64.b64decode(one["src"].partition(",")[2])))
        assert image.size == (32, 32)


def test_json_says_the_same(call, pets):
    status, out, _ = call(pets, "--image-size", "32", "--json")
    told = json.loads(out)
    assert status == 0
    assert told["sizes"] == {"30x40": 36}
    assert told["broken"] == [{"file": "dog/torn.png", "reason": "image file is truncated"}]
    assert told["copies"] == [["cat <b>/3.png", "dog/stray.png"]]
    assert sum(told["parts"]["train"].values()) == 25
    assert (told["recipe"], told["page"], told["refused"]) == ("few", "inspect.html", None)


def test_a_page_that_is_there_is_replaced_on_request_only(call, pets, tmp_path):
    mine = tmp_path / "work" / "inspect.html"
    mine.write_text("mine")
    status, out, err = call(pets)
    assert (status, out) == (1, "")
    assert err.startswith("gmmvit: inspect.html exists; replace it with --overwrite")
    assert len(err.splitlines()) == 1
    assert mine.read_text() == "mine"
    assert call(pets, "--overwrite")[0] == 0
    assert Page(mine.read_text(encoding="utf-8")).sections()
    assert (
        call(pets, "--out", tmp_path)[2] == f"gmmvit: {tmp_path} is a folder; give a file with --out (in Python out=)\n"
    )
    found = inspect_data(load_recipe("digits"))
    with pytest.raises(RunError, match="exists; replace it with --overwrite"):
        write_inspection(found, load_recipe("digits"), mine)


def test_data_that_a_training_refuses_still_have_a_page(call, pets, tmp_path):
    few = shutil.copytree(pets, tmp_path / "few")
    for path in (few / "dog").iterdir():
        if path.name != "0.png":
            path.unlink()
    status, out, _ = call(few)
    assert status == 0
    assert "a training would refuse this data set: too few images to split class 'dog'" in out
    page = Page((tmp_path / "work" / "inspect.html").read_text(encoding="utf-8"))
    assert "augmentation" not in page.sections()
    assert "too few images to split class 'dog'" in page.text
    assert ["dog", "1", "1", ""] in page.tables[0]


def test_what_cannot_be_looked_at_is_one_sentence_and_leaves_no_page(call, tmp_path):
    for arguments, status, words in (
        (["folder:nowhere"], 1, "does not exist"),
        (["nowhere"], 2, "dataset must be digits"),
        (["digits", "--policy", "cifar10", "--image-size", "0"], 2, "image_size"),
        ([], 2, "DATASET"),
    ):
        found, out, err = call(*arguments)
        assert (found, out) == (status, "")
        assert words in err
        assert len(err.splitlines()) == 1
    assert list((tmp_path / "work").iterdir()) == []


def test_many_classes_and_large_images_keep_the_page_small(call, tmp_path):
    for label in range(300):
        folder = tmp_path / "many" / f"class {label:03d}"
        folder.mkdir(parents=True)
        for index in range(2):
            Image.new("RGB", (200, 200), (label % 256, index * 200, 0)).save(folder / f"{index}.png")
    status, _, err = call(tmp_path / "many", "--image-size", "200", "--test-fraction", "0", "--val-fraction", "0")
    assert status == 0, err
    content = (tmp_path / "work" / "inspect.html").read_text(encoding="utf-8")
    page = Page(content)
    assert "60 more classes are not shown." in page.text
    assert "all 300 classes, the largest first" in page.text
    assert len(content) < 3e6


OFF = {"crop_padding": 0, "flip": False, "policy": "none", "erase_prob": 0.0, "mix_prob": 0.0}


@pytest.mark.parametrize("channels", [1, 3])
def test_the_preview_without_augmentation_is_the_image(channels):
    data = load_dataset("digits", channels=channels)
    rows = spread_rows(data, 4)
    images, targets = previews(data, load_recipe("digits", **OFF), rows, 3)
    assert torch.equal(images, data.train.images[rows].expand(3, -1, -1, -1, -1))
    assert data.train.labels[rows].tolist() == [0, 1, 2, 3]
    assert targets.argmax(2).tolist() == [[0, 1, 2, 3]] * 3


def test_the_preview_shows_what_the_flags_say(call, tmp_path):
    flags = ["--crop-padding", "0", "--erase-prob", "0", "--policy", "none", "--no-flip"]
    kept = {}
    for prob in ("0", "1"):
        assert call("digits", *flags, "--mix-prob", prob, "--out", f"{prob}.html")[0] == 0
        page = Page((tmp_path / "work" / f"{prob}.html").read_text(encoding="utf-8"))
        titles = [image["title"] for image in page.named("img")[-28:]]
        drawn = [title for index, title in enumerate(titles) if index % 7]
        kept[prob] = [title for title in drawn if title.endswith(" 100%")]
        assert f"policy none, erase_prob 0, mix_prob {prob} " in page.text
    assert kept["0"] == [f"{digit} 100%" for digit in range(4) for _ in range(6)]
    assert len(kept["1"]) < 12


def test_names_that_are_no_text_are_shown_in_words(call, pets, tmp_path):
    folder = tmp_path / os.fsdecode(b"p\xff\x1b[31m")
    shutil.copytree(pets, folder)
    (folder / "dog" / "0.png").rename(folder / "dog" / os.fsdecode(b"0\xfe\x1b.png"))
    status, out, err = call(folder)
    assert status == 0, err
    content = (tmp_path / "work" / "inspect.html").read_text(encoding="utf-8")
    assert "0\\xfe\\x1b.png" in content
    for text in (out, err, content):
        assert "\x1b" not in text
        assert "\\xff" in text
        assert "\\udc" not in text
