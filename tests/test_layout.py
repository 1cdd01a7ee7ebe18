"""Who may import whom, and the sizes that keep files readable."""

import ast
import re
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "gmmvit"
# A module imports only modules above it; the leaves at the end are imported by nobody but the command.
ORDER = [
    "version", "text", "yaml_files", "attention", "masks", "layers", "stem", "weight_files", "models", "attach",
    "reference_sizes", "reference_weights", "data", "augment", "field_values", "config", "run_folder", "claim",
    "distributed", "muon", "optim", "building", "progress", "predictions", "ensemble", "checkpoint", "sampling",
    "convert", "step", "session", "evaluate", "writer", "loop", "budget", "resuming", "training", "rows", "sweep",
    "folds", "report", "export", "bench", "cli", "timm_models", "__main__",
]  # fmt: skip
LEAVES = {name: {"cli"} for name in ("convert", "report", "export", "bench")}
LEAVES |= {"cli": {"__main__"}, "timm_models": set()}
FILES = sorted(SOURCE.rglob("*.py"))


def part(path):
    return path.relative_to(SOURCE).with_suffix("").parts[0]


def imported(path):
    """Parts of the package that a file imports, at the top or inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "gmmvit":
            names = node.module.split(".")[1:2] or [alias.name for alias in node.names]
            yield from (name for name in names if not name.startswith("__"))
        elif isinstance(node, ast.Import):
            yield from (a.name.split(".")[1] for a in node.names if a.name.startswith("gmmvit."))


@pytest.mark.parametrize(
    "path",
    [f for f in FILES if f.name != "__init__.py" or f.parent != SOURCE],
    ids=lambda p: str(p.relative_to(SOURCE)),
)
def test_imports_point_upwards(path):
    own = part(path)
    assert own in ORDER, f"{own} has no place in the order of the layout"
    for other in imported(path):
        assert other == own or ORDER.index(other) < ORDER.index(own), f"{path.name} imports {other}"
        assert other == own or own in LEAVES.get(other, {own}), f"{path.name} imports the leaf {other}"


def test_every_part_exists():
    assert {part(f) for f in FILES} - {"__init__"} == set(ORDER)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_a_file_fits_in_a_head(path):
    assert len(path.read_text().splitlines()) <= 400


def test_triton_is_imported_by_the_kernels_alone():
    users = [str(f.relative_to(SOURCE)) for f in FILES if re.search(r"^\s*(import|from) triton\b", f.read_text(), re.M)]
    assert set(users) == {"attention/kernels.py", "attention/long_kernels.py"}
