"""The pace of a device, found again from networks whose classes were slowed by known factors."""

from __future__ import annotations

import pytest

from search.latency.pace import ALL, find_pace

SLOWER = {"fp32": 1.19, "w8a8": 1.07, "w4a16-g32": 1.05}
NETWORKS = [
    {"fp32": 1.0},
    {"fp32": 0.1, "w8a8": 0.9},
    {"fp32": 0.1, "w4a16-g32": 0.9},
    {"fp32": 0.7, "w8a8": 0.2, "w4a16-g32": 0.1},
]


def test_classes_that_lost_differently_are_told_apart() -> None:
    pace = find_pace([(shares, sum(part * SLOWER[name] for name, part in shares.items())) for shares in NETWORKS])
    mixed = {"fp32": 0.4, "w8a8": 0.4, "w4a16-g32": 0.2}
    assert pace.of(mixed) == pytest.approx(0.4 * 1.19 + 0.4 * 1.07 + 0.2 * 1.05, abs=0.005)
    for name, factor in SLOWER.items():
        assert pace.of({name: 1.0}) == pytest.approx(factor, abs=0.01)


def test_a_network_that_was_disturbed_says_nothing() -> None:
    slower = [(shares, sum(part * SLOWER[name] for name, part in shares.items())) for shares in NETWORKS]
    steady, disturbed = find_pace(slower), find_pace([*slower, ({"w8a8": 1.0}, 0.7)])
    for name in SLOWER:
        assert disturbed.of({name: 1.0}) == pytest.approx(steady.of({name: 1.0}), abs=0.01)


def test_what_nothing_is_known_of_lost_what_all_lost() -> None:
    pace = find_pace([({"fp32": 1.0}, 1.1), ({"fp32": 0.2, "w8a8": 0.8}, 1.1)])
    assert pace.of({"w4a16-g32": 1.0}) == pytest.approx(1.1)
    assert pace.of({"fp32": 0.5, "w4a16-g32": 0.5}) == pytest.approx(1.1)


def test_without_networks_nothing_is_slower() -> None:
    assert find_pace([]).of({"fp32": 0.3, "w8a8": 0.7}) == 1.0
    assert find_pace([({ALL: 1.0}, 1.2), ({ALL: 1.0}, 1.4)]).of({ALL: 1.0}) == pytest.approx(1.3, abs=0.001)
