"""The trials of a study: each arm on each data set with each seed."""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gmmvit.config import Recipe, RecipeError, load_recipe
from gmmvit.sweep.study import Fields, Study, StudyError, nearest


@dataclass(frozen=True)
class Arm:
    """What a study compares: a level of every factor; an arm of `also` has no levels."""

    name: str
    levels: dict[str, str]
    fields: Fields


@dataclass(frozen=True)
class Trial:
    """One training. `setting` holds values for the study's ranges and `number` counts settings; without ranges they are
    {} and None."""

    name: str
    data: str
    arm: Arm
    seed: int
    recipe: Recipe
    setting: Fields = dataclasses.field(default_factory=dict)
    number: int | None = None


@dataclass(frozen=True)
class Plan:
    """The arms of a study, their controls and their trials."""

    study: Study
    arms: dict[str, Arm]
    data_dir: str | None = None

    def trials(self) -> list[Trial]:
        """All trials of a study without ranges, seed by seed, so that an interrupted study has complete comparisons."""
        study = self.study
        kinds = itertools.product(study.seeds, study.data, self.arms.values())
        return [self.trial(data, arm, seed) for seed, data, arm in kinds]

    def searches(self) -> Iterator[tuple[str, Arm]]:
        """The pairs of data and arm of a study with ranges; each gets its own search."""
        return itertools.product(self.study.data, self.arms.values())

    def samples(self) -> list[Trial]:
        """One trial of every arm on every data set, with the first seed and ranges at their low ends."""
        lowest = {name: r.whole_or_not(r.low) for name, r in self.study.ranges.items()}
        number = 0 if lowest else None
        return [self.trial(data, arm, self.study.seeds[0], lowest, number) for data, arm in self.searches()]

    def on_gpu(self) -> bool:
        """Whether all trials may run on any GPU."""
        return all(trial.recipe.device in ("auto", "cuda") for trial in self.samples())

    def listing(self) -> str:
        """The names and number of the trials; with ranges, the number of settings per arm."""
        study = self.study
        if not study.ranges:
            trials = self.trials()
            return "\n".join([*(trial.name for trial in trials), f"{len(trials)} trials"])
        lines = [
            f"{data}-{arm.name}: {study.trials} settings x {len(study.seeds)} seeds" for data, arm in self.searches()
        ]
        return "\n".join([*lines, f"{len(lines) * study.trials * len(study.seeds)} trials"])

    def setting(self, data: str, arm: Arm, number: int, values: Fields) -> list[Trial]:
        """The trials of one setting of the ranges, one per seed."""
        return [self.trial(data, arm, seed, values, number) for seed in self.study.seeds]

    def trial(self, data: str, arm: Arm, seed: int, setting: Fields | None = None, number: int | None = None) -> Trial:
        """One trial; raises StudyError if its recipe is invalid."""
        study, setting = self.study, setting or {}
        parts = [data, arm.name, *([] if number is None else [f"t{number:03d}"]), f"s{seed}"]
        name = "-".join(parts)
        sources = {"data " + data: study.data[data], "arm " + arm.name: arm.fields, "ranges": setting}
        given = _joined(study, sources)
        if self.data_dir is not None:
            given["data_dir"] = self.data_dir
        try:
            recipe = load_recipe(study.recipe, **{**study.fields, **given, "seed": seed})
        except RecipeError as error:
            text = str(error).removeprefix("the given values: ").removeprefix("the given values has ")
            raise StudyError(f"{study.path}: trial {name}: {text}") from None
        return Trial(name, data, arm, seed, recipe, setting, number)

    def control(self, arm: Arm, name: str) -> Arm | None:
        """The arm that a control compares `arm` with; None for the control itself or if there is none."""
        control = self.study.controls[name]
        if isinstance(control, str):
            other = self.arms[control]
        elif not arm.levels:
            return None
        else:
            levels = {**arm.levels, **control}
            other = next(found for found in self.arms.values() if found.levels == levels)
        return None if other is arm else other


def make_plan(study: Study, data_dir: str | None = None) -> Plan:
    """The plan of a study; raises StudyError for duplicate names or trials, an invalid recipe or a missing control.

    `data_dir` replaces the study's folder for named data sets.
    """
    arms: dict[str, Arm] = {}
    for arm in [*_combinations(study), *(Arm(name, {}, fields) for name, fields in study.also.items())]:
        if arm.name in arms:
            raise StudyError(f"{study.path} has two arms called {arm.name!r}")
        arms[arm.name] = arm
    plan = Plan(study, arms, data_dir)
    _check_controls(plan)
    _check_trials(plan)
    return plan


def _combinations(study: Study) -> list[Arm]:
    if not study.factors:
        return [] if study.also else [Arm("base", {}, {})]
    arms = []
    for names in itertools.product(*study.factors.values()):
        levels = dict(zip(study.factors, names, strict=True))
        sources = {f"{factor} {level}": study.factors[factor][level] for factor, level in levels.items()}
        words = [f"{factor}={level}" if factor in study.listed else level for factor, level in levels.items()]
        arms.append(Arm("-".join(words), levels, _joined(study, sources)))
    return arms


def _joined(study: Study, sources: Mapping[str, Fields]) -> Fields:
    """The fields of all sources; raises StudyError if two set the same field, or one sets the seed."""
    joined: dict[str, Any] = {}
    owner: dict[str, str] = {}
    for source, fields in {**sources, "fields": study.fields}.items():
        if "seed" in fields:
            raise StudyError(f"{study.path}: {source} sets the seed; use `seeds` instead")
        if source == "fields":
            continue
        for name, value in fields.items():
            if name in owner:
                raise StudyError(f"{study.path}: {name} is set by {owner[name]} and by {source}; keep one of them")
            joined[name], owner[name] = value, source
    return joined


def _check_controls(plan: Plan) -> None:
    study = plan.study
    if not study.controls and len(plan.arms) > 1:
        raise StudyError(
            f"{study.path} has {len(plan.arms)} arms but no control: say what to compare them with, for example "
            "`controls: {mask: {variant: none}}`"
        )
    for name, control in study.controls.items():
        where = f"{study.path}: controls: {name}"
        if isinstance(control, str):
            if control not in plan.arms:
                raise StudyError(f"{where}: there is no arm {control!r}{nearest(control, plan.arms)}")
            continue
        for factor, level in control.items():
            if factor not in study.factors:
                raise StudyError(f"{where}: there is no factor {factor!r}{nearest(factor, study.factors)}")
            if level not in study.factors[factor]:
                raise StudyError(f"{where}: {factor} has no level {level!r}{nearest(level, study.factors[factor])}")


def _check_trials(plan: Plan) -> None:
    """Checks that every recipe is valid and no name or training occurs twice."""
    study = plan.study
    highest = {name: r.whole_or_not(r.high) for name, r in study.ranges.items()}
    for data, arm in plan.searches():
        plan.trial(data, arm, study.seeds[-1], highest)  # checks the recipe at the upper ends too
    trials = plan.samples()
    seen: dict[str, str] = {}
    names: set[str] = set()
    for trial in trials:
        if trial.name.lower() in names:
            raise StudyError(f"{study.path} gives two trials the name {trial.name}")
        names.add(trial.name.lower())
        other = seen.setdefault(repr(trial.recipe), trial.name)
        if other != trial.name:
            raise StudyError(f"{study.path}: trials {other} and {trial.name} are the same training; remove one of them")


def folder_of(out: Path, trial: Trial) -> Path:
    """The run folder of a trial."""
    return out / "trials" / trial.name
