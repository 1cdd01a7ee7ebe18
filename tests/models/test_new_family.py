"""A new family is one file and its name in `FAMILIES`; then every part of the library accepts it.

A copy of the library gets a family whose stem has no patch size and whose sizes are none of the others', and walks it
through its commands in one process.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "gmmvit"

FAMILY = '''
"""Stripes: tokens of 2 x 4 pixels by a convolution, plain blocks."""

from typing import Any

from torch import Tensor, nn

from gmmvit.checks import pair
from gmmvit.models.base import VisionTransformer
from gmmvit.models.layers import Block, Grid, Masking, check_images


class Stripe(nn.Module):
    def __init__(self, channels: int, dim: int) -> None:
        super().__init__()
        self.channels = channels
        self.cut = nn.Conv2d(channels, dim, (2, 4), (2, 4))

    def grid(self, images: Tensor) -> Grid:
        check_images(images, self.channels)
        return images.shape[2] // 2, images.shape[3] // 4

    def forward(self, images: Tensor) -> Tensor:
        return self.cut(images).flatten(2).transpose(1, 2)


class Stripes(VisionTransformer):
    family = "stripes"

    def __init__(
        self, *, image_size: Any = 32, channels: int = 3, num_classes: int = 10, dim: int = 16, depth: int = 2,
        num_heads: int = 2, mask: str = "none", mode: str = "multiply", mask_options: Any = None,
        dropout: float = 0.0, drop_path: float = 0.0,
    ) -> None:
        super().__init__(locals())
        height, width = pair(image_size, "image_size")
        self.build_embedding(Stripe(channels, dim), (height // 2, width // 4), dim, dropout, class_token=False)
        masking = Masking(mask, mode, mask_options, dropout=dropout)
        self.blocks = nn.ModuleList(
            Block(masking.attention(dim, num_heads, self.grid, i / max(1, depth - 1)), dim, 2.0, dropout, drop_path)
            for i in range(depth)
        )
        self.build_head(dim, num_classes)
'''

STUDY = """
recipe: digits
data: [digits]
grid: {model: [vit, stripes]}
seeds: [0]
controls: {model: {model: vit}}
"""

WALK = """
import json, sys
from pathlib import Path

import numpy, torch
from PIL import Image

import gmmvit
from gmmvit.cli import main

here = Path(sys.argv[1])
run, again = str(here / "run"), str(here / "again")
said = {}
torch.manual_seed(0)
for mask in ("none", "elm", "gmm"):
    assert gmmvit.create_model("stripes", mask=mask)(torch.randn(2, 3, 32, 32)).shape == (2, 10)
fast = ["--epochs", "1", "--passes", "1", "--val-fraction", "0.8", "--threads", "1", "--quiet"]
said["train"] = main(["train", "--model", "stripes", "--mask", "elm", "--out", run, *fast])
said["resume"] = main(["resume", run, "--epochs", "2", "--quiet"])
said["given weights"] = main(["train", "--model", "stripes", "--mask", "elm", "--pretrained", run, "--out", again,
                              "--image-size", "12x16", *fast])
Image.fromarray(numpy.zeros((8, 8), numpy.uint8)).save(here / "a.png")
said["eval"] = main(["eval", run, "--json"])
said["predict"] = main(["predict", run, str(here / "a.png"), "--json"])
said["export"] = main(["export", run, "--format", "torch"])
said["report"] = main(["report", run])
said["models"] = main(["models", "--json"])
said["sweep"] = main(["sweep", str(here / "study.yaml"), "--dry-run"])
said["convert"] = main(["convert", str(here / "a.png"), "--family", "stripes", "--mask", "gmm", "--out", again + "2"])
try:
    gmmvit.load_reference({}, family="stripes")
except ValueError as error:
    said["reference"] = str(error)
model = gmmvit.create_model("stripes", mask="gmm")
model.save_pretrained(here / "saved")
images = torch.randn(2, 3, 32, 32)
assert torch.equal(type(model).from_pretrained(here / "saved")(images), model.eval()(images))
if sys.argv[2] == "timm":
    import timm, gmmvit.models.timm
    names = timm.list_models("gmmvit_stripes*")
    theirs = timm.create_model("gmmvit_stripes_tiny_gmm", checkpoint_path=str(here / "saved" / "model.safetensors"))
    assert torch.equal(theirs.eval()(images), model(images))
    features = timm.create_model("gmmvit_stripes_tiny_elm", features_only=True, out_indices=(0, 1), img_size=64)
    said["timm"] = [names, [tuple(f.shape) for f in features(torch.randn(2, 3, 64, 64))]]
    timm.models.save_for_hf(theirs, here / "timm", safe_serialization=True)
    assert torch.equal(timm.create_model(f"local-dir:{here / 'timm'}", pretrained=True).eval()(images), model(images))
(here / "said.json").write_text(json.dumps(said))
"""


@pytest.fixture(scope="module")
def walked(tmp_path_factory):
    """The output of each step of the walk, and its folder."""
    here = tmp_path_factory.mktemp("walk")
    shutil.copytree(SOURCE, here / "src" / "gmmvit", ignore=shutil.ignore_patterns("__pycache__"))
    models = here / "src" / "gmmvit" / "models"
    (models / "stripes.py").write_text(FAMILY)
    table = (models / "__init__.py").read_text()
    changed = table.replace("(ViT, Swin, ", "(Stripes, ViT, Swin, ").replace(
        "from gmmvit.models.swin", "from gmmvit.models.stripes import Stripes\nfrom gmmvit.models.swin"
    )
    assert len(changed.splitlines()) == len(table.splitlines()) + 1
    (models / "__init__.py").write_text(changed)
    (here / "walk.py").write_text(WALK)
    (here / "study.yaml").write_text(STUDY)
    try:
        import timm  # noqa: F401

        library = "timm"
    except ModuleNotFoundError:
        library = "none"
    environment = {**os.environ, "PYTHONPATH": str(here / "src"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "walk.py", str(here), library]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=here, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads((here / "said.json").read_text()), done, here


@pytest.mark.slow
def test_every_command_takes_a_new_family(walked):
    said, done, here = walked
    steps = ("train", "resume", "given weights", "eval", "predict", "export", "report", "models", "sweep")
    assert {step: said[step] for step in steps} == dict.fromkeys(steps, 0), done.stderr
    assert "stripes" in (here / "run" / "report.html").read_text()
    assert '"family": "stripes"' in done.stdout
    assert "digits-model=stripes-s0" in done.stdout
    assert (here / "run" / "model.pt2").is_file()
    assert "what the central patch sees" in (here / "run" / "report.html").read_text()


@pytest.mark.slow
def test_the_original_code_has_no_such_family_and_that_is_said(walked):
    said, done, _ = walked
    assert said["reference"].startswith("family must be one of ['vit', 'cait', 'pit', 'swin', 't2t'], got 'stripes'")
    assert said["convert"] == 2
    assert "family must be one of ['vit', 'cait', 'pit', 'swin', 't2t'], got 'stripes'" in done.stderr


@pytest.mark.slow
def test_timm_has_names_for_it(walked):
    pytest.importorskip("timm")
    names, shapes = walked[0]["timm"]
    assert sorted(names) == ["gmmvit_stripes_tiny", "gmmvit_stripes_tiny_elm", "gmmvit_stripes_tiny_gmm"]
    assert shapes == [[2, 16, 32, 16], [2, 16, 32, 16]]
