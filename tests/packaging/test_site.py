"""The site builds without a warning, shows the whole public API, and needs no network."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import gmmvit
import gmmvit.attention
import gmmvit.models

ROOT = Path(__file__).parents[2]
for package in ("sphinx", "myst_parser", "furo"):
    pytest.importorskip(package, reason="the site's generator is not installed: pip install '.[docs]'")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-c", "docs/site", ".", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
def test_every_page_is_there_and_readme_is_the_first(site):
    pages = {path.relative_to(ROOT).with_suffix("") for path in (*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"))}
    assert len(pages) > 12
    assert all((site / page).with_suffix(".html").is_file() for page in pages)
    first = (site / "index.html").read_text(encoding="utf-8")
    assert first == (site / "README.html").read_text(encoding="utf-8")
    reached = set(re.findall(r'href="([\w/]+)\.html"', first))
    assert {str(page) for page in pages - {Path("README")}} <= reached  # each is in the sidebar
    assert 'src="_images/masks.svg"' in first


@pytest.mark.parametrize("module", [gmmvit, gmmvit.attention, gmmvit.models], ids=lambda module: module.__name__)
@pytest.mark.slow
def test_the_library_is_shown_whole(site, module):
    page = (site / "docs" / "site" / "api.html").read_text(encoding="utf-8")
    shown = set(re.findall(r'id="([\w.]+)"', page))
    names = {name for name in module.__all__ if not name.startswith("__")}
    assert len(names) > 5
    assert {name for name in names if not {f"{module.__name__}.{name}", f"gmmvit.{name}"} & shown} == set()
    assert "Puts a mask into every patch attention" in page  # from `gmmvit.attach`, which is also a package


@pytest.mark.slow
def test_nothing_is_fetched_from_elsewhere(site):
    loaded = re.compile(r"<(?:script|img|iframe|source)\b[^>]*\bsrc=[\"']([^\"']+)|<link\b[^>]*\bhref=[\"']([^\"']+)")
    pages = list(site.rglob("*.html"))
    addresses = {a or b for page in pages for a, b in loaded.findall(page.read_text(encoding="utf-8"))}
    for sheet in site.rglob("*.css"):
        addresses |= set(re.findall(r"(?:url\(|@import )[\"']?([^\"')\s]+)", sheet.read_text(encoding="utf-8")))
    assert len(addresses) > 10
    assert {address for address in addresses if re.match(r"(https?:)?//", address)} == set()
