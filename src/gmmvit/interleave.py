"""Trainings that take turns in one process, so that several small models fill a GPU that one of them cannot."""

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

Result = TypeVar("Result")


def finish(training: Generator[None, None, Result]) -> Result:
    """Runs a training that is alone to its end and returns what it returns."""
    while True:
        try:
            next(training)
        except StopIteration as end:
            return end.value


def take_turns(
    trainings: Sequence[Generator[None, None, Any]], device: torch.device, *, own_streams: bool = True
) -> list[Any]:
    """Runs the trainings a step each in turn, to their ends.

    Each has its own random numbers, as if it were alone, and on a GPU its own stream, so that the GPU works on several
    at once; not with `own_streams` false, for compiled models, whose graphs share one pool of memory. What a training
    returns stands in its place; one that raises is left out, the others go on, and its exception stands there.
    """
    results: list[Any] = [None] * len(trainings)
    places = {index: _Place(device, own_streams) for index in range(len(trainings))}
    while places:
        for index, place in list(places.items()):
            try:
                with place.taken():
                    next(trainings[index])
            except StopIteration as end:
                results[index] = end.value
                del places[index]
            except Exception as error:  # of one training: told at the end, by whoever called
                results[index] = error
                del places[index]
    return results


class _Place:
    """The state of torch that belongs to one training: random numbers, and the stream on a GPU."""

    def __init__(self, device: torch.device, own_stream: bool) -> None:
        self.device = device
        self.random = torch.get_rng_state()
        self.device_random = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" and own_stream else None
        if self.stream is not None:  # models and data were made on the stream of now
            self.stream.wait_stream(torch.cuda.current_stream(device))

    @contextmanager
    def taken(self) -> Iterator[None]:
        torch.set_rng_state(self.random)
        if self.device_random is not None:
            torch.cuda.set_rng_state(self.device_random, self.device)
        try:
            with torch.cuda.stream(self.stream):  # of None: no stream
                yield
        finally:
            self.random = torch.get_rng_state()
            if self.device_random is not None:
                self.device_random = torch.cuda.get_rng_state(self.device)
