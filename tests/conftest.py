"""Shared by all tests: threads, poisoned memory, data folders."""

import os
from pathlib import Path

import pytest
import torch

SHARED = Path(__file__).parents[2] / "shared"

if not torch.cuda.is_available():  # read when triton is first imported: its kernels then run on the CPU
    os.environ["TRITON_INTERPRET"] = "1"

if "PYTEST_XDIST_WORKER" in os.environ:  # two workers with all threads each would only wait for each other
    torch.set_num_threads(1)


@pytest.fixture
def poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fills every uninitialised tensor with NaN, so that an unwritten output cannot pass."""

    def poison(make):
        def made(*args, **kwargs):
            tensor = make(*args, **kwargs)
            return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

        return made

    for owner, name in ((torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty")):
        monkeypatch.setattr(owner, name, poison(getattr(owner, name)))


@pytest.fixture(scope="session")
def cifar10_dir() -> Path:
    folder = SHARED / "data"
    if not (folder / "cifar10").is_dir():
        pytest.skip(f"CIFAR-10 is not at {folder}")
    return folder
