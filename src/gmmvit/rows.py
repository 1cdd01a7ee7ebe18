"""Benchmark results as CSV rows: quantiles, device, versions, date and commit."""

import csv
import datetime
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch


def device_name(device: torch.device | None = None) -> str:
    """The GPU's name, or the processor's with its thread count; default: the GPU if there is one."""
    if torch.cuda.is_available() if device is None else device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if "model name" in line]
    return f"{names[0] if names else platform.processor()}, {torch.get_num_threads()} threads"


def commit() -> str:
    """The short hash of the checked-out commit, from the environment variable COMMIT (for machines without git), else
    from git, else "unknown"."""
    if given := os.environ.get("COMMIT"):
        return given
    try:
        done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    except OSError:
        return "unknown"
    return done.stdout.strip() or "unknown"


def row(what: str, unit: str, values: Sequence[float], device: torch.device | None = None) -> dict[str, str]:
    """A row with median and quartiles of repeated measurements and all they depend on; `device` as in `device_name`."""
    q1, median, q3 = statistics.quantiles(values, n=4) if len(values) > 1 else [values[0]] * 3
    return {
        "what": what,
        "unit": unit,
        "median": f"{median:.4g}",
        "q1": f"{q1:.4g}",
        "q3": f"{q3:.4g}",
        "repeats": str(len(values)),
        "device": device_name(device),
        "torch": str(torch.__version__),
        "date": datetime.date.today().isoformat(),
        "commit": commit(),
    }


def line(row: dict[str, str]) -> str:
    """Formats a row as a line of text."""
    memory, floor = row.get("peak_memory_mb"), row.get("floor_ms")
    more = f"  floor {floor} ms" if floor else ""
    more += f"  peak {memory} MB" if memory else ""
    return f"{row['what']:<58} {row['median']:>9} {row['unit']:<9} (quartiles {row['q1']} to {row['q3']}){more}"


def write_rows(path: str | Path | None, rows: Sequence[dict[str, str]], *, quiet: bool = False) -> None:
    """Prints the rows unless `quiet`; with a path, also writes them as CSV."""
    if not quiet:
        for r in rows:
            print(line(r))
    if path:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with Path(path).open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        print(f"written to {path}", file=sys.stderr)
