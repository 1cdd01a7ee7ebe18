"""`gmmvit sweep`: runs the trainings of a study in parallel, resumable, and writes one table.

`study` reads the file, `plan` makes its trials, `pool` and `cluster` run them, each in a `process`. `search` proposes
settings within ranges; `table` and `files` write the results.
"""

import dataclasses
import os
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gmmvit.config import as_dict
from gmmvit.runs import claim, run_folder
from gmmvit.runs.checkpoint import changed_fields
from gmmvit.runs.files import RunError
from gmmvit.runs.run_data import absolute_paths
from gmmvit.sweep.cluster import Cluster, make_cluster
from gmmvit.sweep.files import make_row, markdown, read_row, remove_leftovers, write_row, write_tables
from gmmvit.sweep.plan import Plan, Trial, folder_of, make_plan
from gmmvit.sweep.pool import Pool, make_slots, visible_gpus
from gmmvit.sweep.process import make_job
from gmmvit.sweep.search import Search
from gmmvit.sweep.study import StudyError, read_study
from gmmvit.sweep.table import Row, metrics_of

__all__ = ["Plan", "StudyError", "Sweep", "make_cluster", "make_plan", "make_pool", "out_folder", "read_study"]
Report = Callable[[str], None]


@dataclasses.dataclass
class Sweep:
    """A running study. `rows` holds a row per ended trial, of this and earlier sweeps.

    Args:
        plan: from `make_plan`.
        out: the study's folder.
        report: called with one line per trial that ends.
        nice: added to the niceness of the trials.
    """

    plan: Plan
    out: Path
    report: Report = print
    nice: int = 10
    rows: list[Row] = dataclasses.field(default_factory=list)
    table: list[Row] = dataclasses.field(default_factory=list)

    def __post_init__(self) -> None:
        self._pending: deque[Trial] = deque()
        self._searches: dict[tuple[str, str], Search] = {}
        self._total = 0

    def run(self, pool: Pool | Cluster) -> bool:
        """Runs the unfinished trials on a `Pool` or a `Cluster`; returns whether all succeeded.

        Raises RunError, before it runs anything, if earlier trials had other recipes than the study gives now.
        """
        with claim.locked(self.out, "another sweep"):
            self._open()
            running: dict[str, Trial] = {}
            try:
                while True:
                    while pool.has_room() and (trial := self._next()) is not None:
                        running[trial.name] = trial
                        pool.start(self._job(trial, pool.threads))
                    ended = pool.wait()
                    if not ended:
                        break
                    for name, outcome in ended:
                        self._ended(running.pop(name), outcome)
            except KeyboardInterrupt:
                raise KeyboardInterrupt(
                    f"interrupted after {len(self.rows)} of {self._total} trials; run the same command to continue"
                ) from None
            finally:
                pool.stop()
            self.table = write_tables(self.out, self.plan, self.rows)
        return all(row["status"] == "done" for row in self.rows)

    def markdown(self) -> str:
        """The table, as in table.md."""
        return markdown(self.plan, self.table)

    def _open(self) -> None:
        """Finds the finished trials and queues the rest."""
        self.rows.clear()
        remove_leftovers(self.out)
        study = self.plan.study
        if study.ranges:
            self._searches = {
                (data, arm.name): Search(self.plan, data, arm, self.out) for data, arm in self.plan.searches()
            }
            trials = [trial for search in self._searches.values() for trial in search.ended()]
            begun = [trial for search in self._searches.values() for trial in search.begun()]
            self._total = len(self._searches) * study.trials * len(study.seeds)
        else:
            trials, begun = self.plan.trials(), []
            self._total = len(trials)
        check_unchanged(self.out, trials + begun)
        for trial in trials:
            row = read_row(self.out, trial.name)
            if row is not None and (row["status"] == "done" or study.ranges):
                self.rows.append(row)
            elif not study.ranges:
                self._pending.append(trial)
        if self.rows:
            self.report(f"{len(self.rows)} of {self._total} trials had ended before")

    def _next(self) -> Trial | None:
        # The searches take turns, so that an interrupted study has tried all arms equally often.
        for key in list(self._searches) if not self._pending else ():
            search = self._searches[key] = self._searches.pop(key)
            self._pending.extend(search.next())
            if self._pending:
                break
        return self._pending.popleft() if self._pending else None

    def _job(self, trial: Trial, threads: int) -> dict[str, Any]:
        recipe = absolute_paths(trial.recipe)
        return make_job(
            trial.name,
            folder_of(self.out, trial).absolute(),
            as_dict(recipe),
            threads=recipe.threads or threads,
            nice=self.nice,
        )

    def _ended(self, trial: Trial, outcome: dict[str, Any]) -> None:
        row = make_row(trial, outcome)
        write_row(self.out, row)
        self.rows.append(row)
        if trial.number is not None:
            self._searches[trial.data, trial.arm.name].done(trial, row)
        write_tables(self.out, self.plan, self.rows)
        text = f"failed: {row['sentence']}"
        if row["status"] == "done":
            shown = {name: row[name] for name in metrics_of(row)[:2] if row[name] is not None}
            text = "  ".join(f"{name} {value:.2%}" for name, value in shown.items())
        self.report(f"{len(self.rows)}/{self._total}  {trial.name}  {text}")


def check_unchanged(out: Path, trials: list[Trial]) -> None:
    """Raises RunError if a run folder was made with another recipe than its trial has now."""
    changed = []
    for trial in trials:
        folder = folder_of(out, trial)
        if (folder / run_folder.CONFIG).exists():
            saved, now = as_dict(run_folder.recipe_of(folder)), as_dict(absolute_paths(trial.recipe))
            if now["minutes"] is not None:  # the time limit sets these during training
                now |= {name: saved[name] for name in ("epochs", "passes", "warmup_epochs")}
            fields = changed_fields(saved, now)
            if fields:
                changed.append((folder, fields))
    if changed:
        folder, fields = changed[0]
        more = f" (and {len(changed) - 1} more)" if len(changed) > 1 else ""
        raise RunError(
            f"{folder} was started with another recipe than the study has now ({fields}){more}; restore the study, "
            "rename the arm, or choose another --out (in Python out=)"
        )


def make_pool(plan: Plan, workers: int | None, per_device: int) -> Pool:
    """The slots of this machine for a plan: on its GPUs if all trials may use one."""
    gpus = visible_gpus() if plan.on_gpu() else []
    return Pool(make_slots(workers, per_device, gpus))


def out_folder(plan: Plan, given: Path | None) -> Path:
    """The study's folder: as given, as its file says, or runs/NAME."""
    if given is not None:
        return given
    study = plan.study
    return Path(os.path.expanduser(study.out)) if study.out else Path("runs") / study.path.stem
