"""`make gpu` and `make gpu-paper`, rehearsed on the CPU: on a device no typo may cost a minute."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MISSING = ("cyclopts", "matplotlib", "pyarrow", "sklearn")  # a machine with a GPU may lack them


@pytest.fixture
def bare(tmp_path):
    """An environment in which nothing in MISSING can be imported and git finds no repository."""
    blocked = tmp_path / "blocked"
    for name in MISSING:
        (blocked / name).mkdir(parents=True)
        (blocked / name / "__init__.py").write_text(f"raise ImportError('{name} is blocked')")
    (blocked / "git").write_text("#!/bin/sh\nexit 128\n")
    (blocked / "git").chmod(0o755)
    keep = {name: value for name, value in os.environ.items() if name not in ("TRITON_INTERPRET", "COMMIT")}
    path = os.pathsep.join([str(blocked), keep["PATH"]])
    return keep | {"PYTHONPATH": str(blocked), "PATH": path, "OMP_NUM_THREADS": "1"}


def rehearse(script, *arguments, environment):
    command = [sys.executable, str(ROOT / "benchmarks" / script), *map(str, arguments)]
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_everything_is_measured_in_a_rehearsal_without_what_a_device_may_lack(tmp_path, bare):
    done = rehearse("gpu.py", "--tiny", "--out", tmp_path / "out", environment=bare)
    log = (tmp_path / "out" / "gpu-log.txt").read_text()
    assert done.returncode == 0, done.stdout + done.stderr + log
    rows = rows_of(tmp_path / "out" / "gpu.csv")
    assert {row["part"] for row in rows} >= {"correctness", "attention", "training", "profile", "augmentation"}
    assert {row["commit"] for row in rows} == {"unknown"}
    training = {row["what"] for row in rows if row["part"] == "training"}
    assert training >= {f"training, recipe small, Muon, {how}" for how in ("a graph a step", "operation by operation")}
    page = (tmp_path / "out" / "gpu.md").read_text()
    assert "failed" not in page
    assert page.count("| good |") == 8


def test_a_part_that_fails_or_hangs_costs_the_others_nothing(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import gpu

    monkeypatch.setitem(gpu.PARTS, "versions", gpu.Part("nothing, in no time", 0))
    monkeypatch.setitem(gpu.PARTS, "absent", gpu.Part("nothing", 60))
    assert not gpu.run_all(["versions", "absent", "correctness"], tmp_path, 2, tiny=True)
    page = (tmp_path / "gpu.md").read_text()
    assert "| versions | ended at its limit of 0 s |" in page
    assert "| absent | failed with exit status 1 |" in page
    assert "| correctness | good |" in page
    assert "has no attribute 'absent'" in (tmp_path / "gpu-log.txt").read_text()
    assert {row["part"] for row in rows_of(tmp_path / "gpu.csv")} == {"correctness"}


def test_no_part_begins_when_time_is_up(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import gpu

    assert not gpu.run_all(["versions"], tmp_path, 0, tiny=True)
    assert "left out: no time was left" in (tmp_path / "gpu.md").read_text()


@pytest.mark.slow
def test_the_paper_is_trained_from_archives_without_what_a_device_may_lack(tmp_path, bare, cifar10_dir):
    packed = rehearse("pack_cifar10.py", "--data-dir", cifar10_dir, "--out", tmp_path / "packed", "--per-class", 20,
                      "--part-mib", 10, environment=os.environ | {"PYTHONPATH": "src"})  # fmt: skip
    assert packed.returncode == 0, packed.stderr
    sizes = [path.stat().st_size for path in (tmp_path / "packed").glob("*.zip")]
    assert len(sizes) > 1
    assert max(sizes) <= 10 * 2**20
    done = rehearse("gpu_paper.py", "--tiny", "--data", tmp_path / "packed", "--out", tmp_path / "out", "--minutes", 5,
                    "--seeds", 1, environment=bare)  # fmt: skip
    assert done.returncode == 0, done.stdout + (tmp_path / "out" / "paper-log.txt").read_text()
    runs = rows_of(tmp_path / "out" / "paper.csv")
    assert sorted(row["mask"] for row in runs) == ["gmm", "none"]
    assert all(0 < float(row["test_top1_last"]) < 1 for row in runs)
    assert len(rows_of(tmp_path / "out" / "paper-epochs.csv")) == 2


def test_the_commit_is_told_by_the_environment_where_git_cannot(monkeypatch):
    from gmmvit.rows import commit

    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("COMMIT", raising=False)
    assert commit() == "unknown"
    monkeypatch.setenv("COMMIT", "1234567")
    assert commit() == "1234567"
