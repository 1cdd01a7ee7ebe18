"""Which tiles suit the long kernels on this GPU: forward and backward at one shape for every choice of one kernel.

    python benchmarks/tune_attention.py 64x12x256x64 [--kernels forward,pair,q,kv]

"pair" and "q" are the two ways to the gradients of q and the mask, with two samples in a program or one.
Prints a line for each choice, the fastest first; the winners belong into `long_tiles` of `attention/launch.py`. Not
part of `make gpu`.
"""

import argparse
import itertools

import torch
from triton.runtime.errors import OutOfResources

from gmmvit.attention import OffsetTable, gmm_attention, launch
from gmmvit.bench import graph_timer, grid_of, parse_shapes

TILES = [launch.Tiles(*sizes) for sizes in itertools.product((64, 128), (32, 64, 128), (4, 8), (2, 3))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", help="BATCHxHEADSxTOKENSxWIDTH")
    parser.add_argument("--kernels", default="forward,pair,q,kv")
    args = parser.parse_args()
    ((batch, heads, tokens, width),) = parse_shapes(args.shape)
    rows, cols = grid_of(tokens)
    packed = torch.randn(batch, tokens, 3, heads, width, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    table = (torch.rand(heads, 2 * rows - 1, 2 * cols - 1, device="cuda") + 0.5).requires_grad_()
    grad = torch.randn(batch, tokens, heads, width, device="cuda", dtype=torch.bfloat16).transpose(1, 2)

    def step() -> None:
        q, k, v = (x.transpose(1, 2) for x in packed.unbind(2))
        out = gmm_attention(q, k, v, OffsetTable(table, (rows, cols)), backend="triton")
        torch.autograd.grad(out, [packed, table], grad)

    chosen, roomy = launch.long_tiles, launch.is_roomy
    for kernel in args.kernels.split(","):
        found = []
        launch.is_roomy = (lambda device: False) if kernel == "q" else roomy  # without room there are no pairs
        for tiles in TILES:
            if kernel in ("pair", "q") and tiles.BM < tiles.BN:
                continue  # its diagonals are summed over tiles that are at least as high as wide
            launch.long_tiles = lambda name, *sizes, k=kernel, t=tiles: t if name == k else chosen(name, *sizes)
            try:
                found.append((graph_timer(step)() * 1e3, tiles))
            except OutOfResources as error:
                print(f"{kernel} {tuple(tiles)}: {error}")
        for milliseconds, tiles in sorted(found):
            print(f"{kernel} {tuple(tiles)}: {milliseconds:.4f} ms")
        print(f"{kernel} now: {tuple(chosen(kernel, tokens, max(16, width), torch.bfloat16))}")
    launch.long_tiles, launch.is_roomy = chosen, roomy


if __name__ == "__main__":
    main()
