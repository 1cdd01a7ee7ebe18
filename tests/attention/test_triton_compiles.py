"""The kernels that models launch compile for absent GPUs, within their registers and shared memory."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

triton = pytest.importorskip("triton", reason="Triton is not installed")
SHARED_MEMORY = {80: 163 << 10, 90: 227 << 10, 100: 227 << 10}  # bytes that one program may use
MEASURED = "3.8."  # the version of Triton with the spills below; those of others are only bounded
# Bytes per thread that today's kernels spill, by capability, call and kernel; others spill nothing.
SPILLED = {
    (80, "one tile, wide heads", "short_backward"): 172,
    (90, "one tile, wide heads", "short_backward"): 8,
    (100, "timm's vit, 224 pixels, class token", "long_backward_table"): 8,
    (90, "timm's swin, windows of 7 x 7", "short_backward"): 632,
}


@pytest.mark.parametrize("capability", SHARED_MEMORY)
@pytest.mark.slow
def test_the_kernels_of_models_compile(capability):
    script = Path(__file__).with_name("compiled.py")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, str(script), str(capability)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    kernels = [json.loads(line) for line in done.stdout.splitlines()]
    assert {kernel["name"] for kernel in kernels} >= {"short_forward", "short_backward", "long_backward_q"}
    for kernel in kernels:
        assert kernel["shared"] <= SHARED_MEMORY[capability], kernel
        today = SPILLED.get((capability, kernel["call"], kernel["name"]), 0)
        assert kernel["spilled"] <= (today if triton.__version__.startswith(MEASURED) else today + 512), kernel
