"""Verdict: which of the built and measured assemblies is delivered, or why none is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np

from kernels.stopwatch import Timing
from search.errors import BadSubmission
from search.evaluation.estimate import Estimate, estimate_difference
from search.evaluation.quality import Quality
from search.planning.plan import PlannedAssembly, Source
from search.study import Tolerance


class VerdictKind(str, Enum):
    """The three legal answers; all are successes of the study."""

    CHOSEN = "chosen"
    NO_GAIN = "no_gain"
    INFEASIBLE = "infeasible"


@dataclass(frozen=True)
class Evaluated:
    """One plan built and run. `discarded` gives the reason when the runtime did not run what was exported.

    `latency` is None where the device is not at hand; the predicted latency then decides and the verdict says so.
    """

    plan: PlannedAssembly
    size_bytes: int
    latency: Timing | None
    select: Quality
    discarded: str | None = None

    @property
    def latency_ms(self) -> float | None:
        """Measured where it was measured, predicted otherwise, None where nothing is known of the device."""
        return self.latency.median_us / 1000 if self.latency is not None else self.plan.predicted.get("latency_ms")

    @property
    def effort(self) -> float:
        """What "cheaper" means here: latency, or bytes where no latency is known."""
        return float(self.size_bytes) if self.latency_ms is None else self.latency_ms

    def cost(self, resource: str) -> float:
        match resource:
            case "latency_ms" if self.latency is not None:
                return self.latency.median_us / 1000
            case "size_bytes":
                return float(self.size_bytes)
            case _:
                return self.plan.predicted[resource]

    def meets(self, limits: Mapping[str, float]) -> bool:
        return all(self.cost(resource) <= limit for resource, limit in limits.items())


@dataclass(frozen=True)
class Verdict:
    """The answer for one target: `chosen` is the name of the delivered plan, None when infeasible.

    `sentence` says it in words; `runner_up` is the best uniform or full-precision assembly that meets the budgets.
    """

    kind: VerdictKind
    chosen: str | None
    runner_up: str | None
    sentence: str


def labels_missing(why: str | None = None) -> BadSubmission:
    """The refusal of a tolerance of accuracy; `why` says what is wrong with the labels that are there."""
    return BadSubmission(
        why or "a tolerance of accuracy needs labels and an output with classes",
        hint='add a "labels" array to the dataset that the tolerance of accuracy can count, or use {"loss": …}',
        code="labels_missing",
    )


def decide(evaluated: Sequence[Evaluated], limits: Mapping[str, float], unit: str) -> Verdict:
    """Among assemblies that passed the audit and meet every limit as measured, the one that loses least on *select*.

    Equal losses go to the faster one. A uniform or full-precision winner is `no_gain`: mixing bits did not pay.
    """
    meeting = [item for item in evaluated if item.discarded is None and item.meets(limits)]
    if not meeting:
        return Verdict(VerdictKind.INFEASIBLE, None, None, _why_nothing_meets(evaluated, limits))
    best = min(meeting, key=_rank)
    plain = [item for item in meeting if item.plan.source in (Source.UNIFORM, Source.FULL_PRECISION)]
    runner_up = min(plain, key=_rank, default=None)
    name = None if runner_up is None else runner_up.plan.name
    loss = best.select.losses.mean()
    if runner_up is best:
        sentence = f"{best.plan.name} meets the budgets and loses {loss:.3g} {unit}; no mixed allocation loses less."
        return Verdict(VerdictKind.NO_GAIN, best.plan.name, name, sentence)
    sentence = f"{best.plan.name} meets the budgets and loses {loss:.3g} {unit}"
    if runner_up is None:
        sentence += "; no uniform assembly meets them."
    else:
        sentence += f"; the best uniform one that does, {name}, loses {runner_up.select.losses.mean():.3g}."
    return Verdict(VerdictKind.CHOSEN, best.plan.name, name, sentence)


def decide_within(evaluated: Sequence[Evaluated], tolerance: Tolerance, unit: str) -> Verdict:
    """The fastest assembly whose loss of quality on *select* is within the tolerance at the upper end of its interval.

    When only the data is too thin to say so, the answer stays full precision and names how many samples it would take.
    """
    ran = [item for item in evaluated if item.discarded is None]
    reference = next(item for item in ran if item.plan.source is Source.FULL_PRECISION)
    lost = {item.plan.name: _lost(item, reference, tolerance) for item in ran}
    within = [item for item in ran if item is reference or lost[item.plan.name].ci_high <= tolerance.limit]
    best = min(within, key=lambda item: (item.effort, float(item.select.losses.mean())))
    found = lost[best.plan.name]
    what = "of accuracy" if tolerance.kind == "accuracy_drop" else unit
    sentence = (
        f"{best.plan.name} is the fastest within {tolerance.limit:g} {what}: "
        f"it loses {found.value:.3g} [{found.ci_low:.3g}, {found.ci_high:.3g}]."
    )
    unsure = [
        lost[item.plan.name]
        for item in ran
        if item.effort < best.effort and lost[item.plan.name].value < tolerance.limit
    ]
    if unsure:
        sentence += (
            f" Faster ones may be within it too, but {found.samples} samples cannot tell: about "
            f"{min(_samples_needed(each, tolerance.limit) for each in unsure)} would."
        )
    kind = VerdictKind.CHOSEN if best.plan.source in (Source.METRIC, Source.FRONT) else VerdictKind.NO_GAIN
    plain = [item for item in within if item.plan.source in (Source.UNIFORM, Source.FULL_PRECISION)]
    runner_up = min(plain, key=lambda item: item.effort)
    return Verdict(kind, best.plan.name, runner_up.plan.name, sentence)


def _lost(item: Evaluated, reference: Evaluated, tolerance: Tolerance) -> Estimate:
    if tolerance.kind == "loss":
        return item.select.loss()
    before, after = reference.select.correct, item.select.correct
    if before is None or after is None:
        raise labels_missing()
    labelled, groups = ~np.isnan(before), reference.select.groups
    return estimate_difference(before[labelled], after[labelled], None if groups is None else groups[labelled])


def _samples_needed(lost: Estimate, limit: float) -> int:
    """Samples at which the interval's upper end falls to the limit: its half width shrinks with the square root."""
    return math.ceil(lost.samples * ((lost.ci_high - lost.value) / (limit - lost.value)) ** 2)


def _rank(item: Evaluated) -> tuple[float, float]:
    return float(item.select.losses.mean()), item.effort


def _why_nothing_meets(evaluated: Sequence[Evaluated], limits: Mapping[str, float]) -> str:
    ran = [item for item in evaluated if item.discarded is None]
    if not ran:
        return "every assembly was discarded by the audit of executed ops; see the reasons beside each."
    parts = []
    for resource, limit in limits.items():
        cheapest = min(ran, key=lambda item: item.cost(resource))
        parts.append(
            f"{resource}: {limit:.4g} asked, {cheapest.cost(resource):.4g} is the least ({cheapest.plan.name})"
        )
    return "no assembly that was built meets every budget; " + "; ".join(parts) + "."
