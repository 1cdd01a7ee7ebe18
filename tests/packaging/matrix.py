"""Tests on Python 3.11 to 3.13 with the oldest and the newest torch, timm and transformers that pyproject.toml allows.

    make test-matrix                                   # all combinations, an hour and about 40 GB
    python tests/packaging/matrix.py --only 3.12-oldest --tests tests/masks

Each combination has its own environment in .matrix. Ends with a line for each: passed, failed, or
skipped and why.
"""

import argparse
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
PYTHONS = ("3.11", "3.12", "3.13")
ENDS = ("oldest", "newest")
MEASURED = ("torch", "torchvision", "timm", "transformers")
TESTS = ("tests/masks", "tests/attention/test_backends.py", "tests/models", "tests/attach/test_attach.py",
         "tests/building", "tests/training/test_train.py", "tests/test_readme.py")  # fmt: skip
EXTRAS = "timm,hf,data,tiff,metrics,export"


def pins(end: str) -> list[str]:
    """Requirements of the measured packages at one end of what pyproject.toml allows; none at the newest."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = [*project["dependencies"], *(name for group in project["optional-dependencies"].values() for name in group)]
    least = dict(match.groups() for match in (re.fullmatch(r"([\w-]+)>=([\d.]+)", name) for name in named) if match)
    if end == "newest":
        return []
    whole = {name: ".".join((*least[name].split("."), "0")[:2]) for name in MEASURED}  # 5 as 5.0
    return [f"{name}=={least[name] if least[name].count('.') > 1 else f'{whole[name]}.*'}" for name in MEASURED]


def interpreter(version: str) -> str | None:
    """A Python of that version: on the path, or among pyenv's."""
    if found := shutil.which(f"python{version}"):
        answer = subprocess.run([found, "-c", "import ensurepip"], capture_output=True, check=False)
        if answer.returncode == 0:
            return found
    others = sorted(Path("~/.pyenv/versions").expanduser().glob(f"{version}.*/bin/python"))
    return str(others[-1]) if others else None


def run(*command: str | Path, quiet: bool = True) -> tuple[int, str]:
    """Exit status and last line of a command."""
    done = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=quiet, text=True, check=False)
    lines = ((done.stderr or "") + (done.stdout or "")).strip().splitlines() if quiet else []
    return done.returncode, lines[-1] if lines else ""


def tried(version: str, end: str, tests: list[str]) -> str:
    """The outcome of one combination, in words."""
    python = interpreter(version)
    if python is None:
        return f"skipped: Python {version} is not installed"
    place = ROOT / ".matrix" / f"{version}-{end}"
    status, told = run(python, "-m", "venv", "--clear", place)
    if status:
        return f"skipped: no environment can be made with {python}: {told}"
    own = place / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    status, told = run(own, "-m", "pip", "install", "--quiet", *pins(end), f".[{EXTRAS}]", "pytest")
    if status:
        return f"skipped: cannot be installed: {told}"
    versions = "; ".join(f"print('{name}', importlib.metadata.version('{name}'), end='  ')" for name in MEASURED)
    _, found = run(own, "-c", f"import importlib.metadata; {versions}")
    status, _ = run(own, "-m", "pytest", "-m", "not slow", "-p", "no:cacheprovider", *tests, quiet=False)
    return f"{'failed' if status else 'passed'} with {found.strip()}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", help="combinations, as 3.12-oldest")
    parser.add_argument("--tests", nargs="*", default=list(TESTS))
    options = parser.parse_args()
    results = {}
    for version in PYTHONS:
        for end in ENDS:
            name = f"{version}-{end}"
            skip = options.only and name not in options.only
            results[name] = "skipped: not asked for" if skip else tried(version, end, options.tests)
            print(f"{name:<12} {results[name]}", flush=True)
    print("\nall combinations")
    for name, told in results.items():
        print(f"{name:<12} {told}")
    return int(any(told.startswith("failed") for told in results.values()))


if __name__ == "__main__":
    sys.exit(main())
