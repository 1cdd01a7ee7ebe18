"""Where the work runs: rows of images, host tensors to the device of the images, and one thread on the CPU."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """`tensor` on `device`; via pinned memory for CUDA, since only such a copy does not make the host wait."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=device.type == "cuda")


def take_rows(images: Tensor, rows: Tensor) -> Tensor:
    """`images[rows]`; of uint16, for which torch has few operations, the bits are moved as int16."""
    if images.dtype != torch.uint16:
        return images.index_select(0, rows)  # on the CPU faster than indexing
    return images.view(torch.int16).index_select(0, rows).view(torch.uint16)


@contextmanager
def one_thread() -> Iterator[None]:
    """Run torch's CPU operations on one thread inside; the number of threads is put back at the end.

    A batch takes some hundred short operations. Measured on 2 cores, a second thread gains a third at batch 512 and
    loses at batch 128, and where another process holds a core, each operation waits for it: 80 times slower.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
