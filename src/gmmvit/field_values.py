"""Recipe fields: their metadata, and parsing their values from YAML and the command line."""

import ast
import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from typing import Any

from gmmvit.text import nearest, short


class RecipeError(ValueError):
    """A recipe's field does not exist or has an invalid value; the message is one sentence."""


_NO_OPTIONS: Mapping[str, str] = types.MappingProxyType({})


def opt(
    group: str,
    default: Any,
    help: str,
    choices: tuple[str, ...] | None = None,
    *,
    range: tuple[float, float] | None = None,
    marks: str = "",
    options: Mapping[str, str] = _NO_OPTIONS,
) -> Any:
    """A recipe field with its metadata.

    Args:
        group: its heading in `--help`.
        help: its line there.
        choices: the allowed words.
        range: smallest and largest number.
        marks: words for `config.fields_of`, one or more of
            "size": of a model of our own families;
            "mask", "mask_training": of the mask, meaningless for another kind of mask or without a mask;
            "scratch": suits training from random weights;
            "movable": may change when an interrupted training resumes;
            "incidental": not part of the method; runs that differ only in it are compared as one;
            "process": the same for all trainings of a process;
            "path": a file or folder.
        options: mask kind -> the option of its class that this field sets.
    """
    known = {"help": help, "choices": choices, "group": group, "range": range, "options": options}
    return dataclasses.field(default=default, metadata=known | {"marks": {group, *marks.split()}})


def coerced(f: "dataclasses.Field[Any]", value: Any) -> Any:
    """`value` converted to the field's type and checked against its range.

    Raises a RecipeError that names the field, the value and what is allowed.
    """
    kinds = typing.get_args(f.type) if isinstance(f.type, types.UnionType) else (f.type,)
    if value is None and types.NoneType in kinds:
        return None
    choices = f.metadata["choices"]
    if choices and not (isinstance(value, str | int | float) and value in choices):
        hint = nearest(short(value).strip("'"), choices)
        raise RecipeError(f"{f.name} must be one of {list(choices)}, got {short(value)}{hint}")
    result = next((r for k in kinds if k is not types.NoneType and (r := _convert(k, value)) is not None), None)
    if kinds == (bool, str) and result in ("true", "false"):  # from the command line
        result = result == "true"
    if result is None:
        raise RecipeError(f"{f.name} must be {_describe(kinds)}, got {short(value)} ({type(value).__name__})")
    within = f.metadata["range"]
    for number in () if within is None else result if isinstance(result, tuple) else (result,):
        if not within[0] <= number <= within[1]:
            raise RecipeError(f"{f.name} must be {within[0]:g} to {within[1]:g}, got {short(number)}")
    return result


def _convert(kind: Any, value: Any) -> Any:
    """`value` as `kind`, or None if its type is wrong. YAML reads 1e-3 as a string, so strings of numbers count."""
    if typing.get_origin(kind) is tuple:
        item = typing.get_args(kind)[0]
        if isinstance(value, str):
            value = (value if item is str else value.replace("x", ",")).split(",") if value or item is not str else []
        parts = [_convert(item, part) for part in (value if isinstance(value, list | tuple) else [value])]
        return None if None in parts or not (parts or item is str) else tuple(parts)
    if typing.get_origin(kind) is Mapping:
        value = _parse_arguments(value) if isinstance(value, str) else value
        return {str(k): _plain(v) for k, v in value.items()} or None if isinstance(value, Mapping) else None
    if kind is bool or kind is str:
        return value if isinstance(value, kind) and "\0" not in str(value) else None
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    if kind is int and isinstance(value, int):
        return value
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    if kind is int:
        return int(number) if number.is_integer() else None
    return number if math.isfinite(number) else None


def _parse_arguments(text: str) -> dict[str, Any] | None:
    """`depth=4,act=gelu,depths=(2,2)` as a mapping of Python literals and words; None for anything else."""
    words = {"true": True, "false": False, "null": None, "none": None}
    try:
        call = ast.parse(f"f({text})", mode="eval").body
        if not isinstance(call, ast.Call) or call.args or not all(k.arg for k in call.keywords):
            return None
        return {
            str(k.arg): words.get(k.value.id.lower(), k.value.id)
            if isinstance(k.value, ast.Name)
            else ast.literal_eval(k.value)
            for k in call.keywords
        }
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # the last two for deep nesting
        return None


def _plain(value: Any) -> Any:
    """A value for YAML, with lists instead of tuples."""
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return {str(k): _plain(v) for k, v in value.items()} if isinstance(value, Mapping) else value


def _describe(kinds: tuple[Any, ...]) -> str:
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text", types.NoneType: "null"}
    words = []
    for kind in kinds:
        if typing.get_origin(kind) is tuple:
            words.append(f"{names[typing.get_args(kind)[0]]} or a list of them")
        elif typing.get_origin(kind) is Mapping:
            words.append("names and values like depth=4,embed_dim=64, or a mapping")
        else:
            words.append(names[kind])
    return " or ".join(words)
