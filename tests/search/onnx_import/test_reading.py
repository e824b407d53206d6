"""Reading: external data, hashes, fixed batches, half precision and notes of healthy models."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from exported_models import export, make
from onnx import TensorProto, helper, numpy_helper

from search.errors import BadSubmission
from search.onnx_import import Program, graph_from_model, load_graph


def linear_model(dtype: type = np.float32, metadata: str = "") -> onnx.ModelProto:
    weight = np.random.default_rng(0).normal(size=(6, 4)).astype(dtype)
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], doc_string=metadata)],
        "g",
        [helper.make_tensor_value_info("x", kind, ["n", 6])],
        [helper.make_tensor_value_info("y", kind, ["n", 4])],
        [numpy_helper.from_array(weight, "w")],
        doc_string=metadata,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9, producer_name=metadata)
    if metadata:
        model.metadata_props.add(key="source", value=metadata)
    return model


def test_external_data_reads_the_same_weights(tmp_path: Path) -> None:
    model = linear_model()
    (tmp_path / "inside.onnx").write_bytes(model.SerializeToString())
    onnx.save_model(
        model, str(tmp_path / "outside.onnx"), save_as_external_data=True, location="w.data", size_threshold=0
    )
    inside, outside = load_graph(tmp_path / "inside.onnx"), load_graph(tmp_path / "outside.onnx")
    assert np.array_equal(inside.constants["w"], outside.constants["w"])
    assert inside.content_hash == outside.content_hash
    assert inside.sha256 != outside.sha256
    assert not outside.model.graph.initializer[0].external_data


def test_other_external_data_is_another_model(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save_model(linear_model(), str(path), save_as_external_data=True, location="w.data", size_threshold=0)
    before = load_graph(path)
    (tmp_path / "w.data").write_bytes(b"\0" * (tmp_path / "w.data").stat().st_size)
    after = load_graph(path)
    assert before.sha256 != after.sha256
    assert before.content_hash != after.content_hash


def test_the_content_hash_is_blind_to_metadata_and_not_to_weights() -> None:
    plain, described = graph_from_model(linear_model()), graph_from_model(linear_model(metadata="/home/me/train.py"))
    assert plain.content_hash == described.content_hash
    changed = linear_model()
    changed.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.zeros((6, 4), np.float32), "w"))
    assert graph_from_model(changed).content_hash != plain.content_hash


def test_half_precision_is_computed_in_float32() -> None:
    model = linear_model(np.float16)
    graph = graph_from_model(model)
    assert graph.inputs[0].dtype == np.float16
    x = np.random.default_rng(1).normal(size=(3, 6)).astype(np.float16)
    found = Program(graph).run({"x": torch.from_numpy(x)})["y"]
    assert found.dtype == torch.float32
    exact = x.astype(np.float64) @ graph.constants["w"].astype(np.float64)
    assert np.abs(found.numpy() - exact).max() < 1e-6
    rounded = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": x})[0]
    assert np.abs(found.numpy() - rounded).max() < 1e-2


def test_a_fixed_batch_export_runs_in_chunks_of_its_batch(tmp_path: Path) -> None:
    model, inputs = make("vit", fused=False)
    export(model, inputs, tmp_path / "m.onnx", dynamo=False, opset=17, fixed=True)
    graph = load_graph(tmp_path / "m.onnx")
    assert graph.fixed_batch == len(inputs[0]) == 2
    images = torch.randn(6, *inputs[0].shape[1:])
    with torch.no_grad():
        program = Program(graph)
        chunks = [program.run({graph.inputs[0].name: chunk})["output"] for chunk in images.split(graph.fixed_batch)]
        expected = model(images)
    assert torch.allclose(torch.cat(chunks), expected, atol=1e-5)


def test_inputs_that_are_initializers_are_constants() -> None:
    model = linear_model()
    model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [6, 4]))
    assert [info.name for info in graph_from_model(model).inputs] == ["x"]


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_layers_of_other_widths_than_float32_say_so(dtype: type) -> None:
    (layer,) = graph_from_model(linear_model(dtype)).layers
    assert layer.unquantized_reason == f"it computes in {np.dtype(dtype)}; only float32 layers are quantized"


@pytest.mark.parametrize("kind, said", [(TensorProto.STRING, "strings"), (TensorProto.BFLOAT16, "bfloat16")])
def test_files_whose_inputs_hold_no_plain_numbers_are_refused(kind: int, said: str, tmp_path: Path) -> None:
    model = linear_model()
    model.graph.input.append(helper.make_tensor_value_info("extra", kind, ["n"]))
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(BadSubmission, match=said) as refused:
        load_graph(tmp_path / "model.onnx")
    assert refused.value.code == "input_type_unsupported"


def test_domains_that_are_imported_but_unused_do_not_matter() -> None:
    model = linear_model()
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    model.opset_import.append(helper.make_opsetid("pkg.onnxscript.torch_lib", 1))
    assert graph_from_model(model).opset == 17
