"""Models of timm for a training."""

import re
from typing import Any

from torch import Tensor, nn

from gmmvit.building.request import Request, first_line, nearest
from gmmvit.building.weights import read_state, split_masks
from gmmvit.config import RecipeError


def check_name(name: str) -> None:
    """Raises RecipeError for a name that timm does not know, with the nearest."""
    import timm

    if ":" in name or "/" in name:
        raise RecipeError(
            f"timm:{name} is no name of timm's own; say the architecture, and the weights with --pretrained"
        )
    if timm.is_model(name):
        return
    raise RecipeError(f"timm {timm.__version__} has no model {name!r}{nearest(name, timm.list_models())}")


def start(request: Request) -> tuple[dict[str, Any], nn.Module]:
    """The model for the images of a request, with its given weights, and the arguments that made it."""
    recipe = request.recipe
    given = dict(recipe.model_args or {})
    decided = {"num_classes": request.classes, "in_chans": request.channels}
    if twice := [name for name in given if name in decided or name.startswith("pretrained")]:
        raise RecipeError(f"model_args cannot hold {twice[0]}: the data or another field of the recipe decides it")
    optional: dict[str, Any] = {"img_size": request.size, "drop_path_rate": recipe.drop_path}
    if recipe.dropout:
        optional["drop_rate"] = recipe.dropout
    weights = _weights(request)
    while True:
        arguments = optional | given | decided
        try:
            model = build(request.name, arguments, **weights)
            break
        except TypeError as error:
            refused = re.search(r"unexpected keyword argument '(\w+)'", str(error))
            if refused is None:
                raise _unfit(request, arguments, error) from error
            if refused[1] not in optional or refused[1] in given:
                raise RecipeError(f"{recipe.model} has no argument {refused[1]!r} (model_args)") from error
            if optional.pop(refused[1]) and refused[1] != "img_size":
                request.tell(f"{recipe.model} takes no {refused[1]}: that field of the recipe is left out")
        except OSError as error:
            raise RecipeError(
                f"the weights of {recipe.model} cannot be fetched ({first_line(error)}); without a network, give a "
                "file: --pretrained FILE"
            ) from error
        except Exception as error:
            raise _unfit(request, arguments, error) from error
    if weights:
        _tell_classifier(request, model)
        getattr(model, "pretrained_cfg", {}).pop("state_dict", None)  # kept by timm, as large as the model
    return arguments, model


def build(name: str, arguments: dict[str, Any], **weights: Any) -> nn.Module:
    """The model of those arguments, with random weights unless `weights` says otherwise."""
    import timm

    return timm.create_model(name, **{key: _tuples(value) for key, value in arguments.items()}, **weights)


def made_for(name: str, model: nn.Module) -> str:
    """What images it was designed for, in words."""
    import timm

    _, height, width = timm.get_pretrained_cfg(name).input_size
    patch = getattr(getattr(model, "patch_embed", None), "patch_size", None)
    words = f" in patches of {patch[0]} x {patch[1]}" if isinstance(patch, tuple) else ""
    return (
        f"it was designed for {height} x {width}, and sees them{words}"
        if words
        else f"it was designed for {height} x {width}"
    )


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _weights(request: Request) -> dict[str, Any]:
    """The arguments of timm.create_model that load the given weights; timm adapts them to image size and channels."""
    import timm

    if not request.recipe.pretrained:
        return {}
    if request.recipe.pretrained is True:
        request.tell(f"fetching the weights of {request.recipe.model}, unless they are in the cache")
        return {"pretrained": True}
    state, _ = split_masks(read_state(request.recipe.pretrained))
    config = timm.get_pretrained_cfg(request.name)
    overlay: dict[str, Any] = {"state_dict": state, "custom_load": False, "label_offset": 0}
    overlay["num_classes"] = _width(state, config)
    return {"pretrained": True, "pretrained_cfg_overlay": overlay}


def _names(value: Any) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value or ())


def _width(state: dict[str, Tensor], config: Any) -> int:
    """Classes of the classifier in a file of weights; 0 where it has none."""
    for name in _names(config.classifier):
        if f"{name}.weight" in state:
            return len(state[f"{name}.weight"])
    return 0


def _tell_classifier(request: Request, model: nn.Module) -> None:
    config = getattr(model, "pretrained_cfg", {})
    width = config.get("num_classes")
    if width != request.classes:
        request.tell(f"the given weights tell {width} classes apart: the classifier for {request.classes} starts anew")


def _unfit(request: Request, arguments: dict[str, Any], error: Exception) -> RecipeError:
    said = ", ".join(f"{key}={value}" for key, value in arguments.items())
    what = "its given weights do not fit" if "loading state_dict" in str(error) else "it cannot be built"
    return RecipeError(f"{request.recipe.model} with {said}: {what}: {first_line(error)}")
