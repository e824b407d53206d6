"""The allocations a fit is made from."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from latency_graphs import cnn
from test_fit import made_up_terms

from search.groups import group_layers
from search.latency.assemblies import calibration_assemblies
from search.latency.terms import LatencyTerms


def test_uniform_ones_come_first_and_all_differ() -> None:
    graph, _ = cnn()
    terms = made_up_terms()
    found = calibration_assemblies(group_layers(graph), terms)
    assert [a.name for a in found[:2]] == ["uniform-fp32", "uniform-w8a8"]
    assert found[0].precisions == {}
    assert dict(found[1].precisions) == dict.fromkeys(terms.layers, "w8a8")
    assert 8 <= len(found) <= 16
    assert len({frozenset(a.precisions.items()) for a in found}) == len(found)
    assert all("w4a8" not in a.precisions.values() for a in found), "the same kernel as w8a8 is timed once"


def test_seed_decides() -> None:
    graph, _ = cnn()
    groups, terms = group_layers(graph), made_up_terms()
    assert calibration_assemblies(groups, terms, seed=4) == calibration_assemblies(groups, terms, seed=4)
    assert calibration_assemblies(groups, terms, seed=4) != calibration_assemblies(groups, terms, seed=5)


def _int8_us(terms: LatencyTerms, precisions: Mapping[str, str]) -> float:
    return sum(us for (kernel_class, _), us in terms.row_sums_us(precisions).items() if kernel_class == "w8a8")


def test_tied_layers_stay_together_and_conversions_vary() -> None:
    graph, _ = cnn()
    terms = made_up_terms()
    found = calibration_assemblies(group_layers(graph, [("inner", "plain")]), terms, count=16)
    for assembly in found:
        assert assembly.precisions.get("inner") == assembly.precisions.get("plain")
    design = np.array([[1.0, _int8_us(terms, a.precisions), terms.converted_elements(a.precisions)] for a in found])
    assert np.linalg.cond(design / np.abs(design).max(axis=0)) < 50


def test_a_small_model_has_only_so_many() -> None:
    graph, _ = cnn()
    one = [group for group in group_layers(graph) if group.name == "stem"]
    assert {tuple(a.precisions.items()) for a in calibration_assemblies(one, made_up_terms(), count=12)} == {
        (),
        (("stem", "w8a8"),),
    }
