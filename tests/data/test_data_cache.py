"""The decoded cache is reused while the sources stay the same, rebuilt when they change, and never a reason to fail."""

from __future__ import annotations

import fcntl
import json
import os
import resource
import shutil
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from gmmvit.data import cache, decode_all, memory
from gmmvit.data.cache import cache_folder

CHILD = """
import hashlib, sys
from gmmvit.data import load_dataset
if "no-lock" in sys.argv:
    sys.modules["fcntl"] = None
def say(line):
    print(line, flush=True)
data = load_dataset("folder:" + sys.argv[1], image_size=8, cache_dir=sys.argv[2], report=say)
print("digest", hashlib.sha256(data.train.images.numpy().tobytes()).hexdigest(), flush=True)
"""


def cache_files(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache").glob("*.images"))


def decoded(lines: list[str]) -> bool:
    """Whether images were decoded since the last call."""
    found = any("decoding" in line for line in lines)
    lines.clear()
    return found


def unknown_user(uid: int):
    """What `pwd.getpwuid` does if the user has no entry."""
    raise KeyError(uid)


def same(first, second) -> bool:
    return torch.equal(first.train.images, second.train.images) and first.train.names == second.train.names


def test_second_load_decodes_nothing_and_gives_the_same(load, two_classes, lines):
    first = load(two_classes)
    assert decoded(lines)
    second = load(two_classes)
    assert not decoded(lines)
    assert same(first, second)
    assert torch.equal(first.train.labels, second.train.labels)
    assert (first.mean, first.std, first.classes) == (second.mean, second.std, second.classes)


def test_other_splits_and_other_spellings_of_the_path_share_one_cache(load, two_classes, lines, tmp_path, monkeypatch):
    load(two_classes)
    decoded(lines)
    load(two_classes, split_seed=5, val_fraction=0.3, test_fraction=0)
    monkeypatch.chdir(tmp_path)
    load(Path("pets"))
    (tmp_path / "link").symlink_to(two_classes)
    load(tmp_path / "link")
    assert not decoded(lines)
    assert len(cache_files(tmp_path)) == 1


@pytest.mark.parametrize("options", [{"image_size": 9}, {"channels": 1}, {"fit": "pad"}])
def test_other_targets_have_caches_of_their_own(load, two_classes, lines, tmp_path, options):
    load(two_classes)
    load(two_classes, **options)
    assert len(cache_files(tmp_path)) == 2
    decoded(lines)
    load(two_classes)
    assert not decoded(lines)


def test_changed_sources_are_decoded_again(load, two_classes, lines, draw):
    changes = [
        lambda: draw(two_classes / "cat" / "000.png", shade=250),
        lambda: os.utime(two_classes / "cat" / "000.png", (1, 1)),
        lambda: draw(two_classes / "cat" / "new.png"),
        lambda: (two_classes / "cat" / "new.png").rename(two_classes / "cat" / "newer.png"),
        lambda: (two_classes / "cat" / "newer.png").unlink(),
        lambda: shutil.move(two_classes / "cat" / "001.png", two_classes / "dog" / "moved.png"),
    ]
    load(two_classes)
    for change in changes:
        decoded(lines)
        change()
        load(two_classes)
        assert decoded(lines)
        load(two_classes)
        assert not decoded(lines)


def test_stale_cache_gives_the_new_pixels(load, two_classes, draw):
    load(two_classes)
    for file in two_classes.rglob("*.png"):
        draw(file, shade=7)
    assert load(two_classes).train.images[:, 0].unique().tolist() == [7]


@pytest.mark.parametrize("damage", ["cut", "empty", "scribbled"])
def test_damaged_cache_is_written_again(load, two_classes, lines, tmp_path, damage):
    first = load(two_classes)
    [file] = cache_files(tmp_path)
    whole = file.read_bytes()
    file.write_bytes({"cut": whole[:-9], "empty": b"", "scribbled": whole[:-34] + b"x" * 14 + whole[-20:]}[damage])
    decoded(lines)
    assert same(load(two_classes), first)
    assert decoded(lines)
    assert file.read_bytes() == whole


@pytest.mark.parametrize("place", ["first pixel", "last pixel", "label"])
def test_a_cache_overwritten_in_place_is_decoded_anew_with_a_notice(load, two_classes, lines, tmp_path, place):
    first = load(two_classes)
    [file] = cache_files(tmp_path)
    whole, times = file.read_bytes(), file.stat()
    at = {"first pixel": 0, "last pixel": 50 * 3 * 64 - 1, "label": 50 * 3 * 64}[place]
    file.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    lines.clear()
    assert same(load(two_classes), first)
    assert lines[0] == f"cache {file} was changed after it was written: its images are decoded again"
    assert decoded(lines)
    assert file.read_bytes() == whole


@pytest.mark.parametrize("old", [b"cat", b"001.png", b"labels_crc32", b'"count": 50', b'"all": [0, 50]'], ids=str)
def test_a_changed_byte_of_the_index_trains_no_other_names_or_images(load, two_classes, lines, tmp_path, old):
    first = load(two_classes)
    [file] = cache_files(tmp_path)
    whole = file.read_bytes()
    at = whole.rindex(old) + len(old) - 1 - (old[-1:] == b"]")
    file.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    lines.clear()
    second = load(two_classes)
    assert same(second, first)
    assert second.classes == first.classes
    assert lines[0] == f"cache {file} was changed after it was written: its images are decoded again"


@pytest.mark.parametrize(
    "change",
    [{"classes": [1, 2]}, {"classes": 5}, {"parts": [[0, 50]]}, {"parts": {"all": [0, 10**9]}}, {"names": ["a"]},
     {"count": "50"}, {"broken": [["a"]]}, {"labels_crc32": None}, {"shape": 3}],
    ids=str,
)  # fmt: skip
def test_an_index_of_other_types_is_decoded_anew(load, two_classes, lines, tmp_path, change):
    """Written by somebody who knows the format: its checksum is right."""
    first = load(two_classes)
    [file] = cache_files(tmp_path)
    whole = file.read_bytes()
    trailer = cache._TRAILER
    _, size, magic = trailer.unpack(whole[-trailer.size :])
    index = json.dumps(json.loads(whole[-trailer.size - size : -trailer.size]) | change).encode()
    pixels = whole[: -trailer.size - size]
    file.write_bytes(pixels + index + trailer.pack(zlib.crc32(index), len(index), magic))
    decoded(lines)
    assert same(load(two_classes), first)
    assert decoded(lines)


def test_of_a_large_cache_a_spread_sample_is_checked(load, two_classes, lines, tmp_path, monkeypatch):
    load(two_classes)
    monkeypatch.setattr(cache, "_CHECKED_BYTES", 10 * 3 * 64)  # 10 of 50 images
    lines.clear()
    [file] = cache_files(tmp_path)
    whole = file.read_bytes()
    file.write_bytes(whole[: 25 * 3 * 64] + bytes(2 * 3 * 64) + whole[27 * 3 * 64 :])
    load(two_classes)
    assert decoded(lines)


def test_what_a_killed_process_left_is_removed(load, two_classes, tmp_path):
    load(two_classes)
    [file] = cache_files(tmp_path)
    leftover = file.parent / f".{file.name}.1-abc.tmp"
    leftover.write_bytes(b"half")
    file.unlink()
    load(two_classes)
    assert sorted(path.name for path in file.parent.iterdir()) == [file.name, file.with_suffix(".lock").name]


def test_location_that_is_no_folder_falls_back_to_memory(load, two_classes, lines, tmp_path):
    (tmp_path / "occupied").write_text("")
    data = load(two_classes, cache_dir=tmp_path / "occupied" / "cache")
    assert len(data.train) == 36
    assert sum("cannot be written" in line and "memory" in line for line in lines) == 1


def test_read_only_location_falls_back_to_memory_but_an_existing_cache_is_used(load, two_classes, lines, tmp_path):
    expected = load(two_classes)
    cache = tmp_path / "cache"
    lock = next(cache.glob("*.lock"))
    lock.unlink()
    lock.mkdir()
    decoded(lines)
    assert same(load(two_classes), expected)
    assert not decoded(lines)
    cache_files(tmp_path)[0].unlink()
    assert same(load(two_classes), expected)
    assert any("cannot be written" in line for line in lines)


def test_full_disk_falls_back_to_memory_and_leaves_nothing(load, two_classes, lines, tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        data = load(two_classes)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert any("cannot be written (File too large)" in line for line in lines)
    assert len(data.train) == 36
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".lock"]
    assert same(load(two_classes), data)


def test_failed_decoding_leaves_no_file(data_error, load, tmp_path, write_parquet):
    path = write_parquet(tmp_path / "cifar10" / "plain_text" / "train-00000-of-00001.parquet", [0, 99])
    write_parquet(path.with_name("test-00000-of-00001.parquet"), [0, 1])
    assert "label 99 in row 1 of the train part is outside of 0..9" in data_error(load, "cifar10", data_dir=tmp_path)
    assert [file.suffix for file in (tmp_path / "cache").iterdir()] == [".lock"]


def test_large_images_stay_on_a_map_with_the_same_split(load, two_classes, tmp_path, monkeypatch, lines):
    expected = load(two_classes)
    monkeypatch.setattr(memory, "free_memory", lambda: 1000)
    for _ in range(2):
        data = load(two_classes)
        assert same(data, expected)
        assert torch.equal(data.val.images, expected.val.images)
        assert torch.equal(data.test.images, expected.test.images)
    assert [file.stem.endswith("-split") for file in cache_files(tmp_path)].count(True) == 1
    other = load(two_classes, split_seed=9)
    assert other.test.names != data.test.names
    assert same(data, expected)


def test_cache_folder_is_the_option_then_the_environment_then_the_home(monkeypatch, tmp_path, lines):
    monkeypatch.delenv("GMMVIT_CACHE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder(None, lines.append) == tmp_path / ".cache" / "gmmvit"
    monkeypatch.setenv("GMMVIT_CACHE", "~/fast")
    assert cache_folder(None, lines.append) == tmp_path / "fast"
    assert cache_folder("/x", lines.append) == Path("/x")
    assert not lines


@pytest.mark.parametrize("place", ["option", "environment", "home"])
def test_unknown_home_means_no_cache_and_a_notice(load, two_classes, lines, monkeypatch, place):
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", unknown_user)
    monkeypatch.setenv("GMMVIT_CACHE", "~nosuchuser/c" if place == "environment" else "")
    data = load(two_classes, cache_dir="~nosuchuser/c" if place == "option" else None)
    assert len(data.train) == 36
    path = "~/.cache/gmmvit" if place == "home" else "~nosuchuser/c"
    assert lines[0] == (
        f"no cache, the home folder in {path} is not known: give a path without ~; "
        "the decoded images are kept in memory only"
    )


def test_digits_need_no_home(load, lines, monkeypatch):
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", unknown_user)
    assert len(load("digits", cache_dir=None).train) == 1293
    assert not lines


def test_paths_in_an_unknown_home_are_data_errors(data_error, load):
    for name, options in (
        ("folder:~nosuchuser/x", {}),
        ("hf:~nosuchuser/x", {}),
        ("svhn", {"data_dir": "~nosuchuser/x"}),
    ):
        assert "the home folder in ~nosuchuser/x is not known: give a path" in data_error(load, name, **options)


def test_images_that_memory_cannot_hold_are_refused_before_they_are_decoded(data_error, load, two_classes, monkeypatch):
    monkeypatch.setattr(decode_all, "free_memory", lambda: 2 * 50 * 3 * 64 - 1)
    assert (
        "50 images of 8 x 8 in colour, and their split, take 18.8 KiB, and 18.7 KiB of memory are free: choose a"
        in (data_error(load, two_classes, cache_dir=two_classes / "cat" / "000.png"))
    )
    assert len(load(two_classes).train) == 36  # a cache on the disk holds more


def test_sums_of_large_images_are_exact():
    images = np.full((2, 1, 300, 300), 255, dtype=np.uint8)
    assert decode_all.image_sums(images).tolist() == [[[255 * 90000], [255**2 * 90000]]] * 2


def test_processes_share_free_memory(monkeypatch):
    monkeypatch.setattr(memory, "free_memory", lambda: 1000)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert memory.fits_in_memory(500)
    assert not memory.fits_in_memory(501)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert memory.fits_in_memory(125)
    assert not memory.fits_in_memory(126)


def start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", CHILD, *arguments], stdout=subprocess.PIPE, text=True)


def test_two_processes_at_once_decode_once(load, two_classes, tmp_path):
    load(two_classes)
    [file] = cache_files(tmp_path)
    file.unlink()
    with open(file.with_suffix(".lock"), "ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        children = [start(str(two_classes), str(tmp_path / "cache")) for _ in range(2)]
        # Both wait for the lock after both have seen that there is no cache.
        assert all("waiting" in child.stdout.readline() for child in children)
    outputs = [child.communicate(timeout=120)[0] for child in children]
    assert [child.returncode for child in children] == [0, 0]
    assert sum("decoding" in output for output in outputs) == 1
    assert outputs[0].split("digest")[1] == outputs[1].split("digest")[1]


def test_two_processes_without_locks_write_the_same_whole_cache(load, two_classes, tmp_path, lines):
    children = [start(str(two_classes), str(tmp_path / "cache"), "no-lock") for _ in range(2)]
    outputs = [child.communicate(timeout=120)[0] for child in children]
    assert [child.returncode for child in children] == [0, 0]
    assert outputs[0].split("digest")[1] == outputs[1].split("digest")[1]
    load(two_classes)
    assert not decoded(lines)
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".images"]


def test_import_of_the_package_is_light():
    heavy = {"torchvision", "PIL", "sklearn", "pyarrow", "scipy", "datasets", "matplotlib", "pandas"}
    code = f"import sys, gmmvit.data; print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
