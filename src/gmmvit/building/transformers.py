"""Image classifiers of transformers for a training."""

import json
from collections.abc import Collection
from functools import cache
from pathlib import Path
from typing import Any

from torch import nn

from gmmvit.building import timm
from gmmvit.building.request import Request, first_line
from gmmvit.building.safe import check_arguments, names_place
from gmmvit.building.weights import read_state, split_masks, transfer
from gmmvit.config import RecipeError
from gmmvit.models.layers import Grid
from gmmvit.text import nearest

_OF_OTHER_WEIGHTS = {"id2label", "label2id", "transformers_version", "dtype"}
_DECIDED = ("num_labels", "num_channels", "model_type", "id2label", "label2id")


def _types() -> list[str]:
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES

    return list(MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES)


def _is_folder(name: str) -> bool:
    return name.startswith((".", "/", "~")) or (Path(name) / "config.json").is_file()


def _place(name: str) -> str:
    return str(Path(name).expanduser()) if _is_folder(name) else name


def check_name(name: str) -> None:
    """Raises RecipeError for a folder without a configuration or an unknown image classifier. A name with a slash may
    be on the Hub and passes."""
    if _is_folder(name):
        if not (Path(name).expanduser() / "config.json").is_file():
            raise RecipeError(f"hf:{name} is not a folder with a config.json of transformers")
        return
    types = _types()
    if name not in types and Path(name).is_dir():
        raise RecipeError(f"hf:{name} is a folder without a config.json of transformers")
    if name not in types and "/" not in name:
        hint = nearest(name, types, most=3, otherwise=f"; known are {', '.join(types)}")
        raise RecipeError(
            f"transformers has no image classifier {name!r}{hint}; a Hub model is named ORGANISATION/NAME, and a "
            "folder needs a config.json"
        )


def start(request: Request) -> tuple[dict[str, Any], nn.Module]:
    """The model for a request's images, with its given weights, and the configuration that built it."""
    recipe = request.recipe
    if "/" in request.name and not _is_folder(request.name):
        request.report(f"fetching the configuration of {recipe.model}, unless it is in the cache")
    try:
        given = _config(request)
    except (OSError, ValueError) as error:
        raise RecipeError(
            f"{recipe.model} has no readable configuration: {first_line(error)}; without a network, use a "
            "folder with a config.json, or a type such as hf:vit"
        ) from error
    changes = _changes(request, given)
    try:
        config = _config(request, **changes)  # rebuilt, because some values derive from others
        arguments = _harmless(json.loads(config.to_json_string()), known_fields(config.model_type))
        arguments["num_labels"] = request.classes
        model = build(request.name, arguments)
    except RecipeError:
        raise
    except Exception as error:
        said = ", ".join(f"{name}={value}" for name, value in changes.items())
        raise RecipeError(f"{recipe.model} cannot be built with {said}: {first_line(error)}") from error
    if recipe.pretrained:
        state, known = _state(request)
        transfer(
            model,
            state,
            grid=_grid(model.config),
            old_grid=_grid(given),
            report=request.report,
            classes=request.class_names,
            old_classes=request.old_classes or known,
        )
    return arguments, model


@cache
def known_fields(model_type: Any) -> frozenset[str]:
    """The configuration fields of a model type; raises RecipeError if it is not an image classifier."""
    from transformers import AutoConfig

    if model_type not in _types():
        raise RecipeError(f"transformers has no image classifier {model_type!r:.100}; known are {', '.join(_types())}")
    config = AutoConfig.for_model(model_type)
    names = {*config.to_dict(), "num_labels", "architectures", *_OF_OTHER_WEIGHTS}
    return frozenset(names - {"label_names", "num_classes"})


def _harmless(value: Any, known: Collection[str] | None = None) -> Any:
    """A configuration reduced to `known` fields that neither concern other weights nor name a place."""
    if isinstance(value, list):
        return [_harmless(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        name: _harmless(inner)
        for name, inner in value.items()
        if name not in _OF_OTHER_WEIGHTS and not names_place(name, inner) and (known is None or name in known)
    }


def build(name: str, arguments: dict[str, Any]) -> nn.Module:
    """The model of this configuration, with random weights; its forward returns only logits.

    Raises RecipeError for a type that is not an image classifier or a field it does not have.
    """
    from transformers import AutoModelForImageClassification

    config = _checked(arguments, name)
    config.architectures = config.architectures or []  # the library iterates over it if a type has several classifiers
    model = AutoModelForImageClassification.from_config(config, trust_remote_code=False)
    model.register_forward_hook(_logits)  # a hook keeps the library's class and weight names
    return model


def _checked(arguments: dict[str, Any], name: str) -> Any:
    """The configuration with these fields; arguments that `timm_wrapper` passes on are checked like timm's own."""
    from transformers import AutoConfig

    check_arguments(arguments, known_fields(arguments.get("model_type")), f"hf:{name}")
    if arguments["model_type"] == "timm_wrapper":
        architecture = str(arguments.get("architecture"))
        timm.check_name(architecture)
        given = arguments.get("model_args") or {}
        check_arguments(given, timm.known_arguments(architecture), f"hf:{name} (model_args)")
    return AutoConfig.for_model(**arguments)


def _logits(module: nn.Module, inputs: Any, output: Any) -> Any:
    return output.logits


def made_for(name: str, model: nn.Module) -> str:
    """A phrase for the patches the model uses."""
    patch = getattr(_vision(model.config), "patch_size", None)
    return "it has no patches" if patch is None else f"its patches are of {patch} pixels"


def _vision(config: Any) -> Any:
    """The image part of a configuration; a model of images and text has it as a sub-configuration."""
    return getattr(config, "vision_config", config)


def _config(request: Request, **changes: Any) -> Any:
    """The configuration of the request's name or folder, with `changes` applied."""
    from transformers import AutoConfig

    name = request.name
    if not _is_folder(name) and "/" not in name:
        return AutoConfig.for_model(name, **changes)
    return AutoConfig.from_pretrained(_place(name), trust_remote_code=False, **changes)


def _changes(request: Request, config: Any) -> dict[str, Any]:
    """The recipe's changes to a configuration."""
    recipe, known = request.recipe, _vision(config).to_dict()
    given = dict(recipe.model_args or {})
    for name in given:
        if name in _DECIDED:
            raise RecipeError(f"model_args cannot hold {name}: the data or another field of the recipe decides it")
        if name not in known:
            raise RecipeError(f"{recipe.model} has no argument {name!r} (model_args){nearest(name, known, most=3)}")
    rates = {"drop_path_rate": recipe.drop_path, "hidden_dropout_prob": recipe.dropout}
    size = list(request.image_size) if isinstance(known.get("image_size"), list | tuple) else request.size
    changes: dict[str, Any] = {"num_channels": request.channels, "image_size": size} | rates
    for name in [name for name in changes if name not in known]:
        if changes.pop(name) and name in rates:
            request.report(f"{recipe.model} has no argument {name}: that field of the recipe is ignored")
    changes |= given
    if _vision(config) is not config:
        changes = {"vision_config": known | changes}
    return changes | {"num_labels": request.classes}


def _grid(config: Any) -> Grid | None:
    """(rows, cols) of the patches at the configuration's image size, None if it has none."""
    sides = [getattr(_vision(config), name, None) for name in ("image_size", "patch_size")]
    pairs = [(side, side) if isinstance(side, int) else tuple(side) for side in sides if side is not None]
    if len(pairs) < 2:
        return None
    image, patch = pairs
    return image[0] // patch[0], image[1] // patch[1]


def _state(request: Request) -> tuple[dict[str, Any], list[str] | None]:
    """The given weights, with their own classifier and image size. The library reads those beside a config.json: it
    renames what its other versions wrote."""
    name = _place(request.name)
    if isinstance(request.recipe.pretrained, str):
        path = Path(request.recipe.pretrained)
        folder = path if path.is_dir() else path.parent
        if not (folder / "config.json").is_file():
            return split_masks(read_state(str(path), request.report))[0], None
        name = str(folder)
    elif not _is_folder(name) and "/" not in name:
        raise RecipeError(f"hf:{name} is a model type without weights; name a Hub model as ORGANISATION/NAME")
    from transformers import AutoConfig, AutoModelForImageClassification

    try:
        # Their own configuration, without fields that could name other files or code.
        given = AutoConfig.from_pretrained(name, trust_remote_code=False)
        fields = _harmless(json.loads(given.to_json_string()), known_fields(given.model_type))
        config = _checked(fields | {"num_labels": given.num_labels}, name)
        model, info = AutoModelForImageClassification.from_pretrained(
            name, config=config, trust_remote_code=False, output_loading_info=True
        )
    except RecipeError:
        raise
    except (OSError, ValueError) as error:
        raise RecipeError(f"the weights of hf:{name} cannot be read: {first_line(error)}") from error
    missing = set(info["missing_keys"])
    labels = [str(given.id2label.get(number)) for number in range(given.num_labels)]
    named = None if labels == [f"LABEL_{number}" for number in range(len(labels))] else labels
    return {key: tensor for key, tensor in model.state_dict().items() if key not in missing}, named
