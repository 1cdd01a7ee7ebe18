"""Compiles the kernels that a call of the op launches for a GPU that need not be there.

    python tests/attention/compiled.py 90        # compute capability; a JSON row for each kernel of the models' calls

The op runs on the CPU with recorders in the kernels' places; what they saw is handed to Triton's compiler.
"""

import json
import re
import subprocess
import sys
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
    ),
}
POINTERS = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.int64: "*i64"}
OPTIONS = ("num_warps", "num_stages")


class Recorder:
    """Stands for a kernel: notes the arguments of every launch."""

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
    """The kernel of a launch for compute capability 80, 90 or 100, specialised as at a real launch."""
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


def registers(kernel: Any, capability: int) -> tuple[int, int]:
    """Registers a thread and bytes spilled to memory, as Triton's own ptxas says."""
    name = "ptxas-blackwell" if capability >= 100 else "ptxas"
    assembler = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    target = f"sm_{capability}a" if capability >= 90 else f"sm_{capability}"
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.ptx"
        source.write_text(kernel.asm["ptx"])
        command = [str(assembler), "-v", f"--gpu-name={target}", str(source), "-o", str(source.with_suffix(".o"))]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    used = int(re.search(r"Used (\d+) registers", said)[1])  # type: ignore[index]
    spilled = sum(int(n) for n in re.findall(r"(\d+) bytes spill stores", said))
    return used, spilled


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
    "swin, windows": attention((512, 3, 16, 32), HALF, groups=4, dropout_p=0.1),
    "vit, element-wise mask and a bias": attention((16, 3, 196, 64), HALF, "dense", groups=1),
    "long, wide heads, log": attention((2, 12, 4096, 128), HALF, mode="log"),
}


def main() -> None:
    capability = int(sys.argv[1])
    for name in list(CALLS)[: None if capability == 90 else 3]:
        for launch in recorded(CALLS[name]):
            kernel = compiled(launch, capability)
            used, spilled = registers(kernel, capability)
            about = {"call": name, "name": launch[0].__name__, "registers": used, "spilled": spilled}
            print(
                json.dumps(about | {"shared": kernel.metadata.shared, "warps": kernel.metadata.num_warps}), flush=True
            )


if __name__ == "__main__":
    main()
