"""What OpenVINO makes of written patterns, and why the profile's session options say what they say.

Facts of one runtime version, like those of ONNX Runtime beside this file.
"""

from __future__ import annotations

import numpy as np
import pytest

from kernels.backends.openvino import OpenVinoModel, kernel_name
from kernels.cpu import has_bf16, saturates_in_int8, this_cpu
from kernels.onnx_op import INPUT, OUTPUT, op_feed, op_model
from kernels.op_shape import Conv2dShape, LinearShape
from kernels.precision import FP32, Precision
from kernels.random_layer import RandomLayer, random_layer
from kernels.reference import expected_output
from kernels.registry import backend_for, load_profile

LINEAR = LinearShape(8, 64, 48)
OURS = load_profile("cpu-local-openvino").session_options


def layer_of(precision: str, op: LinearShape | Conv2dShape = LINEAR) -> RandomLayer:
    recipe = load_profile("cpu-local-openvino").recipe(op.kind, Precision(precision))
    return random_layer(op, Precision(precision), recipe)


def kernels_of(model: bytes) -> set[str]:
    loaded = OpenVinoModel(model, 1, OURS)
    try:
        return {kernel_name(step) for step in loaded.executed_ops()}
    finally:
        loaded.close()


@pytest.mark.parametrize("precision", ["w8a8", "w4a8"])
def test_a_static_linear_op_is_integer_only_behind_its_own_quantizer(precision: str) -> None:
    layer = layer_of(precision)
    assert "FullyConnected:i8" in kernels_of(op_model(layer, float_linear_input=True))
    assert "FullyConnected:i8" not in kernels_of(op_model(layer))


def test_the_submitted_nodes_are_named_in_what_runs() -> None:
    loaded = OpenVinoModel(op_model(layer_of("w8a8", Conv2dShape(1, 16, 8, 8, 16, (3, 3)))), 1, OURS)
    (conv,) = [step for step in loaded.executed_ops() if step.op_type == "Convolution"]
    assert conv.compute == "i8"
    assert any(name.startswith("Conv_product") for name in conv.origins)
    assert conv.weights
    loaded.close()


@pytest.mark.skipif(saturates_in_int8(this_cpu()), reason="without VNNI OpenVINO leaves the rows in float anyway")
def test_group_size_zero_would_leave_the_rows_of_the_int4_kernel_in_float() -> None:
    layer = layer_of("w4a16-g32", LinearShape(8, 256, 48))
    expected = expected_output(layer)

    def error(group_size: str) -> float:
        options = {**OURS, "DYNAMIC_QUANTIZATION_GROUP_SIZE": group_size}
        loaded = OpenVinoModel(op_model(layer), 1, options)
        found = loaded.run(op_feed(layer))[OUTPUT]
        loaded.close()
        return float(np.abs(found - expected).max() / np.abs(expected).max())

    assert error("32") < 1e-6
    assert error("0") > 1e-4


@pytest.mark.skipif("amx_bf16" not in this_cpu().isa, reason="only a CPU with bfloat16 units computes in it by default")
def test_full_precision_must_be_asked_for_by_name() -> None:
    layer = random_layer(LinearShape(64, 256, 48), Precision("fp32"), None)
    expected = expected_output(layer)

    def error(options: dict[str, str]) -> float:
        loaded = OpenVinoModel(op_model(layer), 1, options)
        found = loaded.run({INPUT: layer.input})[OUTPUT]
        loaded.close()
        return float(np.abs(found - expected).max() / np.abs(expected).max())

    assert error(dict(OURS)) < 1e-6
    assert error({}) > 1e-4


def test_codes_and_the_floats_they_stand_for_are_the_same_input() -> None:
    layer = layer_of("w8a8")
    loaded = OpenVinoModel(op_model(layer, float_linear_input=True), 1, OURS)
    found = loaded.run(op_feed(layer, float_linear_input=True))[OUTPUT]
    np.testing.assert_allclose(found, expected_output(layer), rtol=0, atol=2e-6 * np.abs(expected_output(layer)).max())
    loaded.close()


@pytest.mark.skipif(not has_bf16(this_cpu()), reason="this CPU has no bfloat16 units, so no profile that uses them")
@pytest.mark.parametrize("kind", ["conv2d", "linear"])
def test_the_bf16_profile_runs_full_precision_in_bf16_and_integers_to_the_same_bit(kind: str) -> None:
    profile, op = load_profile("cpu-local-openvino-bf16"), Conv2dShape(1, 16, 8, 8, 16, (3, 3))
    op = op if kind == "conv2d" else LINEAR
    for precision in profile.precisions(kind):
        layer = random_layer(op, precision, profile.recipe(kind, precision))
        model, feed = op_model(layer, float_linear_input=True), op_feed(layer, float_linear_input=True)
        found = []
        for options in (OURS, profile.session_options):
            loaded = OpenVinoModel(model, 1, options)
            found.append(loaded.run(feed)[OUTPUT])
            assert profile.support[kind, precision.name].kernel in {kernel_name(op) for op in loaded.executed_ops()}
            loaded.close()
        if precision.is_weight_only:
            np.testing.assert_allclose(found[1], found[0], rtol=0, atol=0.01 * np.abs(found[0]).max())
        else:
            np.testing.assert_array_equal(found[1], found[0])
    runnable = backend_for(profile).build(op, FP32, 1)
    assert runnable.executed_kernel.endswith(":bf16")
    runnable.close()
