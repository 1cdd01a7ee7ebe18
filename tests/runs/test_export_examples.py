"""The examples of docs/export.md, as written: they need no gmmvit, and answer as `gmmvit predict` does."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

import gmmvit
from gmmvit.cli import main
from gmmvit.config import load_recipe
from gmmvit.runs import run_folder
from gmmvit.runs.checkpoint import save_weights

pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

ROOT = Path(__file__).parents[2]
CLASSES = [f"class {number}" for number in range(10)]
NODE_PACKAGES = ROOT / ".venv" / "node_modules"


def example(language):
    text = (ROOT / "docs" / "export.md").read_text(encoding="utf-8")
    return re.search(rf"```{language}\n(.*?)```", text, re.DOTALL)[1]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with images and an exported run, whose random weights distinguish images by their pixels."""
    folder = tmp_path_factory.mktemp("examples")
    torch.manual_seed(0)
    options = {"family": "vit", "mask": "gmm", "image_size": [24, 32], "channels": 3, "num_classes": len(CLASSES)}
    options |= {"dim": 32, "depth": 1, "num_heads": 2, "patch_size": 8}
    model = gmmvit.create_model(**options)
    with torch.no_grad():
        model.head.weight.normal_()
    data = {"classes": CLASSES, "image_size": [24, 32], "channels": 3, "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4]}
    run = folder / "runs" / "mine"
    run.mkdir(parents=True)
    run_folder.save_config(run, load_recipe("digits"), options, data | {"fit": "crop", "fingerprints": {}})
    save_weights(run / "model.safetensors", model.state_dict(), {})
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["export", "runs/mine"]) == 0
    return folder


def picture(seed, width, height):
    """Coloured blobs with detail, like a photograph."""
    noise = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)
    return image.filter(ImageFilter.UnsharpMask(3, 200))


def draw_all(folder):
    """Writes images of several sizes and kinds; returns their names."""
    rotated = Image.Exif()
    rotated[0x0112] = 6
    sizes = [(32, 24), (33, 24), (300, 200), (123, 457), (640, 480), (20, 15), (1500, 31)]
    for number, (width, height) in enumerate(sizes):
        picture(number, width, height).save(folder / f"size{number}.png")
        picture(number + 20, width, height).save(folder / f"size{number}.jpg", quality=95)
    for number in (50, 51):
        picture(number, 200, 150).save(folder / f"rotated{number}.jpg", exif=rotated)
        deep = np.asarray(picture(number, 90, 70).convert("L")).astype(np.uint16) * 251
        Image.fromarray(deep).save(folder / f"deep{number}.png")
        picture(number, 80, 60).convert("L").save(folder / f"grey{number}.png")
        picture(number, 80, 60).quantize(16).save(folder / f"palette{number}.gif")
        clear = picture(number, 80, 60).convert("RGBA")
        clear.putalpha(Image.linear_gradient("L").resize((80, 60)))
        clear.save(folder / f"clear{number}.png")
    return sorted(path.name for path in folder.iterdir() if path.is_file() and path.suffix in (".png", ".jpg", ".gif"))


def answers(printed):
    """Class by file, from lines `FILE CLASS`."""
    return dict(line.split(" ", 1) for line in printed.splitlines())


def predicted(names, capsys):
    capsys.readouterr()
    assert main(["predict", "runs/mine", *names, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_python_needs_neither_gmmvit_nor_torch_and_gives_the_logits_of_predict(place, monkeypatch, capsys):
    names = draw_all(place)
    monkeypatch.chdir(place)
    refuse = "import sys; sys.modules['torch'] = sys.modules['gmmvit'] = None\n"
    show = "    print('logits', *logits[0].tolist(), file=sys.stderr)\n"
    (place / "classify.py").write_text(refuse + example("python") + show)
    done = subprocess.run([sys.executable, "classify.py", *names], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    expected = predicted(names, capsys)
    assert answers(done.stdout) == {row["image"]: row["predicted"] for row in expected}
    assert len(set(answers(done.stdout).values())) > 3  # the images get different classes
    run = gmmvit.load_run("runs/mine")
    logits = [[float(x) for x in line.split()[1:]] for line in done.stderr.splitlines() if line.startswith("logits")]
    pixels = torch.stack([run.decode(name) for name in names])
    torch.testing.assert_close(torch.tensor(logits), run.logits(pixels), atol=1e-3, rtol=1e-3)


def test_the_javascript_answers_as_predict(place, monkeypatch, capsys):
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    packages = Path(os.environ.get("NODE_PACKAGES", NODE_PACKAGES))
    missing = [name for name in ("onnxruntime-web", "sharp") if not (packages / name).is_dir()]
    if missing:
        pytest.skip(f"{' and '.join(missing)} of npm are not in {packages}: `make node` installs them")
    draw_all(place)
    names = [f"size{number}.{kind}" for number in (0, 2, 3, 4) for kind in ("png", "jpg")]
    names += ["rotated50.jpg", "rotated51.jpg", "clear50.png"]
    monkeypatch.chdir(place)
    assert main(["export", "runs/mine", "--overwrite", "--json"]) == 0
    (place / "model.json").write_text(capsys.readouterr().out)
    (place / "node_modules").symlink_to(packages, target_is_directory=True)
    show = "console.log(name, known.classes"
    assert show in example("javascript")
    (place / "classify.mjs").write_text(
        example("javascript").replace(show, f"console.error(...logits.data);\n  {show}")
    )
    done = subprocess.run([node, "classify.mjs", *names], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    logits = torch.tensor([[float(x) for x in line.split()] for line in done.stderr.splitlines()])
    run = gmmvit.load_run("runs/mine")
    expected = run.logits(torch.stack([run.decode(name) for name in names]))
    assert (logits - expected).abs().max() < 0.1 * expected.abs().max()
    sure = [row["image"] for row in predicted(names, capsys) if row["classes"][0]["probability"] > 0.6]
    assert len(sure) > 5
    told = answers(done.stdout)
    assert {name: told[name] for name in sure} == {row["image"]: row["predicted"] for row in predicted(sure, capsys)}
