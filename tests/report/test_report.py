"""The report of a run: a self-contained page, its head, and what it says about missing parts."""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from pages import Page
from PIL import Image
from reported import TINY, edit_recipe, edit_summary, page_of
from scipy import stats

import gmmvit
from gmmvit.report import write_report
from gmmvit.report.comparison import names
from gmmvit.report.page import document, row, table
from gmmvit.report.runs import head, read_run, title
from gmmvit.runs.checkpoint import load_run
from gmmvit.runs.files import RunError
from gmmvit.runs.run_data import load_data
from gmmvit.training.run import train


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


def test_no_path_of_the_machine_is_told(run: Path, tmp_path: Path) -> None:
    edit_recipe(run, cache_dir=str(tmp_path / "kept"), dataset=f"folder:{tmp_path}/birds")
    again = Path(shutil.copytree(run, tmp_path / "other" / "run"))
    content = Page(document(title(read_run(run)), [], head(read_run(run))))
    assert str(tmp_path) not in content.text
    assert "on folder:birds" in content.text
    assert ["cache_dir", "kept"] in content.tables[0]
    assert ["dataset", "folder:birds"] in content.tables[0]
    assert names([read_run(run), read_run(again)]) == [f"{tmp_path.name}/run", "other/run"]


def test_names_from_outside_stay_text(tmp_path: Path) -> None:
    for name in ("<b>", "<script>"):  # equal pictures, so that some are confused and shown
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

    # The hint shows if the box is at most 20 pixels times this wide: about 360 on a phone of 390 pixels.
    assert step(3, "1") < 18 < step(10, "1") < step(9, "seven and a half") == step(40, "1")
    assert step(3, "<" * 16) == step(3, "x" * 16)
    content = document("a", [("b", "c", table(["head"], []))], "")
    assert "@container (max-width:360px){.w18 .hint{display:block}}" in content
    assert ".hint{display:none" in content
    assert ".scroll{overflow-x:auto" in content


def test_importing_the_report_loads_no_picture_library() -> None:
    code = (
        "import sys, gmmvit.report; print([m for m in ('PIL', 'matplotlib', 'sklearn', 'pyarrow') if m in sys.modules])"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )
