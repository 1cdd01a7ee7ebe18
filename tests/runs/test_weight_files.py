"""Weight files: what is read, and one sentence for what is not."""

import os
import shutil
import subprocess
from argparse import Namespace
from collections import defaultdict
from datetime import datetime
from enum import Enum
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from gmmvit.weight_files import read_tensors, unwrapped

STATE = {"a": torch.ones(2), "b.weight": torch.zeros(3)}


def test_a_state_dict_comes_back_from_every_kind_of_file_and_folder(tmp_path):
    save_file(STATE, tmp_path / "model.safetensors")
    torch.save(STATE, tmp_path / "new.pth")
    torch.save(STATE, tmp_path / "old.bin", _use_new_zipfile_serialization=False)
    torch.save({"epoch": 3, "state_dict": {f"module.{n}": t for n, t in STATE.items()}}, tmp_path / "checkpoint.pt")
    for place in ("model.safetensors", "new.pth", "old.bin", "checkpoint.pt", "."):
        read = read_tensors(tmp_path / place)
        assert {name: tensor.tolist() for name, tensor in read.items()} == {"a": [1, 1], "b.weight": [0, 0, 0]}
        assert list(read_tensors(tmp_path / place, lambda name: name == "a")) == ["a"]


def test_a_model_in_parts_is_read_whole(tmp_path):
    save_file({"a": STATE["a"]}, tmp_path / "model-00001-of-00002.safetensors")
    save_file({"b": STATE["b.weight"]}, tmp_path / "model-00002-of-00002.safetensors")
    assert sorted(read_tensors(tmp_path)) == ["a", "b"]


def test_several_checkpoints_in_a_folder_are_not_put_together(tmp_path):
    for epoch in (9, 10):
        save_file({"a": STATE["a"] * epoch}, tmp_path / f"epoch_{epoch}.safetensors")
    with pytest.raises(ValueError, match=r"holds several checkpoints \(a twice\): give one of the files"):
        read_tensors(tmp_path)


def test_tensors_beside_the_weights_do_not_hide_them(tmp_path):
    torch.save({"model": STATE, "rng": torch.ones(3)}, tmp_path / "checkpoint.pt")
    assert sorted(read_tensors(tmp_path / "checkpoint.pt")) == ["a", "b.weight"]


class Runs:
    """Its pickle calls a function of the standard library."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("new_format", [True, False])
def test_code_is_never_run(tmp_path, new_format):
    mark = tmp_path / "ran"
    for function, name in (
        (os.mkdir, r"posix\.mkdir"),
        (eval, r"builtins\.eval"),
        (subprocess.call, "(subprocess|commands).call"),
    ):
        argument = f"__import__('os').mkdir({str(mark)!r})" if function is eval else str(mark)
        content = {"state_dict": STATE, "args": Runs(function, argument)}
        torch.save(content, tmp_path / "unsafe.pth", _use_new_zipfile_serialization=new_format)
        with pytest.raises(ValueError, match=rf"unsafe\.pth also holds {name}, which would be executed: "):
            read_tensors(tmp_path / "unsafe.pth")
        assert not mark.exists()
    torch.save({"state_dict": STATE, "args": Runs(shutil.rmtree, str(tmp_path))}, tmp_path / "inert.pth")
    assert list(read_tensors(tmp_path / "inert.pth")) == ["a", "b.weight"]
    assert tmp_path.exists()


def test_a_whole_model_is_told_from_its_weights(tmp_path):
    torch.save(torch.nn.Linear(1, 1), tmp_path / "whole.pth")
    with pytest.raises(ValueError, match=r"holds no state_dict but torch\.nn.*Linear.*, which are not read: exp"):
        read_tensors(tmp_path / "whole.pth")


class Settings(dict):
    """Like the configuration classes of training scripts: a dict whose items are attributes."""


class Slots:
    __slots__ = ("a",)

    def __init__(self):
        self.a = 1


class Phase(Enum):
    FIT = 1


# What common training scripts keep beside the weights, and where that was reported.
KEPT = {
    "timm's train.py (pytorch-image-models#2249)": {"args": Namespace(lr=0.1, opt="adamw"), "arch": "vit", "epoch": 3},
    "deepmd-kit#4147: numpy scalars": {"best": np.float64(0.5), "epoch": np.int64(3)},
    "nerfstudio#3683: numpy arrays": {"history": np.arange(4.0), "names": np.array(["a"], dtype=object)},
    "ICD2Vec#13: paths": {"file": Path("a/b.yaml")},
    "open-retina#186: lists and dicts of a class": {"cfg": Settings(depth=2, sizes=Settings(a=1))},
    "Megatron-LM#56: nested": {"args": Namespace(paths=[Path("a")], best=np.float32(1))},
    "chemprop#1227: enumerations": {"phase": Phase.FIT, "when": datetime(2026, 1, 1)},
    "Lightning callbacks": {"callbacks": defaultdict(dict, {"early": {"wait": 1}}), "sizes": {1, 2}},
    "objects with slots": {"slots": Slots()},
}


@pytest.mark.parametrize("new_format", [True, False])
@pytest.mark.parametrize("kept", KEPT.values(), ids=KEPT)
def test_checkpoints_of_usual_training_scripts_are_read(tmp_path, kept, new_format):
    before = set(torch.serialization.get_safe_globals())
    torch.save({"state_dict": STATE, **kept}, tmp_path / "c.pth", _use_new_zipfile_serialization=new_format)
    assert list(read_tensors(tmp_path / "c.pth")) == ["a", "b.weight"]
    assert set(torch.serialization.get_safe_globals()) == before


# Where the weights are, and the prefix of their names.
PLACES = {
    "pytorch-image-models#2003, compiled": lambda s: {"state_dict": {f"_orig_mod.{n}": t for n, t in s.items()}},
    "pytorch-image-models#1566, compiled": lambda s: {f"_orig_mod.{n}": t for n, t in s.items()},
    "train-llm-from-scratch#36, both": lambda s: {"model": {f"_orig_mod.module.{n}": t for n, t in s.items()}},
    "both, the other way round": lambda s: {"model": {f"module._orig_mod.{n}": t for n, t in s.items()}},
    "a compiled part": lambda s: {n.replace("b.", "b._orig_mod."): t for n, t in s.items()},
    "nanoGPT#325": lambda s: {"model": {f"_orig_mod.{n}": t for n, t in s.items()}, "iter_num": 3},
    "a name of its own": lambda s: {"student": s, "epoch": 3, "optimizer": {"state": {0: {"step": torch.ones(1)}}}},
}


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_weights_are_found_under_usual_names(tmp_path, place):
    torch.save(place(STATE), tmp_path / "c.pth")
    assert list(read_tensors(tmp_path / "c.pth")) == ["a", "b.weight"]
    save_file({f"_orig_mod.{n}": t for n, t in STATE.items()}, tmp_path / "c.safetensors")
    assert list(read_tensors(tmp_path / "c.safetensors")) == ["a", "b.weight"]


def test_weights_of_several_models_are_never_chosen_in_silence(tmp_path):
    """UniFormer#87 and GLIP#59: averaged weights beside the others; dino#217: a teacher and a student."""
    told = []
    torch.save({"model": STATE, "model_ema": STATE, "args": Namespace()}, tmp_path / "ema.pth")
    assert list(read_tensors(tmp_path / "ema.pth", report=told.append)) == ["a", "b.weight"]
    assert told == [f"{tmp_path}/ema.pth also holds model_ema: using the weights under model"]
    torch.save({"student": STATE, "teacher": STATE}, tmp_path / "two.pth")
    with pytest.raises(ValueError, match="tensors of several models, under student, teacher: save only one of them"):
        read_tensors(tmp_path / "two.pth")


@pytest.mark.parametrize("name", ["new.pth", "old.pth", "model.safetensors"])
@pytest.mark.parametrize("part", [0, 0.1, 0.5, 0.9])
def test_a_torn_file_is_told_in_one_sentence(tmp_path, name, part):
    file = tmp_path / name
    if name.endswith("safetensors"):
        save_file(STATE, file)
    else:
        torch.save(STATE, file, _use_new_zipfile_serialization=name == "new.pth")
    file.write_bytes(file.read_bytes()[: int(part * file.stat().st_size)])
    with pytest.raises(ValueError, match=f"{name} is damaged or not a weight file"):
        read_tensors(file)


@pytest.mark.parametrize("content", ["", "no checkpoint", "id: 105\n"])
def test_text_is_no_file_of_weights(tmp_path, content):
    (tmp_path / "text.pth").write_text(content)
    with pytest.raises(
        ValueError, match=r"text\.pth is damaged or not a weight file \(safetensors, or \.pth of tensors\)$"
    ):
        read_tensors(tmp_path / "text.pth")


def test_what_holds_no_tensors_says_what_it_holds(tmp_path):
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ValueError, match=r"list\.pth holds no state_dict but a list"):
        read_tensors(tmp_path / "list.pth")
    with pytest.raises(ValueError, match=r"^here holds no state_dict: .*, but it has \['epoch'\]$"):
        unwrapped({"epoch": 1}, "here")
    with pytest.raises(FileNotFoundError, match=r"gone does not exist; give a safetensors or \.pth file"):
        read_tensors(tmp_path / "gone")
    with pytest.raises(FileNotFoundError, match=r"has no model\.safetensors .* has list\.pth: give that file"):
        read_tensors(tmp_path)
