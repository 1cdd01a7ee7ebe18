"""Settings of ranges, proposed by Optuna: one search for each arm on each data set, kept in a journal of the study."""

import statistics
from pathlib import Path
from typing import Any

from gmmvit.sweep.plan import Arm, Plan, Trial
from gmmvit.sweep.study import Fields, Range

METRIC = "val_top1"


class Search:
    """The settings of one arm on one data set. A setting's worth is the mean validation top-1 over the seeds."""

    def __init__(self, plan: Plan, data: str, arm: Arm, out: Path) -> None:
        optuna = _optuna()
        self._optuna, self._plan, self._data, self._arm = optuna, plan, data, arm
        journal = out / "search" / f"{data}-{arm.name}.log"
        journal.parent.mkdir(parents=True, exist_ok=True)
        storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(journal)))
        self._study = optuna.create_study(
            storage=storage, study_name="gmmvit", direction="maximize", load_if_exists=True
        )
        self._waiting: dict[int, dict[str, Any]] = {}  # outcomes by trial name, of settings with trials that still run
        states = optuna.trial.TrialState
        known = self._study.get_trials(deepcopy=False)
        self._left = plan.study.trials - len(known)
        self._again = [(t.number, dict(t.params)) for t in known if t.state == states.RUNNING]
        self._ended = [(t.number, dict(t.params)) for t in known if t.state != states.RUNNING]

    def ended(self) -> list[Trial]:
        """Trials of settings that ended in an earlier sweep."""
        return [trial for number, values in self._ended for trial in self._trials(number, values)]

    def begun(self) -> list[Trial]:
        """Trials of settings that an earlier sweep did not bring to their end."""
        return [trial for number, values in self._again for trial in self._trials(number, values)]

    def next(self) -> list[Trial]:
        """The trials of the next setting, those first that a kill left; empty where none is left."""
        if self._again:
            number, values = self._again.pop(0)
        elif self._left > 0:
            self._left -= 1
            # A sampler a setting, seeded by its number: what is proposed does not depend on kills before it.
            number = len(self._study.get_trials(deepcopy=False))
            self._study.sampler = self._optuna.samplers.TPESampler(seed=number)
            proposed = self._study.ask()
            number = proposed.number
            values = {name: _suggest(proposed, name, r) for name, r in self._plan.study.ranges.items()}
        else:
            return []
        self._waiting[number] = {}
        return self._trials(number, values)

    def _trials(self, number: int, values: Fields) -> list[Trial]:
        return self._plan.setting(self._data, self._arm, number, values)

    def done(self, trial: Trial, row: dict[str, Any]) -> None:
        """Takes a trial's row; a setting of which one failed is worth nothing."""
        assert trial.number is not None
        found = self._waiting[trial.number]
        found[trial.name] = row.get(METRIC)
        if len(found) < len(self._plan.study.seeds):
            return
        values = list(found.values())
        if any(value is None for value in values):
            self._study.tell(trial.number, state=self._optuna.trial.TrialState.FAIL)
        else:
            self._study.tell(trial.number, statistics.mean(values))


def _suggest(proposed: Any, name: str, asked: Range) -> float | int:
    if asked.whole:
        return proposed.suggest_int(name, int(asked.low), int(asked.high), log=asked.log)
    return proposed.suggest_float(name, asked.low, asked.high, log=asked.log)


def _optuna() -> Any:
    try:
        import optuna
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "ranges need optuna; install it: pip install 'gmmvit[sweep]' or pip install optuna"
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
