"""Which attentions of the installed timm and transformers can carry a mask, and why the others cannot.

Every architecture of timm is built on the meta device; every model of transformers that takes images gets a few small
layers with random weights, or is listed as not made. `gmmvit.describe` reports what it finds.

python benchmarks/attachable.py            prints the table (a quarter of an hour)
python benchmarks/attachable.py --write    puts it into docs/attach.md
"""

import argparse
import copy
import importlib
import importlib.util
import sys
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from gmmvit.attach import describe

PAGE = Path(__file__).parents[1] / "docs" / "attach.md"
BEGIN, END = "<!-- table: python benchmarks/attachable.py --write -->", "<!-- end of the field -->"
MOST = 70e6  # parameters of a model built with weights
# What makes a model of transformers small; set if its configuration has a larger number.
SMALL: dict[str, int] = {
    "hidden_size": 48, "embed_dim": 48, "d_model": 48, "dim": 48, "vision_embed_dim": 48, "projection_dim": 48,
    "num_attention_heads": 3, "num_heads": 3, "attention_heads": 3, "num_key_value_heads": 3, "head_dim": 16,
    "encoder_attention_heads": 3, "decoder_attention_heads": 3, "n_heads": 3,
    "num_hidden_layers": 2, "num_layers": 2, "encoder_layers": 2, "decoder_layers": 2, "depth": 2, "n_layers": 2,
    "intermediate_size": 64, "mlp_dim": 64, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "ffn_dim": 64,
    "image_size": 32, "patch_size": 8, "vocab_size": 200, "num_experts": 2, "num_local_experts": 2,
}  # fmt: skip


class Row(NamedTuple):
    """One attention in one architecture; `reason` is empty if it can carry a mask."""

    library: str
    family: str
    attention: str
    reason: str
    architecture: str


def rows_of(library: str, family: str, architecture: str, model: nn.Module) -> Iterator[Row]:
    for layer in describe(model):
        reason = layer.reason if layer.action == "left alone" else ""
        if "cannot be checked" in reason:  # the rest differs from model to model
            reason = reason.split(" (")[0]
        yield Row(library, family, layer.kind.rsplit(".", 1)[-1], reason, architecture)


def timm_rows() -> Iterator[Row]:
    timm = importlib.import_module("timm")
    for name in timm.list_models():
        with torch.device("meta"):
            model = timm.create_model(name)
        yield from rows_of("timm", type(model).__module__.rsplit(".", 1)[-1], name, model)


def shrunk(config: Any) -> Any:
    """A copy of a transformers configuration, nested ones included, with small sizes."""
    config = copy.deepcopy(config)
    for part in (config, *(part for part in vars(config).values() if hasattr(part, "model_type"))):
        for name, value in SMALL.items():
            own = getattr(part, name, None)
            if isinstance(own, list | tuple) and name in ("image_size", "patch_size"):
                setattr(part, name, [value] * len(own))
            elif isinstance(own, int) and not isinstance(own, bool):
                setattr(part, name, min(own, value))
    return config


def looks_at_images(config_class: Any) -> tuple[Any, Any] | None:
    """The class, and its configuration class, of the part that sees images in models of that configuration."""
    mapping = importlib.import_module("transformers.models.auto.modeling_auto").MODEL_MAPPING
    cls = mapping.get(config_class, None)
    cls = cls[0] if isinstance(cls, tuple) else cls
    vision = getattr(config_class, "sub_configs", {}).get("vision_config")
    if vision is not None and vision.__name__ == "AutoConfig":
        return None  # the tower of another kind
    code = config_class.__module__.replace("configuration_", "modeling_")
    if vision is not None and importlib.util.find_spec(code):
        own = [c for c in vars(importlib.import_module(code)).values() if getattr(c, "config_class", None) is vision]
        own = [c for c in own if c.forward is not nn.Module.forward]
        if own:
            cls, config_class = min(own, key=lambda c: len(c.__name__)), vision
    if cls is None or not {"image", "video"} & set(getattr(cls, "input_modalities", None) or ()):
        return None
    return cls, config_class


def transformers_rows() -> Iterator[Row]:
    importlib.import_module("transformers").logging.set_verbosity_error()
    known = importlib.import_module("transformers.models.auto.configuration_auto").CONFIG_MAPPING
    made = set()
    for kind in known:
        try:
            found = looks_at_images(known[kind])
            if found is None or found[0] in made:
                continue
            cls, config = found[0], shrunk(found[1]())
            made.add(cls)
            with torch.device("meta"):
                size = sum(p.numel() for p in cls(config).parameters())
            if size > MOST:
                raise ValueError(f"{size / 1e6:.0f} M parameters")
            torch.manual_seed(0)
            model = cls(config)
        except Exception as error:  # a model that cannot be made small has its own errors
            print(f"transformers {kind}: {' '.join(str(error).split())[:150]}", file=sys.stderr)
            yield Row("transformers", kind, "", "not made: no small configuration known to this script", kind)
            continue
        yield from rows_of("transformers", kind, kind, model)


def table(rows: Iterable[Row]) -> str:
    """A line for each family that can carry masks, then one for each reason that others cannot."""
    covered: dict[tuple[str, str], dict[str, set[str]]] = {}
    refused: dict[tuple[str, str], set[str]] = {}
    for row in rows:
        if row.reason:
            what = f"{row.family}: {row.attention}" if row.attention else row.family
            refused.setdefault((row.library, row.reason), set()).add(what)
        else:
            covered.setdefault((row.library, row.family), {}).setdefault(row.attention, set()).add(row.architecture)
    lines = ["| library | family: attention | architectures | mask |", "| --- | --- | --- | --- |"]
    for (library, family), attentions in sorted(covered.items()):
        number = len(set().union(*attentions.values()))
        lines.append(f"| {library} | {family}: {', '.join(sorted(attentions))} | {number} | yes |")
    for (library, reason), what in sorted(refused.items()):
        lines.append(f"| {library} | {', '.join(sorted(what))} | | {reason} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="put the table into docs/attach.md")
    write = parser.parse_args().write
    warnings.simplefilter("ignore")
    text = table([*timm_rows(), *transformers_rows()])
    print(text)
    if write:
        head, rest = PAGE.read_text().split(BEGIN)
        PAGE.write_text(f"{head}{BEGIN}\n{text}\n{END}{rest.split(END)[1]}")


if __name__ == "__main__":
    main()
