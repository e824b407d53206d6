"""TorchSimulator: computes what ONNX Runtime computes, before and after quantization, in pieces and from a prefix."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnxruntime as ort
import pytest
from small_models import images, recipes_for, rows_of_32, small_cnn, small_mlp, token_model, tokens

from search.artifact.qdq import export_assembly
from search.assembly import Assembly
from search.candidates.assemble import assemble
from search.candidates.finish import finish_candidates
from search.candidates.refit import refit_sequentially
from search.simulation.torch_simulator import TorchSimulator, compile_hooks

OPTIONS = {
    "session.qdq_matmulnbits_accuracy_level": "4",
    "optimization.disable_specified_optimizers": "QDQPropagationTransformer;WeightBiasQuantization",
}
MODELS = {
    "cnn": (small_cnn, images),
    "mlp": (small_mlp, rows_of_32),
    "tokens": (token_model, tokens),
}


@pytest.fixture(scope="module")
def finished():
    found = {}
    for name, (make, data) in MODELS.items():
        graph = make()
        simulator = TorchSimulator(graph)
        chunks = [data(16, seed=seed) for seed in range(3)]
        found[name] = simulator, chunks, finish_candidates(simulator, recipes_for(graph), chunks)
    return found


def session(graph, assembly):
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    for key, value in OPTIONS.items():
        options.add_session_config_entry(key, value)
    model = export_assembly(graph, assembly, "onnxruntime_cpu")
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def uniform(simulator, candidates, precision):
    return assemble(
        simulator.graph, {name: precision for name, found in candidates.candidates if found == precision}, candidates
    )


@pytest.mark.parametrize(
    "model, precision",
    [
        ("cnn", "w8a8"), ("cnn", "w4a8"), ("cnn", "w8a8-dynamic"),
        ("mlp", "w8a8"), ("mlp", "w4a8"), ("mlp", "w8a8-dynamic"), ("mlp", "w4a16-g32"),
        ("tokens", "w8a8"), ("tokens", "w8a16"), ("tokens", "w4a16-g32"),
    ],
)  # fmt: skip
def test_computes_what_the_runtime_computes(finished, model, precision):
    """Float rounding moves a few values across a rounding border: nearly all outputs agree to 1e-5, not every one."""
    simulator, chunks, candidates = finished[model]
    assembly = refit_sequentially(simulator, uniform(simulator, candidates, precision), chunks)
    unseen = MODELS[model][1](64, seed=9)
    simulated = simulator.run(unseen, assembly)["logits"]
    built = session(simulator.graph, assembly).run(None, unseen)[0]
    exact = simulator.run(unseen)["logits"]
    difference = np.abs(simulated - built)
    assert np.mean(difference < 1e-5 * np.abs(exact).max()) > 0.97
    assert difference.mean() < 0.02 * np.abs(simulated - exact).mean()


def test_layers_of_different_precision_meet_in_one_model(finished):
    simulator, _, candidates = finished["cnn"]
    mixed = {"stem": "fp32", "depthwise": "w8a8", "pointwise": "w4a8", "block2": "w8a8", "fc": "w8a8-dynamic"}
    assembly = assemble(simulator.graph, mixed, candidates)
    unseen = images(32, seed=5)
    simulated, built = (
        simulator.run(unseen, assembly)["logits"],
        session(simulator.graph, assembly).run(None, unseen)[0],
    )
    assert np.mean(np.abs(simulated - built) < 1e-5 * np.abs(built).max()) > 0.97


def test_a_kept_output_quantized_tensor_is_on_its_grid(finished):
    simulator, _, candidates = finished["cnn"]
    assembly = assemble(simulator.graph, {"stem": "w8a8"}, candidates)
    kept = simulator.run(images(4), assembly, keep=["stem_relu", "image"])
    codes = kept["stem_relu"] / np.float32(assembly.quantizers["stem_relu"].scale)
    np.testing.assert_allclose(codes, np.rint(codes), atol=1e-4)
    assert (kept["image"] == images(4)["image"]).all()  # only the layer that reads it sees it quantized


@pytest.mark.parametrize("model", MODELS)
def test_perturbing_from_a_prefix_equals_running_from_the_start(finished, model):
    simulator, _, candidates = finished[model]
    assemblies = [assemble(simulator.graph, {name: precision}, candidates) for name, precision in candidates.candidates]
    assemblies.append(Assembly({}, {}))
    unseen = MODELS[model][1](8, seed=3)
    answers = list(simulator.perturb(unseen, iter(assemblies)))
    assert len(answers) == len(assemblies)
    for assembly, answer in zip(assemblies, answers, strict=True):
        assert (answer["logits"] == simulator.run(unseen, assembly)["logits"]).all()


def test_a_perturbed_run_starts_at_its_first_quantized_layer(finished):
    simulator, _, candidates = finished["cnn"]
    graph = simulator.graph
    for name in ("stem", "block2", "fc"):
        assert compile_hooks(graph, assemble(graph, {name: "w8a8"}, candidates)).start == graph.layer(name).node
    assert compile_hooks(graph, Assembly({}, {})).start == len(graph.nodes)


def test_a_dynamic_range_is_shared_by_the_batch(finished):
    simulator, _, candidates = finished["mlp"]
    assembly = assemble(simulator.graph, {"down": "w8a8-dynamic"}, candidates)
    calm = rows_of_32(4, seed=1)["x"]
    loud = np.concatenate([calm, 50 * calm[:1]])
    alone = simulator.run({"x": calm}, assembly)["logits"]
    together = simulator.run({"x": loud}, assembly)["logits"][:4]
    assert np.abs(alone - together).max() > 1e-3


def test_a_bias_is_added_where_the_model_has_none(finished):
    simulator, _, candidates = finished["mlp"]
    assembly = assemble(simulator.graph, {"middle": "w8a8"}, candidates)
    candidate = assembly.candidates["middle"]
    shift = np.full_like(candidate.weight.scale, 0.5)
    shifted = replace(assembly, candidates={"middle": replace(candidate, bias=shift)})
    plain = replace(assembly, candidates={"middle": replace(candidate, bias=None)})
    data = rows_of_32(4)
    before, after = (simulator.run(data, one, keep=["middle"])["middle"] for one in (plain, shifted))
    np.testing.assert_allclose(after - before, 0.5, atol=1e-5)
