"""Measuring a whole model on the fake device, whose clock makes every number repeatable."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from kernels.backends.fake import fake_latency_us
from kernels.latency_table import LatencyTable
from kernels.operating_point import OperatingPoint
from kernels.precision import Precision
from kernels.registry import backend_for, load_profile
from search.errors import BadSubmission
from search.graph import Graph
from search.latency import model
from search.latency.assemblies import CalibrationAssembly
from search.latency.coefficients import EndToEndRun
from search.latency.guided import SHARES
from search.latency.measure import NetworkTimer
from search.latency.model import MeasuredModel, measure_model
from search.onnx_import import graph_from_model, operating_shapes


@lru_cache(maxsize=1)
def small_graph() -> Graph:
    """Five convolutions, each with a Relu, a pooling and a product."""
    rng = np.random.default_rng(0)
    nodes, constants, width_in, tensor = [], [], 3, "image"

    def constant(name: str, *shape: int) -> str:
        constants.append(numpy_helper.from_array(rng.normal(0, 0.2, shape).astype(np.float32), name))
        return name

    for index, width in enumerate((16, 16, 32, 32, 32)):
        names = [tensor, constant(f"w{index}", width, width_in, 3, 3), constant(f"b{index}", width)]
        nodes.append(helper.make_node("Conv", names, [f"c{index}"], name=f"conv{index}", pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [f"c{index}"], [f"r{index}"], name=f"relu{index}"))
        tensor, width_in = f"r{index}", width
    nodes.append(helper.make_node("GlobalAveragePool", [tensor], ["pooled"], name="pool"))
    nodes.append(helper.make_node("Flatten", ["pooled"], ["flat"], name="flatten"))
    nodes.append(helper.make_node("Gemm", ["flat", constant("w", 32, 10), constant("b", 10)], ["logits"], name="head"))
    image = helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, ["batch", 3, 8, 8])
    logits = helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["batch", 10])
    graph = helper.make_graph(nodes, "small", [image], [logits], constants)
    return graph_from_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10))


@pytest.fixture(scope="module")
def measured() -> MeasuredModel:
    profile = load_profile("fake")
    return measure_model(small_graph(), profile, backend_for(profile), OperatingPoint())


def test_rows_are_those_of_the_device(measured: MeasuredModel) -> None:
    graph, point = small_graph(), OperatingPoint()
    shapes = operating_shapes(graph, point)
    for (layer, precision), median_us in measured.fit.terms.row_us.items():
        expected = fake_latency_us(shapes.op_shapes[layer], Precision(precision), threads=1)
        assert median_us == pytest.approx(expected, rel=0.01, abs=1e-3)
    assert len(measured.fit.terms.layers) == 6


def test_full_precision_is_among_the_runs_and_all_are_predicted(measured: MeasuredModel) -> None:
    fit = measured.fit
    assert fit.runs[0].precisions == {}
    assert 8 <= len(fit.runs) <= 16 + len(SHARES) + len(model.GOOD_MEANS) * (model.RUNS_PER_ROUND + len(SHARES))
    for run in fit.runs:
        assert fit.predict(run.precisions) == pytest.approx(run.median_us, rel=0.25)
    assert fit.point == OperatingPoint()
    assert fit.model == small_graph().content_hash


def test_a_poor_fit_takes_more_runs_and_keeps_the_ones_it_has(
    measured: MeasuredModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    profile = load_profile("fake")

    def runs(good_means: tuple[float, ...]) -> tuple[EndToEndRun, ...]:
        monkeypatch.setattr(model, "GOOD_MEANS", good_means)
        backend = backend_for(profile)
        return measure_model(small_graph(), profile, backend, OperatingPoint(), table=measured.table).fit.runs

    few, more = runs(()), runs((0.0, 0.0))
    assert model.is_good(measured.fit, 0.0) is False, "no fit is without any error"
    assert [(run.name, run.precisions) for run in more[: len(few)]] == [(run.name, run.precisions) for run in few]
    assert more[0].timings > few[0].timings > 1
    assert len(more) >= len(few) + model.RUNS_PER_ROUND
    assert len({frozenset(run.precisions.items()) for run in more}) == len(more)


def test_what_a_fit_chose_is_compared_with_what_it_said_before(measured: MeasuredModel) -> None:
    fit = measured.fit
    known = {frozenset(run.precisions.items()) for run in fit.runs}
    layers = [layer for layer in fit.terms.layers if "w8a8" in fit.terms.offered(layer)]
    chosen = next(
        CalibrationAssembly("chosen", plan)
        for count in range(1, len(layers))
        if frozenset((plan := dict.fromkeys(layers[:count], "w8a8")).items()) not in known
    )

    def timed(share: float) -> list[EndToEndRun]:
        us = share * fit.predict(chosen.precisions)
        return [*fit.runs, EndToEndRun(chosen.name, chosen.precisions, us, us, us)]

    assert model.foresaw(fit, [chosen], timed(1.01), 0.015)
    assert not model.foresaw(fit, [chosen], timed(1.02), 0.015)
    seen = CalibrationAssembly("seen", fit.runs[3].precisions)
    assert model.foresaw(fit, [seen], fit.runs, 0.0), "a run of the fit itself says nothing"


def test_a_run_that_the_others_contradict_is_timed_again(
    measured: MeasuredModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    profile = load_profile("fake")
    disturbed: list[str] = []
    timed = NetworkTimer.measure

    def disturb_once(timer: NetworkTimer, *arguments: Any) -> list[EndToEndRun]:
        runs = timed(timer, *arguments)
        if not disturbed:
            disturbed.append(runs[5].name)
            runs[5] = replace(runs[5], median_us=1.5 * runs[5].median_us)
        return runs

    monkeypatch.setattr(NetworkTimer, "measure", disturb_once)
    found = measure_model(small_graph(), profile, backend_for(profile), OperatingPoint(), table=measured.table).fit
    usual = {frozenset(run.precisions.items()): run.median_us for run in measured.fit.runs}
    again = {frozenset(run.precisions.items()): run.median_us for run in found.runs}
    assert found.runs[0].precisions == {}
    assert len(again) == len(found.runs), "none stands twice"
    assert all(again[key] == pytest.approx(us, rel=1e-3) for key, us in usual.items() if key in again)


def test_a_second_time_measures_no_row_again(measured: MeasuredModel) -> None:
    profile = load_profile("fake")
    steps: list[str] = []
    again = measure_model(
        small_graph(), profile, backend_for(profile), OperatingPoint(), table=measured.table,
        progress=lambda done, total, what: steps.append(what),
    )  # fmt: skip
    assert again.table == measured.table
    assert "op rows" not in steps
    assert again.fit.to_json() == measured.fit.to_json()


def test_an_interrupted_run_goes_on_from_its_checkpoint() -> None:
    profile = load_profile("fake")
    saved: list[LatencyTable] = []

    class Interrupted(Exception):
        pass

    def interrupt(table: LatencyTable) -> None:
        saved.append(table)
        raise Interrupted

    graph, point = small_graph(), OperatingPoint()
    with pytest.raises(Interrupted):
        measure_model(graph, profile, backend_for(profile), point, checkpoint=interrupt)
    resumed = measure_model(graph, profile, backend_for(profile), point, table=saved[0])
    assert 0 < len(saved[0].rows) < len(resumed.table.rows)
    assert resumed.table.rows[: len(saved[0].rows)] == saved[0].rows


def test_a_profile_that_offers_nothing_says_so() -> None:
    profile = load_profile("fake")
    floats = {pair: support for pair, support in profile.support.items() if pair[1] == "fp32"}
    bare = replace(profile, support=floats, recipes={})
    with pytest.raises(BadSubmission, match="no layer of the model") as error:
        measure_model(small_graph(), bare, backend_for(profile), OperatingPoint())
    assert error.value.code == "nothing_to_measure"


def test_a_model_of_one_layer_is_fitted_to_all_the_runs_there_are() -> None:
    rng = np.random.default_rng(0)
    constants = [numpy_helper.from_array(rng.normal(0, 0.2, (32, 10)).astype(np.float32), "w")]
    image = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", 32])
    logits = helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["batch", 10])
    nodes = [helper.make_node("MatMul", ["x", "w"], ["logits"], name="head")]
    made = helper.make_graph(nodes, "one", [image], [logits], constants)
    graph = graph_from_model(helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10))
    profile = load_profile("fake")
    fit = measure_model(graph, profile, backend_for(profile), OperatingPoint()).fit
    assert len({frozenset(run.precisions.items()) for run in fit.runs}) == len(fit.runs) >= 2
    for run in fit.runs:
        assert fit.predict(run.precisions) == pytest.approx(run.median_us, rel=0.02)
    if fit.loo_mape is None:
        assert "none can be left out" in fit.accuracy
