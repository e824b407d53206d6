"""Finalists: the assemblies a user's own evaluator judges, and the verdict made from its numbers.

A loss on logits is not mAP or WER. Where a study names an evaluator, the assemblies worth judging are delivered first;
no submitted code runs here, the user's pipeline downloads them and brings one number of each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from search.errors import BadSubmission
from search.evaluation.verdict import Evaluated, Verdict, VerdictKind
from search.planning.plan import Source
from search.study import Evaluator

FEWEST, MOST = 3, 8
PLAIN = frozenset({Source.FULL_PRECISION.value, Source.UNIFORM.value})


@dataclass(frozen=True)
class Finalist:
    """An assembly to be judged. `files` maps the names its files take once it is chosen to those they have now."""

    name: str
    source: str
    files: Mapping[str, str]
    meets_budgets: bool
    latency_ms: float | None
    size_bytes: int

    @property
    def effort(self) -> float:
        """What "cheaper" means: latency, or bytes where no latency is known."""
        return float(self.size_bytes) if self.latency_ms is None else self.latency_ms

    @property
    def model_file(self) -> str:
        return next(name for kept, name in self.files.items() if kept.endswith(".onnx"))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def summary(self) -> dict[str, Any]:
        """What a user needs to judge it."""
        return {
            "name": self.name,
            "file": self.model_file,
            "source": self.source,
            "meets_budgets": self.meets_budgets,
            "latency_ms": self.latency_ms,
            "size_bytes": self.size_bytes,
        }


def pick_finalists(evaluated: Sequence[Evaluated], limits: Mapping[str, float]) -> list[Evaluated]:
    """At most 8: full precision, then what meets the budgets, then, up to 3 in all, what does not; least loss first."""
    ran = [item for item in evaluated if item.discarded is None]
    reference = [item for item in ran if item.plan.source is Source.FULL_PRECISION]
    others = sorted((item for item in ran if item not in reference), key=lambda item: float(item.select.losses.mean()))
    meeting = [item for item in others if item.meets(limits)]
    missing = [item for item in others if item not in meeting]
    return [*reference, *meeting, *missing[: max(0, FEWEST - len(reference) - len(meeting))]][:MOST]


def judge(finalists: Sequence[Finalist], evaluator: Evaluator, values: Mapping[str, float]) -> Verdict:
    """The verdict by the user's metric: the best one within the budgets, or with a tolerance the fastest within it.

    Raises `BadSubmission` (`evaluations_missing`) unless every finalist has a value.
    """
    if missing := [item.name for item in finalists if item.name not in values]:
        raise BadSubmission(
            f"{evaluator.metric} of {missing} was not posted",
            hint="post it for every finalist",
            code="evaluations_missing",
        )
    sign = 1.0 if evaluator.higher_is_better else -1.0
    allowed = [item for item in finalists if item.meets_budgets]
    if not allowed:
        return Verdict(VerdictKind.INFEASIBLE, None, None, "no finalist meets every budget.")
    if evaluator.tolerance is None:
        best = min(allowed, key=lambda item: (-sign * values[item.name], item.effort))
        said = f"{best.name} has the best {evaluator.metric} within the budgets, {values[best.name]:.4g}"
    else:
        reference = next(item for item in finalists if item.source == Source.FULL_PRECISION.value)
        least = sign * values[reference.name] - evaluator.tolerance
        within = [item for item in allowed if sign * values[item.name] >= least]
        if not within:
            nearest = max(allowed, key=lambda item: sign * values[item.name])
            return Verdict(
                VerdictKind.INFEASIBLE,
                None,
                None,
                f"no finalist within the budgets keeps {evaluator.metric} within {evaluator.tolerance:g} of "
                f"{values[reference.name]:.4g}; {nearest.name} comes nearest with {values[nearest.name]:.4g}.",
            )
        best = min(within, key=lambda item: (item.effort, -sign * values[item.name]))
        said = (
            f"{best.name} is the fastest that keeps {evaluator.metric} within {evaluator.tolerance:g} of full "
            f"precision's {values[reference.name]:.4g}: {values[best.name]:.4g}"
        )
    plain = [item for item in allowed if item.source in PLAIN]
    runner_up = min(plain, key=lambda item: (-sign * values[item.name], item.effort), default=None)
    if best.source in PLAIN:
        return Verdict(VerdictKind.NO_GAIN, best.name, best.name, f"{said}; no mixed allocation does better.")
    if runner_up is None:
        return Verdict(VerdictKind.CHOSEN, best.name, None, f"{said}; no uniform assembly meets the budgets.")
    said += f"; the best uniform one, {runner_up.name}, has {values[runner_up.name]:.4g}."
    return Verdict(VerdictKind.CHOSEN, best.name, runner_up.name, said)
