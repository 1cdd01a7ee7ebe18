"""ONNX in float16 and int8, with onnxruntime's converter and quantiser; masks and softmax stay in float32."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

_BATCH = 32
# ONNX's names for what torch.autocast keeps in float32.
_FLOAT_OPS = ("Softmax", "LogSoftmax", "LayerNormalization", "Exp", "Log", "Pow", "ReduceSum", "ReduceLogSumExp")
_PRODUCTS = ("MatMul", "Einsum")
_ENDS = ("Conv", "Gemm", "LayerNormalization")


def to_float16(model: Any) -> Any:
    """The model with weights and products in float16, input and output in float32."""
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    halved = convert_float_to_float16(
        model,
        keep_io_types=True,
        op_block_list=[*DEFAULT_OP_BLOCK_LIST, *_FLOAT_OPS],
        node_block_list=masking_nodes(model.graph),
    )
    del halved.graph.value_info[:]  # some still have their old types
    OnnxModel.graph_topological_sort(halved.graph)  # the converter appends its casts at the end
    return halved


def to_int8(model: Any, images: Tensor) -> Any:
    """The model with its weight products in int8, one scale per output channel, calibrated on `images`.

    Weights have seven bits: with eight, the sum of two products saturates on processors without VNNI.
    """
    import onnx
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quant_pre_process,
        quantize_static,
    )

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.batches: Iterator[Tensor] = iter(images.split(_BATCH))

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self.batches, None)
            return None if batch is None else {"images": batch.numpy()}

    with tempfile.TemporaryDirectory() as folder:
        prepared, quantised = Path(folder) / "prepared.onnx", Path(folder) / "int8.onnx"
        quant_pre_process(model, prepared, skip_optimization=True, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            quantised,
            Reader(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["MatMul", "Gemm", "Conv"],
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=[*masking_nodes(model.graph), *two_sided_products(model.graph)],
        )
        return onnx.load(quantised)


def two_sided_products(graph: Any) -> list[str]:
    """Names of the products whose two sides both depend on the image, such as q times k."""
    moving = {value.name for value in graph.input}
    for node in graph.node:
        if moving.intersection(node.input):
            moving.update(node.output)
    return [node.name for node in graph.node if node.op_type in _PRODUCTS and moving.issuperset(node.input)]


def masking_nodes(graph: Any) -> list[str]:
    """Names of the nodes from the attention scores (q times k) to the product with v, and of those that make masks."""
    makers = {name: node for node in graph.node for name in node.output}
    users: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    two_sided = set(two_sided_products(graph))

    def ends(node: Any) -> bool:
        return node.name in two_sided or node.op_type in _ENDS

    found: dict[str, Any] = {}
    back = [node for node in graph.node if node.op_type == "Softmax"]
    ahead = list(back)
    while back:
        node = back.pop()
        if node.name not in found and not ends(node):
            found[node.name] = node
            back += [makers[name] for name in node.input if name in makers]
    while ahead:
        node = ahead.pop()
        for user in (user for name in node.output for user in users.get(name, [])):
            if user.name not in found and not ends(user):
                found[user.name] = user
                ahead.append(user)
    return list(found)
