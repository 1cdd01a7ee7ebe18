"""Tensors by name from files of weights: safetensors, or what `torch.save` wrote, of which nothing is ever run."""

import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# Where training scripts put the weights in a .pth file; the first that is there.
NESTED = ("state_dict", "model", "model_state_dict", "module", "model_state", "net", "network", "weights", "params")
# What torch puts into names: data parallel training at their start, torch.compile wherever a part was compiled.
_WRAPPERS = re.compile(r"^(?:module\.|_orig_mod\.)+|(?<=\.)_orig_mod\.")
# What no training keeps, but a file made to do harm: nothing of such a file is read.
_CODE = re.compile(
    r"(builtins|__builtin__)\.(eval|exec|compile|open|getattr|__import__)$"
    r"|(os|posix|nt|sys|subprocess|commands|runpy|importlib)\."
)
_IN_FOLDERS = ("model.safetensors", "pytorch_model.bin", "pytorch_model.pth")
# How files of torch.save begin: a zip archive; before torch 1.6 the pickle of a magic number.
_TORCH_STARTS = (b"PK\x03\x04", b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19")


class WeightsError(ValueError):
    """A file that holds no weights, or damaged ones; one sentence."""


def read_tensors(
    place: str | Path,
    wanted: Callable[[str], bool] = lambda name: True,
    report: Callable[[str], object] = lambda text: None,
) -> dict[str, Tensor]:
    """The tensors of a file or of those in a folder (of a run, timm's, transformers'), on the CPU.

    Args:
        place: a safetensors file, a file of `torch.save` with a state_dict (or with one under a name of `NESTED`), or a
            folder with model.safetensors, its parts, pytorch_model.bin or pytorch_model.pth.
        wanted: which names; others are not even read from safetensors.
        report: is given a sentence about other weights in the file, such as averaged ones.

    Raises:
        FileNotFoundError: no such file or folder, or no weights in it. OSError: it cannot be opened.
        WeightsError (a ValueError): a damaged file or one of another kind, in one sentence.
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


def load_safetensors(file: Path, wanted: Callable[[str], bool] = lambda name: True) -> dict[str, Tensor]:
    """The wanted tensors of a safetensors file, by their names in it; raises SafetensorError for another file."""
    from safetensors import safe_open
    from safetensors.torch import load

    if not _is_utf8(file):  # which safetensors cannot open
        return {name: tensor for name, tensor in load(file.read_bytes()).items() if wanted(name)}
    with safe_open(file, framework="pt") as content:
        return {name: content.get_tensor(name) for name in content.keys() if wanted(name)}  # noqa: SIM118 (no dict)


def _is_utf8(path: Path) -> bool:
    try:
        str(path).encode()
    except UnicodeEncodeError:  # bytes of the file system that are no text stand as surrogates
        return False
    return True


def _read_safetensors(file: Path, wanted: Callable[[str], bool]) -> dict[str, Tensor]:
    from safetensors import SafetensorError

    try:
        return {plain_name(name): tensor for name, tensor in load_safetensors(file, wanted).items()}
    except SafetensorError as error:
        raise WeightsError(f"{file} is damaged or no file of weights (safetensors, or .pth of tensors)") from error


class _Fields:
    """Stands for every class and function that torch does not take for plain data: called, it gives an empty mapping,
    which then takes the fields of an object or the items of a dict. What the file names is neither imported nor run."""

    def __new__(cls, *args: Any) -> Any:
        return OrderedDict()


class _Opaque(list[Any]):
    """Stands for the same where their state is no mapping: objects of numpy or with slots, lists, keys of a dict."""

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
        raise WeightsError(f"{file} is damaged or no file of weights (safetensors, or .pth of tensors)") from error
    objects = f", and {', '.join(sorted(left_out)[:3])}, of which nothing is read" if left_out else ""
    expected = "expected tensors by name, as torch.save(model.state_dict(), file) writes them"
    if not isinstance(content, Mapping):
        raise WeightsError(f"{file} holds no state_dict but a {type(content).__name__}{objects}: {expected}")
    if not content and objects:
        raise WeightsError(f"{file} holds no state_dict{objects.replace(', and', ' but')}: {expected}")
    return {name: tensor for name, tensor in unwrapped(content, str(file), report).items() if wanted(name)}


class _WrongState(Exception):
    """The state of an object is of the other kind."""


_DAMAGE = (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, LookupError, AttributeError, TypeError)


def _load(file: Path, stand_in: type, left_out: set[str]) -> Any:
    """What `torch.save` wrote, under `weights_only`, with `stand_in` for the objects of a training script (arguments,
    paths, numbers of numpy), whose names go to `left_out`."""
    if zipfile.is_zipfile(file) and not left_out:
        left_out.update(torch.serialization.get_unsafe_globals_in_checkpoint(file))
    while True:
        if code := next(filter(_CODE.match, sorted(left_out)), None):
            raise WeightsError(
                f"{file} also holds {code}, which would be run: it is read only if it holds nothing but data, as "
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
            left_out.add(name)  # of files before torch 1.6, one by one


def unwrapped(
    content: Mapping[str, Any], where: str, report: Callable[[str], object] = lambda text: None
) -> dict[str, Tensor]:
    """The tensors of a state_dict, or of a checkpoint that has one under a name of `NESTED` or in one place alone,
    without the `module.` of data parallel training and the `_orig_mod.` of compiled parts.

    Raises an error that begins with `where`: TypeError if it is no mapping, WeightsError if there are no tensors, or
    those of several models.
    """
    if not isinstance(content, Mapping):
        raise TypeError(f"{where} must be a mapping of names to tensors, got {type(content).__name__}")
    inner = content
    while (nested := _nested(inner, where, report)) is not None:
        inner = nested
    tensors = _named_tensors(inner)
    if not tensors:
        raise WeightsError(
            f"{where} holds no state_dict: expected tensors by name, or such under {', '.join(NESTED)}, it has "
            f"{[str(name) for name in content][:5]}"
        )
    return {plain_name(name): tensor for name, tensor in tensors.items()}


def plain_name(name: str) -> str:
    """The name of a tensor without what data parallel training and torch.compile put into it."""
    return _WRAPPERS.sub("", name)


def _named_tensors(content: Mapping[Any, Any]) -> dict[str, Tensor]:
    return {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, Tensor)}


def _nested(content: Mapping[Any, Any], where: str, report: Callable[[str], object]) -> Mapping[Any, Any] | None:
    """The mapping inside of a checkpoint that has the weights; None where `content` has them itself."""
    known = next((name for name in NESTED if isinstance(content.get(name), Mapping)), None)
    if known is None and _named_tensors(content):
        return None
    others = [n for n, value in content.items() if n != known and isinstance(value, Mapping) and _named_tensors(value)]
    if known is not None:
        if others:
            report(f"{where} also holds {', '.join(map(str, others))}: the weights under {known} are taken")
        return content[known]
    if len(others) > 1:
        places = ", ".join(map(str, others))
        raise WeightsError(f"{where} holds the tensors of several models, under {places}: save one of them alone")
    return content[others[0]] if others else None


def without_prefix(
    state: Mapping[str, Tensor], fits: Callable[[str], bool], report: Callable[[str], object]
) -> dict[str, Tensor]:
    """The tensors without a prefix that all of their names have, where that gives more names that fit the model:
    training scripts keep the model inside of another module. `report` is given a sentence about it."""
    parts = next(iter(state), "").split(".")[:-1]
    while parts and not all(name.startswith(".".join([*parts, ""])) for name in state):
        parts.pop()
    prefixes = ["", *(".".join(parts[:i]) + "." for i in range(1, len(parts) + 1))]
    prefix = max(prefixes, key=lambda prefix: sum(fits(name.removeprefix(prefix)) for name in state))
    if prefix:
        report(f"all names in the given weights begin with {prefix!r}: it is left out")
    return {name.removeprefix(prefix): tensor for name, tensor in state.items()}


def not_finite(state: Mapping[str, Tensor]) -> str | None:
    """The name of the first tensor that holds NaN or infinity; None where all are finite."""
    return next((n for n, t in state.items() if not bool(torch.isfinite(t).all())), None)
