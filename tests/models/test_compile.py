"""Every family compiles whole into native code.

Slow (a C++ compiler runs), so in a file of its own; `test_models.py` has the quick check that no graph breaks.
"""

from typing import Any

import torch

ONE_BLOCK: dict[str, dict[str, Any]] = {
    "vit": {"depth": 1},
    "swin": {"depth": (2,), "num_heads": (2,)},  # the second block shifts its windows
    "cait": {"depth": 1},
    "pit": {"depth": (1, 1)},
    "t2t": {"depth": 1},
}


def test_models_compile_whole_and_train(build: Any, family: str) -> None:
    torch.compiler.reset()
    model = build(family, "gmm", image_size=16, mask_options={"init": "paper"}, **ONE_BLOCK[family])
    images = torch.randn(2, 3, 16, 16)
    gradients = []
    for run in (model, torch.compile(model, fullgraph=True)):
        model.zero_grad()
        run(images).square().sum().backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters()})
    for name, expected in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], expected, rtol=1e-2, atol=1e-3, msg=name)
