"""The verdict: measured costs decide who may win, the select split decides who does."""

import numpy as np
import pytest

from kernels.stopwatch import Timing
from search.errors import BadSubmission
from search.evaluation.quality import Quality
from search.evaluation.verdict import Evaluated, VerdictKind, decide, decide_within
from search.planning.plan import PlannedAssembly, Source
from search.study import Tolerance


def built(
    name: str, source: Source, ms: float, loss: float, size: int = 100, correct: float | None = None, **more: str
) -> Evaluated:
    rng = np.random.default_rng(len(name))
    answers = None if correct is None else (np.arange(200) < 200 * correct).astype(float)
    return Evaluated(
        PlannedAssembly(name, source, {"layer": name}, {"latency_ms": ms, "bops": 7.0}),
        size,
        Timing(ms * 1000, ms * 999, ms * 1001, ms * 990, ms * 1010, 30),
        Quality(loss * rng.uniform(0.5, 1.5, 200), answers, None),
        **more,
    )


FULL = built("fp32", Source.FULL_PRECISION, 10.0, 0.0, 400, 0.99)
UNIFORM = built("uniform w8a8", Source.UNIFORM, 4.0, 0.02)
MIXED = built("kl", Source.METRIC, 5.0, 0.01)


def test_least_loss_among_those_that_meet_wins() -> None:
    verdict = decide([FULL, UNIFORM, MIXED], {"latency_ms": 6.0}, "nats")
    assert (verdict.kind, verdict.chosen, verdict.runner_up) == (VerdictKind.CHOSEN, "kl", "uniform w8a8")


def test_measured_latency_and_size_exclude() -> None:
    verdict = decide([FULL, UNIFORM, MIXED], {"latency_ms": 4.5}, "nats")
    assert (verdict.kind, verdict.chosen) == (VerdictKind.NO_GAIN, "uniform w8a8")
    assert decide([FULL, UNIFORM, MIXED], {"size_bytes": 99}, "nats").kind is VerdictKind.INFEASIBLE


def test_full_precision_within_budget_is_no_gain() -> None:
    verdict = decide([FULL, UNIFORM, MIXED], {"latency_ms": 20.0}, "nats")
    assert (verdict.kind, verdict.chosen) == (VerdictKind.NO_GAIN, "fp32")


def test_discarded_assemblies_never_win() -> None:
    bad = built("gauss_newton", Source.METRIC, 5.0, 0.0, discarded="layer ran in float")
    assert decide([FULL, UNIFORM, MIXED, bad], {"latency_ms": 6.0}, "nats").chosen == "kl"


def test_infeasible_names_the_least_that_was_reached() -> None:
    verdict = decide([FULL, UNIFORM, MIXED], {"latency_ms": 1.0}, "nats")
    assert verdict.kind is VerdictKind.INFEASIBLE
    assert "1 asked, 4 is the least (uniform w8a8)" in verdict.sentence


def test_tolerance_takes_the_fastest_whose_interval_is_inside() -> None:
    verdict = decide_within([FULL, UNIFORM, MIXED], Tolerance("loss", 0.015), "nats")
    assert verdict.chosen == "kl"
    assert decide_within([FULL, UNIFORM, MIXED], Tolerance("loss", 0.03), "nats").chosen == "uniform w8a8"


def test_too_little_data_for_a_tolerance_says_how_much_is_needed() -> None:
    close = built("kl", Source.METRIC, 5.0, 0.01, correct=0.985)
    verdict = decide_within([FULL, close], Tolerance("accuracy_drop", 0.006), "nats")
    assert verdict.chosen == "fp32"
    needed = int(verdict.sentence.split("about ")[1].split()[0])
    assert needed > 200


def test_accuracy_without_labels_is_refused() -> None:
    unlabelled = built("fp32", Source.FULL_PRECISION, 10.0, 0.0)
    with pytest.raises(BadSubmission) as refused:
        decide_within([unlabelled, MIXED], Tolerance("accuracy_drop", 0.01), "nats")
    assert refused.value.code == "labels_missing"
