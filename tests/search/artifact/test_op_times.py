"""Shares of the executed ops add up, and an op without weights that dominates is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from kernels.backends import onnxruntime_cpu, openvino
from search.artifact.op_times import op_times
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
def test_shares_add_up_and_the_activation_is_conspicuous(tmp_path: Path, runtime: str) -> None:
    inputs = {"x": np.random.default_rng(0).normal(size=(2048, 64)).astype(np.float32)}
    found = op_times(model(tmp_path / "m.onnx"), runtime, 1, OPTIONS[runtime], inputs, runs=5)
    assert sum(op.share for op in found) == pytest.approx(1.0)
    assert [op.share for op in found] == sorted((op.share for op in found), reverse=True)
    conspicuous = [op for op in found if op.is_conspicuous]
    assert len(conspicuous) >= 1
    assert not any(op.is_weighted for op in conspicuous)
    assert "activation" in {op.name for op in conspicuous}


def test_other_runtimes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadSubmission, match="no profiler for runtime 'fake'"):
        op_times(model(tmp_path / "m.onnx"), "fake", 1, {}, {})
