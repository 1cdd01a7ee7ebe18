"""Builds a recipe's model: one of our families, or a model of timm or transformers with masks attached.

`start_model` also returns a description as plain data, from which `build_model` builds the same model offline.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from gmmvit.attach import attach, detach
from gmmvit.attach.grids import used_grids
from gmmvit.building import timm, transformers
from gmmvit.building.given_run import GivenRun, filled, given_run
from gmmvit.building.request import Request, first_line, require
from gmmvit.building.size import HELD, TRAINED, check_size
from gmmvit.building.weights import read_state, renamed_masks, split_masks, transfer
from gmmvit.config import Recipe, RecipeError, library_of, masking_options, model_options
from gmmvit.masks import KINDS
from gmmvit.models import CONVNETS, SIZES, create_model
from gmmvit.text import nearest, short

__all__ = ["GivenRun", "build_model", "check_model", "first_line", "given_run", "start_model"]

_LIBRARIES: dict[str, Any] = {"timm": timm, "hf": transformers}


def check_model(recipe: Recipe) -> None:
    """Checks what needs no data: raises RecipeError for an unknown model or size, or a mask on a model without
    attention, ModuleNotFoundError if the model's library is not installed."""
    of_library = library_of(recipe.model)
    if of_library is not None:
        library, name = of_library
        require(library)
        _LIBRARIES[library].check_name(name)
        return
    if recipe.model not in SIZES:
        hint = nearest(recipe.model, SIZES)
        raise RecipeError(
            f"model must be one of {list(SIZES)}, timm:NAME or hf:NAME_OR_PATH, got {short(recipe.model)}{hint}"
        )
    if recipe.model in CONVNETS and recipe.mask != "none":
        raise RecipeError(f"{recipe.model} has no attention for a mask to act on: train it with --mask none")
    if recipe.size is not None and recipe.size not in SIZES[recipe.model]:
        raise RecipeError(
            f"size of {recipe.model} must be one of {list(SIZES[recipe.model])}, got {short(recipe.size)}"
        )


def start_model(
    recipe: Recipe, data: dict[str, Any], report: Callable[[str], None] = lambda text: None
) -> tuple[dict[str, Any], nn.Module]:
    """The model that a training starts from, with the recipe's `pretrained` weights.

    Args:
        recipe: only its fields of model and mask are used.
        data: "image_size" [height, width], "channels" and "classes" of the data, as in config.yaml.
        report: called with a sentence about each thing dropped or replaced.

    Returns:
        The description for `build_model`, and the model.

    Raises:
        RecipeError: an argument, image size, mask or weight file does not fit.
        ValueError: an argument of one of our families is invalid.
        MemoryError: one of our models is larger than the free memory.
    """
    of_library = library_of(recipe.model)
    run = given_run(recipe.pretrained)
    names = None if run is None else run.classes
    if of_library is None:
        recipe = filled(recipe, run)
        options = model_options(recipe) | {
            "image_size": data["image_size"],
            "channels": data["channels"],
            "num_classes": len(data["classes"]),
        }
        on_cpu = recipe.device == "cpu" or not torch.accelerator.is_available()
        check_size(options, TRAINED if on_cpu else HELD)
        model: nn.Module = create_model(**options)
        if recipe.pretrained:
            state = read_state(str(recipe.pretrained), report)
            transfer(
                model,
                state,
                grid=getattr(model, "grid", None),
                old_grid=None if run is None else run.grid,
                old_masks=None if run is None else run.masks,
                classes=data["classes"],
                old_classes=names,
                report=report,
            )
        return options, model
    library, name = of_library
    height, width = data["image_size"]
    request = Request(recipe, name, (height, width), data["channels"], tuple(data["classes"]), report, names)
    require(library)
    arguments, model = _LIBRARIES[library].start(request)
    made_for = _LIBRARIES[library].made_for(name, model)
    _try_images(model, request, made_for)
    options = {"library": library, "name": name, "arguments": arguments, **masking_options(recipe)}
    if recipe.mask != "none":
        if KINDS[recipe.mask].one_grid:
            options |= _own_grids(model, options, request)
        _attach(model, options)
        if isinstance(recipe.pretrained, str):
            _, masks = split_masks(read_state(recipe.pretrained))
            transfer(model, renamed_masks(masks, model), report=report, only_masks=True)
        _try_images(model, request, made_for)
    _report_unseen(model, request)
    return options, model


def build_model(options: dict[str, Any]) -> nn.Module:
    """The model that `start_model` described, with random weights; [B, C, height, width] -> logits [B, classes].

    Raises ValueError or TypeError if the description is damaged, ModuleNotFoundError if a library is missing.
    """
    if "library" not in options:
        check_size(options)
        return create_model(**options)
    wrong = {"library", "name", "arguments", "mask", "mode"} - set(options)
    library = options["library"]
    if wrong or library not in ("timm", "hf"):
        raise ValueError(f"a model of another library needs {sorted(wrong) or 'library timm or hf'}")
    if not isinstance(options["name"], str) or not isinstance(options["arguments"], dict):
        raise ValueError("a model of another library needs a name (a string) and arguments (a mapping)")
    require(library)
    model: nn.Module = _LIBRARIES[library].build(options["name"], options["arguments"])
    _attach(model, options)
    return model


def _attach(model: nn.Module, options: dict[str, Any]) -> None:
    if options["mask"] == "none":
        return
    try:
        attach(model, mask=options["mask"], mode=options["mode"], **options.get("mask_options", {}))
    except ValueError as error:
        raise RecipeError(
            f"{options['library']}:{options['name']} cannot carry a mask (--mask none trains it): {error}"
        ) from error


def _own_grids(model: nn.Module, options: dict[str, Any], request: Request) -> dict[str, Any]:
    """The "mask_options" with the grids of these images where they differ from the model's designed ones.

    Attaches masks that take every grid for one pass to find them; the model stays unchanged.
    """
    with torch.random.fork_rng(devices=[]):  # keep the training's random numbers
        _attach(model, options | {"mask": "gmm", "mask_options": {}})
    try:
        grids = used_grids(model.eval(), torch.zeros(2, request.channels, *request.image_size))
    except ValueError:  # `_try_images` reports what does not fit
        return {}
    finally:
        detach(model)
    said = {"grid": {name: list(grid) for name, grid in grids.items()}} if grids else {}
    return {"mask_options": options.get("mask_options", {}) | said}


def _report_unseen(model: nn.Module, request: Request) -> None:
    """Reports rows and columns that no patch covers, so that they do not reach the logits."""
    images = torch.randn(2, request.channels, *request.image_size, generator=torch.Generator().manual_seed(0))
    with torch.random.fork_rng(devices=[]):
        logits = model.eval()(images.requires_grad_())
        (slope,) = torch.autograd.grad(logits.square().sum(), images)
    seen = slope.ne(0).any(0).any(0)
    if not seen.any():  # a classifier that starts at zero
        return
    rows, cols = (len(line) - 1 - int(line.nonzero().max()) for line in (seen.any(1), seen.any(0)))
    if rows or cols:
        request.report(f"{request.recipe.model} ignores the last {rows} rows and {cols} columns of images of this size")


def _try_images(model: nn.Module, request: Request, made_for: str) -> None:
    """Runs the model in training and evaluation mode on two empty images; weights and statistics stay unchanged."""
    images = torch.zeros(2, request.channels, *request.image_size)
    for training in (True, False):
        model.train(training)
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                logits = torch.func.functional_call(model, buffers, (images,))
        except Exception as error:
            height, width = request.image_size
            raise RecipeError(
                f"{request.recipe.model} cannot take images of {height} x {width} ({first_line(error)}); {made_for}: "
                "choose another --image-size, or smaller patches or windows with --model-args"
            ) from error
        if not isinstance(logits, torch.Tensor) or tuple(logits.shape) != (2, request.classes):
            got = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
            when = "in training" if training else "in evaluation"
            raise RecipeError(
                f"{request.recipe.model} is not a plain image classifier: {when} it returns {got}, "
                f"not logits {(2, request.classes)}"
            )
