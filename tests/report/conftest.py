"""One tiny run that the tests of the report share."""

import shutil
from pathlib import Path

import pytest
from pages import Page
from reported import TINY

import gmmvit
from gmmvit.report import write_report
from gmmvit.training.run import train


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny GMM-ViT run on digits that no test changes."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    train(gmmvit.load_recipe("digits", **TINY), folder, quiet=True)
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may change."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


@pytest.fixture(scope="session")
def page(trained: Path) -> Page:
    return Page(write_report(trained).read_text(encoding="utf-8"))
