"""Compiles the kernels that a call of the op launches, for a GPU that need not be present.

    python tests/attention/compiled.py 90        # compute capability; a JSON row for each kernel of the models' calls
    python tests/attention/compiled.py 90 --table                  # the same as a table

The op runs on the CPU with recorders in place of the kernels; Triton's compiler gets what they saw. For each kernel:
registers per thread, bytes that they spill, shared memory, warps; instructions of its inner loop, how many of them are
products of the tensor cores, and how many there are per pair of tokens: times threads, divided by the pairs of a tile.
"""

import argparse
import json
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from gmmvit.attention.triton import kernels, long_kernels, op

NAMES = {
    kernels: ("short_forward", "short_backward"),
    long_kernels: (
        "lay_out_mask",
        "long_forward",
        "long_backward_q",
        "long_backward_kv",
        "long_backward_table",
        "long_backward_dense",
        "whole_backward",
    ),
}
POINTERS = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.int64: "*i64"}
OPTIONS = ("num_warps", "num_stages")


class Recorder:
    """Stands in for a kernel and records the arguments of every launch."""

    def __init__(self, kernel: Any, launches: list[tuple[Any, tuple[Any, ...], dict[str, Any]]]) -> None:
        self.kernel, self.launches = kernel, launches

    def __getitem__(self, grid: Any) -> Any:
        return lambda *args, **kwargs: self.launches.append((self.kernel, args, kwargs))


def recorded(call: Any) -> list[tuple[Any, tuple[Any, ...], dict[str, Any]]]:
    """The launches of `call()`: kernel, arguments and keywords."""
    launches: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = []
    originals = {(module, name): getattr(module, name) for module, names in NAMES.items() for name in names}
    try:
        for (module, name), kernel in originals.items():
            setattr(module, name, Recorder(kernel, launches))
        call()
    finally:
        for (module, name), kernel in originals.items():
            setattr(module, name, kernel)
    return launches


def compiled(launch: tuple[Any, tuple[Any, ...], dict[str, Any]], capability: int) -> Any:
    """The kernel of a launch for compute capability 80, 90 or 100, specialised as in a real launch."""
    kernel, args, kwargs = launch
    values = dict(zip(kernel.arg_names, args, strict=False)) | {n: v for n, v in kwargs.items() if n not in OPTIONS}
    signature, constants, attributes = {}, {}, {}
    for index, name in enumerate(kernel.arg_names):
        value = values[name]
        if (name.isupper() and name not in ("B", "H", "T")) or value is None or (type(value) is int and value == 1):
            signature[name], constants[(index,)] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[name], attributes[(index,)] = POINTERS[value.dtype], [["tt.divisibility", 16]]
        elif isinstance(value, int):
            signature[name] = "i32"
            if value % 16 == 0:
                attributes[(index,)] = [["tt.divisibility", 16]]
        else:
            signature[name] = "fp32"
    source = ASTSource(kernel, signature, constants, attributes)
    options = {name: kwargs[name] for name in OPTIONS}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


BINARIES = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


def registers(kernel: Any, capability: int) -> tuple[int, int]:
    """Registers per thread and bytes spilled to memory, from Triton's own ptxas."""
    name = "ptxas-blackwell" if capability >= 100 else "ptxas"
    target = f"sm_{capability}a" if capability >= 90 else f"sm_{capability}"
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.ptx"
        source.write_text(kernel.asm["ptx"])
        command = [BINARIES / name, "-v", f"--gpu-name={target}", source, "-o", source.with_suffix(".o")]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    used = int(re.search(r"Used (\d+) registers", said)[1])  # type: ignore[index]
    spilled = sum(int(n) for n in re.findall(r"(\d+) bytes spill stores", said))
    return used, spilled


PRODUCTS = ("HMMA", "HGMMA", "UTCHMMA", "UTCOMMA", "UTCQMMA")


def inner_loop(kernel: Any) -> tuple[int, int]:
    """Instructions of the loop with the most products of tensor cores, and how many these are; 0 and 0 without a loop.

    A loop is the code between a backward jump and its target.
    """
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        command = [BINARIES / "cuobjdump", "-sass", file.name]
        listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.findall(r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+ )?([A-Z0-9]+)([^;]*);", listing)
    lines = [(int(place, 16), name, rest) for place, name, rest in found]
    loops = []
    for place, name, rest in lines:
        target = re.search(r"0x([0-9a-f]+)$", rest.strip())
        if name == "BRA" and target and int(target[1], 16) < place:
            inside = [other for at, other, _ in lines if int(target[1], 16) <= at <= place]
            loops.append((sum(other in PRODUCTS for other in inside), -len(inside)))
    products, length = max(loops, default=(0, 0))
    return -length, products


def attention(
    shape: tuple[int, int, int, int], dtype: torch.dtype, kind: str = "table", *, prefix: int = 0, grid: Any = None,
    mode: str = "multiply", groups: int = 0, dropout_p: float = 0.0,
) -> Any:  # fmt: skip
    """A function that runs forward and backward of the op at [B, H, N, D] on the CPU, where kernels are recorders."""
    batch, heads, patches, width = shape
    rows, cols = grid or (round(patches**0.5), round(patches**0.5))
    tokens = patches + prefix
    packed = torch.zeros(batch, tokens, 3, heads, width, dtype=dtype, requires_grad=True)
    sizes = {"table": (heads, 2 * rows - 1, 2 * cols - 1), "dense": (heads, patches, patches),
             "shared": (patches, patches)}  # fmt: skip
    mask = None if kind == "none" else torch.ones(sizes[kind], requires_grad=True)
    bias = torch.zeros(groups, heads, tokens, tokens, requires_grad=True) if groups else None

    def run() -> None:
        q, k, v = packed.permute(2, 0, 3, 1, 4).unbind(0)
        given = op.OffsetTable(mask, (rows, cols)) if kind == "table" else mask
        out = op.triton_attention(
            q, k, v, given, scale=1.0, bias=bias, prefix_tokens=prefix, mode=mode, dropout_p=dropout_p
        )
        out.backward(torch.zeros(batch, tokens, heads, width, dtype=dtype).transpose(1, 2))

    return run


# What models call: [B, H, N, D], dtype and the rest of `attention`. sm_90 compiles all, the others the first three.
HALF = torch.bfloat16
CALLS: dict[str, Any] = {
    "vit, 32 pixels": attention((256, 12, 64, 16), HALF),
    "one tile, wide heads": attention((64, 6, 64, 64), HALF),
    "timm's vit, 224 pixels, class token": attention((128, 3, 196, 64), HALF, prefix=1),
    "vit, 64 pixels": attention((64, 8, 256, 16), HALF),
    "swin, windows": attention((512, 3, 16, 32), HALF, groups=4, dropout_p=0.1),
    "timm's swin, windows of 7 x 7": attention((512, 3, 49, 32), HALF, groups=4),
    "vit, element-wise mask and a bias": attention((16, 3, 196, 64), HALF, "dense", groups=1),
    "long, wide heads, log": attention((2, 12, 4096, 128), HALF, mode="log"),
}


def counted(name: str, launch: tuple[Any, tuple[Any, ...], dict[str, Any]], capability: int) -> dict[str, Any]:
    """The known figures of a kernel that the call `name` launches."""
    kernel = compiled(launch, capability)
    used, spilled = registers(kernel, capability)
    loop, products = inner_loop(kernel)
    constants, warps = launch[2], kernel.metadata.num_warps
    side = constants.get("BT", constants.get("BM", 0))
    pairs = side * constants.get("BN", side)
    return {
        "call": name,
        "name": launch[0].__name__,
        "registers": used,
        "spilled": spilled,
        "shared": kernel.metadata.shared,
        "warps": warps,
        "loop": loop,
        "products": products,
        "per pair": round(32 * warps * loop / pairs, 1) if pairs and products else None,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("capability", type=int, choices=(80, 90, 100), help="compute capability")
    parser.add_argument("--table", action="store_true", help="a Markdown table instead of JSON rows")
    parser.add_argument("--only", default="", help="calls and kernels with this in their names")
    args = parser.parse_args()
    head: list[str] = []
    for name in list(CALLS)[: None if args.capability == 90 else 3]:
        for launch in recorded(CALLS[name]):
            if args.only not in f"{name} {launch[0].__name__}":
                continue
            row = counted(name, launch, args.capability)
            if not args.table:
                print(json.dumps(row), flush=True)
                continue
            if not head:
                head = list(row)
                print(f"| {' | '.join(head)} |\n|{' --- |' * len(head)}")
            print(f"| {' | '.join('' if cell is None else str(cell) for cell in row.values())} |", flush=True)


if __name__ == "__main__":
    main()
