"""The paper's recipe on CIFAR-10, gmm and none with the same pooling, for as many seeds as the minutes allow.

    python benchmarks/gpu_paper.py --data packed [--out benchmarks/results] [--minutes 10] [--parallel 2] [--tiny]

`packed` holds the archives of `pack_cifar10.py`. Trainings run side by side in their own processes, first gmm and none
of seed 0, then of seed 1 and so on; none starts that would not end in time. OUT/paper-epochs.csv has a row per epoch as
soon as it is known, OUT/paper.csv a row per training, OUT/paper-log.txt their output. `--tiny` rehearses with one short
epoch on a CPU.
"""

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
MASKS = ("gmm", "none")
EPOCH = ["mask", "seed", "epoch", "train_loss", "train_top1", "val_loss", "val_top1", "lr", "images_per_s", "wall_s"]
RUN = ["mask", "seed", "epochs", "passes", "images_seen", "val_top1", "test_top1_best", "test_top1_last",
       "train_images_per_s", "wall_s", "num_parameters", "mask_parameters", "dtype", "device", "torch", "date",
       "commit"]  # fmt: skip


@dataclass
class Training:
    """A running training, and how many of its epochs are written down."""

    mask: str
    seed: int
    folder: Path
    process: subprocess.Popen[bytes]
    written: int = 0


def train_one(mask: str, seed: int, folder: Path, data: Path, tiny: bool) -> None:
    """Trains one model in this process."""
    import torch

    import gmmvit

    short: dict[str, Any] = {"epochs": 1, "passes": 1, "depth": 1, "dim": 12, "num_heads": 2} if tiny else {}
    recipe = gmmvit.load_recipe("paper", data_dir=str(data), cache_dir=str(data / "cache"), mask=mask, seed=seed,
                                pool="mean", compile=torch.cuda.is_available(), **short)  # fmt: skip
    gmmvit.train(recipe, folder)


def append(path: Path, columns: list[str], row: dict[str, Any]) -> None:
    new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, restval="", extrasaction="ignore", lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(row)


def note_epochs(training: Training, out: Path) -> None:
    """Writes the epochs that ended since the last call."""
    rows = training.folder / "metrics.jsonl"
    lines = rows.read_text(encoding="utf-8").splitlines() if rows.exists() else []
    for line in lines[training.written :]:
        append(out / "paper-epochs.csv", EPOCH, {"mask": training.mask, "seed": training.seed} | json.loads(line))
    training.written = len(lines)


def note_end(training: Training, out: Path) -> None:
    """Writes the row of a finished training, or prints that it failed."""
    from gmmvit.rows import commit

    summary = training.folder / "summary.json"
    if training.process.returncode or not summary.exists():
        print(f"{training.mask} seed {training.seed}: failed, exit status {training.process.returncode}", flush=True)
        return
    row = json.loads(summary.read_text(encoding="utf-8"))
    told = {"torch": row["versions"]["torch"], "date": time.strftime("%Y-%m-%d"), "commit": commit()}
    append(out / "paper.csv", RUN, row | told)
    print(f"{training.mask} seed {training.seed}: test {row['test_top1_best']:.2%} best on validation, "
          f"{row['test_top1_last']:.2%} last, {row['wall_s']:.0f} s", flush=True)  # fmt: skip


def run_all(args: argparse.Namespace, work: Path) -> int:
    """Runs trainings side by side until time is up; returns how many succeeded."""
    end = time.monotonic() + 60 * args.minutes
    path = os.pathsep.join([str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"PYTHONPATH": path}
    running: list[Training] = []
    number, longest, good = 0, 0.0, 0
    begun: dict[int, float] = {}
    with (args.out / "paper-log.txt").open("w", encoding="utf-8") as log:
        while True:
            now = time.monotonic()
            while len(running) < args.parallel and now + longest < end and number < args.seeds * len(MASKS):
                mask, seed = MASKS[number % len(MASKS)], number // len(MASKS)
                folder = work / f"{mask}-s{seed}"
                command = [sys.executable, __file__, "--one", f"{mask},{seed}", "--data", str(work / "data"), "--out",
                           str(folder), *(["--tiny"] if args.tiny else [])]  # fmt: skip
                process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
                running.append(Training(mask, seed, folder, process))
                begun[process.pid], number = now, number + 1
            if not running:
                return good
            for training in list(running):
                note_epochs(training, args.out)
                if training.process.poll() is not None:
                    running.remove(training)
                    longest = max(longest, time.monotonic() - begun[training.process.pid])
                    note_end(training, args.out)
                    good += training.process.returncode == 0
                elif time.monotonic() > end:
                    training.process.kill()
                    training.process.wait()
                    running.remove(training)
                    print(
                        f"{training.mask} seed {training.seed}: time is up after epoch {training.written}", flush=True
                    )
            time.sleep(0.5)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of cifar10-*.zip")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--parallel", type=int, default=2, help="trainings at once")
    parser.add_argument("--seeds", type=int, default=100, help="at most this many")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # MASK,SEED in its own process
    args = parser.parse_args()
    if args.one:
        mask, seed = args.one.split(",")
        train_one(mask, int(seed), args.out, args.data, args.tiny)
        return 0
    archives = sorted(args.data.glob("cifar10-*.zip"))
    if not archives:
        parser.error(f"{args.data} has no cifar10-*.zip; benchmarks/pack_cifar10.py makes them")
    args.out.mkdir(parents=True, exist_ok=True)
    for name in ("paper.csv", "paper-epochs.csv"):
        (args.out / name).unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as work:
        for archive in archives:
            with zipfile.ZipFile(archive) as packed:
                packed.extractall(Path(work) / "data")
        return 0 if run_all(args, Path(work)) else 1


if __name__ == "__main__":
    sys.exit(main())
