"""A training survives the loss of its terminal, and a finished run can be extended."""

import signal
import subprocess
import sys

import pytest

TINY = {"dim": 16, "depth": 1, "num_heads": 2, "passes": 1, "warmup_epochs": 0, "threads": 1, "epochs": 2}
FLAGS = [word for name, value in TINY.items() for word in (f"--{name.replace('_', '-')}", str(value))]


@pytest.mark.parametrize("stream", ["closed", "full"])
def test_a_training_goes_on_where_nobody_reads_what_it_says(tmp_path, stream):
    code = (
        "import os, sys\nfrom gmmvit.cli import main\n"
        + ("os.close(2)\n" if stream == "closed" else "os.dup2(os.open('/dev/full', os.O_WRONLY), 2)\n")
        + "sys.exit(main())\n"
    )
    command = [sys.executable, "-c", code, "train", "--out", str(tmp_path / "run"), *FLAGS]
    assert subprocess.run(command, check=False, timeout=120).returncode == 0
    assert (tmp_path / "run" / "summary.json").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_after_the_end_adds_no_traceback(number):
    code = (
        "import os, sys, time\nfrom gmmvit.cli import main\nsys.argv[1:] = ['recipes']\nstatus = main()\n"
        f"os.kill(os.getpid(), {int(number)})\ntime.sleep(0.05)\nsys.exit(status)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0
    assert done.stderr == ""
