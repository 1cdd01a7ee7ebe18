"""A run whose weights start another training: its model and the classes it learned."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gmmvit.config import SIZES, Recipe, RecipeError, fields_of
from gmmvit.masks import Mask
from gmmvit.models import create_model
from gmmvit.models.layers import Grid
from gmmvit.runs.files import RunError
from gmmvit.runs.run_folder import CONFIG, load_config, recipe_of

_OF_MODEL = ("model", "model_args", *SIZES)
_OF_MASK = ("mask", *(name for name in fields_of("mask") if name != "mask_init"))


@dataclass(frozen=True)
class GivenRun:
    """A run's recipe and classes and, for one of our families, its patch (pixels) and grids."""

    recipe: Recipe
    classes: tuple[str, ...]
    patch: tuple[int, int] | None
    grid: Grid | None
    masks: dict[str, Grid]  # tensor name -> grid, for masks that fit only one grid

    def fields(self) -> dict[str, Any]:
        """The recipe's fields that reproduce its model."""
        fields = {name: getattr(self.recipe, name) for name in (*_OF_MODEL, *_OF_MASK)}
        return fields if self.patch is None else fields | {"patch_size": self.patch}


def given_run(pretrained: Any) -> GivenRun | None:
    """The run that a folder, or a file in it, belongs to; None for other weights.

    Raises RecipeError if the run is damaged.
    """
    if not isinstance(pretrained, str):
        return None
    place = Path(pretrained).expanduser()
    folder = place if place.is_dir() else place.parent
    if not (folder / CONFIG).is_file():
        return None
    try:
        config, recipe = load_config(folder), recipe_of(folder)
    except RunError as error:
        raise RecipeError(f"pretrained: {error}") from error
    patch = grid = None
    masks: dict[str, Grid] = {}
    if "library" not in config["model"]:
        try:
            with torch.device("meta"), torch.random.fork_rng(devices=[]):
                model = create_model(**config["model"])
        except (TypeError, ValueError, RuntimeError) as error:
            raise RecipeError(f"pretrained: {folder / CONFIG} does not describe a model: {error}") from error
        fixed = {name: m for name, m in model.named_modules() if isinstance(m, Mask) and m.one_grid}
        masks = {f"{name}.{own}": m.grid for name, m in fixed.items() for own, _ in m.named_parameters()}
        patch, grid = getattr(model.patch_embed, "patch_size", None), getattr(model, "grid", None)
    return GivenRun(recipe, tuple(config["data"]["classes"]), patch, grid, masks)


def filled(recipe: Recipe, run: GivenRun | None) -> Recipe:
    """The recipe, with sizes that it leaves open taken from a given run of the same family."""
    if run is None or run.recipe.model != recipe.model:
        return recipe
    known = run.fields()
    open_fields = {name: known[name] for name in SIZES if getattr(recipe, name) is None}
    return dataclasses.replace(recipe, **open_fields)
