"""The masks in the report: at the start and now, with their numbers."""

import base64
import dataclasses
import io
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import torch
from pages import Page
from PIL import Image
from reported import TINY, edit_recipe, page_of
from torch import nn

import gmmvit
from gmmvit.masks import is_mask_parameter
from gmmvit.report import mask_picture
from gmmvit.report.masks import mask_section, starting_model
from gmmvit.report.pictures import DIVERGING, levels
from gmmvit.runs.checkpoint import load_run
from gmmvit.training.run import train


def test_every_head_has_its_mask_and_its_gaussians(trained: Path, page: Page) -> None:
    model = load_run(trained).model
    masks = [module for module in model.modules() if isinstance(module, gmmvit.GaussianMixtureMask)]
    pictures = [a for a in page.named("img") if a["alt"].startswith("layer ") and "at the start" not in a["alt"]]
    assert len(pictures) == sum(mask.alpha.shape[0] for mask in masks) == 4
    assert f"α {masks[1].alpha[1, 2].item():.2f}" in pictures[3]["alt"]
    assert f"σ {masks[0].sigma[0, 1].abs().item():.2f}, α {masks[0].alpha[0, 1].item():.2f}" in page.text
    image = Image.open(io.BytesIO(base64.b64decode(pictures[0]["src"].partition(",")[2])))
    assert image.size == (7, 7)
    start = starting_model(load_run(trained))
    assert isinstance(start, nn.Module)
    masks += [module for module in start.modules() if isinstance(module, gmmvit.GaussianMixtureMask)]
    values = torch.cat([(mask.table() - 1).abs().flatten() for mask in masks]).detach().sort().values
    reach = values[int(0.99 * (len(values) - 1))].item()
    expected = levels(masks[0].table()[0].detach(), 1 - reach, 1 + reach)
    assert image.convert("RGB").getpixel((3, 1)) == DIVERGING[int(expected[1, 3])]


@pytest.mark.parametrize(
    ("mask", "init", "pictures"), [("gmm", "paper", 8), ("gmm", "local", 8), ("gmm", "conv", 8), ("elm", "paper", 8)]
)
def test_each_mask_stands_beside_its_start(tmp_path: Path, mask: str, init: str, pictures: int) -> None:
    # Masks that do not train stay at their start.
    mode = "log" if init == "conv" else "multiply"
    recipe = gmmvit.load_recipe("digits", **TINY, mask=mask, mask_init=init, mode=mode, mask_lr_scale=0.0, seed=3)
    train(dataclasses.replace(recipe, epochs=1), tmp_path / "run", quiet=True)
    run = load_run(tmp_path / "run")
    before = torch.get_rng_state()
    start = starting_model(run)
    assert torch.equal(torch.get_rng_state(), before)
    assert isinstance(start, nn.Module)
    began = start.state_dict()
    kept = {name: value for name, value in run.model.state_dict().items() if is_mask_parameter(name)}
    assert kept
    assert all(torch.equal(value, began[name]) for name, value in kept.items())
    page = Page(mask_section(run.model, start))
    shown = [(a["alt"], a["src"]) for a in page.named("img")]
    assert len(shown) == pictures
    assert [alt.endswith(", at the start") for alt, _ in shown] == [True, False] * (pictures // 2)
    assert all(left[1] == right[1] for left, right in zip(shown[::2], shown[1::2], strict=True))
    assert page.text.count("moved 0.000") == pictures // 2


def test_what_a_mask_learned_is_measured_against_its_start(trained: Path, page: Page) -> None:
    run = load_run(trained)
    start = starting_model(run)
    assert isinstance(start, nn.Module)
    now, began = (
        next(m.table().detach()[0] for m in model.modules() if isinstance(m, gmmvit.GaussianMixtureMask))
        for model in (run.model, start)
    )
    assert f"moved {(now - began).abs().mean():.3f}" in page.text
    table = next(t for t in page.tables if t[0][:2] == ["head", "Gaussian 1"])
    assert [line[0] for line in table[1:]] == ["1, start", "1, learned", "2, start", "2, learned"]
    assert (trained / "report.html").read_text().count("<details><summary>σ") == 2


def test_a_start_that_the_run_does_not_hold_is_told(run: Path) -> None:
    edit_recipe(run, pretrained=str(run / "secret"))
    assert "started from given weights" in page_of(run).text
    (run.parent / "page.html").unlink()
    edit_recipe(run, pretrained=False)
    (run / "metrics.jsonl").unlink()
    assert "no epoch was trained in this run" in page_of(run).text


@pytest.mark.parametrize(("mask", "words"), [("none", "no masks"), ("elm", "what the central patch sees")])
def test_other_masks_have_their_own_pictures(mask: str, words: str) -> None:
    model = gmmvit.create_model("vit", mask=mask, image_size=32, patch_size=2, depth=1, dim=16, num_heads=2)
    content = mask_section(model)
    assert words in content
    assert ("averaged to 64 × 64" in content) == (mask == "elm")


def test_extensions_of_a_gaussian_are_listed() -> None:
    options = {"covariance": "full", "learn_center": True}
    model = gmmvit.create_model("vit", mask="gmm", depth=1, dim=16, num_heads=2, mask_options=options)
    mask = next(module for module in model.modules() if isinstance(module, gmmvit.GaussianMixtureMask))
    with torch.no_grad():
        mask.sigma[0, 0] = torch.tensor([-1.5, 2.25])
        mask.center[0] = torch.tensor([0.5, -1.0])
    content = mask_section(model)
    assert "σ 1.50 × 2.25, α 1.00, ρ 0.00" in content
    assert "+0.50 rows, −1.00 columns" in content


def test_the_picture_of_the_masks_stands_alone(trained: Path) -> None:
    run = load_run(trained)
    root = ElementTree.fromstring(mask_picture(run.model))
    groups = root.findall("{http://www.w3.org/2000/svg}g")
    assert len(groups) == 4
    cells = [path.attrib["d"].count("M") for path in groups[0]]
    assert sum(cells) == 49
    root = ElementTree.fromstring(mask_picture(run.model, starting_model(run)))
    assert len(root.findall("{http://www.w3.org/2000/svg}g")) == 2 * len(groups)
    assert [text for text in root.itertext() if "start" in text or "after" in text] == [
        "at the start",
        "after training",
    ]
    with pytest.raises(ValueError, match="no masks"):
        mask_picture(gmmvit.create_model("vit", depth=1))
