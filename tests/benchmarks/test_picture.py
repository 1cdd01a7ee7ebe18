"""The pictures of docs/gallery.md: each has its command, the commands draw, and the files are small."""

import re
import runpy
import shutil
from pathlib import Path

import pytest
from PIL import Image

from gmmvit.config import load_recipe
from gmmvit.training.run import train

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "gallery.md").read_text(encoding="utf-8")
SMALL = {"threads": 1, "epochs": 1, "passes": 1, "val_fraction": 0.8, "dim": 16, "depth": 2, "num_heads": 2}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    train(load_recipe("digits", **SMALL), folder / "gmm", quiet=True)
    train(load_recipe("digits", mask="none", **SMALL), folder / "none", quiet=True)
    return folder


def draw(*words):
    """The exit status of the script."""
    return runpy.run_path(str(ROOT / "benchmarks" / "picture.py"))["main"]([str(word) for word in words])


@pytest.mark.slow
def test_every_picture_has_its_command_and_all_are_small():
    shown = {f"docs/{target}" for target in re.findall(r"!\[[^\]]+\]\(([^)]+)\)", PAGE)}
    drawn = set(re.findall(r"^python benchmarks/picture\.py \w+ runs/\S+ (\S+)", PAGE, flags=re.MULTILINE))
    there = {str(path.relative_to(ROOT)) for path in (ROOT / "docs" / "gallery").iterdir()}
    assert len(there) >= 3
    assert shown == drawn == there
    assert sum((ROOT / name).stat().st_size for name in there) < 600_000


@pytest.mark.slow
def test_masks_and_attention_are_drawn(runs, tmp_path):
    assert draw("training", runs / "gmm", tmp_path / "a.svg") == 0
    assert (tmp_path / "a.svg").read_text().count("<g ") == 8  # two layers, two heads, before and after
    assert draw("attention", runs / "gmm", tmp_path / "b.png") == 0
    width, height = Image.open(tmp_path / "b.png").size
    assert width == 12 + 3 * 132  # the image and two layers
    assert height > 154


@pytest.mark.slow
def test_a_model_without_masks_is_one_sentence(runs, tmp_path, capsys):
    assert draw("training", runs / "none", tmp_path / "a.svg") == 1
    said = capsys.readouterr().err
    assert said.startswith("error: the model has no masks to draw")
    assert said.count("\n") == 1


@pytest.mark.slow
def test_a_report_is_photographed(runs, tmp_path):
    pytest.importorskip("playwright", reason="playwright is not installed: pip install '.[dev]'")
    if not any(map(shutil.which, ("chromium-headless-shell", "chromium", "google-chrome"))):
        pytest.skip("no Chromium is installed (apt-get install chromium-headless-shell)")
    assert draw("report", runs / "gmm", tmp_path / "c.webp") == 0
    assert Image.open(tmp_path / "c.webp").size == (1120, 1500)
