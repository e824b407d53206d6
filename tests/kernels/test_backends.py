"""Contract suite: every backend computes, for every pair its profile offers, what the pair's recipe says."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from kernels.backends.base import Backend, BadModel, KernelFallback
from kernels.errors import UnsupportedPrecision
from kernels.hardware_profile import HardwareProfile, KernelSupport
from kernels.op_shape import LinearShape, parse_op_shape
from kernels.precision import FP32, Precision
from kernels.recipes import linear_dynamic_recipe
from kernels.reference import expected_output
from kernels.registry import backend_for, load_profile

PROFILES = ("cpu-local", "cpu-local-openvino", "fake")
SHAPES = (
    "linear_m1_k64_n10_b1",
    "linear_m17_k96_n40_b0",
    "linear_m3_k70_n33_b1",
    "linear_m64_k384_n64_b1",
    "conv2d_n2_c16_h9_w11_o24_k3x3_s2x1_p1x0x2x1_d1x2_g4_b1",
    "conv2d_n1_c3_h15_w15_o16_k7x7_s2x2_p3x3x3x3_d1x1_g1_b1",
    "conv2d_n1_c32_h8_w8_o32_k3x3_s1x1_p1x1x1x1_d1x1_g32_b0",
    "conv2d_n1_c64_h7_w7_o48_k1x1_s1x1_p0x0x0x0_d1x1_g1_b1",
    "conv2d_n1_c8_h1_w30_o12_k1x5_s1x2_p0x2x0x2_d1x1_g1_b0",
    "embedding_t16_r50_w32",
)
# Float32 runtimes may add in any order; a code may move by one where the exact value lies on a rounding boundary.
FLOAT_TOLERANCE = 2e-6
MOVED_CODES = 0.002


@lru_cache
def profile_of(name: str) -> HardwareProfile:
    return load_profile(name)


@lru_cache
def backend_of(name: str) -> Backend:
    return backend_for(profile_of(name))


def offered() -> list[tuple[str, str, str]]:
    cases = []
    for name in PROFILES:
        for signature in SHAPES:
            op = parse_op_shape(signature)
            cases += [
                (name, signature, precision.name)
                for precision in [FP32, *profile_of(name).precisions(op.kind)]
                if backend_of(name).why_not(op, precision) is None
            ]
    return cases


@pytest.mark.parametrize(("name", "signature", "precision"), offered())
def test_computes_what_the_recipe_says(name: str, signature: str, precision: str) -> None:
    op = parse_op_shape(signature)
    runnable = backend_of(name).build(op, Precision(precision), threads=1)
    found = runnable.output()
    expected = expected_output(runnable.layer)
    recipe = runnable.layer.recipe
    if recipe is not None and recipe.output_quantized:
        difference = np.abs(found.astype(np.int64) - expected)
        assert difference.max() <= 1
        assert (difference > 0).mean() <= MOVED_CODES
        assert len(np.unique(found)) > 50, "the test data must spread over the code range"
    else:
        np.testing.assert_allclose(found, expected, rtol=0, atol=FLOAT_TOLERANCE * np.abs(expected).max())
    assert runnable.executed_kernel == profile_of(name).support[op.kind, precision].kernel
    runnable.close()


@pytest.mark.parametrize("name", PROFILES)
def test_every_supported_pair_is_in_the_suite(name: str) -> None:
    covered = {(parse_op_shape(s).kind, p) for profile, s, p in offered() if profile == name}
    assert covered == set(profile_of(name).support)


@pytest.mark.parametrize("name", PROFILES)
def test_data_is_seeded_random_and_never_zero(name: str) -> None:
    op = LinearShape(4, 64, 8)
    build = backend_of(name).build
    first, again, other = (build(op, Precision("w8a8"), 1, seed).layer for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.weight, again.weight)
    assert (first.weight != other.weight).mean() > 0.9
    assert first.weight.any()
    assert first.input.any()


@pytest.mark.parametrize("name", PROFILES)
def test_a_pair_the_profile_lacks_is_refused_with_what_it_runs(name: str) -> None:
    backend = backend_of(name)
    op = LinearShape(4, 64, 8)
    reason = backend.why_not(op, Precision("w4a4"))
    assert reason is not None
    assert "w8a8" in reason
    with pytest.raises(UnsupportedPrecision) as caught:
        backend.build(op, Precision("w4a4"), threads=1)
    assert caught.value.code == "unsupported_precision"


def test_openvino_needs_whole_groups_and_onnxruntime_does_not() -> None:
    op, precision = LinearShape(3, 70, 33), Precision("w4a16-g32")
    assert backend_of("cpu-local").why_not(op, precision) is None
    assert "70" in (backend_of("cpu-local-openvino").why_not(op, precision) or "")


@pytest.mark.parametrize("name", ["cpu-local", "cpu-local-openvino"])
def test_another_kernel_than_promised_is_a_fallback(name: str) -> None:
    """DynamicQuantizeLinear + MatMulInteger runs in float on OpenVINO; QGemm is not the kernel named below."""
    profile = profile_of(name)
    pair = ("linear", "w8a8-dynamic")
    promised = "QLinearMatMul" if name == "cpu-local" else "FullyConnected:i8"
    wrong = replace(
        profile,
        support={**profile.support, pair: KernelSupport(promised)},
        recipes={**profile.recipes, pair: linear_dynamic_recipe()},
    )
    with pytest.raises(KernelFallback, match="instead of") as caught:
        backend_for(wrong).build(LinearShape(8, 64, 16), Precision("w8a8-dynamic"), threads=1)
    assert caught.value.code == "kernel_fallback"


def two_layer_model() -> tuple[bytes, dict[str, np.ndarray]]:
    rng = np.random.default_rng(3)
    weights = {"first": rng.standard_normal((6, 5)).astype(np.float32), "second": rng.standard_normal((5, 4))}
    nodes = [
        helper.make_node("MatMul", ["x", "first"], ["hidden"], name="one"),
        helper.make_node("Relu", ["hidden"], ["positive"], name="two"),
        helper.make_node("MatMul", ["positive", "second"], ["y"], name="three"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 6])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", n]) for name, n in (("y", 4), ("hidden", 5))],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return model.SerializeToString(), weights


@pytest.mark.parametrize("name", PROFILES)
def test_whole_models_answer_by_output_name_for_any_batch(name: str, tmp_path) -> None:  # type: ignore[no-untyped-def]
    model, weights = two_layer_model()
    path = tmp_path / "model.onnx"
    path.write_bytes(model)
    for source in (model, path):
        loaded = backend_of(name).load_model(source, threads=1, session_options=None)
        for batch in (1, 3):
            x = np.random.default_rng(batch).standard_normal((batch, 6)).astype(np.float32)
            found = loaded.run({"x": x})
            hidden = x @ weights["first"]
            assert list(found) == ["y", "hidden"]
            np.testing.assert_allclose(found["hidden"], hidden, rtol=1e-5, atol=1e-5)
            np.testing.assert_allclose(found["y"], np.maximum(hidden, 0) @ weights["second"], rtol=1e-5, atol=1e-5)
        read = {weight for op in loaded.executed_ops() for weight in op.weights}
        assert {"first", "second"} <= read
        loaded.close()


@pytest.mark.parametrize("name", PROFILES)
def test_outputs_outlive_the_next_run(name: str) -> None:
    model, _ = two_layer_model()
    loaded = backend_of(name).load_model(model, threads=1, session_options=None)
    first = loaded.run({"x": np.ones((1, 6), np.float32)})["y"]
    kept = first.copy()
    loaded.run({"x": np.zeros((1, 6), np.float32)})
    np.testing.assert_array_equal(first, kept)


@pytest.mark.parametrize("name", PROFILES)
@pytest.mark.parametrize("content", [b"", b"not a model", onnx.ModelProto().SerializeToString()])
def test_a_file_that_is_no_model_is_refused(name: str, content: bytes) -> None:
    with pytest.raises(BadModel) as caught:
        backend_of(name).load_model(content, threads=1, session_options=None)
    assert caught.value.code == "model_unloadable"
