"""Tensors by name from weight files: safetensors, or files of `torch.save`, without executing their code."""

import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# Where training scripts put the weights in a .pth file; the first that exists counts.
NESTED = ("state_dict", "model", "model_state_dict", "module", "model_state", "net", "network", "weights", "params")
# What torch adds to names: data parallel training at the start, torch.compile at every compiled part.
_WRAPPERS = re.compile(r"^(?:module\.|_orig_mod\.)+|(?<=\.)_orig_mod\.")
# Names that no training saves but a malicious file may; such files are not read at all.
_CODE = re.compile(
    r"(builtins|__builtin__)\.(eval|exec|compile|open|getattr|__import__)$"
    r"|(os|posix|nt|sys|subprocess|commands|runpy|importlib)\."
)
_IN_FOLDERS = ("model.safetensors", "pytorch_model.bin", "pytorch_model.pth")
# The first bytes of torch.save files: a zip archive; before torch 1.6 the pickle of a magic number.
_TORCH_STARTS = (b"PK\x03\x04", b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19")


class WeightsError(ValueError):
    """A file has no weights, or damaged ones; the message is one sentence."""


def read_tensors(
    place: str | Path,
    wanted: Callable[[str], bool] = lambda name: True,
    report: Callable[[str], object] = lambda text: None,
) -> dict[str, Tensor]:
    """The tensors of a weight file, or of those in a folder (a run, or one of timm or transformers), on the CPU.

    Args:
        place: a safetensors file, a file of `torch.save` with a state_dict (perhaps under a name of `NESTED`), or a
            folder with model.safetensors, its parts, pytorch_model.bin or pytorch_model.pth.
        wanted: selects names; others are not even read from safetensors.
        report: called with a sentence about other weights in the file, such as averaged ones.

    Raises:
        FileNotFoundError: the file or folder does not exist, or the folder has no weights.
        OSError: it cannot be opened.
        WeightsError (a ValueError): the file is damaged or of another kind.
    """
    tensors: dict[str, Tensor] = {}
    for file in _files(Path(place).expanduser()):
        with file.open("rb") as stream:
            of_torch = stream.read(max(map(len, _TORCH_STARTS))).startswith(_TORCH_STARTS)
        read = _read_torch(file, wanted, report) if of_torch else _read_safetensors(file, wanted)
        if twice := sorted(tensors.keys() & read.keys()):
            raise WeightsError(f"{file.parent} holds several checkpoints ({twice[0]} twice): give one of the files")
        tensors |= read
    return tensors


def _files(place: Path) -> list[Path]:
    try:
        if place.is_file():
            return [place]
        fault = "" if place.is_dir() else "does not exist"
    except OSError as error:
        fault = f"cannot be read: {error.strerror}"
    if fault:
        raise FileNotFoundError(f"{place} {fault}; give a safetensors or .pth file, or a folder with one")
    whole = [place / name for name in _IN_FOLDERS if (place / name).is_file()]
    parts: list[Path] = []
    for pattern in ("*.safetensors", "pytorch_model-*.bin"):  # parts of a large model
        parts = parts or sorted(path for path in place.glob(pattern) if path.is_file())
    if not whole and not parts:
        others = sorted(f.name for f in place.iterdir() if f.suffix in (".pt", ".pth", ".bin", ".ckpt"))
        hint = f"; it has {others[0]}: give that file" if others else ""
        raise FileNotFoundError(f"{place} has no {' and no '.join(_IN_FOLDERS)}{hint}")
    return whole[:1] or parts


def load_safetensors(file: Path, wanted: Callable[[str], bool] = lambda name: True) -> dict[str, Tensor]:
    """The wanted tensors of a safetensors file by name; raises SafetensorError for any other file."""
    from safetensors import safe_open
    from safetensors.torch import load

    if not _is_utf8(file):  # safetensors cannot open such names
        return {name: tensor for name, tensor in load(file.read_bytes()).items() if wanted(name)}
    with safe_open(file, framework="pt") as content:
        return {name: content.get_tensor(name) for name in content.keys() if wanted(name)}  # noqa: SIM118 (no dict)


def _is_utf8(path: Path) -> bool:
    try:
        str(path).encode()
    except UnicodeEncodeError:  # bytes that are not text are surrogates
        return False
    return True


def _read_safetensors(file: Path, wanted: Callable[[str], bool]) -> dict[str, Tensor]:
    from safetensors import SafetensorError

    try:
        return {plain_name(name): tensor for name, tensor in load_safetensors(file, wanted).items()}
    except SafetensorError as error:
        raise WeightsError(f"{file} is damaged or not a weight file (safetensors, or .pth of tensors)") from error


class _Fields:
    """Replaces every class and function that torch does not consider plain data: calling it gives an empty mapping that
    then receives an object's fields or a dict's items. Nothing the file names is imported or run."""

    def __new__(cls, *args: Any) -> Any:
        return OrderedDict()


class _Opaque(list[Any]):
    """The same for objects whose state is not a mapping: numpy objects, objects with slots, lists, keys of a dict."""

    def __init__(self, *args: Any) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        pass

    def __hash__(self) -> int:  # type: ignore[override]
        return id(self)


def _read_torch(file: Path, wanted: Callable[[str], bool], report: Callable[[str], object]) -> dict[str, Tensor]:
    left_out: set[str] = set()
    try:
        try:
            content = _load(file, _Fields, left_out)
        except _WrongState:
            content = _load(file, _Opaque, left_out)
    except WeightsError:
        raise
    except _DAMAGE as error:
        raise WeightsError(f"{file} is damaged or not a weight file (safetensors, or .pth of tensors)") from error
    objects = f", and {', '.join(sorted(left_out)[:3])}, which are not read" if left_out else ""
    expected = "expected tensors by name, as torch.save(model.state_dict(), file) writes them"
    if not isinstance(content, Mapping):
        raise WeightsError(f"{file} holds no state_dict but a {type(content).__name__}{objects}: {expected}")
    if not content and objects:
        raise WeightsError(f"{file} holds no state_dict{objects.replace(', and', ' but')}: {expected}")
    return {name: tensor for name, tensor in unwrapped(content, str(file), report).items() if wanted(name)}


class _WrongState(Exception):
    """The object's state needs the other stand-in."""


_DAMAGE = (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, LookupError, AttributeError, TypeError)


def _load(file: Path, stand_in: type, left_out: set[str]) -> Any:
    """Loads a file of `torch.save` with `weights_only`, replacing a training script's objects (arguments, paths, numpy
    numbers) by `stand_in` and adding their names to `left_out`."""
    if zipfile.is_zipfile(file) and not left_out:
        left_out.update(torch.serialization.get_unsafe_globals_in_checkpoint(file))
    while True:
        if code := next(filter(_CODE.match, sorted(left_out)), None):
            raise WeightsError(
                f"{file} also holds {code}, which would be executed: only pure data is read, as "
                "torch.save(model.state_dict(), file) writes it"
            )
        known: list[Any] = [(stand_in if not n.startswith("numpy.") else _Opaque, n) for n in left_out]
        try:
            with torch.serialization.safe_globals(known):
                return torch.load(file, map_location="cpu", weights_only=True)
        except _DAMAGE as error:
            found = re.search(r"GLOBAL ([\w.]+)", str(error))
            name = "" if found is None else found[1] if "." in found[1] else f"builtins.{found[1]}"
            if not name or name in left_out:
                if left_out and stand_in is _Fields:
                    raise _WrongState from error
                raise
            left_out.add(name)  # files before torch 1.6 reveal them one at a time


def unwrapped(
    content: Mapping[str, Any], where: str, report: Callable[[str], object] = lambda text: None
) -> dict[str, Tensor]:
    """The tensors of a state_dict, or of a checkpoint that has one under a name of `NESTED` or in a single other place,
    without the `module.` of data parallel training and the `_orig_mod.` of compiled parts.

    Raises TypeError if it is not a mapping, WeightsError if it has no tensors or those of several models. Messages
    start with `where`.
    """
    if not isinstance(content, Mapping):
        raise TypeError(f"{where} must be a mapping of names to tensors, got {type(content).__name__}")
    inner = content
    while (nested := _nested(inner, where, report)) is not None:
        inner = nested
    tensors = _named_tensors(inner)
    if not tensors:
        raise WeightsError(
            f"{where} holds no state_dict: expected tensors by name, also under {', '.join(NESTED)}, but it has "
            f"{[str(name) for name in content][:5]}"
        )
    return {plain_name(name): tensor for name, tensor in tensors.items()}


def plain_name(name: str) -> str:
    """A tensor's name without what data parallel training and torch.compile add."""
    return _WRAPPERS.sub("", name)


def _named_tensors(content: Mapping[Any, Any]) -> dict[str, Tensor]:
    return {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, Tensor)}


def _nested(content: Mapping[Any, Any], where: str, report: Callable[[str], object]) -> Mapping[Any, Any] | None:
    """The mapping inside a checkpoint that holds the weights; None if `content` itself does."""
    known = next((name for name in NESTED if isinstance(content.get(name), Mapping)), None)
    if known is None and _named_tensors(content):
        return None
    others = [n for n, value in content.items() if n != known and isinstance(value, Mapping) and _named_tensors(value)]
    if known is not None:
        if others:
            report(f"{where} also holds {', '.join(map(str, others))}: using the weights under {known}")
        return content[known]
    if len(others) > 1:
        places = ", ".join(map(str, others))
        raise WeightsError(f"{where} holds tensors of several models, under {places}: save only one of them")
    return content[others[0]] if others else None


def without_prefix(
    state: Mapping[str, Tensor], fits: Callable[[str], bool], report: Callable[[str], object]
) -> dict[str, Tensor]:
    """Drops a prefix common to all names if more names then fit the model, because training scripts may nest the model
    in another module. `report` is called with a sentence about it."""
    parts = next(iter(state), "").split(".")[:-1]
    while parts and not all(name.startswith(".".join([*parts, ""])) for name in state):
        parts.pop()
    prefixes = ["", *(".".join(parts[:i]) + "." for i in range(1, len(parts) + 1))]
    prefix = max(prefixes, key=lambda prefix: sum(fits(name.removeprefix(prefix)) for name in state))
    if prefix:
        report(f"all names in the given weights start with {prefix!r}, which is dropped")
    return {name.removeprefix(prefix): tensor for name, tensor in state.items()}


def not_finite(state: Mapping[str, Tensor]) -> str | None:
    """The name of the first tensor with NaN or infinity; None if all are finite."""
    return next((n for n, t in state.items() if not bool(torch.isfinite(t).all())), None)
