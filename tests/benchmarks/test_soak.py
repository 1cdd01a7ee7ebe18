"""A short version of `make soak`, with the same seeded trials."""

import itertools
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from soak import KINDS, calls, trials

SHORT = {"image": 60, "folder": 12, "call": 120, "flag": 15, "kill": 4, "signal": 2, "disk": 2, "attach": 3}


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a forked child has no other threads of torch
    yield trials.Sound(tmp_path_factory.mktemp("soak"))
    torch.set_num_threads(threads)


@pytest.mark.parametrize("kind", KINDS)
def test_no_trial_fails(sound, kind):
    trial, _ = KINDS[kind]
    faults = {f"{kind} {n}": trials.tried(trial, sound, f"7 {kind} {n}", n) for n in range(SHORT[kind])}
    assert {name: fault for name, fault in faults.items() if fault} == {}


def test_a_trial_that_raises_or_takes_too_long_is_a_failure(monkeypatch):
    monkeypatch.setattr(trials, "SECONDS", 1)
    assert trials.tried(lambda *_: 1 / 0, None, "0", 0) == "ZeroDivisionError: division by zero"
    assert (
        trials.tried(lambda *_: all(True for _ in itertools.count()), None, "0", 0)
        == "TimeoutError: took more than 1 s"
    )
    assert trials.one_line(["recipes"], (1,)).startswith("status 0")
    assert trials.wrong_end(1, "Traceback (most recent call last):\ngmmvit: no", (1,))
    assert trials.wrong_end(1, "gmmvit: one\ngmmvit: two", (1,)).startswith("not one line")


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        (lambda: None + 1, TypeError, "TypeError of test_soak.py"),  # an operation, not a sentence of the library
        (lambda: calls.gmmvit.ElementwiseMask("aaa", 2), TypeError, ""),
        (lambda: [][1], IndexError, "IndexError of test_soak.py"),
    ],
)
def test_an_error_is_fit_where_a_statement_of_the_library_raised_it(given, error, words):
    with pytest.raises(error) as caught:
        given()
    found = calls.unfit(caught.value)
    assert found.startswith(words)
    assert bool(found) == bool(words)
