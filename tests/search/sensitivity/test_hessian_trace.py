"""Traces against exact Hessians of tiny nets, their intervals, and the normalisation of HAWQ-V2's objective."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from scipy.special import softmax
from scipy.stats import t as student_t

from kernels.recipe import Granularity, Numerics, Recipe
from search.candidates.candidate_set import CandidateSet
from search.candidates.finish import finish_candidates
from search.errors import BadSubmission, UnsupportedOp
from search.graph import Graph
from search.groups import LayerGroup, group_layers
from search.loss.inference import LossKind, ModelLoss, OutputLoss
from search.onnx_import import Program, graph_from_model, layer_weight
from search.sensitivity.gauss_newton_trace import gauss_newton_traces
from search.sensitivity.hessian_trace import from_traces, hessian_trace, mean_traces
from search.sensitivity.hutchinson import hutchinson_traces, is_settled, top_eigenvalues
from search.sensitivity.metrics import METRICS, Subject, measure
from search.sensitivity.quantization_noise import weight_changes
from search.sensitivity.traces import MeanTrace, Traces
from search.simulation.torch_simulator import TorchSimulator

from .branches import rounded

KL = ModelLoss((OutputLoss("y", LossKind.SOFTMAX_KL),))
RNG = np.random.default_rng(1)
BATCH = 24
IMAGES = [{"x": RNG.normal(size=(BATCH // 2, 2, 5, 5)).astype(np.float32)} for _ in range(2)]
ROWS = [{"x": RNG.normal(size=(BATCH // 2, 6)).astype(np.float32)} for _ in range(2)]


def model(nodes: list[onnx.NodeProto], weights: dict[str, np.ndarray], shape: list, batch: object = "n") -> Graph:
    made = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, *shape])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, None])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )  # fmt: skip
    proto = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(proto)
    return graph_from_model(proto)


def convolutional(batch: object = "n") -> Graph:
    """Conv (54 weights) → Relu → Conv with stride and groups (54) → Relu → mean → Gemm (20)."""
    rng = np.random.default_rng(7)
    weights = {
        "w1": rng.normal(size=(3, 2, 3, 3)) * 0.5, "w2": rng.normal(size=(6, 1, 3, 3)) * 0.5,
        "w3": rng.normal(size=(4, 6)), "b3": rng.normal(size=4),
    }  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], "first", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "w2"], ["c"], "second", group=3, strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["d"]),
        helper.make_node("GlobalAveragePool", ["d"], ["e"]),
        helper.make_node("Flatten", ["e"], ["f"]),
        helper.make_node("Gemm", ["f", "w3", "b3"], ["y"], "head", transB=1),
    ]
    return model(nodes, weights, [2, 5, 5], batch)


def linear() -> Graph:
    weights = {"w": np.random.default_rng(3).normal(size=(6, 5))}
    return model([helper.make_node("MatMul", ["x", "w"], ["y"], "only")], weights, [6])


def names(graph: Graph) -> list[str]:
    return [layer.name for layer in graph.layers]


def exact_hessians(graph: Graph, chunks: list[dict[str, np.ndarray]], loss: ModelLoss = KL) -> dict[str, torch.Tensor]:
    """Hessian of the mean loss in each layer's weight, by torch's own double differentiation in float64."""
    program = Program(graph, dtype=torch.float64)
    x = {"x": torch.from_numpy(np.concatenate([chunk["x"] for chunk in chunks])).double()}
    reference = program.run(x)
    found = {}
    for layer in graph.layers:

        def mean_loss(weight: torch.Tensor, layer=layer) -> torch.Tensor:  # type: ignore[no-untyped-def]
            outputs = program.run(x, reads={(layer.node, layer.weight_position): weight})
            return loss.per_sample_torch(reference, outputs).mean()

        weight = torch.tensor(layer_weight(graph, layer), dtype=torch.float64)
        hessian = torch.autograd.functional.hessian(mean_loss, weight)
        found[layer.name] = hessian.reshape(weight.numel(), -1)
    return found


def test_linear_softmax_trace_is_the_closed_form() -> None:
    graph = linear()
    traces = mean_traces(Program(graph), names(graph), KL, ROWS)
    x = np.concatenate([chunk["x"] for chunk in ROWS]).astype(np.float64)
    weight = graph.constants["w"].astype(np.float64)
    p = softmax(x @ weight, -1)
    each = (x**2).sum(1) * (1 - (p**2).sum(1))
    assert traces.method == "exact"
    only = traces.weights[names(graph)[0]]
    assert (only.count, only.draws) == (30, BATCH)
    assert only.value == pytest.approx(each.mean() / 30, rel=1e-5)
    assert only.standard_error == pytest.approx(each.std(ddof=1) / np.sqrt(BATCH) / 30, rel=1e-4)
    fisher = np.einsum("nc,kc,nd,kd->nk", p, weight, p, weight) * -1 + np.einsum("nc,kc->nk", p, weight**2)
    read = traces.activations[names(graph)[0]]
    assert read.count == 6
    assert read.value == pytest.approx(fisher.sum(1).mean() / 6, rel=1e-4)


@pytest.mark.parametrize("kind", list(LossKind)[:4])
def test_exact_traces_equal_the_hessian_of_a_convolutional_net(kind: LossKind) -> None:
    graph = convolutional()
    loss = ModelLoss((OutputLoss("y", kind, variance=0.7),))
    traces = mean_traces(Program(graph), names(graph), loss, IMAGES)
    for name, hessian in exact_hessians(graph, IMAGES, loss).items():
        assert traces.weights[name].value * traces.weights[name].count == pytest.approx(
            float(hessian.trace()), rel=1e-4
        )


def test_fixed_batch_exports_give_the_same_traces() -> None:
    free, fixed = convolutional(), convolutional(batch=3)
    assert fixed.fixed_batch == 3
    expected = mean_traces(Program(free), names(free), KL, IMAGES)
    found = mean_traces(Program(fixed), names(fixed), KL, IMAGES)
    for name in names(free):
        assert found.weights[name].value == pytest.approx(expected.weights[name].value, rel=1e-5)
        assert found.activations[name].value == pytest.approx(expected.activations[name].value, rel=1e-5)


def test_large_layers_take_the_loop_with_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = convolutional()
    expected = mean_traces(Program(graph), names(graph), KL, IMAGES)
    monkeypatch.setattr("search.sensitivity.gauss_newton_trace._BATCHED_ELEMENTS", 0)
    found = mean_traces(Program(graph), names(graph), KL, IMAGES)
    for name in names(graph):
        assert found.weights[name].value == pytest.approx(expected.weights[name].value, rel=1e-5)


def test_monte_carlo_fisher_is_unbiased() -> None:
    graph = convolutional()
    exact = mean_traces(Program(graph), names(graph), KL, IMAGES, method="exact")
    draws = [mean_traces(Program(graph), names(graph), KL, IMAGES, method="monte_carlo", seed=s) for s in range(16)]
    for name in names(graph):
        values = np.array([draw.weights[name].value for draw in draws])
        error = values.std(ddof=1) / np.sqrt(len(values))
        assert abs(values.mean() - exact.weights[name].value) < 4 * error
        assert values.std() > 0
    again = mean_traces(Program(graph), names(graph), KL, IMAGES, method="monte_carlo", seed=3)
    assert again == draws[3]


@pytest.mark.parametrize("kind", list(LossKind)[:4])
def test_fisher_probes_are_white_on_factors(kind: LossKind) -> None:
    loss = ModelLoss((OutputLoss("y", kind),))
    y, z = torch.from_numpy(RNG.normal(size=(2, 1, 4)))
    row = loss.factor_torch({"y": y}, {"y": y + 0.1 * z})
    generator = torch.Generator().manual_seed(0)
    many = torch.cat([loss.fisher_probe({"y": y}, generator) for _ in range(4000)])
    values = (many @ row[0]).square()
    assert abs(float(values.mean() - row.square().sum())) < 4 * float(values.std()) / 4000**0.5


def test_wide_outputs_choose_monte_carlo() -> None:
    graph = model([helper.make_node("MatMul", ["x", "w"], ["y"], "wide")], {"w": RNG.normal(size=(6, 40)) * 0.3}, [6])
    traces = mean_traces(Program(graph), names(graph), KL, ROWS)
    assert traces.method == "monte_carlo"
    exact = mean_traces(Program(graph), names(graph), KL, ROWS, method="exact").weights[names(graph)[0]]
    found = traces.weights[names(graph)[0]]
    assert abs(found.value - exact.value) < 4 * found.standard_error


def test_hutchinson_is_within_three_errors_and_settles() -> None:
    graph = convolutional()
    hessians = exact_hessians(graph, IMAGES)
    outside = 0
    for seed in range(3):
        traces = hutchinson_traces(Program(graph), names(graph), KL, IMAGES, seed=seed)
        for name, hessian in hessians.items():
            found, truth = traces.weights[name], float(hessian.trace()) / hessian.shape[0]
            outside += abs(found.value - truth) > 3 * found.standard_error
            assert found.draws in (8, 16, 32, 64, 128, 256)
            settled = student_t.ppf(0.975, found.draws - 1) * found.standard_error <= 0.1 * abs(found.value) * 1.001
            assert settled or (found.draws == 256 and any(repr(name) in note for note in traces.notes))
    assert outside <= 1


def test_stopping_rule_keeps_its_coverage() -> None:
    rng = np.random.default_rng(0)
    basis = rng.normal(size=(40, 40)) * np.exp(-np.arange(40) / 8)
    hessian = basis @ basis.T
    covered = 0
    runs = 400
    for _ in range(runs):
        values: list[float] = []
        look = 8
        while True:
            signs = rng.choice([-1.0, 1.0], size=(look - len(values), 40))
            values += list(np.einsum("ki,ij,kj->k", signs, hessian, signs))
            if is_settled(values) or look >= 256:
                break
            look *= 2
        half = student_t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
        covered += abs(np.mean(values) - np.trace(hessian)) <= half
    assert covered / runs >= 0.925


def test_settled_needs_the_interval_not_a_still_mean() -> None:
    assert is_settled([1.0] * 8)
    assert is_settled([0.0] * 8)
    assert not is_settled([0.0, 2.0] * 4)
    assert is_settled([0.9, 1.1] * 8)


def test_top_eigenvalues_equal_the_exact_ones() -> None:
    graph = convolutional()
    found = top_eigenvalues(Program(graph), names(graph), KL, IMAGES)
    for name, hessian in exact_hessians(graph, IMAGES).items():
        assert found[name] == pytest.approx(float(torch.linalg.eigvalsh(hessian)[-1]), rel=0.02)


def candidates_of(graph: Graph, bits: tuple[int, ...] = (8, 4, 2)) -> CandidateSet:
    made = {}
    for layer in graph.layers:
        weight = layer_weight(graph, layer)
        for b in bits:
            flat = np.moveaxis(weight, layer.channel_axis, -1)
            one = rounded(layer.name, flat.reshape(-1, flat.shape[-1]), b)
            codes = np.moveaxis(one.weight.codes.reshape(flat.shape), -1, layer.channel_axis)
            quantized = type(one.weight)(codes, one.weight.scale, None, layer.channel_axis, b)
            made[layer.name, f"w{b}a16"] = type(one)(**{**vars(one), "weight": quantized})
    return CandidateSet(made, {})


def test_the_mean_trace_is_paired_with_the_sum_of_squares() -> None:
    graph = convolutional()
    candidates, groups = candidates_of(graph), group_layers(graph)
    traces = mean_traces(Program(graph), names(graph), KL, IMAGES)
    found = hessian_trace(Program(graph), groups, candidates, KL, IMAGES, traces=traces)
    hessians = exact_hessians(graph, IMAGES)
    for (name, precision), increase in found.increases.items():
        change = candidates.candidates[name, precision].weight.dequantize() - layer_weight(graph, graph.layer(name))
        mean = float(hessians[name].trace()) / change.size
        assert increase.value == pytest.approx(0.5 * mean * float((change.astype(np.float64) ** 2).sum()), rel=1e-3)
    assert found.unit == "nats"


def test_isotropic_error_makes_the_trace_metric_exact() -> None:
    """½ E[ΔWᵀHΔW] = ½ (Tr H / n) ‖ΔW‖² when ΔW has no direction."""
    hessian = next(iter(exact_hessians(linear(), ROWS).values())).numpy()
    draws = np.random.default_rng(0).normal(size=(20000, 30)) * 0.01
    measured = 0.5 * np.einsum("ki,ij,kj->k", draws, hessian, draws)
    predicted = 0.5 * np.trace(hessian) / 30 * (draws**2).sum(1)
    assert abs((measured - predicted).mean()) < 4 * (measured - predicted).std() / 20000**0.5


def test_negative_estimates_are_reported_and_count_as_zero() -> None:
    graph = convolutional()
    weights = {name: MeanTrace(0.5, 0.1, 54, 8) for name in names(graph)}
    weights[names(graph)[1]] = MeanTrace(-0.5, 0.4, 54, 8)
    found = from_traces(
        "x", Program(graph), group_layers(graph), candidates_of(graph), KL, IMAGES, Traces("hutchinson", weights)
    )
    assert found.increases[names(graph)[1], "w4a16"].value == 0.0
    assert found.increases[names(graph)[1], "w4a16"].standard_error > 0
    assert any(names(graph)[1] in note and "-0.5" in note for note in found.notes)


def test_groups_sum_their_layers() -> None:
    graph = convolutional()
    apart = hessian_trace(Program(graph), group_layers(graph), candidates_of(graph), KL, IMAGES)
    tied = (LayerGroup(names(graph)[0], tuple(names(graph)[:2])), LayerGroup(names(graph)[2], (names(graph)[2],)))
    together = hessian_trace(Program(graph), tied, candidates_of(graph), KL, IMAGES)
    total = sum(apart.increases[name, "w4a16"].value for name in names(graph)[:2])
    assert together.increases[names(graph)[0], "w4a16"].value == pytest.approx(total)


def test_a_layer_that_reaches_no_scored_output_has_trace_zero_and_is_named() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["y"], "used"),
        helper.make_node("MatMul", ["x", "v"], ["z"], "unused"),
    ]
    weights = {"w": RNG.normal(size=(6, 5)), "v": RNG.normal(size=(6, 5))}
    graph = model(nodes, weights, [6])
    used, unused = names(graph)
    for measured in (gauss_newton_traces, hutchinson_traces):
        traces = measured(Program(graph), [used, unused], KL, ROWS)
        assert traces.weights[unused].value == 0.0
        assert traces.weights[used].value > 0.0
    assert any(repr(unused) in note for note in gauss_newton_traces(Program(graph), [unused], KL, ROWS).notes)


def test_traces_are_saved_and_damage_is_found(tmp_path: Path) -> None:
    graph = convolutional()
    traces = mean_traces(Program(graph), names(graph), KL, IMAGES)
    traces.save(tmp_path / "t.json")
    assert Traces.load(tmp_path / "t.json") == traces
    document = json.loads((tmp_path / "t.json").read_text())
    assert "mean" in MeanTrace.__doc__
    (tmp_path / "t.json").write_text(json.dumps({**document, "schema_version": 99}))
    with pytest.raises(BadSubmission) as caught:
        Traces.load(tmp_path / "t.json")
    assert caught.value.code == "bad_traces"


def subject(graph: Graph, program: Program | None) -> Subject:
    return Subject(TorchSimulator(graph), program, group_layers(graph), candidates_of(graph), KL, IMAGES)


@pytest.mark.parametrize("name", list(METRICS))
def test_every_metric_grows_as_bits_fall(name: str) -> None:
    graph = convolutional()
    found = measure(name, subject(graph, Program(graph)))
    assert found.metric == name
    for layer in names(graph):
        values = [found.increases[layer, precision].value for precision in ("w8a16", "w4a16", "w2a16")]
        assert 0 < values[0] < values[1] < values[2]


def test_metrics_refuse_by_name() -> None:
    graph = convolutional()
    with pytest.raises(BadSubmission) as caught:
        measure("hessian", subject(graph, None))
    assert caught.value.code == "metric_unknown"
    with pytest.raises(UnsupportedOp) as refused:
        measure("hessian_trace", subject(graph, None))
    assert "kl" in refused.value.hint
    assert measure("weight_error", subject(graph, None)).increases
    assert measure("kl", subject(graph, None)).increases


def test_quantized_activations_add_their_trace_times_their_noise() -> None:
    graph = convolutional()
    activation = Numerics(8, symmetric=False, signed=False, granularity=Granularity.TENSOR)
    coarse = Numerics(3, symmetric=False, signed=False, granularity=Granularity.TENSOR)
    weight = Numerics(8, symmetric=True, signed=True, granularity=Granularity.CHANNEL)
    recipes = {
        (name, precision): Recipe(precision, weight, numerics, False)
        for name in names(graph)
        for precision, numerics in (("w8a8", activation), ("w8a3", coarse), ("w8a16", None))
    }
    simulator = TorchSimulator(graph)
    candidates = finish_candidates(simulator, recipes, IMAGES)
    traces = mean_traces(Program(graph), names(graph), KL, IMAGES)
    found = hessian_trace(Program(graph), group_layers(graph), candidates, KL, IMAGES, traces=traces)
    head = graph.layers[-1]
    read = np.concatenate([simulator.run(chunk, keep=[head.input])[head.input] for chunk in IMAGES])
    changes = weight_changes(graph, candidates)
    for precision, bits, numerics in (("w8a8", 8, activation), ("w8a3", 3, coarse)):
        quantizer = candidates.quantizers[head.input, numerics]
        codes = np.clip(np.round(read / np.float32(quantizer.scale)) + quantizer.zero_point, 0, 2**bits - 1)
        noise = (((codes - quantizer.zero_point) * quantizer.scale - read) ** 2).mean() * 6
        expected = 0.5 * (
            traces.weights[head.name].value * changes[head.name, precision]
            + traces.activations[head.name].value * noise
        )
        assert found.increases[head.name, precision].value == pytest.approx(expected, rel=1e-3)
    for name in names(graph):
        fine, rough, none = (found.increases[name, precision].value for precision in ("w8a8", "w8a3", "w8a16"))
        assert none < fine < rough


def test_fixed_batch_activations_are_measured_in_its_pieces() -> None:
    graph = convolutional(batch=3)
    numerics = Numerics(8, symmetric=False, signed=False, granularity=Granularity.TENSOR)
    weight = Numerics(4, symmetric=True, signed=True, granularity=Granularity.CHANNEL)
    recipes = {(name, "w4a8"): Recipe("w4a8", weight, numerics, False) for name in names(graph)}
    candidates = finish_candidates(TorchSimulator(graph), recipes, IMAGES)
    found = hessian_trace(Program(graph), group_layers(graph), candidates, KL, IMAGES)
    assert all(increase.value > 0 for increase in found.increases.values())
