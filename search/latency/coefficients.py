"""Coefficients of the latency fit: T = curve(c0 + sum of scale * row + q * converted elements + f * unfused elements
+ sum of price * switches).

Every (kernel class, op shape) has a scale of its own: a convolution timed alone pays for layouts that a network shares,
and what share of its time that is depends on its shape. Some twenty runs cannot fix so many scales, so they are pulled:
those of one class towards each other, and the classes towards the slope of a straight line through the runs. That is
the most likely point of a hierarchical normal model (Lindley & Smith 1972), found as bounded linear least squares. The
errors are *relative*, so that every run counts the same whatever its length.

A kernel that follows one of another kind runs slower than one that follows its own: on one CPU a 4-bit kernel by some
40 us whatever its size. Each domain has a price per switch into it, pulled to nothing unless the runs ask for it; so is
the price of elements between an integer kernel and a float one, which no kernel takes in (`search.latency.boundary`).

A long network is not the sum of what short ones say: its weights no longer stay in a cache, or the clock changes with
the instructions in use, by more or less as the machine is shared. One number bends the sum, pulled to 0: a curve of
the sum alone (a link function, McCullagh & Nelder 1989, section 2.2), because the solver then bounds the same sum.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from scipy.optimize import lsq_linear

from kernels.errors import NotMeasured
from search.curve import STRAIGHT, Curve
from search.latency.terms import KernelShape, LatencyTerms

NOISE = 0.015
"""Relative standard deviation of one timed run against what the terms can express."""
CLASS_SPREAD = 0.5
"""Relative standard deviation of a class's mean scale around the straight line."""
SHAPE_SPREAD = 0.2
"""Relative standard deviation of a shape's scale around its class's. On 74 runs of a ResNet-18 in OpenVINO, fits to 16
of them left 1.8 % on the others without scales per shape and 0.9 % with them; transformers, all of whose blocks have
the same few shapes, lose nothing."""
LEAST_SCALE = 0.2
"""No scale is below this part of the straight line's: a layer that costs nothing would mislead the solver."""
SWITCH_SPREAD = 0.01
"""Standard deviation of the price of one switch, and of the unfused elements of one edge, as a part of the median
run."""
BEND_SPREAD = 0.05
"""Standard deviation of the bend. On 21 sets of 46 to 82 runs left-out errors fell by 5 % on average, by a quarter at
most, with bends of -0.10 to 0.39 that differ from hour to hour; wider ones gained 1 % more and had larger outliers."""
_STEPS, _SMALL_STEP = 8, 1e-4
ELEMENTS_UNIT = 1e6
"""Elements are counted in millions inside the fit, which keeps its columns of one magnitude."""

Vector = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class EndToEndRun:
    """One assembly, built, loaded and timed: median in microseconds with its bootstrap interval.

    Where it was loaded and timed several times, `timings` says how often, and the numbers are geometric means.
    """

    name: str
    precisions: Mapping[str, str]
    median_us: float
    ci_low_us: float
    ci_high_us: float
    timings: int = 1

    def with_another(self, other: EndToEndRun) -> EndToEndRun:
        """This run and another of the same assembly, each weighing as much as it has timings."""
        count = self.timings + other.timings
        share = other.timings / count

        def mean(mine: float, others: float) -> float:
            return float(mine ** (1 - share) * others**share)

        return EndToEndRun(
            self.name,
            self.precisions,
            mean(self.median_us, other.median_us),
            mean(self.ci_low_us, other.ci_low_us),
            mean(self.ci_high_us, other.ci_high_us),
            count,
        )


@dataclass(frozen=True)
class Coefficients:
    """`intercept_us`, a scale per (kernel class, op shape), `us_per_element`, `us_per_switch` by domain,
    `us_per_unfused_element`: all >= 0, and the curve of their sum."""

    intercept_us: float
    scales: Mapping[KernelShape, float]
    us_per_element: float
    us_per_switch: Mapping[str, float] = field(default_factory=dict)
    us_per_unfused_element: float = 0.0
    curve: Curve = STRAIGHT

    def predict_us(self, terms: LatencyTerms, precisions: Mapping[str, str]) -> float:
        """Microseconds of one run; layers left out of `precisions` are in full precision."""
        total = self.intercept_us + self.us_per_element * terms.converted_elements(precisions)
        for kernel_shape, table_us in terms.row_sums_us(precisions).items():
            total += self.scale(kernel_shape) * table_us
        if self.us_per_unfused_element:
            total += self.us_per_unfused_element * terms.unfused_elements(precisions)
        for domain, count in terms.switches(precisions).items():
            total += self.us_per_switch.get(domain, 0.0) * count
        return self.curve.total(total)

    def scale(self, kernel_shape: KernelShape) -> float:
        """The scale of a kernel class on an op shape; raises `NotMeasured` when no run used the class."""
        if kernel_shape not in self.scales:
            known = sorted({kernel_class for kernel_class, _ in self.scales})
            raise NotMeasured(
                f"no end-to-end run used a kernel of class {kernel_shape[0]}",
                hint=f"the fit knows {', '.join(known)}; measure again with all precisions on offer",
            )
        return self.scales[kernel_shape]

    def to_json(self) -> dict[str, Any]:
        scales = [
            {"kernel_class": kernel_class, "op": shape, "scale": scale}
            for (kernel_class, shape), scale in self.scales.items()
        ]
        return {
            "intercept_us": self.intercept_us,
            "scales": scales,
            "us_per_element": self.us_per_element,
            "us_per_switch": dict(self.us_per_switch),
            "us_per_unfused_element": self.us_per_unfused_element,
            "curve": vars(self.curve),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Coefficients:
        scales = {(each["kernel_class"], each["op"]): each["scale"] for each in data["scales"]}
        return cls(
            data["intercept_us"],
            scales,
            data["us_per_element"],
            data["us_per_switch"],
            data["us_per_unfused_element"],
            Curve(**data["curve"]),
        )


def solve_coefficients(terms: LatencyTerms, runs: Sequence[EndToEndRun], *, noise: float = NOISE) -> Coefficients:
    """The most likely coefficients of the kernel classes that the runs used; a smaller `noise` trusts the runs more.

    The bend is found by steps of Gauss-Newton: each replaces the curve by its tangents at the sums so far and fits new
    sums, with one more unknown for what a little more bend would do.
    """
    times_us = np.array([run.median_us for run in runs])
    curve, sums_us = Curve(0.0, float(times_us.max())), times_us
    for _ in range(_STEPS):
        coefficients, sums_us, step = _solve_sums(terms, runs, curve, sums_us, noise)
        curve = replace(curve, bend=curve.bend + step)
        if abs(step) <= _SMALL_STEP:
            break
    return coefficients


def _solve_sums(
    terms: LatencyTerms, runs: Sequence[EndToEndRun], curve: Curve, around_us: Vector, noise: float
) -> tuple[Coefficients, Vector, float]:
    """Coefficients of sums near `around_us` that a curve makes times of, these sums, and the bend to be added."""
    used = used_classes(terms, runs)
    scales = [each for each in terms.kernel_shapes if each[0] in used]
    sums = [terms.row_sums_us(run.precisions) for run in runs]
    times = np.array([run.median_us for run in runs])
    tangent = _tangent(curve, around_us)
    measured = around_us + (times - tangent.times_us) / tangent.slopes
    noise_us = noise * times / tangent.slopes
    table = np.array([[each.get(name, 0.0) for name in scales] for each in sums]).reshape(len(runs), -1)
    elements = np.array([terms.converted_elements(run.precisions) / ELEMENTS_UNIT for run in runs])
    counts = [terms.switches(run.precisions) for run in runs]
    domains = [domain for domain in terms.switched_domains if any(domain in each for each in counts)]
    switches = np.array([[float(each.get(domain, 0)) for domain in domains] for each in counts]).reshape(len(runs), -1)
    unit = terms.elements_of_a_sourced_edge
    unfused = np.array([terms.unfused_elements(run.precisions) / unit for run in runs])
    priced = np.column_stack([unfused, switches])
    line = _straight_line_slope(table.sum(axis=1), measured)

    classes = np.array([[float(name == kernel_class) for kernel_class in used] for name, _ in scales])
    sizes = [
        1,
        len(scales),
        len(used),
        1,
        1 + len(domains),
        1,
    ]  # intercept, scales, class means, elements, priced, bend
    ends = np.cumsum(sizes)
    unknowns = np.eye(ends[-1])
    of_scales, of_classes, of_priced, of_bend = (unknowns[ends[k] - sizes[k] : ends[k]] for k in (1, 2, 4, 5))
    bent = tangent.with_bend / tangent.slopes
    data = np.column_stack([np.ones(len(runs)), table, np.zeros((len(runs), len(used))), elements, priced, bent])
    system = np.vstack(
        [
            data / noise_us[:, None],
            (of_scales - classes @ of_classes) / (SHAPE_SPREAD * line),
            of_classes / (CLASS_SPREAD * line),
            of_priced / (SWITCH_SPREAD * float(np.median(measured))),
            of_bend / BEND_SPREAD,
        ]
    )
    wanted = np.concatenate(
        [
            measured / noise_us,
            np.zeros(len(scales)),
            np.full(len(used), 1 / CLASS_SPREAD),
            np.zeros(1 + len(domains)),
            [-curve.bend / BEND_SPREAD],
        ]
    )
    size = np.linalg.norm(system, axis=0)
    size[size == 0] = 1.0
    lower = np.zeros(system.shape[1])
    lower[1 : 1 + len(scales)] = LEAST_SCALE * line
    lower[-1] = -np.inf
    found = lsq_linear(system / size, wanted, bounds=(lower * size, np.inf), tol=1e-14).x / size
    coefficients = Coefficients(
        intercept_us=float(found[0]),
        scales={name: float(value) for name, value in zip(scales, found[1:], strict=False)},
        us_per_element=float(found[ends[2]]) / ELEMENTS_UNIT,
        us_per_switch={name: float(price) for name, price in zip(domains, found[ends[3] + 1 : -1], strict=True)},
        us_per_unfused_element=float(found[ends[3]]) / unit,
        curve=curve,
    )
    return coefficients, data[:, :-1] @ found[:-1], float(found[-1])


@dataclass(frozen=True)
class _Tangent:
    """A curve at some sums: times there, their change per unit of the sum and per unit of bend."""

    times_us: Vector
    slopes: Vector
    with_bend: Vector


def _tangent(curve: Curve, sums_us: Vector) -> _Tangent:
    times = [curve.total(each) for each in sums_us.tolist()]
    more, less = (
        np.array([replace(curve, bend=curve.bend + step).total(each) for each in sums_us.tolist()])
        for step in (_SMALL_STEP, -_SMALL_STEP)
    )
    return _Tangent(
        np.array(times), np.array([1 / curve.slope(each) for each in times]), (more - less) / (2 * _SMALL_STEP)
    )


def leave_one_out_errors(terms: LatencyTerms, runs: Sequence[EndToEndRun]) -> Vector:
    """Signed relative error (predicted / measured − 1) of every run that the others can predict."""
    return np.array([error for _, error in _left_out(terms, runs)])


def contradicted(terms: LatencyTerms, runs: Sequence[EndToEndRun], limit: float) -> list[EndToEndRun]:
    """The runs that all the others predict with a relative error above `limit`: the machine may have been disturbed."""
    return [run for run, error in _left_out(terms, runs) if abs(error) > limit]


def _left_out(terms: LatencyTerms, runs: Sequence[EndToEndRun]) -> Iterator[tuple[EndToEndRun, float]]:
    """Every run with its error predicted from all the others; one that alone used a kernel class cannot be."""
    uses = [set(used_classes(terms, [run])) for run in runs]
    for index, run in enumerate(runs):
        others = [other for position, other in enumerate(runs) if position != index]
        if uses[index] <= set().union(*(use for position, use in enumerate(uses) if position != index)):
            yield run, solve_coefficients(terms, others).predict_us(terms, run.precisions) / run.median_us - 1


def used_classes(terms: LatencyTerms, runs: Sequence[EndToEndRun]) -> list[str]:
    """Kernel classes that the runs contain, sorted."""
    return sorted({kernel_class for run in runs for kernel_class, _ in terms.row_sums_us(run.precisions)})


def _straight_line_slope(table_us: Vector, measured_us: Vector) -> float:
    """The one scale of T = c0 + scale * (sum of rows) through the runs, 1 where that says nothing.

    It is at most what leaves c0 >= 0 in every run: where the sums of rows hardly differ, as with ops that all cost one
    launch, their slope is noise and may be any number.
    """
    design = np.column_stack([np.ones_like(table_us), table_us]) / measured_us[:, None]
    slope = np.linalg.lstsq(design, np.ones(len(table_us)), rcond=None)[0][1]
    largest = float(np.min(measured_us[table_us > 0] / table_us[table_us > 0], initial=np.inf))
    return min(float(slope), largest) if slope > 0 else 1.0
