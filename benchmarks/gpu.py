"""All GPU measurements, the most valuable first, within a time limit: `make gpu OUT=folder`.

    python benchmarks/gpu.py [--out benchmarks/results] [--minutes 8] [--parts kernels,correctness,...] [--tiny]

Needs torch, triton, numpy and this repository, for the kernels' tests also pytest; not git, cyclopts, pyarrow,
matplotlib or scikit-learn. Each part runs in its own process with its own limit, so a failure, a fault of the GPU or a
part that hangs costs the others nothing. Rows appear in OUT/gpu.csv as soon as they are known, the output of the parts
in OUT/gpu-log.txt, a summary in OUT/gpu.md. Without git, set COMMIT in the environment. `--tiny` rehearses everything
on a CPU. Exit status 1 if a part failed.
"""

import argparse
import csv
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

ROOT = Path(__file__).parents[1]
COLUMNS = ["part", "what", "unit", "median", "q1", "q3", "repeats", "operations", "bytes", "floor_ms", "peak_memory_mb",
           "device", "torch", "date", "commit"]  # fmt: skip
ENOUGH = 10  # with fewer seconds left no further part starts


@dataclass(frozen=True)
class Part:
    """What a part shows, and its time limit in seconds."""

    shows: str
    limit: int


PARTS = {
    "versions": Part("the GPU and the libraries", 30),
    "correctness": Part("error of the fused kernels divided by that of plain torch, output and gradients", 90),
    "attention": Part("the attention op against its rivals, forward and backward", 80),
    "checks": Part("every kind of training step, recorded and not, against each other", 150),
    "training": Part("whole steps of the loop", 130),
    "profile": Part("where a step's time goes", 60),
    "augmentation": Part("the CIFAR-10 policy on the device", 30),
    "kernels": Part("the kernels' own tests", 120),
}
EXTRA = {"tune": Part("tiles of the kernels, and ways to the same gradients", 220)}  # not in a run of everything


def _part(name: str) -> Part:
    return (PARTS | EXTRA)[name]


def versions() -> None:
    """Prints what the measurements depend on."""
    import numpy
    import torch
    import triton

    print(f"python {sys.version.split()[0]}, torch {torch.__version__}, triton {triton.__version__}, "
          f"numpy {numpy.__version__}, {os.cpu_count()} CPU cores")  # fmt: skip
    if torch.cuda.is_available():
        print(torch.cuda.get_device_properties(0))


def kernels(tiny: bool) -> None:
    """Runs the kernels' tests and exits with the status of pytest; a rehearsal runs one, since the suite runs all in
    Triton's interpreter."""
    import importlib.util

    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/attention/test_triton.py"]
    if importlib.util.find_spec("xdist") and not tiny:
        command += ["-n", "8"]
    sys.exit(subprocess.run([*command, *(["-k", "one and row"] if tiny else [])], cwd=ROOT).returncode)


def checks(tiny: bool) -> None:
    """Runs the checks of training steps and exits with their status; a rehearsal runs three, the suite has more."""
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu_checks.py")]
    sys.exit(subprocess.run([*command, *(["--tiny", "--only", "eager,average,muon"] if tiny else [])]).returncode)


def run_part(name: str, out: Path, tiny: bool) -> None:
    """Runs one part in this process and writes its rows to the CSV as they come."""
    if name == "versions":
        return versions()
    if name in ("kernels", "checks"):
        return {"kernels": kernels, "checks": checks}[name](tiny)
    import gpu_parts

    from gmmvit.rows import line

    with (out / "gpu.csv").open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="", lineterminator="\n")
        for row in getattr(gpu_parts, name)(tiny):
            writer.writerow({"part": name} | row)
            file.flush()
            print(line(row), flush=True)
    return None


def run_all(names: Sequence[str], out: Path, minutes: float, tiny: bool) -> bool:
    """Runs every part in its own process while time is left; returns whether all were good."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "gpu.csv").write_text(",".join(COLUMNS) + "\n", encoding="utf-8")
    path = os.pathsep.join([str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}
    if tiny:
        environment["TRITON_INTERPRET"] = "1"
    end, ended = time.monotonic() + 60 * minutes, {}
    with (out / "gpu-log.txt").open("w", encoding="utf-8") as log:
        for name in names:
            begun = time.monotonic()
            if end - begun < ENOUGH:
                how = "left out: no time was left"
            else:
                print(f"\n== {name}: {_part(name).shows}", file=log, flush=True)
                command = [sys.executable, __file__, "--part", name, "--out", str(out), *(["--tiny"] if tiny else [])]
                how = _run(command, min(_part(name).limit, end - begun), log, environment)
            ended[name] = (how, time.monotonic() - begun)
            print(f"{name}: {how} after {ended[name][1]:.0f} s", flush=True)
            _summarise(out, ended)
    return all(how == "good" for how, _ in ended.values())


def _run(command: list[str], limit: float, log: TextIO, environment: dict[str, str]) -> str:
    """Runs one part; returns how it ended."""
    try:
        done = subprocess.run(
            command, stdout=log, stderr=subprocess.STDOUT, timeout=limit, env=environment, check=False
        )
    except subprocess.TimeoutExpired:
        return f"ended at its limit of {limit:.0f} s"
    return "good" if done.returncode == 0 else f"failed with exit status {done.returncode}"


def _summarise(out: Path, ended: dict[str, tuple[str, float]]) -> None:
    """Writes the page: how each part ended, then its rows."""
    with (out / "gpu.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    lines = ["# Measured on a GPU", ""]
    if rows:
        lines += [f"{rows[0]['device']}, torch {rows[0]['torch']}, {rows[0]['date']}, commit {rows[0]['commit']}", ""]
    lines += ["| part | ended | seconds |", "| --- | --- | --- |"]
    lines += [f"| {name} | {how} | {seconds:.0f} |" for name, (how, seconds) in ended.items()]
    for name in ended:
        own = [row for row in rows if row["part"] == name]
        if own:
            lines += ["", f"## {name}: {_part(name).shows}", "", "| what | median | quartiles | unit |"]
            lines += ["| --- | --- | --- | --- |"]
            lines += [f"| {r['what']} | {r['median']} | {r['q1']} to {r['q3']} | {r['unit']} |" for r in own]
    (out / "gpu.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results", help="folder to write to")
    parser.add_argument("--minutes", type=float, default=8.0, help="time limit of the whole")
    parser.add_argument("--parts", default=",".join(PARTS), help="which, in their order")
    parser.add_argument("--tiny", action="store_true", help="rehearse with tiny sizes, on a CPU too")
    parser.add_argument("--part", help=argparse.SUPPRESS)  # in its own process
    args = parser.parse_args()
    if args.part:
        run_part(args.part, args.out, args.tiny)
        return 0
    unknown = set(args.parts.split(",")) - set(PARTS | EXTRA)
    if unknown:
        parser.error(f"--parts must be among {', '.join(PARTS | EXTRA)}, got {', '.join(sorted(unknown))}")
    import torch

    if not args.tiny and not torch.cuda.is_available():
        parser.error("there is no CUDA device; --tiny rehearses on a CPU")
    good = run_all(args.parts.split(","), args.out.resolve(), args.minutes, args.tiny)
    print((args.out / "gpu.md").read_text(encoding="utf-8"))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
