"""Where the work runs: copies to the images' device, rows of images, one thread on the CPU."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """`tensor` on `device`; for CUDA through pinned memory, since only such a copy does not make the host wait."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=device.type == "cuda")


def take_rows(images: Tensor, rows: Tensor) -> Tensor:
    """`images[rows]`; moves uint16, for which torch has few operations, as int16."""
    if images.dtype != torch.uint16:
        return images.index_select(0, rows)  # faster on the CPU than indexing
    return images.view(torch.int16).index_select(0, rows).view(torch.uint16)


@contextmanager
def one_thread() -> Iterator[None]:
    """Run torch's CPU operations on one thread inside, then restore the number of threads.

    A batch takes about a hundred short operations. Measured on 2 cores, a second thread gains a third at batch 512 and
    loses at batch 128; if another process holds a core, each operation waits for it: 80 times slower.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
