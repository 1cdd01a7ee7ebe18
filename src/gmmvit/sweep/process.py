"""One trial in its own process.

The process reads a job from standard input, trains, resumes or only reads the job's run folder, and prints one line of
JSON: the summary and the machine, or the error message.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

ENVIRONMENT = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_WATCH_S = 0.2


def make_job(name: str, folder: Path, recipe: dict[str, Any], *, threads: int, nice: int) -> dict[str, Any]:
    """The job for a process: a trial's name, run folder and recipe, CPU threads, and niceness to add."""
    return {"name": name, "folder": str(folder), "recipe": recipe, "threads": threads, "nice": nice}


def start(job: dict[str, Any], gpu: str | None = None) -> "subprocess.Popen[str]":
    """Starts a job's process with `gpu` as CUDA_VISIBLE_DEVICES; its output goes to `logs/NAME.log` of the study."""
    folder = Path(job["folder"])
    log = folder.parent.parent / "logs" / f"{job['name']}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = dict(os.environ)
    environment |= dict.fromkeys(ENVIRONMENT, str(job["threads"]))
    environment.setdefault("GOMP_SPINCOUNT", "20000")  # as the command does, see cli/__init__.py
    if gpu is not None:
        environment["CUDA_VISIBLE_DEVICES"] = gpu
    with log.open("ab") as errors:
        process = subprocess.Popen(
            [sys.executable, "-c", "import sys; from gmmvit.sweep.process import main; sys.exit(main())"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=environment,
        )
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError), process.stdin as pipe:  # its exit status explains a broken pipe
        pipe.write(json.dumps(job | {"parent": os.getpid()}))
    process.stdin = None
    return process


def answer(process: "subprocess.Popen[str]") -> dict[str, Any]:
    """The answer of an ended process: "summary" and the machine, or "sentence" with the error."""
    out, _ = process.communicate()
    status = process.returncode
    try:
        outcome = json.loads(out.splitlines()[-1])
    except (IndexError, ValueError):
        outcome = None
    if isinstance(outcome, dict):
        return outcome
    if status < 0:
        name = signal.Signals(-status).name
        hint = ", as when memory runs out" if status == -signal.SIGKILL else ""
        return {"sentence": f"its process was killed by {name}{hint}"}
    return {"sentence": f"its process ended with status {status}; its log says more"}


def run(job: dict[str, Any]) -> dict[str, Any]:
    """Runs a job's process to its end, on a machine the cluster chose; returns its answer."""
    process = start(job)
    try:
        return answer(process)
    finally:
        process.kill()


def main() -> int:
    """The process itself."""
    job = json.load(sys.stdin)
    threading.Thread(target=_end_with_parent, args=(job["parent"],), daemon=True).start()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if job["nice"]:
        os.nice(job["nice"])
    # Libraries may print; standard output is for the one line that the sweep waits for.
    with contextlib.redirect_stdout(sys.stderr):
        outcome = _outcome(job)
    print(json.dumps(outcome), flush=True)
    return 0 if "summary" in outcome else 1


def _end_with_parent(parent: int) -> None:
    """Ends this process with the sweep: a new sweep could not resume trials that still run."""
    while os.getppid() == parent:
        time.sleep(_WATCH_S)
    os._exit(1)


def _outcome(job: dict[str, Any]) -> dict[str, Any]:
    import torch

    from gmmvit.building import first_line
    from gmmvit.config import make_recipe
    from gmmvit.rows import commit, device_name

    torch.set_num_threads(job["threads"])
    try:
        recipe = make_recipe(job["recipe"])
        summary = _summary(Path(job["folder"]), recipe)
    except KeyboardInterrupt:
        raise SystemExit(1) from None
    except Exception as error:  # a failed trial must not stop the study
        import traceback

        traceback.print_exc()
        return {"sentence": first_line(error)}
    device = torch.device("cpu") if summary["device"] == "cpu" else torch.device("cuda")
    return {"summary": summary, "threads": torch.get_num_threads(), "machine": device_name(device), "commit": commit()}


def _summary(folder: Path, recipe: Any) -> dict[str, Any]:
    """Runs, resumes or only reads a training; returns its summary."""
    from gmmvit.runs.run_folder import CONFIG
    from gmmvit.training.run import resume, train

    if not (folder / CONFIG).exists():
        return train(recipe, folder)
    moved = None if recipe.dataset.startswith("folder:") else recipe.data_dir
    return resume(folder, data_dir=moved)
