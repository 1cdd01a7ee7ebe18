"""Test accuracy of a recipe with several masks and seeds: mean and standard deviation, a row per mask.

    python benchmarks/accuracy.py --recipe digits --masks gmm,none,elm --seeds 0,1,2 --out benchmarks/results/digits.csv

Weights are chosen on the validation part; the test part is measured once, at the end. Run folders stay in --runs, so a
stopped benchmark continues.
"""

import argparse
import csv
import datetime
import statistics
from pathlib import Path
from typing import Any

import torch

from gmmvit.config import load_recipe
from gmmvit.rows import commit, device_name
from gmmvit.runs.run_folder import CONFIG, read_summary
from gmmvit.training.run import resume, train


def summary_of(folder: Path, recipe_name: str, **fields: Any) -> dict[str, Any]:
    """The summary of one training, run, continued or just read."""
    summary = read_summary(folder)
    if summary is not None:
        return summary
    if (folder / CONFIG).exists():
        return resume(folder)
    return train(load_recipe(recipe_name, **fields), folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="digits")
    parser.add_argument("--dataset")
    parser.add_argument("--data-dir")
    parser.add_argument("--image-size", help="training size in pixels, if not the data set's own")
    parser.add_argument("--masks", default="gmm,none,elm")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--runs", type=Path, default=Path("runs/accuracy"))
    parser.add_argument("--out", default="", help="CSV to write")
    args = parser.parse_args()
    fields = {name: getattr(args, name) for name in ("dataset", "data_dir", "image_size") if getattr(args, name)}
    rows = []
    for mask in args.masks.split(","):
        runs = [
            summary_of(args.runs / f"{args.recipe}-{mask}-s{seed}", args.recipe, mask=mask, seed=int(seed), **fields)
            for seed in args.seeds.split(",")
        ]
        best, last = ([run[f"test_top1_{which}"] for run in runs] for which in ("best", "last"))
        spread = [statistics.stdev(values) if len(values) > 1 else 0.0 for values in (best, last)]
        rows.append(
            {
                "recipe": args.recipe,
                "dataset": runs[0]["dataset"],
                "mask": mask,
                "seeds": len(runs),
                "test_top1_best_mean": f"{statistics.mean(best):.4f}",
                "test_top1_best_sd": f"{spread[0]:.4f}",
                "test_top1_last_mean": f"{statistics.mean(last):.4f}",
                "test_top1_last_sd": f"{spread[1]:.4f}",
                "wall_s_mean": f"{statistics.mean(run['wall_s'] for run in runs):.0f}",
                "device": device_name(),
                "torch": str(torch.__version__),
                "date": datetime.date.today().isoformat(),
                "commit": commit(),
            }
        )
        print(rows[-1])
    if args.out:
        Path(args.out).parent.mkdir(parents=True, exist_ok=True)
        with Path(args.out).open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
