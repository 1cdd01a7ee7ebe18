"""Curves and pictures of the report."""

import base64
import io
import json
from pathlib import Path

import pytest
import torch
from pages import Page
from PIL import Image
from reported import edit_recipe

from gmmvit.report.charts import Line, line_chart, nice_ticks
from gmmvit.report.pictures import image_address
from gmmvit.report.runs import curves, read_run


def test_the_rate_of_muons_matrices_is_drawn(run: Path) -> None:
    edit_recipe(run, optimizer="muon", muon_lr_scale=4.0)
    row = json.loads((run / "metrics.jsonl").read_text().splitlines()[0])
    text = Page(curves(read_run(run))).text
    assert f"Muon's matrices (× 4), epoch 1: {4 * row['lr']:.4g}" in text
    assert f"all others, epoch 1: {row['lr']:.4g}" in text
    assert "masks (×" not in text


@pytest.mark.parametrize(("scale", "mask"), [(0.5, "gmm"), (1.0, "gmm"), (0.5, "none")])
def test_learning_rates_are_drawn(run: Path, scale: float, mask: str) -> None:
    edit_recipe(run, mask_lr_scale=scale, mask=mask)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    text = Page(curves(read_run(run))).text
    assert "Learning rate at the end of the epoch" in text
    if mask == "gmm" and scale != 1:
        assert f"all others, epoch 1: {rows[0]['lr']:.4g}" in text
        assert f"masks (× 0.5), epoch 1: {rows[0]['lr'] / 2:.4g}" in text
    else:
        assert f"all parameters, epoch 2: {rows[1]['lr']:.4g}" in text
        assert "masks" not in text


def test_every_epoch_has_a_point_with_its_value(trained: Path, page: Page) -> None:
    rows = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert len([a for a in page.named("circle") if a["r"] == "3"]) == 5 * len(rows)
    assert f"validation, epoch 2: {rows[1]['val_top1']:.2%}" in page.text
    assert f"training, augmented images, epoch 1: {rows[0]['train_loss']:.4g}" in page.text


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.913, 0.914), (2.5, 2.5), (-3.0, 1200.0), (0.0, 0.0)])
def test_ticks_enclose_the_values(low: float, high: float) -> None:
    ticks = nice_ticks(low, high)
    assert ticks[0] <= low <= high <= ticks[-1]
    assert 2 <= len(ticks) <= 8


def test_values_that_are_not_finite_leave_the_chart_whole() -> None:
    lines = [Line("a", [(1, 0.5), (2, float("nan")), (3, 0.25)]), Line("b", [(1, float("inf"))])]
    page = Page(line_chart("Loss", lines))
    assert len(page.named("circle")) == 2
    assert "nan" not in "".join(str(tag) for tag in page.tags)


def test_large_images_are_shrunk() -> None:
    address = image_address(torch.zeros(3, 300, 400, dtype=torch.uint8))
    image = Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2])))
    assert (image.format, image.size) == ("JPEG", (160, 120))
