"""Reads given weights from a file or folder and loads them into a model with another head, image size or channels.

Letters: T tokens (prefix first), D width.
"""

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor, nn

from gmmvit.attach.place import Mark
from gmmvit.attach.saved import SITE
from gmmvit.config import RecipeError
from gmmvit.data.records import listing
from gmmvit.masks import Mask, is_mask_parameter
from gmmvit.models.layers import Grid, resample_position
from gmmvit.weight_files import read_tensors, without_prefix

State = dict[str, Tensor]
Classes = Sequence[str]
_CLASSIFIERS = ("head", "head_dist", "classifier", "cls_classifier", "distillation_classifier", "fc")
_NAMED = 3  # tensor names that an error lists


def read_state(place: str, report: Callable[[str], None] = lambda text: None) -> State:
    """The tensors of a file or folder, as `read_tensors`; raises RecipeError if there are none or they are damaged."""
    try:
        return read_tensors(place, report=report)
    except (FileNotFoundError, ValueError) as error:
        raise RecipeError(f"pretrained: {error}") from error
    except OSError as error:
        raise RecipeError(f"cannot read the weights {place}: {error.strerror or error}") from error


def split_masks(state: State) -> tuple[State, State]:
    """Splits a state_dict into the tensors without masks, and those of masks."""
    masks = {name for name in state if is_mask_parameter(name)}
    return {n: t for n, t in state.items() if n not in masks}, {n: state[n] for n in masks}


def renamed_masks(masks: State, model: nn.Module) -> State:
    """Attached masks under the names in `model`, matched by position if the library's files name layers differently."""

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
    old_masks: Mapping[str, Grid] | None = None,
    classes: Classes | None = None,
    old_classes: Classes | None = None,
    report: Callable[[str], None] = lambda text: None,
    only_masks: bool = False,
) -> None:
    """Loads `state` into `model`, in place.

    The classifier keeps the rows of classes that the weights know by name, or all rows if no names are known and the
    number is the same. All other rows, and masks that the weights lack, are initialised. Masks that the model lacks are
    dropped. Position embeddings and element-wise masks of another grid (`old_grid`, `old_masks` by tensor name) are
    interpolated, and a colour convolution is summed for grey images. `report` is called with a sentence about each.
    With `only_masks` the state holds only masks.

    Raises RecipeError, which names tensors that are missing, superfluous or of another shape.
    """
    own = model.state_dict()
    if only_masks:
        own = split_masks(own)[1]
    state = without_prefix(state, own.__contains__, report)
    rows = _known_rows(classes, old_classes)
    state, anew = _with_classifier(state, own, rows)
    if any(map(_of_classifier, own)):
        report(_classifier_note(anew, rows, classes, old_classes))
    state, own = _matched_masks(state, own, report)
    differing = {"lack": set(own) - set(state) - set(anew), "have besides": set(state) - set(own)}
    sides = [f"{kind} {len(n)} tensors: {', '.join(sorted(n)[:_NAMED])} ..." for kind, n in differing.items() if n]
    if sides:
        raise RecipeError(f"the given weights do not fit the model: they {' and '.join(sides)}")
    state |= _fitted_masks(model, state, old_masks or {}, report)
    fitted = {name: _fitted(name, tensor, own[name], grid, old_grid, report) for name, tensor in state.items()}
    try:
        model.load_state_dict(fitted, strict=False)
    except RuntimeError as error:  # masks of another mode
        raise RecipeError(f"the given weights do not fit the model: {str(error).splitlines()[-1].strip()}") from error


def _known_rows(classes: Classes | None, old_classes: Classes | None) -> list[int | None] | None:
    """Each class's row in the given classifier; None if the class names are unknown."""
    if classes is None or old_classes is None:
        return None
    places = {name: row for row, name in enumerate(old_classes)}
    return [places.get(name) for name in classes]


def _with_classifier(state: State, own: State, rows: list[int | None] | None) -> tuple[State, list[str]]:
    """The weights with a classifier for the model's classes, and the names of the reinitialised tensors."""
    state = {name: tensor for name, tensor in state.items() if not _of_classifier(name) or name in own}
    anew = []
    for name in filter(_of_classifier, own):
        given = state.get(name)
        fits = given is not None and given.shape[1:] == own[name].shape[1:]
        if given is not None and rows is not None and fits and any(row is not None for row in rows):
            taken = [(new, old) for new, old in enumerate(rows) if old is not None]
            state[name] = own[name].clone()
            state[name][[new for new, _ in taken]] = given[[old for _, old in taken]].to(own[name])
        elif rows is not None or given is None or given.shape[0] != own[name].shape[0]:
            state.pop(name, None)
            anew.append(name)
    return state, anew


def _classifier_note(
    anew: list[str], rows: list[int | None] | None, classes: Classes | None, old_classes: Classes | None
) -> str:
    if rows is not None and classes is not None and old_classes is not None:
        known = [name for name, row in zip(classes, rows, strict=True) if row is not None]
        new = [name for name, row in zip(classes, rows, strict=True) if row is None]
        if not known:
            return f"the given run has other classes ({listing(old_classes)}): the classifier is reinitialised"
        more = f"; {listing(new)} {'is' if len(new) == 1 else 'are'} reinitialised" if new else ""
        return f"the classifier keeps its rows for {listing(known)}{more}"
    if anew:
        return f"the given weights have no classifier of this width: {', '.join(anew)} are reinitialised"
    return "the given weights do not name their classes: their classifier is kept, in the order of its rows"


def _matched_masks(state: State, own: State, report: Callable[[str], None]) -> tuple[State, State]:
    """Both, without the mask tensors that only one of them has."""
    superfluous, missing = (
        [n for n in a if is_mask_parameter(n) and n not in b] for a, b in ((state, own), (own, state))
    )
    if superfluous:
        report(f"the model has no place for {len(superfluous)} mask tensors of the given weights: they are ignored")
        if missing:
            report(f"the given weights have no masks of this kind: {len(missing)} mask tensors are initialised")
    return {n: t for n, t in state.items() if n not in superfluous}, {n: t for n, t in own.items() if n not in missing}


def _fitted_masks(
    model: nn.Module, state: State, old_grids: Mapping[str, Grid], report: Callable[[str], None]
) -> State:
    """The element-wise masks of the weights, resized to the model's grids."""
    fitted = {}
    for name in state.keys() & old_grids.keys():
        own, old = model.get_submodule(name.rpartition(".")[0]), old_grids[name]
        alike = model.get_parameter(name).dim() == state[name].dim()
        if isinstance(own, Mask) and own.one_grid and own.grid != old and alike:
            fitted[name] = own.fitted(state[name], old)
    if fitted:
        report(f"{len(fitted)} element-wise masks are interpolated to other numbers of patches")
    return fitted


def _of_classifier(name: str) -> bool:
    parts = name.split(".")
    return parts[-1] in ("weight", "bias") and parts[0] in _CLASSIFIERS


def _fitted(
    name: str, given: Tensor, own: Tensor, grid: Grid | None, old_grid: Grid | None, report: Callable[[str], None]
) -> Tensor:
    if given.shape == own.shape or name.endswith(SITE):  # loading compares marks itself
        return given
    if "pos" in name and grid is not None and given.dim() == own.dim() and given.shape[-1] == own.shape[-1]:
        prefix = own.shape[-2] - grid[0] * grid[1]
        patches = given.shape[-2] - prefix
        square = (round(max(patches, 0) ** 0.5),) * 2
        old = old_grid if old_grid is not None and old_grid[0] * old_grid[1] == patches else square
        if prefix >= 0 and old[0] * old[1] == patches:
            report(f"{name} is interpolated from {old[0]} x {old[1]} to {grid[0]} x {grid[1]} patches")
            return resample_position(given.reshape(1, *given.shape[-2:]), old, grid, prefix).reshape(own.shape)
    if given.dim() == own.dim() == 4 and own.shape[1] == 1 and given[:, :1].shape == own.shape:
        report(f"{name} is summed over its {given.shape[1]} channels for grey images")
        return given.sum(1, keepdim=True)
    raise RecipeError(
        f"the given weights do not fit the model: {name} is {tuple(given.shape)} there and {tuple(own.shape)} here"
    )
