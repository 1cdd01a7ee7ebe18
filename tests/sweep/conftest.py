"""A small study of digits, as text, and the command that runs it."""

import os
import subprocess
import sys

import pytest

TINY = """\
recipe: digits
fields: {epochs: 2, passes: 1, dim: 16, depth: 1, num_heads: 2, warmup_epochs: 0, device: cpu, threads: 1}
data: [digits]
"""


@pytest.fixture
def write(tmp_path):
    """Writes a study with these extra lines and returns its path."""

    def written(lines, base=TINY):
        path = tmp_path / "study.yaml"
        path.write_text(base + lines)
        return path

    return written


@pytest.fixture
def sweep(tmp_path):
    """Runs `gmmvit sweep` on a study in the test's folder."""

    def run(path, *more):
        command = [
            sys.executable,
            "-m",
            "gmmvit",
            "sweep",
            str(path),
            "--out",
            str(tmp_path / "out"),
            "--nice=0",
            *more,
        ]
        environment = os.environ | {"COMMIT": "abc1234"}
        return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)

    return run
