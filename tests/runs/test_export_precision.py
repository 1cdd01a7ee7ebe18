"""Exported models in float16 and int8, and what `gmmvit export --check` measures: what stays in float32, what becomes
of a file that lost its accuracy, and the sentences for what cannot be had."""

import importlib.util
import json
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from gmmvit.cli import main
from gmmvit.config import load_recipe
from gmmvit.data import load_dataset
from gmmvit.runs.checkpoint import load_run
from gmmvit.runs.export import export_run, onnx_file, openvino_file, torch_file
from gmmvit.runs.export.precision import masking_nodes, two_sided_products
from gmmvit.runs.export.source import Source
from gmmvit.runs.files import RunError
from gmmvit.training.run import train

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")

FLOAT, HALF = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16
TINY = {"dim": 32, "depth": 1, "num_heads": 2, "passes": 1, "epochs": 4, "batch_size": 32, "lr": 4e-3, "threads": 1}


@pytest.fixture(autouse=True, scope="module")
def traced_once():
    """The tracer, which takes most of the time, sees a model once; the tests are about what follows."""
    graph, known = onnx_file._graph, {}

    def cached(source):
        key = tuple(p.sum().item() for p in source.model.parameters())
        if key not in known:
            known[key] = graph(source)
        copy = onnx.ModelProto()
        copy.CopyFrom(known[key])
        return copy

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_file, "_graph", cached)
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A model that reads most of the digits."""
    folder = tmp_path_factory.mktemp("precision") / "run"
    train(load_recipe("digits", **TINY), folder, quiet=True)
    return folder


@pytest.fixture(scope="module")
def fragile(run, tmp_path_factory):
    """The same model with a hidden unit that nothing reads, with values so large that int8 loses the others."""
    folder = shutil.copytree(run, tmp_path_factory.mktemp("fragile") / "run")
    weights = load_file(folder / "model.safetensors")
    names = [name for name in weights if name.endswith("mlp.fc1.bias")]
    assert names
    for name in names:
        weights[name][0] = 3e4
        weights[name.replace("fc1.bias", "fc2.weight")][:, 0] = 0
    save_file(weights, folder / "model.safetensors")
    return folder


def types(model):
    """The type of every value of a graph."""
    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    values = [*graph.value_info, *graph.input, *graph.output]
    return {v.name: v.type.tensor_type.elem_type for v in values} | {i.name: i.data_type for i in graph.initializer}


def test_in_float16_masks_softmax_input_and_output_stay_float32(run, tmp_path, capsys):
    path = tmp_path / "half.onnx"
    assert main(["export", str(run), "--dtype", "float16", "--check", "--out", str(path)]) == 0
    told = capsys.readouterr().out
    onnx.checker.check_model(str(path), full_check=True)
    model = onnx.load(path)
    kinds, nodes = types(model), model.graph.node
    assert kinds["images"] == kinds["logits"] == FLOAT
    assert all(kinds[node.input[0]] == FLOAT for node in nodes if node.op_type == "Softmax")
    masks = [i for i in model.graph.initializer if tuple(i.dims)[-2:] == (16, 16) and len(i.dims) == 3]
    assert masks
    assert all(mask.data_type == FLOAT for mask in masks)
    products = [node for node in nodes if node.op_type in ("MatMul", "Gemm")]
    assert all(kinds[node.input[0]] == kinds[node.input[1]] == HALF for node in products)
    assert "precision" in {entry.key for entry in model.metadata_props}
    data = load_dataset("digits").test
    hits = int((load_run(run).logits(data.images).argmax(1) == data.labels).sum())
    assert f"model  top-1 {hits / 360:.2%}  {hits} of 360 images of the test part" in told
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"images": data.images.numpy().astype("float32") / 255})
    hits = int((torch.from_numpy(logits).argmax(1) == data.labels).sum())
    assert f"file  top-1 {hits / 360:.2%}  {hits} of 360 images of the test part" in told


def test_in_int8_the_products_of_weights_alone_are_quantised(run, tmp_path, capsys):
    path = tmp_path / "small.onnx"
    command = ["export", str(run), "--quantize", "int8", "--check", "--max-drop", "0.05", "--json", "--out", str(path)]
    assert main(command) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["precision"] == "int8"
    assert told["check"]["top1_before"] > 0.5  # the kept file is good
    assert told["check"]["top1_before"] - told["check"]["top1_after"] <= 0.05
    graph = onnx.load(path).graph
    makers = {name: node.op_type for node in graph.node for name in node.output}
    quantised = [
        n for n in graph.node if n.op_type in ("MatMul", "Gemm") and makers.get(n.input[0]) == "DequantizeLinear"
    ]
    assert len(quantised) >= 4  # qkv, output and two of the MLP
    moving = [
        n for n in graph.node if n.op_type == "MatMul" and makers.get(n.input[1], "") not in ("", "DequantizeLinear")
    ]
    assert moving  # q times k, weights times v
    assert not {makers.get(name) for node in moving for name in node.input} & {"DequantizeLinear", "QuantizeLinear"}
    again = tmp_path / "again.onnx"
    assert main(["export", str(run), "--quantize", "int8", "--out", str(again)]) == 0
    assert "of 144 validation images keep their prediction" in capsys.readouterr().out
    assert again.read_bytes() == path.read_bytes()


def test_masking_reaches_from_the_scores_to_the_product_with_the_values():
    """Also through talking heads, to a mask's origin, and after the softmax; and no farther."""
    graph = onnx.parser.parse_graph("""
        block (float[B, 2, 4, 4] images, float[2, 4, 4] raw, float[2, 2] talk, float[4, 4] w) => (float[4] out) {
            [q] q = MatMul(images, w)
            [kt] kt = Transpose <perm = [0, 1, 3, 2]> (images)
            [scores] scores = MatMul(q, kt)
            [maker] mask = Exp(raw)
            [masked] masked = Mul(scores, mask)
            [before] talked = Einsum <equation = "bhij,hg->bgij"> (masked, talk)
            [softmax] weights = Softmax(talked)
            [after] post = Mul(weights, mask)
            [values] values = MatMul(post, images)
            [out] out = MatMul(values, w)
        }
    """)
    for value in [value for value in graph.input if value.name != "images"]:  # weights
        graph.input.remove(value)
    assert two_sided_products(graph) == ["scores", "values"]
    assert set(masking_nodes(graph)) == {"maker", "masked", "before", "softmax", "after"}


def test_a_file_that_lost_its_accuracy_is_not_written_unless_that_is_allowed(fragile, tmp_path, capsys):
    path = tmp_path / "small.onnx"
    command = ["export", str(fragile), "--quantize", "int8", "--check", "--part", "val", "--out", str(path)]
    assert main(command) == 1
    told = capsys.readouterr().err
    assert "top-1 on the 144 images of the val part falls from" in told
    assert "points (1 are allowed, see --max-drop, in Python max_drop=)" in told
    assert "is not written" in told
    assert len(told.splitlines()) == 1
    assert not path.exists()
    assert main([*command, "--max-drop", "1"]) == 0
    assert path.exists()


def test_a_program_of_torch_is_checked_too(run, tmp_path, capsys):
    path = tmp_path / "model.pt2"
    assert main(["export", str(run), "--format", "torch", "--check", "--out", str(path)]) == 0
    model, file = (line.split() for line in capsys.readouterr().out.splitlines()[1:3])
    assert model[1:] == file[1:]


def test_openvino_reads_its_files_and_answers_as_well(run, tmp_path, capsys):
    if importlib.util.find_spec("openvino") is None:
        pytest.skip("openvino is not installed")
    openvino = openvino_file._openvino()  # a plain import would report to its makers
    path = tmp_path / "model.xml"
    assert main(["export", str(run), "--format", "openvino", "--dtype", "float16", "--check", "--out", str(path)]) == 0
    assert "360 images of the test part" in capsys.readouterr().out
    model = openvino.Core().read_model(path)
    assert json.loads(model.get_rt_info(["framework", "classes"]).astype(str)) == list("0123456789")
    images = load_dataset("digits").test.images[:20]
    got = torch.from_numpy(openvino.compile_model(model, "CPU")(images.numpy().astype("float32") / 255)[0])
    expected = load_run(run).logits(images)
    assert (got - expected).abs().max() < 0.05 * expected.abs().max()
    assert main(["export", str(run), "--format", "openvino", "--out", str(path)]) == 1
    assert "exists; replace it with --overwrite" in capsys.readouterr().err
    path.unlink()
    assert main(["export", str(run), "--format", "openvino", "--out", str(path)]) == 1
    assert "model.bin exists" in capsys.readouterr().err
    assert main(["export", str(run), "--format", "openvino", "--out", str(tmp_path / "model.ov")]) == 2
    assert "an OpenVINO file must end in .xml" in capsys.readouterr().err


def test_openvino_is_loaded_without_what_reports_to_its_makers():
    if importlib.util.find_spec("openvino_telemetry") is None:
        pytest.skip("openvino_telemetry is not installed")
    load = "from gmmvit.runs.export.openvino_file import _openvino; assert _openvino().Core"
    code = f"import sys; {load}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "openvino.tools.ovc" in loaded
    assert not any(name.startswith("openvino_telemetry") for name in loaded)


def test_without_a_validation_part_there_is_no_int8(run, tmp_path, capsys):
    folder = shutil.copytree(run, tmp_path / "run")
    config = folder / "config.yaml"
    text = config.read_text()
    assert "train_on_all: false" in text
    config.write_text(text.replace("train_on_all: false", "train_on_all: true"))
    assert main(["export", str(folder), "--quantize", "int8"]) == 1
    assert "has no val part in this run: export float32 or float16" in capsys.readouterr().err
    assert main(["export", str(folder), "--check", "--part", "val", "--format", "torch"]) == 1
    assert "has no val part in this run, but train and test" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("--dtype bfloat16", "bfloat16"),
        ("--quantize int4", "int4"),
        ("--quantize int8 --format torch", "int8 is for ONNX and OpenVINO: torch programs stay float32"),
        ("--dtype float16 --format torch", "float16 is for ONNX and OpenVINO: torch programs stay float32"),
        ("--dtype float16 --quantize int8", "choose one of quantize='int8' and dtype='float16'"),
        ("--part val", "--part configures --check"),
        ("--max-drop 0.1", "--max-drop configures --check"),
        ("--check --max-drop 3", "max_drop must be a fraction from 0 to 1, got 3.0"),
        ("--data-dir x", "--data-dir is for --check and --quantize"),
    ],
)
def test_what_does_not_go_together_is_one_sentence(run, arguments, sentence, capsys):
    before = sorted(run.iterdir())
    assert main(["export", str(run), *arguments.split()]) == 2
    told = capsys.readouterr().err
    assert sentence in told
    assert len(told.strip().splitlines()) == 1
    assert sorted(run.iterdir()) == before


def test_a_precision_that_is_unknown_is_named_in_python(run):
    with pytest.raises(ValueError, match=r"dtype must be one of \['float32', 'float16'\], got 'half'"):
        export_run(run, dtype="half")
    with pytest.raises(ValueError, match="quantize must be 'int8' or None, got 'int4'"):
        export_run(run, quantize="int4")


class Undecided(torch.nn.Module):
    """A model whose path depends on its images, which no tracer can follow."""

    def forward(self, images):
        return images.mean((2, 3)) if images.sum() > 0 else images.amax((2, 3))


@pytest.mark.parametrize("make", [torch_file.make, onnx_file.make])
def test_a_model_that_cannot_be_traced_is_refused_in_one_sentence(make):
    with pytest.raises(RunError, match=r"^timm:undecided cannot be exported by torch\.export: .+") as refused:
        make(Source(Undecided(), "timm:undecided", {}, torch.rand(2, 3, 8, 8)))
    assert len(str(refused.value).splitlines()) == 1
