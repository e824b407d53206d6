"""Calibration: ranges from streamed statistics, under the rules runtimes impose on quantized tensors."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto
from small_models import Builder, images, recipes_for, small_cnn

from kernels.recipe import Granularity, Numerics
from kernels.recipes import ACTIVATION_U8, linear_recipe
from search.candidates.calibration import absorbed_limits, calibrate, collect_histograms, quantizer_for_range
from search.candidates.recipes import Wanted, wanted_of
from search.errors import BadSubmission, NotEnoughData
from search.quantizer.uniform import fake_quantize
from search.simulation.torch_simulator import TorchSimulator

U4 = Numerics(4, symmetric=False, signed=False, granularity=Granularity.TENSOR)
S8 = Numerics(8, symmetric=False, signed=True, granularity=Granularity.TENSOR)


@pytest.fixture(scope="module")
def cnn():
    simulator = TorchSimulator(small_cnn())
    chunks = [images(24, seed=seed) for seed in range(3)]
    return simulator, chunks, calibrate(simulator, chunks, wanted_of([recipes_for(simulator.graph)]))


def test_every_static_reader_and_quantized_output_has_one_quantizer(cnn):
    _, _, calibration = cnn
    tensors = {tensor for tensor, _ in calibration.quantizers}
    assert tensors == {
        "image", "stem_relu", "depthwise_clip", "pointwise", "silu", "block1_relu", "block2", "features"
    }  # fmt: skip
    assert calibration.samples == 72
    assert set(calibration.rules) == set(calibration.quantizers)
    assert all(0 < error < 1e-3 for error in calibration.errors.values())


def test_relu_starts_at_the_smallest_code_and_clip_ends_inside(cnn):
    simulator, _, calibration = cnn
    assert absorbed_limits(simulator.graph) == {
        "stem_relu": (0, np.inf), "depthwise_clip": (0, 6), "block1_relu": (0, np.inf)
    }  # fmt: skip
    for tensor in ("stem_relu", "block1_relu", "depthwise_clip"):
        assert calibration.quantizers[tensor, ACTIVATION_U8].zero_point == 0
    assert np.float32(255) * np.float32(calibration.quantizers["depthwise_clip", ACTIVATION_U8].scale) <= np.float32(6)


def test_quantizers_reproduce_the_tensors(cnn):
    simulator, chunks, calibration = cnn
    keep = [tensor for tensor, _ in calibration.quantizers]
    kept = simulator.run(chunks[0], keep=keep)
    for (tensor, _), quantizer in calibration.quantizers.items():
        values = kept[tensor]
        error = np.square(fake_quantize(values, quantizer) - values).mean() / np.square(values).mean()
        assert error < 3 * calibration.errors[tensor, ACTIVATION_U8] + 1e-7


def test_streaming_sees_what_one_look_sees(cnn):
    simulator, chunks, _ = cnn
    whole = {"image": np.concatenate([chunk["image"] for chunk in chunks])}
    streamed = collect_histograms(simulator, chunks, ["silu", "image"])
    at_once = collect_histograms(simulator, [whole], ["silu", "image"])
    for tensor in streamed:
        assert streamed[tensor].low == pytest.approx(at_once[tensor].low, rel=1e-6)
        assert streamed[tensor].counts.sum() == at_once[tensor].counts.sum()
        assert np.abs(streamed[tensor].counts - at_once[tensor].counts).sum() <= 0.001 * at_once[tensor].counts.sum()


@given(limit=st.floats(2**-10, 1e4, width=32), high=st.floats(0, 1e5, width=32))
def test_a_clip_is_never_exceeded_in_float32(limit, high):
    for numerics in (ACTIVATION_U8, U4, S8):
        quantizer = quantizer_for_range("x", 0.0, high, numerics, (0.0, limit))
        assert quantizer.zero_point == numerics.code_min
        assert np.float32(numerics.code_max - numerics.code_min) * np.float32(quantizer.scale) <= np.float32(limit)


@given(low=st.floats(-100, 0), high=st.floats(0, 100))
def test_limits_on_both_sides_hold(low, high):
    quantizer = quantizer_for_range("x", low, high, ACTIVATION_U8, (-1.0, 2.0))
    reach = np.float32(quantizer.scale)
    assert (255 - quantizer.zero_point) * reach <= 2.0
    assert quantizer.zero_point * reach <= 1.0


@given(value=st.one_of(st.just(0.0), st.floats(-1e4, 1e4, width=32).filter(lambda x: abs(x) > 1e-20)))
def test_a_constant_tensor_is_represented_exactly(value):
    quantizer = quantizer_for_range("x", value, value, ACTIVATION_U8)
    assert fake_quantize(np.float32([value]), quantizer)[0] == pytest.approx(value, rel=1e-6)
    assert quantizer.scale > 0


def one_layer(shift=0.0):
    b = Builder(0)
    b.node("Mul", ["x", b.constant("gain", np.float32(shift))], "scaled")
    b.node("MatMul", ["scaled", b.normal("w", 4, 3)], "y")
    return b.graph({"x": (TensorProto.FLOAT, "N", 4)}, {"y": (TensorProto.FLOAT, "N", 3)})


def test_constant_activations_are_calibrated():
    graph = one_layer(0.0)
    (layer,) = graph.layers
    data = [{"x": np.ones((4, 4), np.float32)}]
    calibration = calibrate(TorchSimulator(graph), data, [Wanted(layer.name, "w8a8", linear_recipe(8))])
    assert calibration.quantizers["scaled", ACTIVATION_U8].scale == 1.0
    assert calibration.errors["scaled", ACTIVATION_U8] == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_activations_that_are_not_finite_are_named(bad):
    graph = one_layer(1.0)
    (layer,) = graph.layers
    data = [{"x": np.full((4, 4), bad, np.float32)}]
    with pytest.raises(BadSubmission, match="'scaled'") as refused:
        calibrate(TorchSimulator(graph), data, [Wanted(layer.name, "w8a8", linear_recipe(8))])
    assert refused.value.code == "activation_not_finite"


def test_no_samples_is_said(cnn):
    simulator, _, _ = cnn
    with pytest.raises(NotEnoughData) as refused:
        calibrate(simulator, [], wanted_of([recipes_for(simulator.graph)]))
    assert refused.value.code == "calibration_empty"


def test_a_tensor_gets_a_quantizer_in_each_format_that_runtimes_read_it_in():
    graph = one_layer(1.0)
    (layer,) = graph.layers
    signed = replace(linear_recipe(4), activation=S8)
    wanted = [Wanted(layer.name, "w8a8", linear_recipe(8)), Wanted(layer.name, "w4a8", signed)]
    data = [{"x": np.linspace(-1, 3, 16, dtype=np.float32).reshape(4, 4)}]
    together = calibrate(TorchSimulator(graph), data, wanted).quantizers
    assert list(together) == [("scaled", ACTIVATION_U8), ("scaled", S8)]
    for each in wanted:
        (alone,) = calibrate(TorchSimulator(graph), data, [each]).quantizers.items()
        assert together[alone[0]] == alone[1]


def test_progress_reaches_its_total(cnn):
    simulator, chunks, _ = cnn
    seen = []
    calibrate(simulator, chunks, wanted_of([recipes_for(simulator.graph)]), progress=lambda *step: seen.append(step))
    assert seen == [(done, 6) for done in range(1, 7)]
