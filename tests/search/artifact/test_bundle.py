"""The deployed folder: complete or absent, repeatable, readable again, and honest about its size."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from quantized_models import assemble, cnn, cosine, mlp, read, sample_inputs, uniform

from kernels.backends.cpu_profiles import onnxruntime_profile
from kernels.operating_point import OperatingPoint
from search.artifact.bit_plan import BitPlan, read_bit_plan
from search.artifact.bundle import EXTERNAL_DATA_FILE, write_bundle
from search.artifact.byte_count import counted_bytes
from search.artifact.session import open_bundle, open_model
from search.errors import BadSubmission

LAYER = {"layer": "a", "op_type": "Conv", "node": "", "weight": "w", "weight_shape": [1], "precision": "fp32"}
POINT = OperatingPoint(batch=1, threads=1)


def test_a_bundle_opens_and_runs_with_its_shipped_options(tmp_path: Path) -> None:
    graph = read(cnn())
    assembly = assemble(graph, uniform(graph, "w4a8", "w8a8"))
    bundle = write_bundle(tmp_path / "artifact", graph, assembly, onnxruntime_profile(), POINT)
    assert sorted(bundle.files) == ["bit_plan.json", "model.onnx", "session_options.json"]
    content = bundle.model.read_bytes()
    assert bundle.size_bytes == len(content)
    assert bundle.sha256 == hashlib.sha256(content).hexdigest()
    assert bundle.size_bytes == pytest.approx(counted_bytes(graph, assembly).total, rel=0.01)
    inputs = sample_inputs(graph)
    loaded = open_bundle(bundle.folder)
    reference = open_model(graph.model.SerializeToString(), "onnxruntime_cpu", 1)
    output = graph.outputs[0].name
    assert cosine(loaded.run(inputs)[output], reference.run(inputs)[output]) > 0.95
    assert sum(op.op_type == "QLinearConv" for op in loaded.executed_ops()) == 7
    loaded.close()
    reference.close()


def test_writing_twice_gives_the_same_bytes_and_leaves_nothing_behind(tmp_path: Path) -> None:
    graph = read(mlp())
    assembly = assemble(graph, uniform(graph))
    first = write_bundle(tmp_path / "artifact", graph, assembly, onnxruntime_profile(), POINT)
    (tmp_path / "artifact" / "mine.txt").write_text("kept")
    second = write_bundle(tmp_path / "artifact", graph, assembly, onnxruntime_profile(), POINT)
    assert first == second
    assert [path.name for path in tmp_path.iterdir()] == ["artifact"]
    assert (tmp_path / "artifact" / "mine.txt").read_text() == "kept"


def test_large_weights_go_to_external_data_and_come_back(tmp_path: Path) -> None:
    graph = read(mlp())
    assembly = assemble(graph, uniform(graph))
    folder = tmp_path / "artifact"
    bundle = write_bundle(folder, graph, assembly, onnxruntime_profile(), POINT, external_data_above_bytes=1000)
    assert (folder / EXTERNAL_DATA_FILE).stat().st_size == bundle.files[EXTERNAL_DATA_FILE].size_bytes
    inputs = sample_inputs(graph)
    output = graph.outputs[0].name
    external = open_bundle(folder).run(inputs)[output]
    inline = write_bundle(folder, graph, assembly, onnxruntime_profile(), POINT)
    assert not (folder / EXTERNAL_DATA_FILE).exists()
    assert np.array_equal(open_bundle(inline.folder).run(inputs)[output], external)


def test_a_failed_export_leaves_no_folder(tmp_path: Path) -> None:
    graph = read(mlp())
    assembly = assemble(graph, uniform(graph))
    broken = type(assembly)(assembly.candidates, {}, assembly.output_quantized)
    with pytest.raises(BadSubmission):
        write_bundle(tmp_path / "artifact", graph, broken, onnxruntime_profile(), POINT)
    assert list(tmp_path.iterdir()) == []


def test_the_bit_plan_lists_every_layer_and_reads_back(tmp_path: Path) -> None:
    graph = read(cnn())
    precisions = {**uniform(graph, "w4a8", "w4a16-g32"), "last": "fp32"}
    assembly = assemble(graph, precisions)
    write_bundle(tmp_path / "artifact", graph, assembly, onnxruntime_profile(), POINT)
    plan = read_bit_plan(tmp_path / "artifact" / "bit_plan.json")
    assert plan.precisions == precisions
    assert plan.model_sha256 == graph.sha256
    by_name = {layer.layer: layer for layer in plan.layers}
    assert by_name["head"].group_size == 32
    assert by_name["head"].scale_shape == (10, 2)
    assert by_name["stem"].weight_bits == 4
    assert by_name["stem"].output is not None
    assert by_name["stem"].output.zero_point == 0
    assert BitPlan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


@pytest.mark.parametrize(
    "change",
    [
        {"schema_version": 99},
        {"kind": "menu"},
        {"layers": "all"},
        {"layers": [{"layer": "a"}]},
        {"layers": [{**LAYER, "weight_bits": 99}]},
        {"layers": [LAYER, LAYER]},
    ],
)
def test_a_malformed_bit_plan_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(BadSubmission) as caught:
        BitPlan.from_json(
            {"schema_version": 1, "kind": "bit_plan", "model_sha256": "", "runtime": "", "layers": [], **change}
        )
    assert caught.value.code == "bad_bit_plan"


def test_a_folder_without_options_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadSubmission) as caught:
        open_bundle(tmp_path)
    assert caught.value.code == "bad_bundle"
    with pytest.raises(BadSubmission) as caught:
        open_model(b"", "abacus", 1)
    assert caught.value.code == "runtime_unknown"
