"""The words name the resource that binds, the layer's alternatives and pins."""

from search.allocation.problem import AllocationProblem, Boundary, Choice, Group
from search.curve import Curve
from search.report.reasons import explain


def group(name: str, loss: float, saved: float) -> Group:
    return Group(
        name,
        (name,),
        (
            Choice("fp32", 0.0, {"size_bytes": 400.0, "latency_us": 10.0}, "float"),
            Choice("w8a8", loss, {"size_bytes": 400.0 - saved, "latency_us": 4.0}, "int8"),
        ),
    )


def test_better_precision_is_named_with_what_it_would_cost() -> None:
    problem = AllocationProblem((group("a", 0.1, 300), group("b", 0.2, 300)), {"size_bytes": 500.0})
    reasons = explain(problem, {"a": "w8a8", "b": "fp32"}, {"size_bytes": 500.0, "latency_us": 14.0})
    assert "fp32 would lose 0.1 less but costs 300 B where 0 B are left" in reasons["a"]
    assert "w8a8 would save 300 B but lose 0.2 more" in reasons["b"]


def test_boundary_costs_count_in_what_a_change_would_cost() -> None:
    edge = Boundary("latency_us", "a", "b", 50.0)
    problem = AllocationProblem((group("a", 0.1, 300), group("b", 0.2, 300)), {"latency_us": 10.0}, boundaries=(edge,))
    reasons = explain(problem, {"a": "w8a8", "b": "w8a8"}, {"size_bytes": 200.0, "latency_us": 8.0})
    assert "costs 56 µs where 2 µs are left" in reasons["a"]


def test_what_a_change_would_cost_follows_the_curve_of_the_sum() -> None:
    curve = Curve(1.0, 16.0)
    problem = AllocationProblem(
        (group("a", 0.1, 300), group("b", 0.2, 300)), {"latency_us": 20.0}, curves={"latency_us": curve}
    )
    # Sums of 8 and 14 amount to 12 and 26.25.
    reasons = explain(problem, {"a": "w8a8", "b": "w8a8"}, {"size_bytes": 200.0, "latency_us": curve.total(8.0)})
    assert "costs 14.2 µs where 8 µs are left" in reasons["a"]


def test_layers_left_in_full_precision_by_what_they_share_are_told() -> None:
    tied = Group("wte", ("wte", "head"), (Choice("fp32", 0.0, {"size_bytes": 400.0}),))
    (reason,) = explain(AllocationProblem((tied,), {}), {"wte": "fp32"}, {"size_bytes": 400.0}).values()
    assert reason == "wte, head share one stored weight, and no other precision runs for all of them"


def test_pins_are_said() -> None:
    problem = AllocationProblem((group("a", 0.1, 300),), {}, pins={"a": "w8a8"})
    assert explain(problem, {"a": "w8a8"}, {"size_bytes": 100.0}) == {"a": "pinned by the request"}
