"""The Containerfile copies existing files, and builds if a builder is there."""

import fnmatch
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LINES = (ROOT / "Containerfile").read_text(encoding="utf-8").splitlines()
IGNORED = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]


def copied():
    return [source for line in LINES if line.startswith("COPY ") for source in line.split()[1:-1]]


def builder():
    """A command that can build here; None if no program is installed or its daemon does not answer."""
    for name in ("podman", "docker"):
        if shutil.which(name) and subprocess.run([name, "info"], capture_output=True, check=False).returncode == 0:
            return name
    return None


def test_what_it_copies_is_there_and_not_ignored():
    assert copied()
    for source in copied():
        assert (ROOT / source).exists(), source
        assert f"!{source}" in IGNORED, f"{source} is not let in by .dockerignore"


def test_nothing_else_is_let_in():
    assert IGNORED[0] == "*"
    assert sorted(line[1:] for line in IGNORED if line.startswith("!")) == sorted(copied())
    assert any(fnmatch.fnmatch("src/gmmvit/__pycache__", line.replace("**", "*")) for line in IGNORED)


def test_its_extras_are_those_of_the_package():
    import tomllib

    known = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    (install,) = [line for line in LINES if "pip install" in line]
    assert set(install.partition("[")[2].partition("]")[0].split(",")) <= set(known)


@pytest.mark.slow
def test_it_builds_and_answers():
    name = builder()
    if name is None:
        pytest.skip("neither podman nor docker can build here")
    built = subprocess.run(
        [name, "build", "-f", "Containerfile", "-t", "gmmvit-test", "."],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr[-2000:]
    answer = subprocess.run([name, "run", "--rm", "gmmvit-test", "recipes"], capture_output=True, text=True, check=True)
    assert "small" in answer.stdout.splitlines()
