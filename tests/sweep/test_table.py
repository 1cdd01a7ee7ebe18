"""The figures of a table: intervals as in scipy, pairs of equal data and seed, settings chosen by validation."""

import csv

import numpy as np
import pytest
from scipy import stats

from gmmvit.sweep.files import write_tables
from gmmvit.sweep.plan import make_plan
from gmmvit.sweep.study import read_study
from gmmvit.sweep.table import make_table, paired


def rows_of(arm, tests, *, setting=None, vals=None, **more):
    vals = tests if vals is None else vals
    return [
        {"trial": f"digits-{arm}-s{seed}", "data": "digits", "arm": arm, "seed": seed, "setting": setting}
        | {
            "status": "done",
            "val_top1": val,
            "test_top1_last": test,
            "test_top1_best": test,
            "core_s": 10.0,
            "wall_s": 5.0,
        }
        | more
        for seed, (test, val) in enumerate(zip(tests, vals, strict=True))
        if test is not None
    ]


@pytest.fixture
def plan(write):
    lines = "variants: {none: {mask: none}, gmm: {mask: gmm}}\ncontrols: {mask: {variant: none}}\nseeds: [0, 1, 2, 3]\n"
    return make_plan(read_study(write(lines)))


def test_the_interval_is_that_of_students_t():
    values = np.random.RandomState(0).randn(5) * 0.01 + 0.02
    found = paired(list(values))
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert (found.mean, found.pairs) == (pytest.approx(values.mean()), 5)


def test_differences_pair_trials_of_one_seed(plan):
    """A seed that one arm lacks counts for the other's mean, but for no difference."""
    rows = rows_of("none", [0.50, 0.60, 0.70, 0.10]) + rows_of("gmm", [0.52, 0.61, 0.73, None])
    none, gmm = make_table(plan, rows)
    assert none["test_top1_last_mean"] == pytest.approx(0.475)
    assert none["test_top1_last_minus_mask"] is None
    assert gmm["test_top1_last_minus_mask"] == pytest.approx(0.02)
    assert gmm["test_top1_last_minus_mask_pairs"] == 3
    half = stats.t.ppf(0.975, 2) * np.std([0.02, 0.01, 0.03], ddof=1) / 3**0.5
    assert gmm["test_top1_last_minus_mask_high"] == pytest.approx(0.02 + half)
    assert gmm["test_top1_last_sd"] == pytest.approx(np.std([0.52, 0.61, 0.73], ddof=1))


def test_one_pair_has_no_interval_and_a_failed_trial_is_counted(plan, tmp_path):
    rows = rows_of("none", [0.5]) + rows_of("gmm", [0.6])
    rows.append(rows[1] | {"seed": 1, "status": "failed", "test_top1_last": None, "val_top1": None, "core_s": None})
    table = write_tables(tmp_path, plan, rows)
    assert table[1]["test_top1_last_minus_mask_low"] is None
    assert (table[1]["n"], table[1]["failed"]) == (1, 1)
    assert (
        "| digits | gmm | 1 (1 failed) | 60.00 | 60.00 | +10.00 [one pair] | 10 |"
        in (tmp_path / "table.md").read_text()
    )
    with (tmp_path / "table.csv").open() as file:
        assert next(csv.DictReader(file))["test_top1_last_minus_mask"] == ""


def test_the_setting_is_chosen_by_validation_and_not_by_test(write):
    lines = "variants: {none: {mask: none}, gmm: {mask: gmm}}\ncontrols: {mask: none}\nseeds: [0, 1]\n"
    plan = make_plan(read_study(write(lines + "trials: 3\nranges: {lr: {low: 1e-3, high: 1e-2}}\n")))
    rows = rows_of("none", [0.5, 0.5], setting=0, lr=1e-3)
    rows += rows_of("gmm", [0.9, 0.9], setting=0, vals=[0.3, 0.3], lr=2e-3)
    rows += rows_of("gmm", [0.6, 0.6], setting=1, vals=[0.4, 0.5], lr=3e-3)
    rows += rows_of("gmm", [0.7, None], setting=2, vals=[0.9, None], lr=4e-3)  # its other seed has not ended
    gmm = make_table(plan, rows)[1]
    assert (gmm["lr"], gmm["n"], gmm["settings"]) == (3e-3, 2, 3)
    assert gmm["test_top1_last_minus_mask"] == pytest.approx(0.1)
    assert gmm["core_s_all"] == 50


def test_studies_of_several_labels_an_image_compare_map(plan, tmp_path):
    rows = rows_of("none", [0.5, 0.6]) + rows_of("gmm", [0.6, 0.8])
    rows = [{name.replace("top1", "map"): value for name, value in row.items()} for row in rows]
    _, gmm = write_tables(tmp_path, plan, rows)
    assert (gmm["test_map_last_mean"], gmm["test_map_last_minus_mask"]) == (pytest.approx(0.7), pytest.approx(0.15))
    assert "validation mAP %" in (tmp_path / "table.md").read_text()
