"""How much memory this process may take for images."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

_MEMINFO = Path("/proc/meminfo")
_OWN_PAGES = Path("/proc/self/statm")
_CGROUP = Path("/sys/fs/cgroup")


def fits_in_memory(size: int) -> bool:
    """Whether `size` bytes are at most half of this process's share of the free memory.

    Processes of one launcher on this machine (LOCAL_WORLD_SIZE) share it; if the free memory is unknown, everything
    fits.
    """
    free = free_memory()
    if free is None:
        return True
    processes = os.environ.get("LOCAL_WORLD_SIZE", "1")
    return size <= free / 2 / (int(processes) if processes.isdecimal() and int(processes) else 1)


def in_words(size: int) -> str:
    """A number of bytes as text, such as 512 MiB or 16.3 TiB."""
    value, units = float(size), iter(("bytes", "KiB", "MiB", "GiB", "TiB"))
    unit = next(units)
    while value >= 1000 and (larger := next(units, None)) is not None:
        value, unit = value / 1024, larger
    return f"{value:.3g} {unit}" if value < 1000 else f"{value:,.0f} {unit}"


def refusal(error: BaseException) -> str | None:
    """For an out-of-memory error, a phrase with the requested and the free memory; None for any other error."""
    text = " ".join(str(error).split())
    if not isinstance(error, MemoryError) and not re.search(r"allocate memory|out of memory", text):
        return None
    if asked := re.search(r"tried to allocate (\d+) bytes", text):  # torch on the CPU
        free = free_memory()
        known = "" if free is None else f", and {in_words(free)} are free"
        return f"{in_words(int(asked[1]))} were asked for at once{known}"
    of_gpu = re.search(r"Tried to allocate .*? is free", text)
    return of_gpu[0] if of_gpu else text


def free_memory() -> int | None:
    """Bytes that can be allocated without swapping: the minimum of what machine, container and `ulimit -v` leave."""
    known = [free for free in (_machine(), _container(), _addresses()) if free is not None]
    return min(known) if known else None


def _machine() -> int | None:
    try:
        fields = dict(line.split(":", 1) for line in _MEMINFO.read_text().splitlines())
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None


def _container() -> int | None:
    """What control group v2 leaves; file pages count as free, because the kernel drops them first."""
    try:
        limit = (_CGROUP / "memory.max").read_text().strip()
        if limit == "max":
            return None
        statistics = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
        used = int((_CGROUP / "memory.current").read_text()) - int(statistics.get("inactive_file", 0))
        return max(0, int(limit) - used)
    except (OSError, ValueError):
        return None


def peak_memory() -> int | None:
    """This process's peak memory in bytes; None if the system does not record it."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _addresses() -> int | None:
    """What `ulimit -v` leaves of this process's address space."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return None
    try:
        return max(0, limit - int(_OWN_PAGES.read_text().split()[0]) * resource.getpagesize())
    except (OSError, ValueError):
        return None
