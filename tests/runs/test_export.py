"""Exported models: for every family and mask, onnxruntime computes what torch does, and no file is lost."""

import json
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import gmmvit
from gmmvit.augment import normalize
from gmmvit.cli import main
from gmmvit.config import load_recipe
from gmmvit.runs import run_folder
from gmmvit.runs.checkpoint import load_run
from gmmvit.runs.export import export_run, onnx_file
from gmmvit.runs.files import RunError

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")

SMALL = {
    "vit": {"dim": 16, "depth": 1, "num_heads": 2, "patch_size": 4},
    "swin": {"dim": 16, "depth": (2,), "num_heads": (2,), "patch_size": 2},
    "cait": {"dim": 16, "depth": 1, "num_heads": 2, "patch_size": 4},
    "pit": {"dim": 16, "depth": (1, 1), "num_heads": (2, 2), "patch_size": 2},
    "t2t": {"dim": 16, "depth": 1, "num_heads": 2},
}
CLASSES = ["cat", "dog", "Ärger", 'a "b"', "e"]


def write_run(folder, family="vit", mask="gmm", weights_of=None):
    """A run folder of a model with random weights, for images of 16 x 24 pixels."""
    torch.manual_seed(0)
    options = {"family": family, "mask": mask, "image_size": [16, 24], "channels": 3, "num_classes": len(CLASSES)}
    if mask == "gmm":
        options["mask_options"] = {"init": "paper"}
    options |= {name: list(v) if isinstance(v, tuple) else v for name, v in SMALL[family].items()}
    model = gmmvit.create_model(**options)
    if mask == "elm":
        with torch.no_grad():
            for module in model.modules():
                if isinstance(module, gmmvit.ElementwiseMask):
                    module.weight.normal_()
    data = {"classes": CLASSES, "image_size": [16, 24], "channels": 3, "mean": [0.1, 0.5, 0.6], "std": [0.2, 0.3, 0.4]}
    folder.mkdir()
    recipe = load_recipe("digits", model=family, mask=mask)
    run_folder.save_config(folder, recipe, options, data | {"fit": "crop", "fingerprints": {}})
    save_file(model.state_dict(), folder / "model.safetensors")
    return folder


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("export") / "run")


@pytest.fixture(scope="module")
def vit_onnx(vit):
    return export_run(vit).path


@pytest.mark.parametrize("mask", ["none", "elm", "gmm"])
@pytest.mark.parametrize("family", SMALL)
def test_onnxruntime_computes_the_logits_of_every_family_and_mask(tmp_path, family, mask):
    folder = write_run(tmp_path / "run", family, mask)
    path, _, comparison, *_ = export_run(folder)
    assert path == folder / "model.onnx"
    assert comparison.difference <= 1e-4
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    run = load_run(folder)
    for count in (1, 4):
        images = torch.randint(256, (count, 3, 16, 24), dtype=torch.uint8)
        (logits,) = session.run(None, {"images": images.numpy().astype(np.float32) / 255})
        expected = run.model(normalize(images, run.mean, run.std)).detach()
        torch.testing.assert_close(torch.from_numpy(logits), expected, atol=1e-4, rtol=1e-4)


def test_the_file_tells_classes_image_size_and_input(vit_onnx):
    session = onnxruntime.InferenceSession(vit_onnx, providers=["CPUExecutionProvider"])
    told = session.get_modelmeta().custom_metadata_map
    assert json.loads(told["classes"]) == CLASSES
    assert json.loads(told["image_size"]) == [16, 24]
    assert told["input"].startswith("images: float32 [batch, channels, height, width], pixels from 0 to 1")
    assert [(i.name, i.shape, i.type) for i in session.get_inputs()] == [
        ("images", ["batch", 3, 16, 24], "tensor(float)")
    ]
    assert [o.name for o in session.get_outputs()] == ["logits"]
    onnx.checker.check_model(str(vit_onnx), full_check=True)


def test_a_program_of_torch_is_written_on_request(vit, tmp_path, capsys):
    assert main(["export", str(vit), "--format", "torch", "--out", str(tmp_path)]) == 0
    assert str(tmp_path / "model.pt2") in capsys.readouterr().out
    extra = {"gmmvit.json": ""}
    program = torch.export.load(str(tmp_path / "model.pt2"), extra_files=extra).module()
    assert json.loads(extra["gmmvit.json"])["classes"] == CLASSES
    run, images = load_run(vit), torch.randint(256, (3, 3, 16, 24), dtype=torch.uint8)
    expected = run.model(normalize(images, run.mean, run.std))
    torch.testing.assert_close(program(images.float() / 255), expected, atol=1e-5, rtol=1e-5)


def test_a_file_that_is_there_is_replaced_on_request_alone(vit, vit_onnx, tmp_path, capsys):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"mine")
    assert main(["export", str(vit), "--out", str(path)]) == 1
    assert "exists; replace it with --overwrite" in capsys.readouterr().err
    assert path.read_bytes() == b"mine"
    assert main(["export", str(vit), "--out", str(path), "--overwrite"]) == 0
    assert "logits differ from the model by" in capsys.readouterr().out
    assert path.read_bytes() == vit_onnx.read_bytes()


def test_a_file_that_computes_something_else_is_not_written(vit, tmp_path, monkeypatch):
    """As if the exporter had dropped the normalisation."""
    compute = onnx_file.session

    def wrong(content):
        return lambda images: compute(content)(images + 0.5)

    monkeypatch.setattr(onnx_file, "session", wrong)
    with pytest.raises(RunError, match=r"logits differ from the model's by .*is not written"):
        export_run(vit, tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_exported_is_told(vit, tmp_path, capsys, monkeypatch):
    assert main(["export", str(tmp_path)]) == 1
    assert "is not a run folder" in capsys.readouterr().err
    assert main(["export", str(vit), "--format", "tflite"]) == 2
    capsys.readouterr()
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert main(["export", str(vit), "--out", str(tmp_path / "x.onnx")]) == 1
    assert "needs onnxscript; install it: pip install onnx onnxscript onnxruntime" in capsys.readouterr().err


def test_without_onnxruntime_the_file_is_written_and_called_unchecked(vit, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert main(["export", str(vit), "--out", str(tmp_path / "x.onnx")]) == 0
    assert "not checked: onnxruntime is not installed" in capsys.readouterr().out
    assert (tmp_path / "x.onnx").stat().st_size > 10_000
