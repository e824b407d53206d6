"""Shares of the executed ops add up, and an op without weights above the limit is conspicuous.

How large a share a real run gives an op is the machine's affair and is not asserted.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from kernels.backends import onnxruntime_cpu, openvino
from search.artifact.op_times import LARGE_SHARE, OpTime, op_times
from search.errors import BadSubmission

OPTIONS = {"onnxruntime_cpu": onnxruntime_cpu.SESSION_OPTIONS, "openvino": openvino.SESSION_OPTIONS}


def model(path: Path) -> Path:
    """A tiny matrix product behind an Erf over many elements."""
    weight = numpy_helper.from_array(np.eye(64, 4, dtype=np.float32), "w")
    nodes = [
        helper.make_node("Erf", ["x"], ["e"], name="activation"),
        helper.make_node("MatMul", ["e", "w"], ["y"], name="product"),
    ]
    graph = helper.make_graph(
        nodes,
        "slow activation",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2048, 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2048, 4])],
        [weight],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


@pytest.mark.parametrize("runtime", ["onnxruntime_cpu", "openvino"])
def test_every_executed_op_has_its_share(tmp_path: Path, runtime: str) -> None:
    inputs = {"x": np.random.default_rng(0).normal(size=(2048, 64)).astype(np.float32)}
    found = op_times(model(tmp_path / "m.onnx"), runtime, 1, OPTIONS[runtime], inputs, runs=5)
    assert sum(op.share for op in found) == pytest.approx(1.0)
    assert [op.share for op in found] == sorted((op.share for op in found), reverse=True)
    weighted = {op.name: op.is_weighted for op in found}
    assert weighted["activation"] is False
    assert True in weighted.values()


def test_only_a_large_op_without_weights_is_conspicuous() -> None:
    assert OpTime("activation", "Erf", LARGE_SHARE + 0.01, is_weighted=False).is_conspicuous
    assert not OpTime("activation", "Erf", LARGE_SHARE, is_weighted=False).is_conspicuous
    assert not OpTime("product", "MatMul", 0.9, is_weighted=True).is_conspicuous


def test_other_runtimes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadSubmission, match="no profiler for runtime 'fake'"):
        op_times(model(tmp_path / "m.onnx"), "fake", 1, {}, {})
