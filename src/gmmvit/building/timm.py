"""Models of timm for a training."""

import inspect
import re
import sys
from functools import cache
from typing import Any

from torch import Tensor, nn

from gmmvit.building.request import Request, first_line
from gmmvit.building.safe import check_arguments
from gmmvit.building.weights import read_state, split_masks, transfer
from gmmvit.config import RecipeError
from gmmvit.text import nearest
from gmmvit.weight_files import without_prefix


def check_name(name: str) -> None:
    """Raises RecipeError for a name unknown to timm, with the nearest known one."""
    import timm

    if ":" in name or "/" in name:
        raise RecipeError(f"timm:{name} is not timm's own name; give the architecture here, weights with --pretrained")
    if timm.is_model(name):
        return
    raise RecipeError(f"timm {timm.__version__} has no model {name!r}{nearest(name, timm.list_models(), most=3)}")


def start(request: Request) -> tuple[dict[str, Any], nn.Module]:
    """The model for a request's images, with its given weights, and the arguments that built it."""
    import timm

    recipe = request.recipe
    given = dict(recipe.model_args or {})
    decided = {"num_classes": request.classes, "in_chans": request.channels}
    if twice := [name for name in given if name in decided]:
        raise RecipeError(f"model_args cannot hold {twice[0]}: the data or another field of the recipe decides it")
    check_arguments(given, known_arguments(request.name), f"{recipe.model} (model_args)")
    optional: dict[str, Any] = {"img_size": request.size, "drop_path_rate": recipe.drop_path}
    if recipe.dropout:
        optional["drop_rate"] = recipe.dropout
    weights = {"pretrained": True} if recipe.pretrained is True else {}
    if weights:
        request.report(f"fetching the weights of {recipe.model}, unless they are in the cache")
    arguments, model = _built(request, optional, given | decided, weights)
    if weights and timm.get_pretrained_cfg_value(request.name, "num_classes") != request.classes:
        request.report(f"the classifier of {recipe.model} has another width: it is reinitialised")
    elif weights:
        request.report(f"the classifier of {recipe.model} is kept, in the order of its {request.classes} rows")
    if isinstance(recipe.pretrained, str):
        state, _ = split_masks(read_state(recipe.pretrained, request.report))
        state = without_prefix(state, model.state_dict().__contains__, request.report)
        transfer(
            model,
            _filtered(model, state),
            grid=_grid(model),
            report=request.report,
            classes=request.class_names,
            old_classes=request.old_classes,
        )
    return arguments, model


def _built(
    request: Request, optional: dict[str, Any], fixed: dict[str, Any], weights: dict[str, Any]
) -> tuple[dict[str, Any], nn.Module]:
    """The model, and its arguments without the `optional` ones it rejects, which only building shows."""
    name, known = request.recipe.model, known_arguments(request.name)

    def leave_out(argument: str) -> None:
        if optional.pop(argument) and argument != "img_size":
            request.report(f"{name} has no argument {argument}: that field of the recipe is ignored")

    for argument in sorted(optional.keys() - known):
        leave_out(argument)
    while True:
        arguments = optional | fixed
        try:
            return arguments, build(request.name, arguments, **weights)
        except TypeError as error:
            refused = re.search(r"unexpected keyword argument '(\w+)'", str(error))
            if refused is None:
                raise _unfit(request, arguments, error) from error
            if refused[1] not in optional or refused[1] in fixed:
                raise RecipeError(f"{name} has no argument {refused[1]!r} (model_args)") from error
            leave_out(refused[1])
        except OSError as error:
            raise RecipeError(
                f"the weights of {name} cannot be fetched ({first_line(error)}); without a network, give a file: "
                "--pretrained FILE"
            ) from error
        except Exception as error:  # a library may raise anything for arguments that do not fit together
            raise _unfit(request, arguments, error) from error


@cache
def known_arguments(name: str) -> frozenset[str]:
    """The arguments a timm model takes: the parameters of the classes in its file, not those of timm's builder, which
    opens files and rebuilds models."""
    import timm
    from timm.models import build_model_with_cfg

    inside = vars(sys.modules[timm.model_entrypoint(name).__module__]).values()
    classes = {base for value in inside if inspect.isclass(value) for base in value.__mro__ if base is not object}
    taken = {parameter for one in classes for parameter in _parameters(vars(one).get("__init__"))}
    return frozenset(taken - _parameters(timm.create_model) - _parameters(build_model_with_cfg) - {"self"})


def _parameters(function: Any) -> set[str]:
    try:
        return set(inspect.signature(function).parameters)
    except (TypeError, ValueError):  # no signature, or written in C
        return set()


def build(name: str, arguments: dict[str, Any], **weights: Any) -> nn.Module:
    """The model with these arguments, and random weights unless `weights` says otherwise.

    Raises RecipeError for a name that is not timm's own or an argument that the model does not take.
    """
    import timm

    check_name(name)
    check_arguments(arguments, known_arguments(name), f"timm:{name}")
    return timm.create_model(name, **{key: _tuples(value) for key, value in arguments.items()}, **weights)


def made_for(name: str, model: nn.Module) -> str:
    """A phrase for the images the model was designed for."""
    import timm

    _, height, width = timm.get_pretrained_cfg_value(name, "input_size") or (0, 224, 224)
    patch = getattr(getattr(model, "patch_embed", None), "patch_size", None)
    words = f" and sees them in patches of {patch[0]} x {patch[1]}" if isinstance(patch, tuple) else ""
    return f"it was designed for {height} x {width}{words}"


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _filtered(model: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights with this timm version's names, resized to the model's patches and grid if timm can."""
    own = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    try:
        return own(dict(state), model) if own else state
    except Exception:  # weights of another model: `transfer` names the tensors that do not fit
        return state


def _grid(model: nn.Module) -> tuple[int, int] | None:
    grid = getattr(getattr(model, "patch_embed", None), "grid_size", None)
    return tuple(grid) if grid is not None else None


def _unfit(request: Request, arguments: dict[str, Any], error: Exception) -> RecipeError:
    said = ", ".join(f"{key}={value}" for key, value in arguments.items())
    return RecipeError(f"{request.recipe.model} cannot be built with {said}: {first_line(error)}")
