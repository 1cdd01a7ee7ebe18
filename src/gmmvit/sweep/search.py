"""Optuna proposes settings within ranges: one search per arm and data set, kept in the study's journal."""

import statistics
from pathlib import Path
from typing import Any

from gmmvit.sweep.plan import Arm, Plan, Trial
from gmmvit.sweep.study import Fields, Range
from gmmvit.sweep.table import worth


class Search:
    """The settings of one arm on one data set. A setting is rated by its mean validation metric over the seeds."""

    def __init__(self, plan: Plan, data: str, arm: Arm, out: Path) -> None:
        optuna = _optuna()
        self._optuna, self._plan, self._data, self._arm = optuna, plan, data, arm
        journal = out / "search" / f"{data}-{arm.name}.log"
        journal.parent.mkdir(parents=True, exist_ok=True)
        storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(journal)))
        self._study = optuna.create_study(
            storage=storage, study_name="gmmvit", direction="maximize", load_if_exists=True
        )
        self._waiting: dict[int, dict[str, Any]] = {}  # outcomes by trial name, of settings not yet complete
        states = optuna.trial.TrialState
        known = self._study.get_trials(deepcopy=False)
        self._left = plan.study.trials - len(known)
        self._again = [(t.number, dict(t.params)) for t in known if t.state == states.RUNNING]
        self._ended = [(t.number, dict(t.params)) for t in known if t.state != states.RUNNING]

    def ended(self) -> list[Trial]:
        """Trials of the settings that earlier sweeps completed."""
        return [trial for number, values in self._ended for trial in self._trials(number, values)]

    def begun(self) -> list[Trial]:
        """Trials of the settings that earlier sweeps left incomplete."""
        return [trial for number, values in self._again for trial in self._trials(number, values)]

    def next(self) -> list[Trial]:
        """The trials of the next setting, interrupted settings first; empty if no setting is left."""
        if self._again:
            number, values = self._again.pop(0)
        elif self._left > 0:
            self._left -= 1
            # One sampler per setting, seeded by its number, so that earlier kills do not change the proposals.
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
        """Records a trial's row; a setting with a failed trial gets no rating."""
        assert trial.number is not None
        found = self._waiting[trial.number]
        found[trial.name] = worth(row)
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
