"""Latency of a model on a device nobody measured: a sum of rows that says what it is."""

from __future__ import annotations

import dataclasses
import json

import pytest
from small_models import small_cnn

from kernels.errors import NotMeasured
from kernels.estimate import conversion_us, estimate
from kernels.latency_table import LatencyRow, RowScope, RowStatus
from kernels.microbench import empty_table
from kernels.operating_point import OperatingPoint
from kernels.precision import FP32, Precision
from kernels.registry import load_profile
from search.groups import group_layers
from search.latency.costs import latency_costs
from search.latency.estimated import estimate_model
from search.latency.fit import LatencyFit
from search.onnx_import import operating_shapes

POINT = OperatingPoint(batch=8)


def test_the_model_costs_what_its_rows_cost() -> None:
    graph, profile = small_cnn(), load_profile("t4")
    fit = estimate_model(graph, profile, POINT).fit
    shapes = operating_shapes(graph, POINT).op_shapes
    layers = fit.terms.layers
    assert set(layers) == {layer.name for layer in graph.layers}
    for precision in (FP32, Precision("w8a8")):
        everywhere = dict.fromkeys(layers, precision.name)
        rows = sum(estimate(profile, shapes[name], precision).us for name in layers)
        converted = fit.terms.converted_elements(everywhere) * conversion_us(profile)
        assert fit.predict(everywhere) == pytest.approx(rows + converted)
    assert fit.predict(dict.fromkeys(layers, "w8a8")) < fit.predict({})


def test_it_says_that_it_is_an_estimate_and_which_kernels_never_ran() -> None:
    fit = estimate_model(small_cnn(), load_profile("t4"), POINT).fit
    assert fit.runs == ()
    assert fit.loo_mape is None
    assert set(fit.row_statuses) == {"estimated"}
    assert "estimates" in fit.caveat
    assert "not yet run on Tesla T4: conv_s4_native, conv_s8, conv_w4a8, gemm_" in fit.caveat
    assert "no run" in fit.accuracy
    again = LatencyFit.from_json(json.loads(json.dumps(fit.to_json())))
    assert again == fit
    costs = latency_costs(again, group_layers(small_cnn()))
    assert costs.caveat == fit.caveat


def test_rows_that_were_measured_on_the_device_count_before_any_estimate() -> None:
    graph, profile = small_cnn(), load_profile("t4")
    op = operating_shapes(graph, POINT).op_shapes[graph.layers[0].name]
    row = LatencyRow(
        op.signature, "w8a8", 1, 12345.0, 12345.0, 12345.0, 12345.0, 12345.0, 30, RowStatus.MEASURED,
        RowScope.KERNEL, "conv_s8", "run",
    )  # fmt: skip
    table = empty_table(profile).extended([row], "run", {})
    estimated = estimate_model(graph, profile, POINT, table)
    assert estimated.fit.row_statuses["measured"] == 1
    assert estimated.fit.terms.row_us[graph.layers[0].name, "w8a8"] == 12345.0
    assert "1 measured" in estimated.fit.caveat
    assert estimated.table.lookup(op, Precision("w8a8"), 1) == row


def test_a_profile_without_peaks_is_not_guessed() -> None:
    bare = dataclasses.replace(load_profile("t4"), peaks={})
    with pytest.raises(NotMeasured) as caught:
        estimate_model(small_cnn(), bare, POINT)
    assert caught.value.code == "no_peak"
    nothing = dataclasses.replace(bare, support={}, recipes={})
    with pytest.raises(NotMeasured, match="runs no layer"):
        estimate_model(small_cnn(), nothing, POINT)


def test_a_measured_fit_needs_no_caveat() -> None:
    fit = estimate_model(small_cnn(), load_profile("a100"), POINT).fit
    run = dataclasses.replace(fit, runs=(object(),), loo_mape=0.01, loo_max=0.05)  # type: ignore[arg-type]
    assert run.caveat == ""
    assert run.accuracy == "leave-one-out error 1.0 % (at most 5.0 %)"
