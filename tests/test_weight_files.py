"""Files of weights: what is read, and one sentence for what is not."""

from pathlib import Path

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


def test_code_is_never_run(tmp_path):
    for content in ({"model_state_dict": Path("a")}, torch.nn.Linear(1, 1)):
        torch.save(content, tmp_path / "unsafe.pth")
        with pytest.raises(ValueError, match=r"unsafe\.pth also holds (pathlib|torch.nn)\S*, which would be run: "):
            read_tensors(tmp_path / "unsafe.pth")


@pytest.mark.parametrize("name", ["new.pth", "old.pth", "model.safetensors"])
@pytest.mark.parametrize("part", [0, 0.1, 0.5, 0.9])
def test_a_torn_file_is_told_in_one_sentence(tmp_path, name, part):
    file = tmp_path / name
    if name.endswith("safetensors"):
        save_file(STATE, file)
    else:
        torch.save(STATE, file, _use_new_zipfile_serialization=name == "new.pth")
    file.write_bytes(file.read_bytes()[: int(part * file.stat().st_size)])
    with pytest.raises(ValueError, match=f"{name} is damaged or no file of weights"):
        read_tensors(file)


@pytest.mark.parametrize("content", ["", "no checkpoint", "id: 105\n"])
def test_text_is_no_file_of_weights(tmp_path, content):
    (tmp_path / "text.pth").write_text(content)
    with pytest.raises(
        ValueError, match=r"text\.pth is damaged or no file of weights \(safetensors, or \.pth of tensors\)$"
    ):
        read_tensors(tmp_path / "text.pth")


def test_what_holds_no_tensors_says_what_it_holds(tmp_path):
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ValueError, match=r"list\.pth holds no state_dict but a list"):
        read_tensors(tmp_path / "list.pth")
    with pytest.raises(ValueError, match=r"^here holds no state_dict: .* under state_dict, .*, it has \['epoch'\]$"):
        unwrapped({"epoch": 1}, "here")
    with pytest.raises(FileNotFoundError, match=r"gone does not exist; give a safetensors or \.pth file"):
        read_tensors(tmp_path / "gone")
    with pytest.raises(FileNotFoundError, match=r"has no model\.safetensors .* has list\.pth: give that file"):
        read_tensors(tmp_path)
