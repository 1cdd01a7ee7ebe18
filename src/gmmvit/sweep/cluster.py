"""Trials as tasks of a Ray cluster, whose machines share the study's folder."""

import socket
from typing import Any

from gmmvit.sweep import process
from gmmvit.sweep.plan import Plan
from gmmvit.sweep.pool import make_slots

_ANSWER_S = 10.0  # time limit for a cluster to answer


class Cluster:
    """Runs jobs as Ray tasks, with the interface of `Pool`. A task takes `threads` CPUs and, with GPUs, a share of one.

    Raises ModuleNotFoundError if ray is not installed, RuntimeError if there is no cluster at the address.
    """

    def __init__(self, address: str, *, threads: int, workers: int | None, per_device: int, use_gpus: bool) -> None:
        ray = _ray()
        _check_reachable(address)
        local = {"num_cpus": workers and workers * threads, "include_dashboard": False} if address == "local" else {}
        try:
            ray.init(address=address, log_to_driver=False, logging_level="warning", **local)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise RuntimeError(f"no Ray cluster at {address!r}: {' '.join(str(error).split())[:200]}") from None
        self.threads, self._ray = threads, ray
        machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        gpus = sum(machine.get("GPU", 0) for machine in machines) if use_gpus else 0
        cpus_for = sum(machine.get("CPU", 0) // threads for machine in machines)
        room = min(gpus * per_device, cpus_for) if gpus else cpus_for
        if room < 1:
            ray.shutdown()
            raise RuntimeError(f"the Ray cluster at {address!r} has no machine with {threads} CPUs for a trial")
        self.size = int(min(room, workers or room))
        # If a machine is lost, another one continues the training from its checkpoint.
        share = {"num_gpus": 1 / per_device} if gpus else {}
        self._task = ray.remote(num_cpus=threads, max_retries=3, **share)(process.run)
        self._running: dict[Any, str] = {}

    def has_room(self) -> bool:
        return len(self._running) < self.size

    def start(self, job: dict[str, Any]) -> None:
        self._running[self._task.remote(job)] = job["name"]

    def wait(self) -> list[tuple[str, dict[str, Any]]]:
        if not self._running:
            return []
        ended, _ = self._ray.wait(list(self._running), num_returns=1)
        return [(self._running.pop(task), self._outcome(task)) for task in ended]

    def _outcome(self, task: Any) -> dict[str, Any]:
        try:
            return self._ray.get(task)
        except self._ray.exceptions.RayError as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            return {"sentence": f"its Ray task failed: {lines[-1] if lines else type(error).__name__}"}

    def stop(self) -> None:
        self._ray.shutdown()


def _check_reachable(address: str) -> None:
    """Raises RuntimeError if nothing answers at HOST:PORT or ray://HOST:PORT, where Ray itself would wait minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon:
        return
    try:
        socket.create_connection((host, int(port)), _ANSWER_S).close()
    except (OSError, ValueError, OverflowError) as error:
        raise RuntimeError(f"no Ray cluster at {address!r}: {error}") from None


def _ray() -> Any:
    try:
        import ray
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "--ray needs ray; install it: pip install 'gmmvit[ray]' or pip install ray"
        ) from error
    return ray


def make_cluster(plan: Plan, address: str, workers: int | None, per_device: int) -> Cluster:
    """The cluster at an address for a plan; a trial takes as many CPUs as its recipe has `threads`, by default one."""
    make_slots(workers, per_device, [])  # checks the numbers
    threads = max(trial.recipe.threads or 1 for trial in plan.samples())
    return Cluster(address, threads=threads, workers=workers, per_device=per_device, use_gpus=plan.on_gpu())
