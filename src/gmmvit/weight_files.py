"""Tensors by name from files of weights: safetensors, or what `torch.save` wrote, of which nothing is ever run."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

NESTED = ("state_dict", "model", "model_state_dict", "module")  # where training scripts put the weights in a .pth file
_IN_FOLDERS = ("model.safetensors", "pytorch_model.bin", "pytorch_model.pth")
# How files of torch.save begin: a zip archive; before torch 1.6 the pickle of a magic number.
_TORCH_STARTS = (b"PK\x03\x04", b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19")


class WeightsError(ValueError):
    """A file that holds no weights, or damaged ones; one sentence."""


def read_tensors(place: str | Path, wanted: Callable[[str], bool] = lambda name: True) -> dict[str, Tensor]:
    """The tensors of a file or of those in a folder (of a run, timm's, transformers'), on the CPU.

    Args:
        place: a safetensors file, a file of `torch.save` with a state_dict (or with one under a name of `NESTED`), or a
            folder with model.safetensors, its parts, pytorch_model.bin or pytorch_model.pth.
        wanted: which names; others are not even read from safetensors.

    Raises:
        FileNotFoundError: no such file or folder, or no weights in it. OSError: it cannot be opened.
        WeightsError (a ValueError): a damaged file or one of another kind, in one sentence.
    """
    tensors: dict[str, Tensor] = {}
    for file in _files(Path(place).expanduser()):
        with file.open("rb") as stream:
            of_torch = stream.read(max(map(len, _TORCH_STARTS))).startswith(_TORCH_STARTS)
        read = _read_torch(file, wanted) if of_torch else _read_safetensors(file, wanted)
        if twice := sorted(tensors.keys() & read.keys()):
            raise WeightsError(f"{file.parent} holds several checkpoints ({twice[0]} twice): give one of the files")
        tensors |= read
    return tensors


def _files(place: Path) -> list[Path]:
    if place.is_file():
        return [place]
    if not place.is_dir():
        raise FileNotFoundError(f"{place} does not exist; give a safetensors or .pth file, or a folder with one")
    whole = [place / name for name in _IN_FOLDERS if (place / name).is_file()]
    parts: list[Path] = []
    for pattern in ("*.safetensors", "pytorch_model-*.bin"):  # of a large model
        parts = parts or sorted(path for path in place.glob(pattern) if path.is_file())
    if not whole and not parts:
        others = sorted(f.name for f in place.iterdir() if f.suffix in (".pt", ".pth", ".bin", ".ckpt"))
        hint = f"; it has {others[0]}: give that file itself" if others else ""
        raise FileNotFoundError(f"{place} has no {' and no '.join(_IN_FOLDERS)}{hint}")
    return whole[:1] or parts


def _read_safetensors(file: Path, wanted: Callable[[str], bool]) -> dict[str, Tensor]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as content:
            names = [name for name in content.keys() if wanted(name)]  # noqa: SIM118 (no dict)
            return {name: content.get_tensor(name) for name in names}
    except SafetensorError as error:
        raise WeightsError(f"{file} is damaged or no file of weights (safetensors, or .pth of tensors)") from error


def _read_torch(file: Path, wanted: Callable[[str], bool]) -> dict[str, Tensor]:
    import pickle

    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, LookupError) as error:
        code = re.search(r"GLOBAL ([\w.]+)", str(error))
        if code:
            raise WeightsError(
                f"{file} also holds {code[1]}, which would be run: it is read only if it holds nothing but tensors, as "
                "torch.save(model.state_dict(), file) writes it"
            ) from error
        raise WeightsError(f"{file} is damaged or no file of weights (safetensors, or .pth of tensors)") from error
    if not isinstance(content, Mapping):
        raise WeightsError(f"{file} holds no state_dict but a {type(content).__name__}: expected tensors by name")
    return {name: tensor for name, tensor in unwrapped(content, str(file)).items() if wanted(name)}


def unwrapped(content: Mapping[str, Any], where: str) -> dict[str, Tensor]:
    """The tensors of a state_dict, or of a checkpoint that has one under a name of `NESTED`, without the `module.` of
    data parallel training.

    Raises an error that begins with `where`: TypeError if it is no mapping, WeightsError if there are no tensors.
    """
    if not isinstance(content, Mapping):
        raise TypeError(f"{where} must be a mapping of names to tensors, got {type(content).__name__}")
    inner = content
    while (nested := next((inner[name] for name in NESTED if isinstance(inner.get(name), Mapping)), None)) is not None:
        inner = nested
    tensors = {name: value for name, value in inner.items() if isinstance(name, str) and isinstance(value, Tensor)}
    if not tensors:
        raise WeightsError(
            f"{where} holds no state_dict: expected tensors by name, or such under {', '.join(NESTED)}, it has "
            f"{[str(name) for name in content][:5]}"
        )
    return {name.removeprefix("module."): tensor for name, tensor in tensors.items()}


def not_finite(state: Mapping[str, Tensor]) -> str | None:
    """The name of the first tensor that holds NaN or infinity; None where all are finite."""
    return next((n for n, t in state.items() if not bool(torch.isfinite(t).all())), None)
