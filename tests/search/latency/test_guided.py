"""Guided assemblies: feasible as predicted, spread from fast to slow, and repeatable."""

from __future__ import annotations

import random

import pytest
from latency_graphs import cnn
from test_fit import made_up_runs, made_up_terms

from kernels.operating_point import OperatingPoint
from search.allocation import reachable_range
from search.groups import LayerGroup, group_layers
from search.latency.fit import LatencyFit, fit_latency
from search.latency.guided import LATENCY, SHARES, drawn_problem, guided_assemblies, solve_within


@pytest.fixture(scope="module")
def fitted() -> tuple[tuple[LayerGroup, ...], LatencyFit]:
    terms = made_up_terms()
    fit = fit_latency(terms, made_up_runs(terms, 14), profile="test", point=OperatingPoint(), model="cnn")
    return group_layers(cnn()[0]), fit


def test_each_keeps_the_budget_it_was_solved_for(fitted: tuple[tuple[LayerGroup, ...], LatencyFit]) -> None:
    groups, fit = fitted
    found = guided_assemblies(groups, fit, seed=2)
    assert [assembly.name for assembly in found] == [f"guided-2-{share}" for share in SHARES]
    for share, assembly in zip(SHARES, found, strict=True):
        fastest_us, _ = reachable_range(drawn_problem(groups, fit, random.Random(0)), LATENCY)
        limit_us = fastest_us + share * (fit.predict({}) - fastest_us)
        assert fit.predict(assembly.precisions) <= limit_us * (1 + 1e-9)


def test_looser_budgets_quantize_less(fitted: tuple[tuple[LayerGroup, ...], LatencyFit]) -> None:
    groups, fit = fitted
    found = guided_assemblies(groups, fit)
    assert len(found[0].precisions) > len(found[-1].precisions)


def test_equal_seeds_give_equal_assemblies(fitted: tuple[tuple[LayerGroup, ...], LatencyFit]) -> None:
    groups, fit = fitted
    assert guided_assemblies(groups, fit, seed=5) == guided_assemblies(groups, fit, seed=5)


def test_nothing_is_offered_below_the_fastest(fitted: tuple[tuple[LayerGroup, ...], LatencyFit]) -> None:
    groups, fit = fitted
    problem = drawn_problem(groups, fit, random.Random(0))
    fastest_us, _ = reachable_range(problem, LATENCY)
    assert solve_within(problem, groups, 0.9 * fastest_us) is None
