"""Trials as tasks of a Ray cluster, whose machines see the folder of the study."""

from typing import Any

from gmmvit.sweep import process
from gmmvit.sweep.plan import Plan
from gmmvit.sweep.pool import make_slots


class Cluster:
    """Runs jobs as Ray tasks; the same interface as `Pool`. A task takes `threads` CPUs and, with GPUs, a share of one.

    Raises ModuleNotFoundError where ray is not installed, RuntimeError where there is no cluster at the address.
    """

    def __init__(self, address: str, *, threads: int, workers: int | None, per_device: int, use_gpus: bool) -> None:
        ray = _ray()
        try:
            if address == "local":
                ray.init(
                    address="local",
                    num_cpus=workers and workers * threads,
                    include_dashboard=False, logging_level="warning",
                    log_to_driver=False,
                )
            else:
                ray.init(address=address, log_to_driver=False)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise RuntimeError(f"no Ray cluster at {address!r}: {' '.join(str(error).split())[:200]}") from None
        self.threads, self._ray = threads, ray
        resources = ray.cluster_resources()
        gpus = resources.get("GPU", 0) if use_gpus else 0
        room = gpus * per_device if gpus else resources.get("CPU", 0) // threads
        if room < 1:
            raise RuntimeError(f"the Ray cluster at {address!r} has no machine with {threads} CPUs for a trial")
        self.size = int(min(room, workers or room))
        # A machine that is lost is another machine's turn: the training goes on from its checkpoint.
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


def _ray() -> Any:
    try:
        import ray
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "--ray needs ray; install it: pip install 'gmmvit[ray]' or pip install ray"
        ) from error
    return ray


def make_cluster(plan: Plan, address: str, workers: int | None, per_device: int) -> Cluster:
    """The cluster at an address for a plan; a trial takes the CPUs that its recipe calls `threads`, one by default."""
    make_slots(workers, per_device, [])  # raises where they are no numbers of trials
    threads = max(trial.recipe.threads or 1 for trial in plan.samples())
    return Cluster(address, threads=threads, workers=workers, per_device=per_device, use_gpus=plan.on_gpu())
