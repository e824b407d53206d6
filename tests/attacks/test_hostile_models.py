"""Hostile submissions get their reason code, a hint, and nothing else happens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hostile_models import EXTERNAL, FORMATS, GRAPHS, Write, healthy
from onnx import numpy_helper

from search.errors import BadSubmission
from search.onnx_import import Limits, load_graph


def refusal(folder: Path, **options) -> BadSubmission:
    with pytest.raises(BadSubmission) as caught:
        load_graph(folder / "model.onnx", **options)
    assert caught.value.hint
    assert len(caught.value.message) < 1500
    return caught.value


@pytest.fixture(autouse=True)
def _inside_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_the_healthy_model_loads(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(healthy().SerializeToString())
    assert [layer.kind.value for layer in load_graph(tmp_path / "model.onnx").layers] == ["linear"]


@pytest.mark.parametrize("name", FORMATS)
def test_other_formats_are_refused_by_content(name: str, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(FORMATS[name])
    refused = refusal(tmp_path)
    assert refused.code == "model_format_unsupported"
    assert "torch.onnx.export" in refused.hint
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("share", [0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99])
def test_truncated_files(share: float, tmp_path: Path) -> None:
    content = healthy().SerializeToString()
    (tmp_path / "model.onnx").write_bytes(content[: int(len(content) * share)])
    assert refusal(tmp_path).code in ("model_format_unsupported", "model_rejected")


def test_no_file(tmp_path: Path) -> None:
    assert refusal(tmp_path).code == "model_missing"


@pytest.mark.parametrize("name", EXTERNAL)
def test_external_data(name: str, tmp_path: Path) -> None:
    write, code = EXTERNAL[name]
    inside = tmp_path / "inside"
    inside.mkdir()
    (tmp_path / "secret.bin").write_bytes(b"\0" * 48)
    write(inside)
    assert refusal(inside).code == code


@pytest.mark.parametrize("name", GRAPHS)
def test_graphs(name: str, tmp_path: Path) -> None:
    write: Write
    write, code = GRAPHS[name]
    write(tmp_path)
    assert refusal(tmp_path).code == code


@pytest.mark.parametrize(
    "limits",
    [Limits(nodes=0), Limits(initializers=0), Limits(parameters=11), Limits(upload_bytes=40), Limits(tensor_bytes=47)],
    ids=str,
)
def test_limits(limits: Limits, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(healthy().SerializeToString())
    assert refusal(tmp_path, limits=limits).code == "model_too_large"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_weights_that_are_not_numbers_are_named(value: float, dtype: str, tmp_path: Path) -> None:
    model = healthy()
    weight = numpy_helper.to_array(model.graph.initializer[0]).astype(dtype)
    weight[1, 2] = value
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(weight, "w"))
    model.graph.input[0].type.tensor_type.elem_type = model.graph.initializer[0].data_type
    model.graph.output[0].type.tensor_type.elem_type = model.graph.initializer[0].data_type
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    refused = refusal(tmp_path)
    assert refused.code == "nan_weights"
    assert "'w'" in refused.message


def test_an_attention_mask_may_be_infinite(tmp_path: Path) -> None:
    model = healthy()
    mask = np.full((2, 3), -np.inf, dtype=np.float32)
    model.graph.initializer.append(numpy_helper.from_array(mask, "mask"))
    model.graph.node[0].output[0] = "m"
    model.graph.node.append(onnx.helper.make_node("Add", ["m", "mask"], ["y"]))
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    assert load_graph(tmp_path / "model.onnx").layers[0].bias is None


def test_names_are_bounded_unique_and_printable(tmp_path: Path) -> None:
    model = healthy()
    long = "é" * 5000 + "\x1b[2J\n\0<script>"
    model.graph.node[0].name = "/" + long + "/MatMul"
    second = onnx.helper.make_node("MatMul", ["x", "w"], ["z"], name="/" + long + "/MatMul")
    second.metadata_props.add(key="pkg.torch.onnx.name_scopes", value="[" * 9000)
    model.graph.node.append(second)
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    names = [layer.name for layer in load_graph(tmp_path / "model.onnx").layers]
    assert len(set(names)) == 2
    for name in names:
        assert len(name.encode()) <= 512
        assert name.isprintable()


def test_duplicate_initializers_read_as_the_runtime_reads_them(tmp_path: Path) -> None:
    model = healthy()
    model.graph.initializer.append(numpy_helper.from_array(np.ones((4, 3), np.float32), "w"))
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    assert (load_graph(tmp_path / "model.onnx").constants["w"] == 1).all()
