"""Given weights: read from a file or folder, and put into a model that differs in its head, image size or channels.

Letters: T tokens (prefix first), D width.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gmmvit.config import RecipeError
from gmmvit.layers import Grid, resample_position
from gmmvit.optim import is_mask_parameter

State = dict[str, Tensor]
_IN_FOLDERS = ("model.safetensors", "pytorch_model.bin", "pytorch_model.pth")
_NESTED = ("state_dict", "model", "model_state_dict", "module")  # where training scripts put the weights in a .pth file
_CLASSIFIERS = ("head", "head_dist", "classifier", "cls_classifier", "distillation_classifier", "fc")
_NAMED = 3  # names of tensors that an error lists


def read_state(place: str) -> State:
    """The tensors of a safetensors or .pth file, or of the one in a folder (of a run, timm's, transformers').

    Raises RecipeError where there is none, or it is damaged. Only tensors are read: a .pth file cannot run code.
    """
    from safetensors.torch import load_file

    path = Path(place).expanduser()
    files = _files(path)
    state: State = {}
    for file in files:
        try:
            if file.suffix == ".safetensors":
                state |= load_file(file)
                continue
            content = torch.load(file, map_location="cpu", weights_only=True)
        except OSError as error:
            raise RecipeError(f"cannot read the weights {file}: {error.strerror or error}") from error
        except Exception as error:  # torch.load of another kind of file raises anything
            raise RecipeError(f"{file} is damaged or no file of weights (safetensors, or .pth of tensors)") from error
        state |= _tensors(file, content)
    return state


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise RecipeError(
            f"pretrained {str(path)!r} does not exist; give a safetensors or .pth file, or a folder with one"
        )
    whole = [path / name for name in _IN_FOLDERS if (path / name).is_file()]
    parts = sorted(path.glob("*.safetensors"))  # a large model is saved in several
    if not whole and not parts:
        raise RecipeError(f"pretrained {str(path)!r} has no {' and no '.join(_IN_FOLDERS)}")
    return whole[:1] or parts


def _tensors(file: Path, content: Any) -> State:
    while isinstance(content, dict) and not all(isinstance(value, Tensor) for value in content.values()):
        inner = next((content[name] for name in _NESTED if isinstance(content.get(name), dict)), None)
        if inner is None:
            break
        content = inner
    if not isinstance(content, dict) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise RecipeError(f"{file} holds no state_dict: expected tensors by name, or such under {', '.join(_NESTED)}")
    return {name.removeprefix("module."): tensor for name, tensor in content.items()}


def not_finite(state: State) -> str | None:
    """The name of the first tensor that holds NaN or infinity; None where all are finite."""
    return next((n for n, t in state.items() if not bool(torch.isfinite(t).all())), None)


def split_masks(state: State) -> tuple[State, State]:
    """A state_dict without the masks, and theirs."""
    masks = {name for name in state if is_mask_parameter(name)}
    return {n: t for n, t in state.items() if n not in masks}, {n: state[n] for n in masks}


def renamed_masks(masks: State, model: nn.Module) -> State:
    """Attached masks under the names of `model`: a library may name layers in its files otherwise, places stay."""
    places = {int(tensor[1]): name for name, tensor in model.state_dict().items() if name.endswith("gmm_mask.site")}
    names = {name.removesuffix("site"): places.get(int(t[1])) for name, t in masks.items() if name.endswith(".site")}
    found = {prefix: place.removesuffix("site") for prefix, place in names.items() if place is not None}
    split = {name: name[: name.rindex("gmm_mask.") + len("gmm_mask.")] for name in masks if "gmm_mask." in name}
    return {found.get(prefix, prefix) + name[len(prefix) :]: masks[name] for name, prefix in split.items()}


def transfer(
    model: nn.Module,
    state: State,
    *,
    grid: Grid | None = None,
    old_grid: Grid | None = None,
    tell: Callable[[str], None] = lambda text: None,
    only_masks: bool = False,
) -> None:
    """Puts `state` into `model`, in place.

    A classifier of another width and masks that the weights lack start anew, masks that the model lacks are left out,
    position embeddings of another `grid` are interpolated, and a colour convolution is summed for grey images:
    `tell` is given a sentence about each. With `only_masks` nothing but masks is expected.

    Raises RecipeError that names tensors that are missing, superfluous or of another shape.
    """
    own = model.state_dict()
    if only_masks:
        own = split_masks(own)[1]
    state = dict(state)
    anew = [n for n in own if _of_classifier(n) and (n not in state or state[n].shape[0] != own[n].shape[0])]
    state = {n: t for n, t in state.items() if n not in anew and not (_of_classifier(n) and n not in own)}
    if anew:
        tell(f"the given weights have no classifier of this width: {', '.join(anew)} start anew")
    state, own = _matched_masks(state, own, tell)
    for kind, names in (("lack", set(own) - set(state) - set(anew)), ("have besides", set(state) - set(own))):
        if names:
            shown = ", ".join(sorted(names)[:_NAMED])
            raise RecipeError(f"the given weights do not fit the model: they {kind} {len(names)} tensors: {shown} ...")
    fitted = {name: _fitted(name, tensor, own[name], grid, old_grid, tell) for name, tensor in state.items()}
    try:
        model.load_state_dict(fitted, strict=False)
    except RuntimeError as error:  # masks of another mode
        raise RecipeError(f"the given weights do not fit the model: {str(error).splitlines()[-1].strip()}") from error


def _matched_masks(state: State, own: State, tell: Callable[[str], None]) -> tuple[State, State]:
    """Both without the tensors of masks that only one of them has."""
    superfluous, missing = (
        [n for n in a if is_mask_parameter(n) and n not in b] for a, b in ((state, own), (own, state))
    )
    if superfluous:
        tell(f"the model has no place for {len(superfluous)} tensors of masks in the given weights: they are left out")
        if missing:
            tell(f"the given weights have no masks of this kind: {len(missing)} tensors of masks start anew")
    return {n: t for n, t in state.items() if n not in superfluous}, {n: t for n, t in own.items() if n not in missing}


def _of_classifier(name: str) -> bool:
    parts = name.split(".")
    return parts[-1] in ("weight", "bias") and parts[0] in _CLASSIFIERS


def _fitted(
    name: str, given: Tensor, own: Tensor, grid: Grid | None, old_grid: Grid | None, tell: Callable[[str], None]
) -> Tensor:
    if given.shape == own.shape:
        return given
    if "pos" in name and grid is not None and given.dim() == own.dim() and given.shape[-1] == own.shape[-1]:
        prefix = own.shape[-2] - grid[0] * grid[1]
        patches = given.shape[-2] - prefix
        square = (round(max(patches, 0) ** 0.5),) * 2
        old = old_grid if old_grid is not None and old_grid[0] * old_grid[1] == patches else square
        if prefix >= 0 and old[0] * old[1] == patches:
            tell(f"{name} is interpolated from {old[0]} x {old[1]} to {grid[0]} x {grid[1]} patches")
            return resample_position(given.reshape(1, *given.shape[-2:]), old, grid, prefix).reshape(own.shape)
    if given.dim() == own.dim() == 4 and own.shape[1] == 1 and given[:, :1].shape == own.shape:
        tell(f"{name} is summed over its {given.shape[1]} channels for grey images")
        return given.sum(1, keepdim=True)
    raise RecipeError(
        f"the given weights do not fit the model: {name} is {tuple(given.shape)} there and {tuple(own.shape)} here"
    )
