"""A small instance of another library's model with random weights, and how to build one."""

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class Donor:
    """`layers` are the grids of the attentions that must carry a mask, in the order in which they run."""

    name: str
    library: str
    build: Callable[[], nn.Module]
    layers: list[tuple[int, int]]
    prefix: int | list[int] = 0  # the same in all layers, or one each
    image: tuple[int, int] = (32, 32)

    @property
    def prefixes(self) -> list[int]:
        return self.prefix if isinstance(self.prefix, list) else [self.prefix] * len(self.layers)

    def make(self, seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Module:
        """The model in eval mode, with weights large enough for the logits of its attentions to matter."""
        torch.manual_seed(seed)
        model = self.build()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
        return model.to(dtype).eval()

    def images(self, seed: int = 1, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.randn(2, 3, *self.image, generator=torch.Generator().manual_seed(seed)).to(dtype)

    def missing(self) -> str | None:
        return None if importlib.util.find_spec(self.library) else f"{self.library} is not installed"


def logits(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """The main output of a model of any of the libraries."""
    out = model(images)
    for name in ("logits", "image_embeds", "last_hidden_state"):
        if hasattr(out, name):
            return getattr(out, name)
    return out[0] if isinstance(out, tuple) else out


def from_timm(name: str, **sizes: Any) -> Callable[[], nn.Module]:
    return lambda: importlib.import_module("timm").create_model(name, num_classes=5, **sizes)


def from_config(cls: str, config: str, **sizes: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        library = importlib.import_module("transformers")
        return getattr(library, cls)(getattr(library, config)(**sizes))

    return build


def from_class(path: str, **sizes: Any) -> Callable[[], nn.Module]:
    """An instance of the class at that path; options in `Named` are looked up beside it."""

    def build() -> nn.Module:
        module_name, _, cls = path.rpartition(".")
        module = importlib.import_module(module_name)
        return getattr(module, cls)(**{k: getattr(module, v) if isinstance(v, Named) else v for k, v in sizes.items()})

    return build


class Named(str):
    """The name of something that lies in the donor's module."""
