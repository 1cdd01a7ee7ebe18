"""The wheel has all that the package needs, and installs by name."""

import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from gmmvit.config import recipe_names
from gmmvit.version import __version__

ROOT = Path(__file__).parents[2]
pytest.importorskip("build", reason="build is not installed: pip install '.[dev]'")
pytest.importorskip("twine", reason="twine is not installed: pip install '.[dev]'")


def run(*command, **options):
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def dist(tmp_path_factory):
    """The folder with the sdist and the wheel built from it, as `make wheel` does; the checkout stays clean."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "src", folder / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    run(sys.executable, "-m", "build", "--no-isolation", cwd=folder)
    return folder / "dist"


@pytest.mark.slow
def test_the_wheel_holds_every_file_of_the_package(dist):
    (wheel,) = dist.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    package = ROOT / "src"
    own = {str(path.relative_to(package)) for path in package.rglob("*") if path.suffix in (".py", ".yaml", ".typed")}
    assert {name for name in names if name.startswith("gmmvit/")} == own
    assert {"gmmvit/py.typed", *(f"gmmvit/recipes/{name}.yaml" for name in recipe_names())} <= own
    assert f"gmmvit-{__version__}.dist-info/licenses/LICENSE" in names


@pytest.mark.slow
def test_twine_finds_no_fault_in_metadata_and_readme(dist):
    told = run(sys.executable, "-m", "twine", "--no-color", "check", "--strict", *dist.iterdir())
    assert len(re.findall("PASSED", told)) == 2


@pytest.mark.slow
def test_it_installs_by_name_into_a_new_environment(dist, tmp_path):
    """Its dependencies come through a path, since torch takes minutes to install."""
    place = tmp_path / "env"
    venv.create(place, with_pip=False)
    python = place / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    run(
        sys.executable,
        "-m",
        "pip",
        "--python",
        python,
        "install",
        "--no-index",
        "--no-deps",
        "--find-links",
        dist,
        "gmmvit",
    )
    packages = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path).strip())
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    command = python.with_name("gmmvit")
    clean = {"cwd": tmp_path, "env": {"PATH": str(python.parent), "HOME": str(tmp_path)}}
    assert run(command, "--version", **clean).strip() == __version__
    assert set(recipe_names()) <= set(run(command, "recipes", **clean).splitlines())
    told = run(python, "-c", "import gmmvit; print(gmmvit.__file__, gmmvit.create_model('vit').grid)", **clean)
    assert told.startswith(str(packages))
