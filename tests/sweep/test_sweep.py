"""Studies that run: resumed after a kill, failures recorded, on this machine and on Ray, settings by Optuna."""

import csv
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from gmmvit.runs import claim, files, run_folder
from gmmvit.sweep.pool import make_slots
from gmmvit.sweep.study import StudyError

MASKS = "variants: {none: {mask: none}, gmm: {mask: gmm}}\ncontrols: {mask: {variant: none}}\n"


def table_of(out, name="table.csv"):
    with (out / name).open() as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_a_failing_trial_is_told_and_the_others_end(write, sweep, tmp_path):
    """Heads that do not divide the width are an error when the model is built."""
    study = write(MASKS.replace("gmm: {mask: gmm}", "broken: {num_heads: 3}"))
    listed = sweep(study, "--dry-run")
    assert listed.stdout.split() == ["digits-none-s0", "digits-broken-s0", "2", "trials"]
    assert not (tmp_path / "out").exists()
    done = sweep(study, "--workers=2")
    assert done.returncode == 1
    assert "trial digits-broken-s0 failed: dim must be a multiple of num_heads" in done.stderr
    out = tmp_path / "out"
    none, broken = table_of(out)
    assert (none["n"], none["failed"], broken["n"], broken["failed"]) == ("1", "0", "0", "1")
    assert none["commit"] == "abc1234"
    assert float(none["core_s_mean"]) > 0
    rows = {row["trial"]: row for row in table_of(out, "trials.csv")}
    assert "num_heads" in rows["digits-broken-s0"]["sentence"]
    assert run_folder.read_summary(out / "trials" / "digits-none-s0")["epochs"] == 2
    page = (out / "report.html").read_text()
    assert "digits-broken-s0" in page
    assert "num_heads=3" in page
    assert (out / "table.md").read_text() == done.stdout

    stamp = (out / "trials" / "digits-none-s0" / "summary.json").stat().st_mtime_ns
    write(MASKS.replace("gmm: {mask: gmm}", "broken: {num_heads: 4}"))  # fixed: only this one runs
    again = sweep(study, "--json")
    assert again.returncode == 0, again.stderr
    assert "1 of 2 trials had ended before" in again.stderr
    assert [row["n"] for row in json.loads(again.stdout)] == [1, 1]
    assert (out / "trials" / "digits-none-s0" / "summary.json").stat().st_mtime_ns == stamp

    write(MASKS.replace("gmm: {mask: gmm}", "broken: {num_heads: 4, lr: 0.5}"))
    refused = sweep(study)
    assert refused.returncode == 1
    assert (
        "digits-broken-s0 was started with another recipe than the study has now (lr was 0.002 and is 0.5)"
        in refused.stderr
    )
    assert [row["n"] for row in table_of(out)] == ["1", "1"]


@pytest.mark.slow
def test_a_killed_sweep_goes_on_and_ends_with_the_same_bits(write, sweep, tmp_path):
    """kill -9 in the middle of a trial: its process ends too, and the same command resumes it."""
    study = write("seeds: [0]\n", base=write("").read_text().replace("epochs: 2", "epochs: 20"))
    command = [sys.executable, "-m", "gmmvit", "sweep", str(study), "--out", str(tmp_path / "killed"), "--nice=0"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    run = tmp_path / "killed" / "trials" / "digits-base-s0"
    deadline = time.monotonic() + 120
    while not (run / "checkpoint.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    while time.monotonic() < deadline:
        try:
            with claim.locked(run):  # until the trial's process is gone
                break
        except files.RunError:
            time.sleep(0.1)
    assert not (run / "summary.json").exists(), "it was killed too late to show anything"
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "resuming" in (tmp_path / "killed" / "logs" / "digits-base-s0.log").read_text()
    assert sweep(study).returncode == 0
    whole = tmp_path / "out" / "trials" / "digits-base-s0"
    assert (run / "last.safetensors").read_bytes() == (whole / "last.safetensors").read_bytes()


@pytest.mark.slow
def test_a_trial_whose_process_is_killed_is_told_and_may_be_tried_again(write, sweep, tmp_path):
    study = write("", base=write("").read_text().replace("epochs: 2", "epochs: 500"))
    command = [sys.executable, "-m", "gmmvit", "sweep", str(study), "--out", str(tmp_path / "out"), "--workers=1"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    run = tmp_path / "out" / "trials" / "digits-base-s0"
    deadline = time.monotonic() + 120
    while not (run / "checkpoint.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    children = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True, check=True
    )
    os.kill(int(children.stdout.split()[0]), signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "its process was killed by SIGKILL, as when memory runs out" in errors
    assert run_folder.load_config(run)["recipe"]["epochs"] == 500


@pytest.mark.slow
def test_settings_are_proposed_by_optuna_and_go_on_after_an_end(write, sweep, tmp_path):
    pytest.importorskip("optuna")
    lines = "trials: {}\nranges: {{lr: {{low: 1e-4, high: 1e-2, log: true}}, batch_size: {{low: 32, high: 64}}}}\n"
    done = sweep(write(lines.format(1)), "--workers=1")
    assert done.returncode == 0, done.stderr
    first = table_of(tmp_path / "out", "trials.csv")
    done = sweep(write(lines.format(2)), "--workers=1")
    assert done.returncode == 0, done.stderr
    rows = table_of(tmp_path / "out", "trials.csv")
    assert [row["trial"] for row in rows] == ["digits-base-t000-s0", "digits-base-t001-s0"]
    assert rows[0] == first[0]
    assert rows[0]["lr"] != rows[1]["lr"]
    recipe = run_folder.recipe_of(tmp_path / "out" / "trials" / "digits-base-t001-s0")
    assert recipe.lr == pytest.approx(float(rows[1]["lr"]), rel=1e-5)
    assert 32 <= recipe.batch_size <= 64
    best = max(rows, key=lambda row: float(row["val_top1"]))
    assert table_of(tmp_path / "out")[0]["lr"] == best["lr"]


@pytest.mark.slow
def test_trials_run_on_a_local_ray_of_two_workers(write, sweep, tmp_path):
    pytest.importorskip("ray")
    done = sweep(write(MASKS), "--ray=local", "--workers=2")
    assert done.returncode == 0, done.stderr
    assert "trials at once: 2" in done.stderr
    assert [row["n"] for row in table_of(tmp_path / "out")] == ["1", "1"]


def test_an_address_without_a_cluster_is_told(write, sweep):
    pytest.importorskip("ray")
    done = sweep(write(""), "--ray=127.0.0.1:1")
    assert done.returncode == 1
    assert "no Ray cluster at '127.0.0.1:1'" in done.stderr
    assert "Traceback" not in done.stderr


def test_places_on_gpus_take_turns_over_the_devices():
    assert [slot.gpu for slot in make_slots(None, 2, ["0", "3"])] == ["0", "3", "0", "3"]
    assert [slot.gpu for slot in make_slots(3, 2, ["0", "3"])] == ["0", "3", "0"]
    assert [slot.gpu for slot in make_slots(2, 1, [])] == [None, None]
    with pytest.raises(StudyError, match="--workers must be at least 1, got 0"):
        make_slots(0, 1, [])


def test_a_second_sweep_of_one_folder_is_refused(write, sweep, tmp_path):
    with claim.locked(tmp_path / "out"):
        done = sweep(write(""))
    assert done.returncode == 1
    assert "another sweep is writing to" in done.stderr
