"""Questions: kept and read back bit for bit, and answered under new budgets as a solve of the whole would."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from search.allocation import Allocation, AllocationProblem, Choice, Group, Quadratic, solve
from search.allocation.question import Question
from search.budget import parse_budget
from search.errors import BadSubmission

PRECISIONS = {"fp32": (0.0, 100.0, 400.0), "w8a8": (0.1, 40.0, 100.0), "w4a8": (1.0, 40.0, 50.0)}


def problem(layers: int = 6, latency: bool = True, seed: int = 0) -> AllocationProblem:
    random = np.random.default_rng(seed)
    groups = []
    for index in range(layers):
        weight = random.random()
        choices = []
        for name, (loss, us, size) in PRECISIONS.items():
            costs = {"size_bytes": size * weight, "bops": us}
            if latency:
                costs["latency_us"] = us * weight
            choices.append(Choice(name, loss * random.random(), costs))
        groups.append(Group(f"g{index}", (f"g{index}", f"tied{index}"), tuple(choices)))
    keys = tuple((group.name, name) for group in groups for name in ("w8a8", "w4a8"))
    factors = random.normal(0, 0.1, (len(keys), 4))
    constants = {"size_bytes": 10.0, "bops": 0.0} | ({"latency_us": 5.0} if latency else {})
    return AllocationProblem(
        tuple(groups), {}, constants, interactions=Quadratic(keys, factors @ factors.T), pins={"tied0": "w8a8"}
    )


def question(**options: object) -> Question:
    found = problem(**options)  # type: ignore[arg-type]
    return Question({"gauss_newton": found, "kl": replace(found, interactions=None)}, 400.0)


def test_a_question_is_read_back_as_it_was_kept(tmp_path: Path) -> None:
    kept = question()
    kept.save(tmp_path / "question_0.npz")
    found = Question.load(tmp_path / "question_0.npz")
    assert list(found.problems) == ["gauss_newton", "kl"]
    assert found.problems["kl"] == kept.problems["kl"]
    pairs, expected = found.problems["gauss_newton"].interactions, kept.problems["gauss_newton"].interactions
    assert pairs is not None
    assert expected is not None
    assert pairs.keys == expected.keys
    np.testing.assert_array_equal(pairs.matrix, expected.matrix)
    budgets = [parse_budget("latency_ms", "0.6x")]
    assert found.answer(budgets) == kept.answer(budgets)


def test_an_answer_is_the_optimum_under_the_budgets_as_they_were_meant() -> None:
    asked = question()
    found = asked.answer([parse_budget("latency_ms", "0.5x"), parse_budget("size_bytes", 800.0)], metric="kl", gap=0.0)
    assert found.limits == {"latency_ms": 0.2, "size_bytes": 800.0}, "a share of full precision as it was measured"
    bounded = replace(asked.problems["kl"], budgets={"latency_us": 200.0, "size_bytes": 800.0})
    optimum = solve(bounded)
    assert isinstance(optimum, Allocation)
    assert found.surrogate_loss == pytest.approx(optimum.loss)
    assert found.predicted["latency_ms"] <= 0.2
    assert found.predicted["size_bytes"] <= 800.0
    assert found.infeasible is None
    assert found.precisions is not None
    assert found.precisions["g0"] == found.precisions["tied0"] == "w8a8", "the study's pins hold"
    assert "fp32" not in found.precisions.values()


def test_what_cannot_be_met_is_answered_with_the_nearest() -> None:
    found = question().answer([parse_budget("size_bytes", 1.0)])
    assert found.infeasible is not None
    assert found.infeasible.reachable["size_bytes"] > 1.0
    assert found.precisions is not None
    assert found.to_json()["infeasible"]["relaxation"] > 1.0


def test_wrong_questions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadSubmission) as unknown:
        question().answer([parse_budget("size_bytes", 1.0)], metric="entropy")
    assert unknown.value.code == "metric_unknown"
    with pytest.raises(BadSubmission) as unmeasured:
        question(latency=False).answer([parse_budget("latency_ms", "0.5x")])
    assert unmeasured.value.code == "not_measured"
    (tmp_path / "question_0.npz").write_bytes(b"PK\x03\x04 cut")
    with pytest.raises(BadSubmission) as damaged:
        Question.load(tmp_path / "question_0.npz")
    assert damaged.value.code == "bad_question"


def test_answering_loads_no_model_library() -> None:
    probe = "import sys, search.answering; print(*sorted({'torch', 'onnx', 'onnxruntime'} & sys.modules.keys()))"
    loaded = subprocess.run([sys.executable, "-c", probe], stdout=subprocess.PIPE, text=True, check=True)
    assert loaded.stdout.split() == []
