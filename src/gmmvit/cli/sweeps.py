"""The command `sweep`."""

import json
import sys
from pathlib import Path

from gmmvit.cli.app import EXIT_FAILED, Json, app
from gmmvit.text import shown


@app.command
def sweep(
    study: Path,
    /,
    *,
    out: Path | None = None,
    data_dir: str | None = None,
    workers: int | None = None,
    per_device: int = 1,
    ray: str | None = None,
    nice: int = 10,
    dry_run: bool = False,
    quiet: bool = False,
    as_json: Json = False,
) -> int:
    """Run the trainings of a study in parallel and write one table (docs/sweep.md).

    After an interruption the same command continues: it skips finished trials and resumes started ones. The exit status
    is 1 if a trial failed.

    Parameters
    ----------
    study
        YAML file of the study.
    out
        Folder of the study; default: as its file says, else runs/NAME after the file.
    data_dir
        Folder of the named data sets, instead of the study's.
    workers
        Trials at once; default: one per core, or `per_device` per GPU. They share the cores.
    per_device
        Trials at once on each GPU.
    ray
        Run on the Ray cluster at this address, such as auto or ray://HOST:10001; local starts one on this machine.
    nice
        Niceness of the trials, which keeps the machine usable.
    dry_run
        Only list and count the trials.
    quiet
        Print nothing while running.
    as_json
        Print the table as JSON.
    """
    from gmmvit.sweep import Sweep, make_cluster, make_plan, make_pool, out_folder, read_study

    plan = make_plan(read_study(study), data_dir)
    if dry_run:
        print(plan.listing())
        return 0
    folder = out_folder(plan, out)
    pool = make_pool(plan, workers, per_device) if ray is None else make_cluster(plan, ray, workers, per_device)

    def report(line: str) -> None:
        if not quiet:
            print(shown(line), file=sys.stderr, flush=True)

    report(f"trials at once: {pool.size}; progress of each in {folder / 'logs'}")
    work = Sweep(plan, folder, report, nice)
    good = work.run(pool)
    from gmmvit.report.study import write_study_page

    page = write_study_page(folder, plan, work.rows, work.table)
    print(json.dumps(work.table) if as_json else work.markdown(), end="\n" if as_json else "")
    report(f"{folder / 'table.csv'}, table.md, trials.csv and {page.name}")
    failed = [row for row in work.rows if row["status"] == "failed"]
    for row in failed:
        print(f"gmmvit: trial {row['trial']} failed: {row['sentence']}", file=sys.stderr)
    return 0 if good else EXIT_FAILED
