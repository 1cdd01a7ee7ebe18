"""What the mask itself costs: its offset table from sigma and alpha, layer by layer and for all layers at once.

    python benchmarks/mask_table.py [--out CSV]

The paper's GMM-ViT, nine layers of 12 heads and 5 Gaussians on an 8 x 8 grid, beside its forward pass at batch 1. Runs
on a GPU if there is one; launches count.
"""

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor

from gmmvit import GaussianMixtureMask, create_model
from gmmvit.masks import tables_together
from gmmvit.rows import row, write_rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--out", default="", help="CSV to write")
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = create_model("vit", mask="gmm", image_size=32, num_classes=10).to(device).eval()
    masks = [module for module in model.modules() if isinstance(module, GaussianMixtureMask)]
    image = torch.randn(1, 3, 32, 32, device=device)

    def each() -> list[Tensor]:
        return [mask.table() for mask in masks]

    def at_once() -> list[Tensor]:
        return list(tables_together(masks, masks[0].alpha.device).values())

    def trained(tables: Callable[[], list[Tensor]]) -> Callable[[], None]:
        return lambda: torch.stack(tables()).sum().backward()

    no_grad = torch.no_grad()
    runs: dict[str, Callable[[], object]] = {
        "tables of all layers, forward": no_grad(each),
        "tables of all layers, forward, another grid": no_grad(lambda: [mask.table((7, 9)) for mask in masks]),
        "dense masks of all layers, forward": no_grad(lambda: [mask.dense() for mask in masks]),
        "tables of all layers, forward and backward": trained(each),
        "tables in one computation, forward and backward": trained(at_once),
        "whole model at batch 1, forward": no_grad(lambda: model(image)),
    }
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(args.repeats + 3):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if device == "cuda":
                torch.cuda.synchronize()
            if turn >= 3:
                times[name].append(1e3 * (time.perf_counter() - start))
    write_rows(args.out, [row(name, "ms", values) for name, values in times.items()])


if __name__ == "__main__":
    main()
