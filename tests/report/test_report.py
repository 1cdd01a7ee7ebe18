"""The report of a run: what the page holds, that it stands alone, and that what is missing is told."""

import base64
import dataclasses
import io
import json
import shutil
import statistics
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import torch
import yaml
from pages import Page
from PIL import Image
from scipy import stats
from sklearn.calibration import calibration_curve
from torch import nn
from torchmetrics.functional.classification import multiclass_calibration_error

import gmmvit
from gmmvit.masks import is_mask_parameter
from gmmvit.report import mask_picture, write_report
from gmmvit.report.attention import attention_maps, attention_section, attention_weights
from gmmvit.report.charts import Line, line_chart, nice_ticks
from gmmvit.report.comparison import arms, names
from gmmvit.report.masks import mask_section, starting_model
from gmmvit.report.page import document, row, table
from gmmvit.report.pictures import DIVERGING, ERRORS, SEQUENTIAL, heat_over, image_address, levels
from gmmvit.report.results import (
    Outcome,
    calibration_section,
    classes_section,
    confusion_section,
    measure,
    mistakes_section,
)
from gmmvit.report.runs import curves, head, read_run, title
from gmmvit.runs.checkpoint import load_run
from gmmvit.runs.evaluate import calibration, confused_pairs, confusion_counts, worst_mistakes
from gmmvit.runs.files import RunError
from gmmvit.runs.run_data import load_data
from gmmvit.training.run import train

TINY = {"epochs": 2, "passes": 1, "depth": 2, "dim": 16, "num_heads": 2, "warmup_epochs": 0, "device": "cpu"}


def page_of(*runs: Path, **options: str) -> Page:
    out = runs[0].parent / "page.html"
    return Page(write_report(runs, out, **options).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny GMM-ViT run on digits that no test changes."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    train(gmmvit.load_recipe("digits", **TINY), folder, quiet=True)
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may change."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def edit_summary(folder: Path, **values: object) -> None:
    path = folder / "summary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def edit_recipe(folder: Path, **values: object) -> None:
    path = folder / "config.yaml"
    config = yaml.safe_load(path.read_text())
    config["recipe"] |= values
    path.write_text(yaml.safe_dump(config))


@pytest.fixture(scope="module")
def page(trained: Path) -> Page:
    return Page(write_report(trained).read_text(encoding="utf-8"))


def test_the_page_is_whole_and_fetches_nothing(trained: Path, page: Page) -> None:
    content = (trained / "report.html").read_text(encoding="utf-8")
    assert page.open == []
    assert {"curves", "confusion", "classes", "calibration", "mistakes", "masks", "attention"} == page.sections()
    addresses = [
        attrs[key] for _, attrs in page.tags for key in ("src", "href", "srcset", "xlink:href") if key in attrs
    ]
    assert len(addresses) > 10
    assert all(address.startswith(("data:image/", "#")) for address in addresses)
    assert "url(" not in content
    assert "@import" not in content
    assert "prefers-color-scheme:dark" in content
    assert len(content) < 2_000_000


def test_the_head_tells_the_main_figures_and_how_to_repeat_the_run(trained: Path, page: Page) -> None:
    summary = json.loads((trained / "summary.json").read_text())
    for key in ("test_top1_best", "test_top1_last", "val_top1"):
        assert f"{summary[key]:.2%}" in page.text
    assert f"{summary['num_parameters']:,}" in page.text
    assert "gmmvit train --recipe run/config.yaml --out run-again" in page.text


def test_the_rate_of_muons_matrices_is_drawn(run: Path) -> None:
    edit_recipe(run, optimizer="muon", muon_lr_scale=4.0)
    row = json.loads((run / "metrics.jsonl").read_text().splitlines()[0])
    text = Page(curves(read_run(run))).text
    assert f"Muon's matrices (× 4), epoch 1: {4 * row['lr']:.4g}" in text
    assert f"all others, epoch 1: {row['lr']:.4g}" in text
    assert "masks (×" not in text


def test_no_path_of_the_machine_is_told(run: Path, tmp_path: Path) -> None:
    edit_recipe(run, cache_dir=str(tmp_path / "kept"), dataset=f"folder:{tmp_path}/birds")
    again = Path(shutil.copytree(run, tmp_path / "other" / "run"))
    content = Page(document(title(read_run(run)), [], head(read_run(run))))
    assert str(tmp_path) not in content.text
    assert "on folder:birds" in content.text
    assert ["cache_dir", "kept"] in content.tables[0]
    assert ["dataset", "folder:birds"] in content.tables[0]
    assert names([read_run(run), read_run(again)]) == [f"{tmp_path.name}/run", "other/run"]


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


def test_the_confusion_matrix_counts_every_test_image(trained: Path, page: Page) -> None:
    matrix = next(t for t in page.tables if t[0] == ["", *"0123456789"])
    counts = torch.tensor([[int(cell.replace("·", "0")) for cell in line[1:]] for line in matrix[1:]])
    data = load_data(load_run(trained).recipe)
    assert data.test is not None
    assert counts.sum(1).tolist() == data.test.labels.bincount(minlength=10).tolist()
    summary = json.loads((trained / "summary.json").read_text())
    assert counts.diagonal().sum().item() / counts.sum().item() == pytest.approx(summary["test_top1_best"])


def test_the_worst_mistakes_come_first_with_their_names(trained: Path, page: Page) -> None:
    outcome = measure(load_run(trained), None)
    losses = nn.functional.cross_entropy(outcome.logits, outcome.split.labels, reduction="none")
    wrong = outcome.logits.argmax(1) != outcome.split.labels
    order = losses.masked_fill(~wrong, -1).argsort(descending=True)
    shown = [a["alt"].split(":")[0] for a in page.named("img") if "taken for" in a["alt"] and "layer" not in a["alt"]]
    shown = [name for name in shown if name.startswith("digits")]
    assert shown == [outcome.split.names[i] for i in order[: min(24, int(wrong.sum()))].tolist()]


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
    # Masks that do not learn are still those of the start.
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
    assert "began from given weights" in page_of(run).text
    (run.parent / "page.html").unlink()
    edit_recipe(run, pretrained=False)
    (run / "metrics.jsonl").unlink()
    assert "no epoch was trained in this run" in page_of(run).text


def test_names_from_outside_stay_text(tmp_path: Path) -> None:
    for name in ("<b>", "<script>"):  # of equal pictures, so that some are confused and shown
        for part, count in (("train", 6), ("test", 3)):
            folder = tmp_path / "data" / part / name
            folder.mkdir(parents=True)
            for index in range(count):
                Image.new("RGB", (8, 8), (40, index, 0)).save(folder / f'"><i>&{index}.png')
    recipe = gmmvit.load_recipe(
        "digits",
        **TINY,
        dataset=f"folder:{tmp_path / 'data'}",
        image_size=8,
        batch_size=4,
        cache_dir=str(tmp_path / "c"),
    )
    train(recipe, tmp_path / "run", quiet=True)
    page = page_of(tmp_path / "run")
    assert page.open == []
    assert not page.named("script")
    assert not page.named("i") or all("style" in attrs for attrs in page.named("i"))
    assert "<script>" in page.text
    assert "<b>" in page.text
    assert any('"><i>&' in attrs["alt"] for attrs in page.named("img"))


def test_masks_are_compared_by_their_mean_over_seeds(run: Path) -> None:
    values = {"gmm": (0.90, 0.95, 0.97), "none": (0.89, 0.93, 0.97)}
    folders = []
    for mask, accuracies in values.items():
        for seed, value in enumerate(accuracies):
            folder = Path(shutil.copytree(run, run.parent / f"{mask}{seed}"))
            edit_summary(folder, test_top1_best=value, test_top1_last=value, val_top1=None if seed else 0.5)
            # What only the mask has does not make another training of the control.
            edit_recipe(folder, seed=seed, mask=mask, num_kernels=5 if mask == "gmm" else 3)
            folders.append(folder)
    page = page_of(*folders[::2], *folders[1::2])
    table, singles = page.tables[1:3]  # the first is the recipe
    assert table[0][0] == "mask"
    half = stats.t.ppf(0.975, 2) * statistics.stdev([0.01, 0.02, 0.0]) / 3**0.5
    gain = f"+1.00 [{100 * (0.01 - half):+.2f}, {100 * (0.01 + half):+.2f}]"
    assert [line[:7] for line in table[1:]] == [
        ["gmm", "digits vit", "0, 2, 1", "94.00 ± 3.61 ★", "94.00 ± 3.61 ★", "50.00 (n=1) ★", gain],
        ["none", "digits vit", "1, 0, 2", "93.00 ± 4.00", "93.00 ± 4.00", "50.00 (n=1) ★", "–"],
    ]
    assert [line[0] for line in singles[1:]] == ["gmm0", "gmm2", "none1", "gmm1", "none0", "none2"]
    assert "gmm, 3 seeds, epoch 1:" in page.text
    assert "gmm0, epoch 1:" not in page.text
    assert len([a for a in page.named("path") if a["class"].startswith("band")]) == 4
    assert {"runs", "curves"} <= page.sections()


def test_arms_are_called_by_what_tells_them_apart(run: Path) -> None:
    other, begun = (Path(shutil.copytree(run, run.parent / name)) for name in ("other", "begun"))
    edit_recipe(other, lr=0.125)
    (begun / "summary.json").unlink()
    found = arms([read_run(folder) for folder in (run, other, begun)])
    assert [len(arm.records) for arm in found] == [1, 1, 1]
    assert [arm.name for arm in found][1:] == ["gmm, lr 0.125", "gmm, lr 0.002, unfinished: 2 of 2 epochs"]
    edit_recipe(other, dtype="bfloat16", lr=0.002, seed=7)
    assert [len(arm.records) for arm in arms([read_run(folder) for folder in (run, other)])] == [2]


def test_a_difference_is_to_a_training_that_is_alike_but_for_the_mask(run: Path) -> None:
    other = Path(shutil.copytree(run, run.parent / "plain"))
    edit_recipe(other, mask="none")
    page = page_of(run, other)
    assert page.tables[1][1][6] == "+0.00 [one pair]"
    (run.parent / "page.html").unlink()
    edit_recipe(other, epochs=3)
    assert [line[6] for line in page_of(run, other).tables[1][1:]] == ["–", "–"]


def test_an_unfinished_run_tells_how_far_it_is(run: Path) -> None:
    (run / "summary.json").unlink()
    rows = (run / "metrics.jsonl").read_text().splitlines()
    (run / "metrics.jsonl").write_text(rows[0] + "\n" + rows[1][:20])
    page = page_of(run)
    assert page.text.startswith("Unfinished: vit with Gaussian mixture masks on digits This training is not finished")
    assert "not finished: 1 of 2 epochs. Continue it with: gmmvit resume run" in page.text
    assert f"{json.loads(rows[0])['val_top1']:.2%}" in page.text
    assert {"confusion", "masks"} <= page.sections()
    parameters = sum(p.numel() for p in load_run(run).model.parameters())
    assert f"{parameters:,}" in page.text


def test_a_run_without_weights_or_epochs_is_still_reported(run: Path) -> None:
    for name in ("summary.json", "metrics.jsonl", "model.safetensors"):
        (run / name).unlink()
    page = page_of(run)
    assert "No epoch has been finished yet" in page.text
    assert "has no model.safetensors" in page.text
    assert page.sections() == {"curves", "model"}


def test_a_moved_data_set_leaves_masks_and_curves(run: Path) -> None:
    edit_recipe(run, dataset=f"folder:{run.parent / 'gone'}")
    page = page_of(run)
    assert "cannot be used" in page.text
    assert "gone" in page.text
    assert page.sections() == {"curves", "images", "masks"}


def test_a_run_without_validation_has_training_curves_alone(run: Path) -> None:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    kept = [{k: v for k, v in row.items() if not k.startswith("val_")} for row in rows]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
    edit_summary(run, val_top1=None)
    page = page_of(run)
    assert "Nothing was held out for validation" in page.text
    assert len([a for a in page.named("circle") if a["r"] == "3"]) == 3 * len(rows)


def test_without_a_test_part_the_validation_images_are_shown(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = load_data(load_run(run).recipe)
    assert data.val is not None
    monkeypatch.setattr("gmmvit.report.results.load_parts", lambda *a, **k: dataclasses.replace(data, test=None))
    assert f"{len(data.val)} validation images" in page_of(run).text


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="is not a run folder"):
        write_report(tmp_path)
    with pytest.raises(ValueError, match="at least one run"):
        write_report([])


@pytest.mark.parametrize("mode", ["multiply", "log", "post"])
@pytest.mark.parametrize("mask", ["none", "gmm", "elm"])
@pytest.mark.parametrize("pool", ["mean", "cls"])
def test_the_attention_drawn_is_the_attention_computed(trained: Path, mode: str, mask: str, pool: str) -> None:
    torch.manual_seed(0)
    options = {"pool": pool, "dim": 16, "depth": 2, "num_heads": 2, "channels": 1, "patch_size": (2, 4)}
    model = gmmvit.create_model("vit", mask=mask, mode=mode, image_size=8, num_classes=10, **options).eval()
    run = dataclasses.replace(load_run(trained), model=model)
    images = torch.randint(256, (3, 1, 8, 8), dtype=torch.uint8)
    maps = attention_maps(run, images)
    assert [attention.grid for attention in maps] == [(4, 2), (4, 2)]
    assert not any("attend" in vars(module) for module in model.modules())  # the model is left as it was
    layer = model.get_submodule(maps[0].name)
    assert isinstance(layer, gmmvit.MaskedAttention)
    x = torch.randn(3, 8 + (pool == "cls"), 16)
    q, k, v = layer.project(x)
    torch.testing.assert_close(layer.merge(attention_weights(layer, q, k, None) @ v), layer(x), atol=1e-5, rtol=1e-4)
    heat, cell = maps[0].heat()
    prefix = int(pool == "cls")
    assert cell == (None if prefix else (2, 1))
    expected = maps[0].weights[:, :, 0 if prefix else 5, prefix:].mean(1).reshape(3, 4, 2)
    torch.testing.assert_close(heat, expected)


def test_a_family_without_masked_attention_gets_a_sentence(trained: Path) -> None:
    run = dataclasses.replace(load_run(trained), model=nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))
    assert "not drawn for vit" in attention_section(run, torch.zeros(1, 1, 8, 8, dtype=torch.uint8), ["a"])


def test_heat_is_strongest_where_attention_is() -> None:
    heat = torch.zeros(4, 2)
    heat[3, 1] = 1
    picture = heat_over(torch.zeros(1, 8, 8, dtype=torch.uint8), heat, None).int()
    assert picture.shape == (3, 96, 96)
    assert picture[0, -5, -5] > 150
    assert picture[0, 5, 5] == 0


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


def test_many_classes_make_a_picture_and_a_list_of_pairs(trained: Path) -> None:
    labels = torch.arange(100).repeat(3)
    logits = nn.functional.one_hot(labels, 100).float()
    logits[[7, 107]] = nn.functional.one_hot(torch.tensor(9), 100).float()
    split = dataclasses.replace(measure(load_run(trained), None).split, labels=labels)
    run = dataclasses.replace(load_run(trained), classes=tuple(f"class {i}" for i in range(100)))
    page = Page(confusion_section(Outcome(run, "test", split, logits)))
    assert [a["alt"] for a in page.named("img")] == ["confusion matrix of 100 classes"]
    assert ["class 7", "class 9", "2", "66.7%"] in page.tables[0]


LONG = tuple(f"Cyanistes caeruleus, Eurasian blue tit, number {i}" for i in range(4))


def outcome_of(trained: Path, classes: tuple[str, ...], labels: list[int], guesses: list[int]) -> Outcome:
    """Answers that are sure of `guesses`."""
    logits = 5.0 * nn.functional.one_hot(torch.tensor(guesses), len(classes)).float()
    split = measure(load_run(trained), None).split
    count = len(labels)
    split = dataclasses.replace(
        split, labels=torch.tensor(labels), images=split.images[:count], names=split.names[:count]
    )
    return Outcome(dataclasses.replace(load_run(trained), classes=classes), "test", split, logits)


@pytest.mark.parametrize("classes", [LONG, ("a" * 12, "b" * 16, "c", "d"), ("x", "y", "z", "w")])
def test_the_confusion_matrix_tells_whole_names_and_errors_by_colour(trained: Path, classes: tuple[str, ...]) -> None:
    outcome = outcome_of(trained, classes, [0, 0, 1, 2, 3], [0, 1, 1, 2, 3])
    content = confusion_section(outcome) + mistakes_section(outcome)
    page = Page(content)
    assert "…" not in content
    matrix = page.tables[0]
    numbered = classes is LONG
    assert matrix[0][1:] == (["1", "2", "3", "4"] if numbered else list(classes))
    assert [line[0] for line in matrix[1:]] == [
        f"{i} · {name}" if numbered else name for i, name in enumerate(classes, 1)
    ]
    assert [classes[0], classes[1], "1", "50.0%"] in page.tables[1]
    coloured = [a for a in page.named("td") if "background" in a.get("style", "")]
    assert [a["class"] for a in coloured] == ["hit", "miss", "hit", "hit", "hit"]
    assert len({a["style"].partition("(--")[2].partition(")")[0] for a in coloured}) == 2
    assert (" up" in content or 'class="up"' in content) == (len(classes[0]) == 12)


def test_the_picture_of_many_classes_has_errors_in_other_colours(trained: Path) -> None:
    classes = tuple(f"{LONG[0]}{i}" for i in range(30))
    page = Page(confusion_section(outcome_of(trained, classes, [0, 1, 1, 2], [0, 1, 2, 2])))
    address = page.named("img")[0]["src"]
    image = Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))).convert("RGB")
    assert image.getpixel((0, 0)) == SEQUENTIAL[-1]
    assert image.getpixel((2, 1)) == ERRORS[int(levels(torch.tensor(0.5).sqrt(), 0, 1))]
    assert image.getpixel((1, 0)) == image.getpixel((5, 5)) == SEQUENTIAL[0]
    assert all(name in page.text for name in classes)


def test_each_class_has_its_precision_recall_and_interval(trained: Path) -> None:
    labels, guesses = [0] * 10 + [1] * 4, [0] * 9 + [1] + [1] * 3 + [3]
    outcome = outcome_of(trained, ("a", "b", "c", "d"), labels, guesses)
    lines = {line[0]: line[1:6] for line in Page(classes_section(outcome)).tables[0][1:]}
    assert list(lines) == ["d", "b", "a"]  # c has no image and was never predicted
    low, high = stats.binomtest(9, 10).proportion_ci(0.95, "wilson")
    assert lines["a"] == ["9 / 10", "90.00%", f"{low:.1%} to {high:.1%}", "100.00%", "94.7%"]
    assert lines["b"][1:] == ["75.00%", "30.1% to 95.4%", "75.00%", "75.0%"]
    assert lines["d"] == ["0 / 0", "–", "–", "0.00%", "0.0%"]


def test_confidence_is_held_against_accuracy(trained: Path) -> None:
    # Of 20 images with a confidence of 0.75, 12 are right; of 4 with 0.9, all.
    sure = torch.tensor([0.75] * 20 + [0.9] * 4)
    logits = torch.stack([sure, 1 - sure], 1).log()
    labels = [0] * 12 + [1] * 8 + [0] * 4
    outcome = dataclasses.replace(outcome_of(trained, ("a", "b"), labels, labels), logits=logits)
    page = Page(calibration_section(outcome))
    assert f"calibration error {(20 * 0.15 + 4 * 0.1) / 24:.2%}" in page.text
    assert "surer than it is right" in page.text
    low, high = stats.binomtest(12, 20).proportion_ci(0.95, "wilson")
    assert f"confidence 75.0%, accuracy 60.0% ({low:.1%} to {high:.1%}), 20 images" in page.text
    assert len(page.named("circle")) == 2


def test_calibration_is_that_of_libraries() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(500, 5, generator=generator)
    labels = torch.randint(5, (500,), generator=generator)
    found = calibration(logits, labels)
    expected = multiclass_calibration_error(logits.double().softmax(-1), labels, 5, n_bins=15)
    assert found.error == pytest.approx(expected.item())
    sure, predicted = logits.double().softmax(-1).max(-1)
    accuracy, confidence = calibration_curve(predicted == labels, sure, n_bins=15)
    assert found.accuracy == pytest.approx(accuracy.tolist())
    assert found.confidence == pytest.approx(confidence.tolist())
    assert calibration(torch.tensor([[1000.0, 0.0]]), torch.tensor([0])).error == 0


def test_the_head_has_the_interval_of_its_accuracies(trained: Path, page: Page) -> None:
    summary = json.loads((trained / "summary.json").read_text())
    images = sum(int(line[1].split(" / ")[1]) for line in page.tables if line[0][0] == "class" for line in line[1:])
    right = round(summary["test_top1_last"] * images)
    low, high = stats.binomtest(right, images).proportion_ci(0.95, "wilson")
    assert f"last epoch; 95 % interval {low:.1%} to {high:.1%}" in page.text


def test_a_wide_table_scrolls_in_its_box_under_a_hint() -> None:
    def step(columns: int, cell: str) -> int:
        page = Page(table(["head"] * columns, [row([cell] * columns)]))
        boxes = [a["class"].split() for a in page.named("div")]
        assert boxes[0][0] == "box"
        assert boxes[1] == ["scroll"]
        assert "scroll sideways" in page.text
        return int(boxes[0][1].removeprefix("w"))

    # The hint shows where the box has at most 20 pixels times this: on a phone of 390 pixels some 360.
    assert step(3, "1") < 18 < step(10, "1") < step(9, "seven and a half") == step(40, "1")
    assert step(3, "<" * 16) == step(3, "x" * 16)
    content = document("a", [("b", "c", table(["head"], []))], "")
    assert "@container (max-width:360px){.w18 .hint{display:block}}" in content
    assert ".hint{display:none" in content
    assert ".scroll{overflow-x:auto" in content


def test_mistakes_are_counted_and_ordered() -> None:
    logits = torch.tensor([[3.0, 0, 0], [0, 5, 0], [0, 9, 0], [0, 2, 0], [0, 0, 1]])
    labels = torch.tensor([0, 1, 0, 0, 1])
    counts = confusion_counts(logits, labels)
    assert counts.tolist() == [[1, 2, 0], [0, 1, 1], [0, 0, 0]]
    assert confused_pairs(counts, 5) == [(0, 1, 2), (1, 2, 1)]
    assert worst_mistakes(logits, labels, 2) == [2, 3]


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


def test_the_picture_of_the_masks_stands_alone(trained: Path) -> None:
    root = ElementTree.fromstring(mask_picture(load_run(trained).model))
    groups = root.findall("{http://www.w3.org/2000/svg}g")
    assert len(groups) == 4
    cells = [path.attrib["d"].count("M") for path in groups[0]]
    assert sum(cells) == 49
    with pytest.raises(ValueError, match="no masks"):
        mask_picture(gmmvit.create_model("vit", depth=1))


def test_importing_the_report_loads_no_picture_library() -> None:
    code = (
        "import sys, gmmvit.report; print([m for m in ('PIL', 'matplotlib', 'sklearn', 'pyarrow') if m in sys.modules])"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )
