"""A study: a YAML file that says which trainings to compare. Does not import torch."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gmmvit import text
from gmmvit.config import Recipe, RecipeError, recipe_names
from gmmvit.yaml_files import YamlError, read_yaml

KEYS = ("recipe", "out", "fields", "data", "variants", "grid", "also", "seeds", "controls", "ranges", "trials")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=,+]*(-[A-Za-z0-9._=,+]+)*")  # a valid folder name on every file system

Fields = dict[str, Any]


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included; integers if `whole`; uniform in the logarithm if `log`."""

    low: float
    high: float
    log: bool
    whole: bool

    def whole_or_not(self, value: float) -> float | int:
        """A value in the field's type."""
        return int(value) if self.whole else value


@dataclass(frozen=True)
class Study:
    """The checked contents of a study's file; `plan` makes trials of it.

    `factors` are the variants and the grid: factor -> level -> fields. `listed` are the factors given as a field with a
    list of values. `also` are arms besides their combinations. A control is an arm's name, or the levels that replace
    an arm's own.
    """

    path: Path
    recipe: str | Path
    out: str | None
    fields: Fields
    data: dict[str, Fields]
    factors: dict[str, dict[str, Fields]]
    listed: frozenset[str]
    also: dict[str, Fields]
    seeds: list[int]
    controls: dict[str, str | dict[str, str]]
    ranges: dict[str, Range]
    trials: int


class StudyError(RecipeError):
    """A study that cannot run; the message is one sentence."""


def read_study(path: str | Path) -> Study:
    """Reads a study from a YAML file; raises StudyError if the file is damaged, incomplete or invalid."""
    path = Path(path)
    if not path.is_file():
        raise StudyError(f"there is no study {path}; give the path of a YAML file")
    try:
        content = read_yaml(path)
    except YamlError as error:
        raise StudyError(f"{path} {error}") from None
    if not isinstance(content, dict) or not content:
        raise StudyError(f"{path} must hold a study, as `key: value` with the keys {', '.join(KEYS)}")
    for key in content:
        if key not in KEYS:
            raise StudyError(f"{path} has an unknown key {key!r}{nearest(key, KEYS)}")
    part = _Reader(path, content)
    ranges = {name: _range(path, name, given) for name, given in part.mapping("ranges").items()}
    trials = content.get("trials", 0)
    if ranges and (type(trials) is not int or trials < 1):
        raise StudyError(f"{path}: ranges need `trials`, the number of settings to try for each arm, got {trials!r}")
    if trials and not ranges:
        raise StudyError(f"{path}: trials counts the settings tried in ranges, but there are no ranges")
    return Study(
        path=path,
        recipe=_base(path, content.get("recipe")),
        out=part.text("out"),
        fields=part.mapping("fields"),
        data=part.data(),
        factors=part.factors(),
        listed=frozenset(name for name, levels in part.mapping("grid").items() if isinstance(levels, list)),
        also=part.named("also"),
        seeds=part.seeds(),
        controls=part.controls(),
        ranges=ranges,
        trials=trials,
    )


def nearest(name: object, known: Iterable[str]) -> str:
    """A hint for an unknown name: the nearest known one, or all known names."""
    known = list(known)
    return text.nearest(name, known, cutoff=0.5, otherwise=f"; it must be one of {', '.join(known)}")


def _base(path: Path, name: Any) -> str | Path:
    """The base recipe: a shipped one, or a file relative to the study or to the current folder."""
    if not isinstance(name, str):
        raise StudyError(f"{path} must name its base recipe, `recipe: small` or `recipe: FILE.yaml`, got {name!r}")
    beside = path.parent / name
    return beside if name not in recipe_names() and beside.is_file() else name


def _range(path: Path, name: str, given: Any) -> Range:
    where = f"{path}: ranges: {name}"
    kinds = {f.name: f.type for f in Recipe.__dataclass_fields__.values()}
    if name not in kinds:
        raise StudyError(f"{path}: ranges has an unknown field {name!r}{nearest(name, kinds)}")
    if not isinstance(given, Mapping) or set(given) - {"low", "high", "log"} or not {"low", "high"} <= set(given):
        raise StudyError(
            f"{where} must give low, high and perhaps log, like {{low: 1e-4, high: 1e-2, log: true}}, got {given!r}"
        )
    try:
        low, high = float(given["low"]), float(given["high"])  # YAML reads 1e-4 as text
    except (TypeError, ValueError):
        raise StudyError(
            f"{where} needs numbers for low and high, got {given['low']!r} and {given['high']!r}"
        ) from None
    log = given.get("log", False)
    if not isinstance(log, bool) or not low < high or (log and low <= 0):
        raise StudyError(
            f"{where} needs low below high, log true or false, and low above 0 with log, got {dict(given)!r}"
        )
    whole = "float" not in str(kinds[name])
    if whole and not (low.is_integer() and high.is_integer()):
        raise StudyError(
            f"{where} must go from a whole number to a whole number, got {given['low']!r} to {given['high']!r}"
        )
    return Range(low, high, log, whole)


@dataclass(frozen=True)
class _Reader:
    """Reads the parts of a study's file."""

    path: Path
    content: dict[str, Any]

    def text(self, key: str) -> str | None:
        value = self.content.get(key)
        if value is not None and not isinstance(value, str):
            raise StudyError(f"{self.path}: {key} must be text, got {value!r}")
        return value

    def mapping(self, key: str) -> dict[str, Any]:
        value = self.content.get(key)
        return self.as_fields(key, {} if value is None else value)

    def as_fields(self, where: str, value: Any) -> Fields:
        if not isinstance(value, Mapping):
            raise StudyError(f"{self.path}: {where} must be a mapping like {{name: value}}, got {value!r}")
        return {str(name): content for name, content in value.items()}

    def named(self, key: str) -> dict[str, Fields]:
        """Named sets of fields."""
        sets = self.mapping(key)
        for name in sets:
            self.check_name(key, name)
        return {name: self.as_fields(f"{key}: {name}", {} if given is None else given) for name, given in sets.items()}

    def check_name(self, where: str, name: str) -> None:
        if not _NAME.fullmatch(name):
            raise StudyError(
                f"{self.path}: {where}: {name!r} becomes a folder name: use letters, digits and . _ = , + with single -"
            )

    def data(self) -> dict[str, Fields]:
        """Named sets of fields, or a list of names of data sets."""
        value = self.content.get("data")
        if isinstance(value, str | list):
            names = [value] if isinstance(value, str) else value
            if not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
                raise StudyError(f"{self.path}: data must name every data set once, got {value!r}")
            return {label(name): {"dataset": name} for name in names}
        sets = self.named("data")
        if not sets:
            raise StudyError(
                f"{self.path} must name its data, like `data: [cifar10]` or `data: {{NAME: {{dataset: ...}}}}`"
            )
        return sets

    def factors(self) -> dict[str, dict[str, Fields]]:
        factors = {"variant": self.named("variants")} if self.content.get("variants") else {}
        for name, levels in self.mapping("grid").items():
            if name == "variant":
                raise StudyError(f"{self.path}: grid: the name variant is reserved for the variants; choose another")
            factors[name] = self.levels(name, levels)
        return factors

    def levels(self, name: str, given: Any) -> dict[str, Fields]:
        """Levels of the grid: values of the field, or named sets of fields."""
        if isinstance(given, Mapping):
            return _Reader(self.path, {f"grid: {name}": given}).named(f"grid: {name}")
        if not isinstance(given, list) or not given:
            raise StudyError(
                f"{self.path}: grid: {name} must be a list of values or named sets of fields, got {given!r}"
            )
        levels = {label(value): {name: value} for value in given}
        if len(levels) < len(given):
            raise StudyError(f"{self.path}: grid: {name} must not repeat a value, got {given!r}")
        return levels

    def seeds(self) -> list[int]:
        seeds = self.content.get("seeds", [0])
        if not isinstance(seeds, list) or not seeds or any(type(seed) is not int or seed < 0 for seed in seeds):
            raise StudyError(f"{self.path}: seeds must be a list of whole numbers like [0, 1, 2], got {seeds!r}")
        if len(set(seeds)) < len(seeds):
            raise StudyError(f"{self.path}: seeds must not repeat a seed, got {seeds}")
        return seeds

    def controls(self) -> dict[str, str | dict[str, str]]:
        controls: dict[str, str | dict[str, str]] = {}
        for name, given in self.mapping("controls").items():
            self.check_name("controls", name)
            if isinstance(given, Mapping) and given:
                controls[name] = {str(factor): label(level) for factor, level in given.items()}
            elif isinstance(given, str):
                controls[name] = given
            else:
                raise StudyError(
                    f"{self.path}: controls: {name} must be the name of an arm, or levels like {{variant: none}}, "
                    f"got {given!r}"
                )
        return controls


def label(value: Any) -> str:
    """A value as part of a name."""
    if value is None or isinstance(value, bool):
        return str(value).lower()
    text = "x".join(map(str, value)) if isinstance(value, list) else str(value)
    return re.sub(r"[^A-Za-z0-9._+]+", "-", text).strip("-") or "empty"
