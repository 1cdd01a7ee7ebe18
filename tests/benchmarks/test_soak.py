"""A short form of `make soak`, of the same trials by seed."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import soak


@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
    return soak.Soak(tmp_path_factory.mktemp("soak"))


@pytest.mark.parametrize(("kind", "count"), [("image", 60), ("folder", 15), ("flag", 15)])
def test_no_trial_fails(kinds, kind, count):
    told = {f"{kind} {n}": soak.tried(getattr(kinds, kind), f"7 {kind} {n}") for n in range(count)}
    assert {name: fault for name, fault in told.items() if fault} == {}


def test_a_trial_that_raises_or_takes_too_long_is_a_failure(monkeypatch):
    monkeypatch.setattr(soak, "SECONDS", 1)
    assert soak.tried(lambda rng: 1 / 0, "0") == "ZeroDivisionError: division by zero"
    assert "took more than" in soak.tried(lambda rng: __import__("time").sleep(5), "0")
    assert soak.one_line(["recipes"], (1,)).startswith("status 0")
