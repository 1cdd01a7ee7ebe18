"""Runs trials as processes on this machine: on its cores, or one or several per GPU."""

import os
import time
from dataclasses import dataclass
from typing import Any

from gmmvit.sweep.process import answer, start
from gmmvit.sweep.study import StudyError

_LOOK_S = 0.1


@dataclass(frozen=True)
class Slot:
    """A place for one process: a GPU as CUDA_VISIBLE_DEVICES names it, None for the CPU."""

    number: int
    gpu: str | None


def cores() -> int:
    """The number of cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def visible_gpus() -> list[str]:
    """The GPUs of this process, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    count = torch.cuda.device_count()
    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return named[:count] if named else [str(number) for number in range(count)]


def make_slots(workers: int | None, per_device: int, gpus: list[str]) -> list[Slot]:
    """Slots on the GPUs, `per_device` on each and at most `workers`; without GPUs `workers` slots, by default one per
    core."""
    for name, value in (("workers", workers), ("per-device", per_device)):
        if value is not None and value < 1:
            raise StudyError(f"--{name} must be at least 1, got {value}")
    if gpus:
        places = [gpu for _ in range(per_device) for gpu in gpus][:workers]
        return [Slot(number, gpu) for number, gpu in enumerate(places)]
    return [Slot(number, None) for number in range(workers or cores())]


class Pool:
    """Runs jobs on the slots of this machine."""

    def __init__(self, slots: list[Slot]) -> None:
        self.size = len(slots)
        self.threads = max(1, cores() // len(slots))
        self._free = list(slots)
        self._running: dict[str, tuple[Slot, Any]] = {}

    def has_room(self) -> bool:
        return bool(self._free)

    def start(self, job: dict[str, Any]) -> None:
        """Starts a job in a free slot."""
        slot = self._free.pop(0)
        self._running[job["name"]] = slot, start(job, slot.gpu)

    def wait(self) -> list[tuple[str, dict[str, Any]]]:
        """Waits until a job ends; returns names and outcomes of the ended jobs, empty if none is running."""
        while self._running:
            ended = [name for name, (_, process) in self._running.items() if process.poll() is not None]
            if ended:
                return [(name, self._collect(name)) for name in ended]
            time.sleep(_LOOK_S)
        return []

    def _collect(self, name: str) -> dict[str, Any]:
        slot, process = self._running.pop(name)
        self._free.append(slot)
        return answer(process)

    def stop(self) -> None:
        """Stops all jobs; each training keeps its last finished epoch."""
        for _, process in self._running.values():
            process.terminate()
        for _, process in self._running.values():
            process.wait()
        self._running.clear()
