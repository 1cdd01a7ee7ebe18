"""Every family compiles whole, without a graph break, and trains; one also as native code (a C++ compiler runs)."""

from typing import Any

import pytest
import torch

# The smallest model with every kind of step: tracing takes seconds per block.
FEW_BLOCKS: dict[str, dict[str, Any]] = {
    "vit": {"depth": 1},
    "swin": {"depth": (2, 1), "num_heads": (2, 4)},  # the second block shifts its windows
    "cait": {"depth": 1},
    "pit": {"depth": (1, 1)},
    "t2t": {"depth": 1},
}


def check_gradients(model: Any, compiled: Any) -> None:
    gradients = []
    for run in (model, compiled):
        model.zero_grad()
        torch.manual_seed(1)  # for drop path
        run(torch.randn(2, 3, 16, 16)).square().sum().backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters()})
    for name, expected in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], expected, rtol=1e-2, atol=1e-3, msg=name)


# Without a mask there is less to trace: one family is enough.
@pytest.mark.parametrize(("family", "mask"), [("vit", "none"), *((f, m) for f in FEW_BLOCKS for m in ("elm", "gmm"))])
def test_models_compile_whole_and_train(build: Any, family: str, mask: str) -> None:
    torch.compiler.reset()
    start = {"mask_options": {"init": "paper"}} if mask == "gmm" else {}
    model = build(family, mask, image_size=16, drop_path=0.1, **start, **FEW_BLOCKS[family])
    check_gradients(model, torch.compile(model, fullgraph=True, backend="aot_eager"))


@pytest.mark.slow
def test_a_model_compiles_into_native_code(build: Any) -> None:
    torch.compiler.reset()
    model = build("vit", "gmm", image_size=16, mask_options={"init": "paper"}, depth=1)
    check_gradients(model, torch.compile(model, fullgraph=True))
