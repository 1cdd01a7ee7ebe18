"""Several runs in one report: arms, seeds, differences."""

import shutil
import statistics
from pathlib import Path

from reported import edit_recipe, edit_summary, page_of
from scipy import stats

from gmmvit.report.comparison import arms
from gmmvit.report.runs import read_run


def test_masks_are_compared_by_their_mean_over_seeds(run: Path) -> None:
    values = {"gmm": (0.90, 0.95, 0.97), "none": (0.89, 0.93, 0.97)}
    folders = []
    for mask, accuracies in values.items():
        for seed, value in enumerate(accuracies):
            folder = Path(shutil.copytree(run, run.parent / f"{mask}{seed}"))
            edit_summary(folder, test_top1_best=value, test_top1_last=value, val_top1=None if seed else 0.5)
            # Settings that only the mask has do not make the control a different training.
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
