"""Finished candidates: least squares at the layer output, nothing skipped silently, saved and read back."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from onnx import TensorProto
from small_models import Builder, images, recipes_for, rows_of_32, small_cnn, small_mlp, token_model, tokens

from kernels.recipe import Granularity, Numerics, Recipe
from kernels.recipes import ACTIVATION_U8, LINEAR_W4_GROUPS_FLOAT, conv_recipe, linear_recipe
from search.candidates import finish as candidates
from search.candidates.assemble import assemble
from search.candidates.calibration import calibrate
from search.candidates.candidate_set import CandidateSet
from search.candidates.finish import RULES, finish_candidates
from search.candidates.recipes import wanted_of
from search.candidates.refit import refit_sequentially
from search.errors import BadSubmission
from search.onnx_import import layer_bias, layer_weight
from search.quantizer.clipping import quantize_weight
from search.quantizer.storage import INT32_BIAS_LIMIT
from search.quantizer.uniform import fake_quantize
from search.simulation.torch_simulator import TorchSimulator

WEIGHT_ONLY_3 = Recipe(
    "w3", Numerics(3, symmetric=True, signed=True, granularity=Granularity.CHANNEL), None, output_quantized=False
)


@pytest.fixture(scope="module")
def mlp():
    graph = small_mlp()
    simulator = TorchSimulator(graph)
    chunks = [rows_of_32(32, seed=seed) for seed in range(3)]
    return graph, simulator, chunks, finish_candidates(simulator, recipes_for(graph), chunks)


def test_a_candidate_is_the_closed_form_answer(mlp):
    """The w4a8 candidate of a MatMul, computed here from scratch with numpy's least squares."""
    graph, simulator, chunks, finished = mlp
    layer = graph.layer("middle")
    whole = {"x": np.concatenate([chunk["x"] for chunk in chunks])}
    inputs = simulator.run(whole, keep=["gelu"])["gelu"].reshape(-1, 64)
    read = fake_quantize(inputs, finished.quantizers["gelu", ACTIVATION_U8]).astype(np.float64)
    exact = inputs.astype(np.float64) @ layer_weight(graph, layer)
    best = None
    for rule in RULES:
        weight = quantize_weight(layer_weight(graph, layer), linear_recipe(4).weight, 1, rule)
        output = read @ weight.dequantize().astype(np.float64)
        designs = [np.stack([output[:, c], np.ones(len(output))], axis=1) for c in range(output.shape[1])]
        fits = [np.linalg.lstsq(design, exact[:, c], rcond=None) for c, design in enumerate(designs)]
        error = sum(float(fit[1][0]) for fit in fits)
        if best is None or error < best[0]:
            best = (error, rule, weight, np.array([fit[0] for fit in fits]))
    error, rule, weight, coefficients = best
    candidate = finished.candidates["middle", "w4a8"]
    assert candidate.clipping == rule
    assert (candidate.weight.codes == weight.codes).all()
    np.testing.assert_allclose(candidate.weight.scale, weight.scale * coefficients[:, 0], rtol=1e-4)
    np.testing.assert_allclose(candidate.bias, coefficients[:, 1], atol=1e-4)
    assert candidate.residual == pytest.approx(error / np.square(exact - exact.mean(0)).sum(), rel=1e-3)


def test_more_bits_leave_less_wrong(mlp):
    _, _, _, finished = mlp
    for layer in ("up", "middle", "down"):
        wrong = {name: finished.candidates[layer, name].residual for name in ("w8a8", "w4a8", "w4a16-g32")}
        assert wrong["w8a8"] < wrong["w4a16-g32"] <= wrong["w4a8"] < 0.05


def test_how_samples_are_chunked_does_not_matter(mlp):
    graph, simulator, chunks, finished = mlp
    recipes = {key: recipe for key, recipe in recipes_for(graph).items() if key[1] != "w8a8-dynamic"}
    other = [{"x": part} for part in np.array_split(np.concatenate([chunk["x"] for chunk in chunks]), 7)]
    again = finish_candidates(simulator, recipes, other)
    for key, candidate in again.candidates.items():
        np.testing.assert_allclose(candidate.weight.scale, finished.candidates[key].weight.scale, rtol=1e-3)


def test_a_convolution_keeps_a_sane_bias_when_a_channel_is_dead():
    b = Builder(3)
    weight = b.random.normal(size=(4, 3, 3, 3)).astype(np.float32)
    weight[1], weight[2] = 0, 1e-14
    b.node("Conv", ["image", b.constant("w", weight), b.constant("b", np.float32([1, 5, -7, 0.5]))], "y",
           kernel_shape=[3, 3])  # fmt: skip
    graph = b.graph({"image": (TensorProto.FLOAT, "N", 3, 10, 10)}, {"y": (TensorProto.FLOAT, "N", 4, 8, 8)})
    simulator, data = TorchSimulator(graph), images(16)
    (layer,) = graph.layers
    finished = finish_candidates(simulator, {(layer.name, "w8a8"): conv_recipe(8)}, [data])
    candidate, quantizer = finished.candidates[layer.name, "w8a8"], finished.quantizers["image", ACTIVATION_U8]
    codes = candidate.bias / (quantizer.scale * candidate.weight.scale.astype(np.float64))
    assert (np.abs(codes) < INT32_BIAS_LIMIT).all()
    assembly = assemble(graph, {layer.name: "w8a8"}, finished)
    exact, simulated = simulator.run(data)["y"], simulator.run(data, assembly)["y"]
    assert np.abs(simulated - exact)[:, 1:3].max() <= 0.51 * finished.quantizers["y", ACTIVATION_U8].scale
    np.testing.assert_allclose(simulated[:, 1].mean(), 5, atol=0.06)


def test_pairs_that_cannot_be_made_are_listed_with_their_reason():
    graph = small_cnn()
    fc = graph.layer("fc")
    recipes = {("fc", "w4a16-g32"): LINEAR_W4_GROUPS_FLOAT, ("stem", "w4a16-g32"): LINEAR_W4_GROUPS_FLOAT,
               ("fc", "w8a8"): linear_recipe(8)}  # fmt: skip
    finished = finish_candidates(TorchSimulator(graph), recipes, [images(8)])
    assert set(finished.candidates) == {("fc", "w8a8")}
    reasons = {entry.node: entry.reason for entry in finished.excluded}
    assert reasons["fc"] == "w4a16-g32: groups of 32 do not divide the 16 inputs of a channel"
    assert "(8, 3, 3, 3)" in reasons["stem"]
    assert fc.weight_shape == (10, 16)


def test_a_layer_that_nothing_can_quantize_keeps_the_graphs_reason():
    graph = small_cnn()
    layers = tuple(replace(layer, unquantized_reason="because") if layer.name == "fc" else layer
                   for layer in graph.layers)  # fmt: skip
    graph = replace(graph, layers=layers, _by_name={})
    finished = finish_candidates(TorchSimulator(graph), recipes_for(graph), [images(8)])
    assert {entry.reason.split(": ")[1] for entry in finished.excluded if entry.node == "fc"} == {"because"}


def test_embedding_rows_are_quantized_by_row_and_never_refitted():
    graph = token_model()
    finished = finish_candidates(TorchSimulator(graph), recipes_for(graph), [tokens(16)])
    candidate = finished.candidates["table", "w8a16"]
    assert candidate.bias is None
    assert candidate.weight.scale.shape == (40,)
    error = np.abs(candidate.weight.dequantize() - layer_weight(graph, graph.layer("table")))
    assert (error.max(1) <= candidate.weight.scale * 3).all()
    assert candidate.size_bytes == 40 * 32 + 40 * 4


def test_saved_candidates_are_read_back_equal(mlp, tmp_path):
    *_, finished = mlp
    finished.save(tmp_path / "set")
    again = CandidateSet.load(tmp_path / "set")
    assert again.quantizers == finished.quantizers
    assert again.excluded == finished.excluded
    assert again.samples == finished.samples == 96
    assert list(again.candidates) == list(finished.candidates)
    for key, candidate in finished.candidates.items():
        other = again.candidates[key]
        assert (other.recipe, other.clipping, other.residual) == (
            candidate.recipe,
            candidate.clipping,
            candidate.residual,
        )
        for part in ("codes", "scale"):
            assert (getattr(other.weight, part) == getattr(candidate.weight, part)).all()
        assert (other.weight.dequantize() == candidate.weight.dequantize()).all()
        assert (other.bias is None) == (candidate.bias is None)


@pytest.mark.parametrize("damage", ["missing", "schema", "not json", "truncated"])
def test_a_damaged_set_is_refused(mlp, tmp_path, damage):
    *_, finished = mlp
    finished.save(tmp_path)
    document, arrays = tmp_path / "candidates.json", tmp_path / "candidates.npz"
    if damage == "missing":
        document.unlink()
    elif damage == "schema":
        document.write_text(document.read_text().replace('"schema_version": 1', '"schema_version": 99'))
    elif damage == "not json":
        document.write_text("{")
    else:
        arrays.write_bytes(arrays.read_bytes()[:100])
    with pytest.raises(BadSubmission) as refused:
        CandidateSet.load(tmp_path)
    assert refused.value.code == "bad_candidates"


def test_calibration_can_be_reused_and_progress_reaches_its_total(mlp):
    graph, simulator, chunks, finished = mlp
    recipes = recipes_for(graph)
    calibration = calibrate(simulator, chunks, wanted_of([recipes]))
    seen = []
    again = finish_candidates(
        simulator, recipes, chunks, progress=lambda *step: seen.append(step), calibration=calibration
    )
    assert seen == [(1, 3), (2, 3), (3, 3)]
    for key, candidate in again.candidates.items():
        assert (candidate.weight.scale == finished.candidates[key].weight.scale).all()


def test_a_layer_stops_observing_once_it_has_seen_enough(mlp, monkeypatch):
    _, simulator, chunks, finished = mlp
    recipes = {("up", "w4a8"): linear_recipe(4)}
    calibration = calibrate(simulator, chunks, wanted_of([recipes]))

    def scale(data):
        made = finish_candidates(simulator, recipes, data, calibration=calibration)
        return made.candidates["up", "w4a8"].weight.scale

    everything, first_two = scale(chunks), scale(chunks[:2])
    assert (everything == finished.candidates["up", "w4a8"].weight.scale).all()
    monkeypatch.setattr(candidates, "ENOUGH_ROWS", 100)
    monkeypatch.setattr(candidates, "ENOUGH_SAMPLES", 64)
    assert (scale(chunks) == first_two).all()
    assert (first_two != everything).any()


def test_weights_that_are_not_finite_are_refused_by_layer():
    graph = small_mlp()
    broken = {**graph.constants, "up.weight": np.full_like(graph.constants["up.weight"], np.nan)}
    graph = replace(graph, constants=broken, _by_name={})
    with pytest.raises(BadSubmission, match="'up'") as refused:
        finish_candidates(TorchSimulator(graph), {("up", "w3a16"): WEIGHT_ONLY_3}, [rows_of_32(4)])
    assert refused.value.code == "weight_not_finite"


def test_three_bits_lose_a_fraction_of_raw_rounding_after_correction_and_refit():
    """Recovery of a W3 weight-only CNN: raw min-max rounding against finished and refitted, on unseen data."""
    graph = small_cnn(width=16)
    simulator, chunks = TorchSimulator(graph), [images(64, seed=seed) for seed in range(3)]
    recipes = {(layer.name, "w3a16"): WEIGHT_ONLY_3 for layer in graph.layers}
    finished = finish_candidates(simulator, recipes, chunks)
    assembly = assemble(graph, {name: "w3a16" for name, _ in recipes}, finished)
    raw = replace(
        assembly,
        candidates={
            name: replace(
                candidate,
                weight=quantize_weight(
                    layer_weight(graph, graph.layer(name)), WEIGHT_ONLY_3.weight, graph.layer(name).channel_axis,
                    "min-max",
                ),
                bias=layer_bias(graph, graph.layer(name)),
            )
            for name, candidate in assembly.candidates.items()
        },
    )  # fmt: skip
    unseen = images(256, seed=11)
    exact = torch.from_numpy(simulator.run(unseen)["logits"]).double().log_softmax(-1)

    def kl(one):
        log_q = torch.from_numpy(simulator.run(unseen, one)["logits"]).double().log_softmax(-1)
        return float((exact.exp() * (exact - log_q)).sum(-1).mean())

    losses = [kl(one) for one in (raw, assembly, refit_sequentially(simulator, assembly, chunks))]
    assert losses[2] < losses[1] < losses[0]
    assert losses[2] <= 0.3 * losses[0]
