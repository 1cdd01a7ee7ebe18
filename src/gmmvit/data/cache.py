"""The decoded cache: a file per data set, size and fit, checked against its sources, safe for several processes.

The file holds the pixels, the labels (int64, or uint8 for each class), the sums (int64), a JSON index and a trailer
(the index's checksum and length, magic). It is written under a temporary name, flushed and renamed, so a file with the
final name is complete. Sums reveal later changes to pixels, labels or index; such a file is decoded again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from gmmvit.data.decode_all import Catalog, Decoded, Producer, image_sums, in_memory
from gmmvit.data.records import DataError, Report, expanded, relative, silent
from gmmvit.data.target import Target

_FORMAT = 1
_READING = b"2"  # counts up where parts, classes or labels are read from the same files in another way
_MAGIC = b"gmmvit02"
_TRAILER = struct.Struct("<IQ8s")
# Pixels whose sums are checked when a cache is read: all of CIFAR-10, 184 MB, which takes a core about 0.2 s. Of larger
# data sets, which may not fit into memory, this many bytes of evenly spaced images.
_CHECKED_BYTES = 512 * 2**20
_CHECKED_ROWS = 128


def cache_folder(option: str | os.PathLike[str] | None, report: Report) -> Path | None:
    """The option, else the environment variable GMMVIT_CACHE, else ~/.cache/gmmvit; None, with a notice, if it is in a
    home folder that is unknown."""
    try:
        return expanded(option or os.environ.get("GMMVIT_CACHE") or "~/.cache/gmmvit")
    except DataError as error:
        report(f"no cache, {error}; the decoded images are kept in memory only")
        return None


def cache_path(folder: Path, name: str, location: str, target: Target) -> Path:
    """The cache file for the data set `name` at `location`, decoded to one target."""
    parts: list[Any] = [_FORMAT, name, location, target.shape, target.fit]
    parts += [] if target.usual else [target.bits, target.axes]
    key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
    height, width = target.size
    kind = f"{target.channels}" if target.bits == 8 else f"{target.channels}x{target.bits}bit"
    return folder / f"{readable_name(name)}-{height}x{width}x{kind}-{key}.images"


def readable_name(name: str) -> str:
    """A data set's name as part of the name of its cache file."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", name)[-40:].strip("-")


def is_cache_file(path: Path) -> bool:
    """Whether a file ends like a cache file of this or an older format."""
    try:
        with open(path, "rb") as file:
            file.seek(-len(_MAGIC), os.SEEK_END)
            return re.fullmatch(rb"gmmvit\d\d", file.read()) is not None
    except OSError:  # absent, unreadable, or shorter than that
        return False


def fingerprint(location: str, files: Sequence[str]) -> str:
    """A hash that changes when a file is added, removed, renamed, resized, touched or made readable.

    Raises:
        DataError: a file is gone or its folder cannot be entered.
    """
    digest = hashlib.sha256(_READING)
    for file in files:
        try:
            status = os.stat(file)
        except OSError as error:
            if not os.path.islink(file):
                raise DataError(f"{file} cannot be read: {error.strerror}") from error
            # A dead link counts as a broken image; once repaired, its status becomes that of its target.
            status = os.lstat(file)
        name = relative(file, location)
        digest.update(f"{name!a} {status.st_size} {status.st_mtime_ns} {status.st_mode}\n".encode())
    return digest.hexdigest()


def fetch(path: Path, state: str, target: Target, produce: Producer, report: Report) -> Decoded:
    """The cached images at `path`; first produces and writes them unless their fingerprint is `state`.

    If the cache cannot be written (read-only, full, not a folder), reports this and produces the images in memory.
    """
    cached = _read(path, state, target, report)
    if cached is not None:
        return cached
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path.with_suffix(".lock"), report) as alone:
            if alone:
                _remove_leftovers(path)
            # Another process may have written it while this one waited.
            return _read(path, state, target) or _write(path, state, target, produce)
    except _CacheError as error:
        reason = error.reason
    except OSError as error:
        reason = error.strerror or str(error)
    report(f"cache {path.parent} cannot be written ({reason}): the decoded images are kept in memory only")
    return in_memory(produce, target)


class _CacheError(Exception):
    """Writing the cache failed; kept apart from errors of reading the sources."""

    def __init__(self, error: OSError) -> None:
        super().__init__(str(error))
        self.reason = error.strerror or str(error)


@contextlib.contextmanager
def locked(path: Path, report: Report) -> Iterator[bool]:
    """Hold an exclusive lock between processes; yields whether it is held. It only saves double work, so without locks
    in the file system (or the operating system) the caller continues."""
    try:
        import fcntl
    except ImportError:
        yield False
        return
    alone = True
    with open(path, "ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report(f"waiting for another process that holds {path}")
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:
            alone = False
            report(f"{path} cannot be locked: processes that start at once may do the same work twice")
        yield alone


class _FileSink:
    def __init__(self, file: BinaryIO, image_bytes: int) -> None:
        self._file, self._image_bytes = file, image_bytes

    def reserve(self, count: int) -> None:
        # A full disk shows here, not after minutes of decoding.
        if hasattr(os, "posix_fallocate") and count:
            try:
                os.posix_fallocate(self._file.fileno(), 0, count * self._image_bytes)
            except OSError as error:
                raise _CacheError(error) from error

    def append(self, images: np.ndarray) -> None:
        self.write(np.ascontiguousarray(images))

    def write(self, data: np.ndarray | bytes) -> None:
        try:
            self._file.write(data if isinstance(data, bytes) else data.data)
        except OSError as error:
            raise _CacheError(error) from error

    def finish(self) -> None:
        try:
            self._file.truncate()
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise _CacheError(error) from error


def _remove_leftovers(path: Path) -> None:
    """Delete what killed processes left; call it only under the lock, when no other process can be writing."""
    for leftover in path.parent.glob(f".{path.name}.*.tmp"):
        leftover.unlink(missing_ok=True)


def _write(path: Path, state: str, target: Target, produce: Producer) -> Decoded:
    temporary = path.parent / f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp"
    try:
        with open(temporary, "w+b") as file:
            sink = _FileSink(file, target.nbytes)
            catalog = produce(sink)
            sink.write(np.ascontiguousarray(catalog.labels))
            sink.write(np.ascontiguousarray(catalog.sums))
            index = json.dumps(
                {
                    "fingerprint": state,
                    "shape": target.shape,
                    "count": len(catalog.labels),
                    "several": catalog.labels.ndim == 2,
                    "classes": catalog.classes,
                    "parts": catalog.parts,
                    "names": catalog.names,
                    "broken": catalog.broken,
                    "notices": list(catalog.notices),
                    "labels_crc32": zlib.crc32(catalog.labels.tobytes()),
                }
            ).encode()
            sink.write(index + _TRAILER.pack(zlib.crc32(index), len(index), _MAGIC))
            sink.finish()
            # Read through this handle: another process may replace the file at any time.
            decoded = _parse(file, state, target)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    if decoded is None:
        raise _CacheError(OSError(f"{path} does not read back as it was written"))
    return decoded


def _read(path: Path, state: str, target: Target, report: Report = silent) -> Decoded | None:
    try:
        with open(path, "rb") as file:
            return _parse(file, state, target, report)
    except OSError:  # absent or unreadable: to be written again
        return None


def _same_sums(images: np.ndarray, sums: np.ndarray) -> bool:
    """Whether the images still have these sums; of many images, a spread sample."""
    step = max(1, -(-images.nbytes // _CHECKED_BYTES))
    images, sums = images[::step], sums[::step]
    blocks = range(0, len(images), _CHECKED_ROWS)
    return all(np.array_equal(image_sums(images[i : i + _CHECKED_ROWS]), sums[i : i + _CHECKED_ROWS]) for i in blocks)


def _changed(file: BinaryIO) -> str:
    return f"cache {file.name} was changed after it was written: its images are decoded again"


def _index(content: bytes) -> dict[str, Any] | None:
    """The index if it has the form that `_write` gives it, which a matching checksum does not prove."""
    try:
        index = json.loads(content)
        count, parts, names = index["count"], index["parts"], index["names"]
        sound = (
            type(count) is int
            and count >= 0
            and all(isinstance(name, str) for name in [index["fingerprint"], *index["classes"], *names])
            and len(names) in (0, count)
            and all(0 <= first <= last <= count for first, last in parts.values())
            and all(isinstance(text, str) for pair in index["broken"] for text in pair)
            and all(len(pair) == 2 for pair in index["broken"])
            and all(isinstance(line, str) for line in index.get("notices", ()))
            and type(index["labels_crc32"]) is int
            and len(index["shape"]) == 3
        )
        return index if sound else None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _parse(file: BinaryIO, state: str, target: Target, report: Report = silent) -> Decoded | None:
    """The decoded images of an open cache file; None if it is damaged or made from other sources."""
    size = file.seek(0, os.SEEK_END)
    if size < _TRAILER.size:
        return None
    file.seek(size - _TRAILER.size)
    checksum, index_bytes, magic = _TRAILER.unpack(file.read(_TRAILER.size))
    if magic != _MAGIC or index_bytes > size - _TRAILER.size:
        return None
    file.seek(size - _TRAILER.size - index_bytes)
    content = file.read(index_bytes)
    index = _index(content) if zlib.crc32(content) == checksum else None
    if index is None:
        report(_changed(file))
        return None
    count, channels = index["count"], target.channels
    pixel_bytes = count * target.nbytes
    several = index.get("several") is True  # missing in the files of older versions
    label_bytes = count * (len(index["classes"]) if several else 8)
    expected = pixel_bytes + label_bytes + count * 2 * channels * 8 + index_bytes + _TRAILER.size
    if index["fingerprint"] != state or tuple(index["shape"]) != target.shape or size != expected:
        return None
    file.seek(pixel_bytes)
    labels = np.frombuffer(file.read(label_bytes), dtype=np.uint8 if several else np.int64)
    labels = labels.reshape(count, len(index["classes"])) if several else labels
    sums = np.frombuffer(file.read(count * 2 * channels * 8), dtype=np.int64).reshape(count, 2, channels)
    images = (
        np.memmap(file, dtype=target.dtype, mode="r", shape=(count, *target.shape))
        if count
        else np.empty((0, *target.shape), dtype=target.dtype)
    )
    top = 2 if several else len(index["classes"])
    in_range = not count or not index["classes"] or 0 <= labels.min() <= labels.max() < top
    if not in_range or zlib.crc32(labels.tobytes()) != index["labels_crc32"] or not _same_sums(images, sums):
        report(_changed(file))
        return None
    catalog = Catalog(
        classes=tuple(index["classes"]),
        parts={name: (first, last) for name, (first, last) in index["parts"].items()},
        labels=labels,
        names=index["names"],
        sums=sums,
        broken=[(name, reason) for name, reason in index["broken"]],
        notices=index.get("notices", ()),
    )
    return Decoded(images, catalog)
