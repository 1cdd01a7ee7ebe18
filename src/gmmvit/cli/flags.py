"""A recipe's fields as command-line flags, and how the command uses them."""

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from typing import Annotated, Any

from cyclopts import Group, Parameter

from gmmvit.config import Recipe, RecipeError, as_dict, make_recipe


def _recipe_flags(*sections: str, without: str = "") -> Any:
    """A TypedDict of recipe fields, all optional, so that the command line passes on only given ones. All fields, or
    those of some sections except one."""
    flags: dict[str, Any] = {}
    groups: dict[str, Group] = {}
    for order, field in enumerate(dataclasses.fields(Recipe)):
        section = field.metadata["group"]
        group = groups.setdefault(section, Group(section, sort_key=order))
        if (sections and section not in sections) or field.name == without:
            continue
        kinds = typing.get_args(field.type) if isinstance(field.type, types.UnionType) else (field.type,)
        # The recipe itself parses lists, mappings and fields that may be text.
        kind = str if str in kinds or typing.get_origin(kinds[0]) in (tuple, Mapping) else kinds[0]
        choices = field.metadata["choices"]
        help = field.metadata["help"] + _default(field.default)
        flags[field.name] = Annotated[typing.Literal[choices] if choices else kind, Parameter(help=help, group=group)]
    return typing.TypedDict("RecipeFlags", flags, total=False)  # type: ignore[operator]


def _default(value: Any) -> str:
    """The default in the help; empty if the field's own help text describes it."""
    if value is None or value == ():
        return ""
    shown = ",".join(map(str, value)) if isinstance(value, tuple) else value
    return f" [default: {shown}]"


RecipeFlags = _recipe_flags()
DataFlags = _recipe_flags("Data", "Augmentation", without="dataset")  # for a command with the data set as argument


# Recipes by the maximum number of images for training and validation.
_BY_NUMBER = (("few", 1_500), ("small", 15_000), ("many", math.inf))


def suitable_recipe(given: Mapping[str, Any]) -> tuple[str, str]:
    """The default recipe for the given fields, and a phrase saying what it is for.

    The number of images decides for the user's own images and for a few per class of a named data set.
    """
    dataset = given.get("dataset", "digits")
    of_number = dataset.startswith(("folder:", "hf:")) or "train_per_class" in given
    if not of_number:
        return ("digits", "for the digits") if dataset == "digits" else ("quick", f"for a first look at {dataset}")
    recipe = make_recipe(dict(given), "the given values")
    from gmmvit.data import count_training

    count = count_training(
        recipe.dataset,
        data_dir=recipe.data_dir,
        test_fraction=1 / recipe.folds if recipe.folds else recipe.test_fraction,
        train_per_class=recipe.train_per_class,
    )
    name = next(name for name, most in _BY_NUMBER if count <= most)
    return name, f"for {count:,} images to learn from"


def variants_of(recipe: Recipe, seeds: str | None, masks: str | None) -> list[Recipe] | None:
    """The recipe with each mask and seed of two comma-separated lists; None if neither is given."""
    if seeds is None and masks is None:
        return None
    lists = {}
    for name, text in (("seed", seeds), ("mask", masks)):
        values = [str(getattr(recipe, name))] if text is None else [value.strip() for value in text.split(",")]
        if len(set(values)) < len(values) or "" in values:
            raise RecipeError(f"--{name}s must name every {name} once, separated by commas, got {text!r}")
        lists[name] = values
    return [
        make_recipe({**as_dict(recipe), "mask": mask, "seed": seed}, "the given values")
        for mask in lists["mask"]
        for seed in lists["seed"]
    ]
