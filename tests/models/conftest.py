"""Small models of every family, quick enough to train in a test."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from gmmvit.models import create_model
from gmmvit.models.base import VisionTransformer

SMALL: dict[str, dict[str, Any]] = {
    "vit": {"dim": 24, "depth": 2, "num_heads": 3},
    "swin": {"dim": 12, "depth": (2, 2), "num_heads": (2, 4)},
    "cait": {"dim": 24, "depth": 2, "class_depth": 1, "num_heads": 3, "head_dim": 8, "mlp_ratio": 2.0},
    "pit": {"dim": 16, "depth": (1, 2), "num_heads": (2, 4)},
    "t2t": {"dim": 24, "depth": 2, "num_heads": 3, "token_dim": 8},
}


def small_model(family: str, mask: str = "gmm", **options: Any) -> VisionTransformer:
    """A model of one family with a few thousand parameters, the same every time."""
    torch.manual_seed(0)
    return create_model(family, mask=mask, **{**SMALL[family], "num_classes": 7, **options})


@pytest.fixture(params=list(SMALL))
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=["none", "elm", "gmm"])
def mask(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def build() -> Any:
    return small_model


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """These models are too small for several threads, which would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
