"""Every command and every line of Python in the README runs, at a size that takes seconds."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gmmvit.cli import main

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
STUDY = Path(__file__).parents[1] / "benchmarks" / "studies" / "mask.yaml"
SMALL = shlex.split("--dim 16 --depth 1 --num-heads 2 --passes 1 --val-fraction 0.85 --threads 1 --quiet")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands():
    for line in "".join(blocks("bash")).splitlines():
        words = shlex.split(line, comments=True)
        if words:
            yield words


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    folder = tmp_path_factory.mktemp("readme")
    rng = np.random.default_rng(0)
    for klass in ("cat", "dog"):
        (folder / "my-images" / klass).mkdir(parents=True)
        for index in range(20):
            pixels = rng.integers(0, 255, (70, 90, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "my-images" / klass / f"{index}.jpg")
    return folder


def test_every_command_runs(workplace, monkeypatch, cifar10_dir):
    monkeypatch.chdir(workplace)
    monkeypatch.setenv("GMMVIT_CACHE", str(workplace / "cache"))
    ran = []
    for words in commands():
        assert words[0] == "gmmvit", f"the README runs {words[0]!r}, which this test does not know"
        places = {"data": str(cifar10_dir), "benchmarks/studies/mask.yaml": str(STUDY)}
        arguments = [places.get(word, word) for word in words[1:]]
        if arguments[0] == "train":
            if "--epochs" in arguments:
                del arguments[arguments.index("--epochs") : arguments.index("--epochs") + 2]
            arguments += ["--epochs", "1", *SMALL]
            if any(word.startswith("timm:") for word in arguments):  # these name their sizes differently
                pytest.importorskip("timm")
                small = ["--model-args", "embed_dim=24,depth=1,num_heads=2,patch_size=8", "--image-size", "16"]
                arguments = [*arguments[: arguments.index("--image-size")], *small, "--epochs", "1", *SMALL[6:]]
            if "--out" not in arguments and "--recipe" in arguments:
                arguments += ["--out", f"runs/{len(ran)}"]
        assert main(arguments) == 0, words
        ran.append(arguments[0])
    assert {"train", "predict", "report", "eval", "recipes"} <= set(ran)


def test_the_python_runs(workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    names = {}
    for block in blocks("python"):
        exec(block, names)
    assert names["logits"].shape == (8, 10)
    assert names["out"].shape == names["q"].shape
    assert len(names["run"].classes) == 10


def test_the_table_of_models_is_what_the_command_prints(capsys):
    assert main(["models", "--markdown"]) == 0
    assert capsys.readouterr().out.strip() in README
