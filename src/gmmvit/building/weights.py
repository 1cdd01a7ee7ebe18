"""Given weights: read from a file or folder, and put into a model that differs in its head, image size or channels.

Letters: T tokens (prefix first), D width.
"""

from collections.abc import Callable, Iterable

from torch import Tensor, nn

from gmmvit.attach.place import Mark
from gmmvit.attach.saved import SITE
from gmmvit.config import RecipeError
from gmmvit.layers import Grid, resample_position
from gmmvit.optim import is_mask_parameter
from gmmvit.weight_files import read_tensors

State = dict[str, Tensor]
_CLASSIFIERS = ("head", "head_dist", "classifier", "cls_classifier", "distillation_classifier", "fc")
_NAMED = 3  # names of tensors that an error lists


def read_state(place: str, tell: Callable[[str], None] = lambda text: None) -> State:
    """The tensors of a file or folder, as `read_tensors`; RecipeError where there are none or they are damaged."""
    try:
        return read_tensors(place, tell=tell)
    except (FileNotFoundError, ValueError) as error:
        raise RecipeError(f"pretrained: {error}") from error
    except OSError as error:
        raise RecipeError(f"cannot read the weights {place}: {error.strerror or error}") from error


def without_prefix(state: State, own: Iterable[str], tell: Callable[[str], None]) -> State:
    """The tensors without a prefix that all of their names have and those of the model, `own`, have not: training
    scripts keep the model inside of another module. `tell` is given a sentence about it."""
    own = set(own)
    parts = next(iter(state), "").split(".")[:-1]
    while parts and not all(name.startswith(".".join([*parts, ""])) for name in state):
        parts.pop()
    prefixes = ["", *(".".join(parts[:i]) + "." for i in range(1, len(parts) + 1))]
    prefix = max(prefixes, key=lambda prefix: sum(name.removeprefix(prefix) in own for name in state))
    if prefix:
        tell(f"all names in the given weights begin with {prefix!r}: it is left out")
    return {name.removeprefix(prefix): tensor for name, tensor in state.items()}


def split_masks(state: State) -> tuple[State, State]:
    """A state_dict without the masks, and theirs."""
    masks = {name for name in state if is_mask_parameter(name)}
    return {n: t for n, t in state.items() if n not in masks}, {n: state[n] for n in masks}


def renamed_masks(masks: State, model: nn.Module) -> State:
    """Attached masks under the names of `model`: where a library names layers in its files otherwise, places stay."""

    def of(state: State) -> dict[str, int]:
        marks = {name: tensor for name, tensor in state.items() if name.endswith(SITE)}
        try:
            return {name: Mark.read(tensor, name).place for name, tensor in marks.items()}
        except ValueError as error:
            raise RecipeError(f"the given weights are damaged: {error}") from error

    own, given = of(model.state_dict()), of(masks)
    if given.keys() <= own.keys():
        return masks
    places = {place: name for name, place in own.items()}
    names = {name.removesuffix(SITE): places.get(place) for name, place in given.items()}
    found = {prefix: place.removesuffix(SITE) for prefix, place in names.items() if place is not None}
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
    state = without_prefix(state, own, tell)
    anew = [n for n in own if _of_classifier(n) and (n not in state or state[n].shape[0] != own[n].shape[0])]
    state = {n: t for n, t in state.items() if n not in anew and not (_of_classifier(n) and n not in own)}
    if anew:
        tell(f"the given weights have no classifier of this width: {', '.join(anew)} start anew")
    state, own = _matched_masks(state, own, tell)
    differing = {"lack": set(own) - set(state) - set(anew), "have besides": set(state) - set(own)}
    sides = [f"{kind} {len(n)} tensors: {', '.join(sorted(n)[:_NAMED])} ..." for kind, n in differing.items() if n]
    if sides:
        raise RecipeError(f"the given weights do not fit the model: they {' and '.join(sides)}")
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
