"""Forms of ops that changed between opsets, each against ONNX Runtime at the opset that has it."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from search.onnx_import import Program, graph_from_model

X = np.random.default_rng(0).normal(size=(2, 3, 4, 5)).astype(np.float32)
INT = {"axes": np.array([1, 2]), "one": np.array([1])}

CASES: dict[str, tuple[int, str, list[str], dict, dict[str, np.ndarray]]] = {
    "softmax_flattens": (11, "Softmax", ["x"], {"axis": 2}, {}),
    "softmax_default_axis": (9, "Softmax", ["x"], {}, {}),
    "log_softmax_flattens": (12, "LogSoftmax", ["x"], {"axis": 1}, {}),
    "hardmax_flattens": (11, "Hardmax", ["x"], {"axis": 1}, {}),
    "unsqueeze_axes": (11, "Unsqueeze", ["x"], {"axes": [0, 5]}, {}),
    "squeeze_axes": (11, "Squeeze", ["s"], {"axes": [1]}, {"s": X[:, :1]}),
    "reduce_sum_axes": (11, "ReduceSum", ["x"], {"axes": [1, -1], "keepdims": 0}, {}),
    "reduce_mean_axes": (13, "ReduceMean", ["x"], {"axes": [2]}, {}),
    "reduce_max_all": (12, "ReduceMax", ["x"], {"keepdims": 0}, {}),
    "slice_attributes": (9, "Slice", ["x"], {"axes": [1, 3], "starts": [-2, 1], "ends": [1000, -1]}, {}),
    "slice_negative_step": (
        13, "Slice", ["x", "s", "e", "a", "t"], {},
        {"s": np.array([-1, 3]), "e": np.array([-(2**63), 0]), "a": np.array([3, -2]), "t": np.array([-2, -1])},
    ),
    "clip_attributes": (9, "Clip", ["x"], {"min": -0.5, "max": 0.25}, {}),
    "pad_attributes": (10, "Pad", ["x"], {"pads": [0, 0, 1, 2, 0, 0, 3, 0], "value": 1.5}, {}),
    "pad_negative": (13, "Pad", ["x", "p"], {}, {"p": np.array([0, 0, -1, 2, 0, 0, 1, -2])}),
    "pad_reflect": (13, "Pad", ["x", "p"], {"mode": "reflect"}, {"p": np.array([0, 0, 2, 1, 0, 0, 1, 3])}),
    "split_attribute": (11, "Split", ["x"], {"axis": 3, "split": [2, 3]}, {}),
    "resize_opset_10": (10, "Resize", ["x", "s"], {"mode": "linear"}, {"s": np.float32([1, 1, 2, 1.5])}),
    "resize_nearest_opset_10": (10, "Resize", ["x", "s"], {}, {"s": np.float32([1, 1, 2, 3])}),
    "upsample_opset_9": (9, "Upsample", ["x", "s"], {"mode": "nearest"}, {"s": np.float32([1, 1, 2, 2])}),
    "upsample_attribute": (8, "Upsample", ["x"], {"mode": "nearest", "scales": [1.0, 1.0, 2.0, 3.0]}, {}),
    "dropout_ratio": (11, "Dropout", ["x"], {"ratio": 0.3}, {}),
    "max_pool_ceil": (
        12, "MaxPool", ["x"],
        {"kernel_shape": [2, 3], "strides": [2, 2], "ceil_mode": 1, "pads": [0, 1, 1, 1]}, {},
    ),
    "max_pool_dilated": (12, "MaxPool", ["x"], {"kernel_shape": [2, 2], "dilations": [2, 3]}, {}),
    "max_pool_same_lower": (
        12, "MaxPool", ["x"],
        {"kernel_shape": [2, 4], "strides": [2, 3], "auto_pad": "SAME_LOWER"}, {},
    ),
    "average_pool_ceil": (12, "AveragePool", ["x"], {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}, {}),
    "average_pool_asymmetric": (
        12, "AveragePool", ["x"], {"kernel_shape": [3, 3], "pads": [0, 1, 2, 1], "count_include_pad": 1}, {},
    ),
    "gather_negative": (11, "Gather", ["x", "i"], {"axis": -2}, {"i": np.array([[-1, 0], [2, -4]])}),
    "gather_scalar": (11, "Gather", ["x", "i"], {"axis": 1}, {"i": np.array(-1)}),
    "conv_auto_pad": (
        11, "Conv", ["x", "w"],
        {"auto_pad": "SAME_LOWER", "strides": [2, 1]}, {"w": X[:, :, :2, :4].copy()},
    ),
    "conv_transpose_pads": (
        11, "ConvTranspose", ["x", "w"],
        {"pads": [0, 1, 1, 0], "strides": [2, 3], "output_padding": [1, 2], "dilations": [2, 1]},
        {"w": np.ones((3, 2, 2, 2), np.float32)},
    ),
    "constant_of_shape_type": (
        9, "ConstantOfShape", ["s"],
        {"value": numpy_helper.from_array(np.array([3]))}, {"s": np.array([2, 2])},
    ),
    "constant_value_ints": (12, "Constant", [], {"value_ints": [3, -1]}, {}),
    "constant_value_float": (12, "Constant", [], {"value_float": 0.5}, {}),
    "top_k_attribute": (9, "TopK", ["x"], {"k": 2}, {}),
    "batch_norm_opset_9": (
        9, "BatchNormalization", ["x", "a", "b", "m", "v"], {"epsilon": 1e-3},
        {"a": X[0, :, 0, 0], "b": X[1, :, 0, 0], "m": X[0, :, 1, 1], "v": X[0, :, 2, 2] ** 2},
    ),
    "group_norm_opset_18": (
        18, "GroupNormalization", ["g", "a", "b"], {"num_groups": 2},
        {"g": X.reshape(2, 6, 10), "a": np.float32([1, 2]), "b": np.float32([0, 1])},
    ),
    "pow_of_integers": (13, "Pow", ["i", "f"], {}, {"i": np.array([1, 2, 3]), "f": np.float32([2, 2, 0])}),
    "division_truncates": (13, "Div", ["i", "j"], {}, {"i": np.array([7, -7, 7]), "j": np.array([2, 2, -2])}),
    "large_integers_are_exact": (13, "Mul", ["i", "j"], {}, {"i": np.array([2**31 + 1]), "j": np.array([2**31 - 1])}),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_equals_onnx_runtime(name: str) -> None:
    opset, op_type, inputs, attributes, constants = CASES[name]
    schema = onnx.defs.get_schema(op_type, opset)
    count = 2 if op_type in ("Split", "TopK") else schema.min_output
    outputs = [f"y{index}" for index in range(count)]
    # Something must read x, and a graph of constants alone would be folded before it is compared.
    graph = helper.make_graph(
        [helper.make_node(op_type, inputs, outputs, **attributes), helper.make_node("Identity", ["x"], ["copy"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, X.shape)],
        [*(helper.make_empty_tensor_value_info(output) for output in outputs)],
        [numpy_helper.from_array(np.asarray(value), key) for key, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    typed = onnx.shape_inference.infer_shapes(model)
    kinds = {info.name: info for info in typed.graph.output if info.type.HasField("tensor_type")}
    del model.graph.output[:]
    unknown = TensorProto.FLOAT, None
    model.graph.output.extend(kinds.get(name) or helper.make_tensor_value_info(name, *unknown) for name in outputs)
    expected = onnxruntime.InferenceSession(model.SerializeToString(), options).run(outputs, {"x": X})
    with torch.no_grad():
        found = Program(graph_from_model(model)).run({"x": torch.from_numpy(X)})
    for output, want in zip(outputs, expected, strict=True):
        have = found[output].numpy()
        assert (have.shape, have.dtype) == (want.shape, want.dtype)
        if want.dtype.kind == "f":
            assert np.abs(have - want).max() <= 1e-5 * max(1.0, np.abs(want).max())
        else:
            assert np.array_equal(have, want)
