"""Listing and clearing the cache: only what the project wrote is removed."""

import json
import os
import subprocess
import sys

import pytest

from gmmvit.cli import main
from gmmvit.data import DataError, cached, clear_cache


@pytest.fixture
def filled(load, two_classes, tmp_path):
    """A cache with a data set at two sizes, and its folder."""
    load(two_classes)
    load(two_classes, image_size=16)
    return tmp_path / "cache"


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_each_file_is_listed_with_its_data_set_size_and_date(filled, two_classes, capsys):
    files = cached(filled)
    assert [file.path for file in files] == sorted(filled.glob("*.images"))
    assert {file.dataset for file in files} == {f"folder-{two_classes.name}"}
    assert {(file.channels, file.bytes) for file in files} == {(3, file.path.stat().st_size) for file in files}
    assert main(["cache", "--cache-dir", str(filled)]) == 0
    *lines, total = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert all(f"{file.image_size}x3" in line for file, line in zip(files, lines, strict=True))
    assert all(f"{file.written:%Y-%m-%d %H:%M}" in line for file, line in zip(files, lines, strict=True))
    assert total.startswith("in all 2 files, ")


def test_clearing_leaves_everything_that_is_not_the_projects(filled, two_classes, tmp_path):
    """Files with only the name of a cache file, links, folders and other files stay, and so do the images."""
    own = sorted(filled.glob("*.images"))
    outside = tmp_path / "outside.images"
    outside.write_bytes(own[0].read_bytes())
    called_so = own[0].name.replace(own[0].stem[-16:], "0123456789abcdef")
    (filled / called_so).write_bytes(b"a table of somebody's")
    (filled / called_so.replace("0123", "4567")).symlink_to(outside)
    (filled / called_so.replace("0123", "89ab")).mkdir()
    (filled / "notes.images").write_bytes(own[0].read_bytes())
    (filled / "notes.txt").write_text("mine")
    (filled / own[0].with_suffix(".lock").name).write_text("mine")
    expected = sorted({*names(filled)} - {path.name for path in own} - {own[1].with_suffix(".lock").name})
    pictures = sorted(two_classes.rglob("*"))
    assert [file.path for file in clear_cache("all", filled)] == own
    assert names(filled) == expected
    assert outside.exists()
    assert sorted(two_classes.rglob("*")) == pictures
    assert clear_cache("all", filled) == ()


def test_what_a_killed_process_left_is_removed_too(filled):
    whole = min(filled.glob("*.images"))
    (filled / f".{whole.name}.123-0a1b2c3d.tmp").write_bytes(b"half")
    (filled / f".{whole.name}.tmp").write_bytes(b"not as the project calls them")
    assert [file.leftover for file in cached(filled)] == [True, False, False]
    clear_cache("all", filled)
    assert names(filled) == [f".{whole.name}.tmp"]


def test_one_data_set_is_cleared_by_either_name(filled, two_classes, load, tmp_path):
    os.rename(two_classes, tmp_path / "others")
    load(tmp_path / "others")
    with pytest.raises(DataError, match=r"holds nothing of 'cifar10'; it holds folder-others, folder-pets"):
        clear_cache("cifar10", filled)
    assert len(clear_cache("folder:others", filled)) == 1
    assert len(clear_cache(f"folder-{two_classes.name}", filled)) == 2


def test_a_file_that_is_being_written_stays(filled, lines):
    lock = min(filled.glob("*.images")).with_suffix(".lock")
    code = (
        f"import fcntl\nfile = open({str(lock)!r}, 'ab')\nfcntl.flock(file, fcntl.LOCK_EX)\nprint(flush=True)\ninput()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        assert len(clear_cache("all", filled, lines.append)) == 1
        other.communicate(b"\n")
    assert lines[-1].endswith("stays: another process is writing it")
    assert len(clear_cache("all", filled)) == 1


def test_an_empty_cache_is_no_fault(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("GMMVIT_CACHE", str(tmp_path / "nowhere"))
    assert main(["cache", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []
    assert main(["cache", "--clear", "all"]) == 0
    assert capsys.readouterr().out == "removed 0 files, 0 bytes\n"
    assert main(["cache", "--clear", "cifar10"]) == 1
    assert "it holds nothing" in capsys.readouterr().err
