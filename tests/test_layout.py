"""Who may import whom, and the sizes that keep files readable."""

import ast
import re
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "gmmvit"
# A module imports only modules above it; the leaves at the end are imported by nobody but the command. A package stands
# here whole, or where two are needed by one another in turns, by its modules.
ORDER = [
    "version", "text", "yaml_files", "checks", "tasks", "attention", "masks", "weight_files", "models", "attach",
    "original.sizes", "original.weights", "original", "data", "augment", "field_values", "config", "distributed",
    "device", "runs.files", "runs.run_folder", "runs.claim", "building", "runs.predictions", "runs.ensemble",
    "runs.checkpoint", "runs.run_data", "runs.evaluate", "runs", "original.convert", "training", "rows", "sweep",
    "training.folds", "report", "runs.export", "bench", "cli", "timm_models", "__main__",
]  # fmt: skip
LEAVES = {name: {"cli"} for name in ("original.convert", "report", "runs.export", "bench")}
LEAVES |= {"cli": {"__main__"}, "timm_models": set()}
FILES = sorted(SOURCE.rglob("*.py"))


def part(module):
    """A module's place in the order, from its names without the package's."""
    while module and ".".join(module) not in ORDER:
        module = module[:-1]
    return ".".join(module)


def part_of(path):
    names = path.relative_to(SOURCE).with_suffix("").parts
    return part(names[:-1] if names[-1] == "__init__" else names)


def imported(path):
    """Places in the order of what a file imports, at the top or inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "gmmvit":
            package = node.module.split(".")[1:]
            yield from (part([*package, alias.name]) for alias in node.names if not alias.name.startswith("__"))
        elif isinstance(node, ast.Import):
            yield from (part(a.name.split(".")[1:]) for a in node.names if a.name.startswith("gmmvit."))


@pytest.mark.parametrize(
    "path",
    [f for f in FILES if f.name != "__init__.py" or f.parent != SOURCE],
    ids=lambda p: str(p.relative_to(SOURCE)),
)
def test_imports_point_upwards(path):
    own = part_of(path)
    assert own, f"{path.relative_to(SOURCE)} has no place in the order of the layout"
    for other in imported(path):
        assert other == own or ORDER.index(other) < ORDER.index(own), f"{path.name} imports {other}"
        assert other == own or own in LEAVES.get(other, {own}), f"{path.name} imports the leaf {other}"


def test_every_part_exists():
    assert {part_of(f) for f in FILES} - {""} == set(ORDER)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_a_file_fits_in_a_head(path):
    assert len(path.read_text().splitlines()) <= 400


def test_triton_is_imported_by_the_kernels_alone():
    users = [str(f.relative_to(SOURCE)) for f in FILES if re.search(r"^\s*(import|from) triton\b", f.read_text(), re.M)]
    assert set(users) == {"attention/triton/kernels.py", "attention/triton/long_kernels.py"}
