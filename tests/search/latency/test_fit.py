"""The latency fit on made-up runs: coefficients come back, leave-one-out is exact, costs add up to predictions."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import numpy as np
import pytest
from latency_graphs import cnn, profile

from kernels.errors import NotMeasured
from kernels.latency_table import LatencyRow, LatencyTable, RowScope, RowStatus
from kernels.operating_point import OperatingPoint
from search.curve import STRAIGHT, Curve
from search.errors import NotEnoughData
from search.groups import LayerGroup, group_layers
from search.latency.assemblies import calibration_assemblies
from search.latency.boundary import Edge, find_edges
from search.latency.coefficients import Coefficients, EndToEndRun, leave_one_out_errors, solve_coefficients
from search.latency.costs import latency_costs
from search.latency.fit import LatencyFit, fit_latency
from search.latency.rows import required_rows
from search.latency.terms import LatencyTerms, latency_terms

SWITCH_US = {"int8": 9.0, "w4a16-g32": 6.0}
UNFUSED_US = 4e-3
CLASS_SCALES = {"fp32": 1.2, "w8a8": 1.6, "w8a8-dynamic": 1.1, "w4a16-g32": 1.4}


def true_coefficients(terms: LatencyTerms, shape_spread: float = 0.0, curve: Curve = STRAIGHT) -> Coefficients:
    """The classes' scales, those of single shapes off by up to `shape_spread`."""
    generator = random.Random(5)
    shapes = {each: 1 + shape_spread * generator.uniform(-1, 1) for each in terms.kernel_shapes}
    scales = {each: CLASS_SCALES[each[0]] * off for each, off in shapes.items()}
    return Coefficients(40.0, scales, 2e-3, SWITCH_US, UNFUSED_US, curve)


def made_up_terms(head_us: float = 140.0) -> LatencyTerms:
    graph, shapes = cnn()
    here = profile()
    rows = required_rows(graph, shapes, here)
    speed = {"fp32": 1.0, "w8a8": 0.3, "w4a8": 0.3, "w8a8-dynamic": 0.4, "w4a16-g32": 0.7}
    base = {"stem": 120.0, "inner": 210.0, "plain": 210.0, "down": 90.0, "side": 35.0, "head": head_us}
    kinds = random.Random(3)
    wobble = {(layer, p.name): 1 + 0.2 * kinds.random() for layer, _, p in rows}
    wobble.update({("plain", p): wobble["inner", p] for p in speed if ("inner", p) in wobble})
    table = LatencyTable(here.slug, here.device, here.runtime, here.runtime_version).extended(
        [
            LatencyRow(
                op.signature, p.name, 1, base[layer] * speed[p.name] * wobble[layer, p.name], 0.0, 0.0, 0.0, 0.0, 30,
                RowStatus.MEASURED, RowScope.DEPLOYABLE, "", "run",
            )
            for layer, op, p in rows
        ],
        "run",
        {},
    )  # fmt: skip
    found = latency_terms(graph, shapes, here, rows, table, 1)
    # As if elementwise ops alone stood between them; this network has no such place.
    return replace(found, edges=(*found.edges, Edge("mixed", None, "head", 4096.0, "side")))


def made_up_runs(
    terms: LatencyTerms,
    count: int,
    noise: float = 0.0,
    shape_spread: float = 0.0,
    seed: int = 1,
    curve: Curve = STRAIGHT,
) -> list[EndToEndRun]:
    graph, _ = cnn()
    true = true_coefficients(terms, shape_spread, curve)
    generator = random.Random(7)
    runs = []
    for assembly in calibration_assemblies(group_layers(graph), terms, count=count, seed=seed):
        exact = true.predict_us(terms, assembly.precisions)
        measured = exact * (1 + noise * generator.gauss(0, 1))
        runs.append(EndToEndRun(assembly.name, assembly.precisions, measured, measured, measured))
    return runs


def fitted(terms: LatencyTerms, runs: list[EndToEndRun]) -> LatencyFit:
    return fit_latency(terms, runs, profile="cpu-local", point=OperatingPoint(batch=2), model="0" * 64)


def test_many_exact_runs_leave_nothing_open_that_a_prediction_needs() -> None:
    terms = made_up_terms()
    found = solve_coefficients(terms, made_up_runs(terms, 120, shape_spread=0.2), noise=1e-6)
    assert found.us_per_element == pytest.approx(true_coefficients(terms).us_per_element, rel=1e-3)
    assert found.us_per_switch["int8"] == pytest.approx(SWITCH_US["int8"], rel=1e-3)
    assert found.us_per_unfused_element == pytest.approx(UNFUSED_US, rel=1e-3)
    for run in made_up_runs(terms, 40, shape_spread=0.2, seed=2):
        assert found.predict_us(terms, run.precisions) == pytest.approx(run.median_us, rel=1e-4)


def test_twenty_noisy_runs_predict_others_with_scales_per_shape() -> None:
    terms = made_up_terms()
    found = solve_coefficients(terms, made_up_runs(terms, 20, noise=0.01, shape_spread=0.3))
    fresh = made_up_runs(terms, 24, shape_spread=0.3, seed=2)
    errors = [found.predict_us(terms, run.precisions) / run.median_us - 1 for run in fresh]
    assert float(np.mean(np.abs(errors))) < 0.01
    assert float(np.max(np.abs(errors))) < 0.04


@pytest.mark.parametrize("bend", [-0.2, 0.3])
def test_a_bend_is_found_and_needs_no_others_help(bend: float) -> None:
    terms = made_up_terms()
    curve = Curve(bend, 1000.0)
    runs = made_up_runs(terms, 60, curve=curve)
    found = solve_coefficients(terms, runs, noise=1e-6)
    assert found.curve.bend / found.curve.scale == pytest.approx(bend / 1000.0, rel=1e-3)
    for run in made_up_runs(terms, 40, seed=2, curve=curve):
        assert found.predict_us(terms, run.precisions) == pytest.approx(run.median_us, rel=1e-4)
    straight = made_up_runs(terms, 60, noise=0.01)
    assert abs(solve_coefficients(terms, straight).curve.bend) < 0.05


def test_switches_are_counted_where_a_domain_begins() -> None:
    terms = made_up_terms()
    assert terms.layers == ("stem", "inner", "plain", "down", "side", "head")
    assert terms.switched_domains == ("int8", "w8a8-dynamic", "w4a16-g32")
    assert terms.switches({}) == {}
    assert terms.switches(dict.fromkeys(terms.layers[:5], "w8a8")) == {"int8": 1}
    assert terms.switches({"stem": "w8a8", "inner": "w4a8", "side": "w8a8", "head": "w4a16-g32"}) == {
        "int8": 2,
        "w4a16-g32": 1,
    }
    assert terms.domain("inner", "w4a8") == "int8", "the 8-bit kernel reads the same codes"


def test_a_shape_that_no_run_used_takes_the_scale_of_its_class() -> None:
    terms = made_up_terms()
    without = [run for run in made_up_runs(terms, 60) if run.precisions.get("stem", "fp32") == "fp32"]
    found = solve_coefficients(terms, without)
    unused = terms.kernel_shape("stem", "w8a8")
    others = [scale for each, scale in found.scales.items() if each[0] == "w8a8" and each != unused]
    assert min(others) <= found.scale(unused) <= max(others)
    assert found.scale(unused) == pytest.approx(np.mean(others), rel=0.1)


def test_nothing_is_ever_less_than_nothing() -> None:
    terms = made_up_terms()
    falling = [
        EndToEndRun(run.name, run.precisions, 5000.0 - run.median_us, 0.0, 0.0) for run in made_up_runs(terms, 16)
    ]
    found = solve_coefficients(terms, falling)
    assert found.intercept_us >= 0
    assert found.us_per_element >= 0
    assert found.us_per_unfused_element >= 0
    assert min(found.us_per_switch.values()) >= 0
    assert min(found.scales.values()) > 0


def test_rows_that_hardly_differ_set_no_scale() -> None:
    terms = made_up_terms()
    runs = made_up_runs(terms, 12)
    # Ops that all cost one launch, in networks whose times differ by what the rows do not know: a slope of noise.
    flat = replace(terms, row_us={pair: 1.5 + us / 1e5 for pair, us in terms.row_us.items()})
    times = [40.0 + (run.median_us - runs[0].median_us) / 100 for run in runs]
    found = fitted(flat, [replace(run, median_us=us) for run, us in zip(runs, times, strict=True)])
    assert max(abs(found.predict(run.precisions) / us - 1) for run, us in zip(runs, times, strict=True)) < 0.2


def test_noise_stays_noise() -> None:
    terms = made_up_terms()
    fit = fitted(terms, made_up_runs(terms, 16, noise=0.01))
    assert fit.loo_mape is not None
    assert 0 < fit.loo_mape < 0.03
    for run in made_up_runs(terms, 24):
        assert fit.predict(run.precisions) == pytest.approx(run.median_us, rel=0.04)


def test_leave_one_out_is_what_it_says() -> None:
    terms = made_up_terms()
    runs = made_up_runs(terms, 16, noise=0.02)
    errors = leave_one_out_errors(terms, runs)
    assert len(errors) == len(runs)
    without = solve_coefficients(terms, runs[:5] + runs[6:])
    assert errors[5] == pytest.approx(without.predict_us(terms, runs[5].precisions) / runs[5].median_us - 1, rel=1e-9)
    fit = fitted(terms, runs)
    assert fit.loo_mape == pytest.approx(np.mean(np.abs(errors)))
    assert fit.loo_max == pytest.approx(np.max(np.abs(errors)))


def test_a_kernel_that_one_run_alone_used_cannot_be_left_out() -> None:
    terms = made_up_terms()
    runs = [r for r in made_up_runs(terms, 16, noise=0.01) if r.precisions.get("head") not in ("w4a16-g32",)]
    lonely = {"head": "w4a16-g32"}
    us = true_coefficients(terms).predict_us(terms, lonely)
    assert len(leave_one_out_errors(terms, [*runs, EndToEndRun("lonely", lonely, us, us, us)])) == len(runs)


def test_costs_add_up_to_the_prediction() -> None:
    terms = made_up_terms()
    graph, _ = cnn()
    fit = fitted(terms, made_up_runs(terms, 16, noise=0.01, curve=Curve(0.2, 1000.0)))
    assert fit.coefficients.curve.bend > 0.01
    groups = group_layers(graph, extra_ties=[("down", "side")])
    costs = latency_costs(fit, groups)
    group_of = {layer: group.name for group in groups for layer in group.layers}
    generator = random.Random(0)
    for _ in range(50):
        taken = {
            group.name: generator.choice([p for name, p in costs.choices if name == group.name]) for group in groups
        }
        total = costs.constant_us + sum(costs.choices[name, p] for name, p in taken.items())
        domain = {name: costs.domains[name, p] for name, p in taken.items()}
        for edge in costs.boundaries:
            other = "float" if edge.second is None else domain[edge.second]
            total += edge.cost_us * ((domain[edge.first] == edge.domain) != (other == edge.domain))
        precisions = {layer: taken[name] for layer, name in group_of.items() if taken[name] != "fp32"}
        assert costs.curve.total(total) == pytest.approx(fit.predict(precisions), rel=1e-9)


def test_a_layer_outside_every_group_is_part_of_the_constant() -> None:
    terms = made_up_terms()
    graph, _ = cnn()
    fit = fitted(terms, made_up_runs(terms, 16))
    groups = [group for group in group_layers(graph) if group.name != "stem"]
    missing = fit.coefficients.scale(terms.kernel_shape("stem", "fp32")) * terms.row_us["stem", "fp32"]
    assert latency_costs(fit, groups).constant_us == pytest.approx(fit.coefficients.intercept_us + missing)


def test_groups_offer_what_all_their_layers_do() -> None:
    terms = made_up_terms()
    fit = fitted(terms, made_up_runs(terms, 16))
    costs = latency_costs(fit, [LayerGroup("side", ("side", "head"))])
    assert {p for _, p in costs.choices} == {"fp32", "w8a8", "w4a8"}


def test_json_round_trip_predicts_the_same() -> None:
    terms = made_up_terms()
    fit = fitted(terms, made_up_runs(terms, 14, noise=0.01))
    again = LatencyFit.from_json(json.loads(json.dumps(fit.to_json())))
    assert again.to_json() == fit.to_json()
    for run in made_up_runs(terms, 20):
        assert again.predict(run.precisions) == fit.predict(run.precisions)
    with pytest.raises(NotMeasured, match="schema version 99") as error:
        LatencyFit.from_json({**fit.to_json(), "schema_version": 99})
    assert error.value.code == "bad_latency_fit"


def test_too_few_runs_and_unknown_precisions_are_refused() -> None:
    terms = made_up_terms()
    with pytest.raises(NotEnoughData, match="4 end-to-end runs") as error:
        fitted(terms, made_up_runs(terms, 4))
    assert error.value.code == "too_few_runs"
    fit = fitted(terms, [run for run in made_up_runs(terms, 16) if run.precisions.get("head") != "w8a8-dynamic"])
    with pytest.raises(NotMeasured, match="w8a8-dynamic"):
        fit.predict({"head": "w8a8-dynamic"})
    with pytest.raises(NotMeasured, match="'stem' in w2a2"):
        fit.predict({"stem": "w2a2"})


def test_four_bits_on_the_eight_bit_kernel_share_its_scale() -> None:
    terms = made_up_terms()
    assert terms.kernel_class["stem", "w4a8"] == "w8a8"
    assert terms.kernel_class["head", "w4a16-g32"] == "w4a16-g32"
    assert set(find_edges(*cnn(), profile())) <= set(terms.edges)


def test_a_kernel_for_next_to_nothing_gets_no_scale() -> None:
    terms = made_up_terms(head_us=6.0)
    assert {terms.kernel_class["head", name] for name in ("fp32", "w8a8-dynamic", "w4a16-g32")} == {"fp32"}
    assert terms.kernel_class["head", "w8a8"] == "w8a8"
