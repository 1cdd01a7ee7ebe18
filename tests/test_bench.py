"""`gmmvit bench` on the CPU: its rows, table and errors, not the figures themselves."""

import csv
import json

import pytest
import torch

from gmmvit.bench import bench, grid_of, parse_shapes, roofline
from gmmvit.cli import main
from gmmvit.config import RecipeError


def test_rows_are_times_and_ratios_of_every_contender():
    said = []
    rows = bench([(2, 2, 12, 8)], device="cpu", dtype="float32", repeats=2, report=said.append)
    kinds = ["masked", "SDPA, no mask", "eager", "ratio masked / SDPA, no mask", "ratio masked / eager"]
    assert [row["what"] for row in rows] == [f"[2, 2, 12, 8] float32 {kind}" for kind in kinds]
    assert [row["unit"] for row in rows] == ["ms", "ms", "ms", "times", "times"]
    assert all(float(row["median"]) > 0 for row in rows)
    assert said == ["[2, 2, 12, 8]: chunked: taken, the fastest that can"]


def test_the_command_prints_json_and_writes_the_same_rows(tmp_path, capsys):
    path = tmp_path / "out" / "bench.csv"
    assert main(["bench", "--shapes", "1x1x4x4", "--repeats", "2", "--json", "--out", str(path)]) == 0
    printed = json.loads(capsys.readouterr().out)
    with path.open(newline="") as file:
        assert list(csv.DictReader(file)) == printed


def test_the_roofline_counts_seven_products_and_twelve_tensors():
    limits = roofline((2, 3, 10, 8), torch.bfloat16, torch.device("cpu"))
    assert float(limits["operations"]) == 7 * 2 * 2 * 3 * 10 * 10 * 8
    assert float(limits["bytes"]) == pytest.approx(12 * 2 * 3 * 10 * 8 * 2, rel=5e-3)
    assert limits["floor_ms"] == ""


def test_shapes_are_read_or_refused_with_their_form():
    assert parse_shapes("256x12x64x16, 2X12x4096x64") == [(256, 12, 64, 16), (2, 12, 4096, 64)]
    with pytest.raises(RecipeError, match="must be BATCHxHEADSxTOKENSxWIDTH, such as 256x12x64x16, got '8x3x64'"):
        parse_shapes("8x3x64")
    assert main(["bench", "--shapes", "0x1x1x1"]) == 2


def test_tokens_lie_on_the_grid_nearest_to_a_square():
    assert [grid_of(tokens) for tokens in (64, 196, 200, 7)] == [(8, 8), (14, 14), (10, 20), (1, 7)]
