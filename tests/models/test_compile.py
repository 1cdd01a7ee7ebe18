"""Every family compiles whole. Slow (a C++ compiler runs), so in a file of its own: `pytest --ignore tests/models/test_compile.py`."""

from typing import Any

import pytest
import torch


@pytest.mark.parametrize("mask", ["gmm"], indirect=True)
def test_models_compile_whole_and_train(build: Any, family: str, mask: str) -> None:
    model = build(family, mask, drop_path=0.1, mask_options={"init": "paper"})
    compiled = torch.compile(model, fullgraph=True)
    images = torch.randn(2, 3, 32, 32)
    model.eval()
    torch.testing.assert_close(compiled(images), model(images), rtol=1e-3, atol=1e-4)
    model.train()
    compiled(images).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
