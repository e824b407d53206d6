"""How well a few end-to-end runs and a table of single ops predict whole networks, in two runtimes on this CPU.

Settings: a ResNet-18 at 224 and a transformer of 6 x 384 at 64 tokens and at one, each in ONNX Runtime and OpenVINO.
Two questions. How far off is a run that was left out of the fit, against the plain sum of table rows and a straight
line through it? And does an allocation that the solver chooses under a latency budget keep it when built and timed?
As a study does, several allocations a little below each budget are built and the one with least loss that keeps it as
measured is chosen.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks import models
from benchmarks.bars import Bar, at_least, at_most, finish, print_table
from kernels.operating_point import OperatingPoint
from kernels.registry import backend_for, load_profile
from search.allocation import reachable_range
from search.graph import Graph
from search.groups import group_layers
from search.latency.assemblies import CalibrationAssembly
from search.latency.coefficients import EndToEndRun, leave_one_out_errors
from search.latency.fit import LatencyFit
from search.latency.guided import LATENCY, drawn_problem, solve_within
from search.latency.measure import NetworkTimer, random_inputs
from search.latency.model import builder, measure_model, noise_candidates
from search.latency.rows import required_rows
from search.onnx_import import load_graph, operating_shapes

BUDGETS = (0.15, 0.3, 0.45, 0.6, 0.75)
"""Parts of the way from the fastest predicted allocation to full precision."""
BELOW = (1.0, 0.97, 0.93, 0.88)
"""Shares of the budget that allocations are solved for; the same ones that a study builds."""
PERCENT = 100.0


@dataclass(frozen=True)
class Setting:
    """One model at one operating point, with the goals for the leave-one-out error in percent."""

    name: str
    model: str
    point: OperatingPoint
    mean_goal: float
    max_goal: float = 10.0


SETTINGS = (
    Setting("ResNet-18 224", "resnet18", OperatingPoint(), 3.0),
    Setting("transformer, 64 tokens", "transformer", OperatingPoint(dims=(("tokens", 64),)), 2.0),
    Setting("transformer, 1 token", "transformer", OperatingPoint(dims=(("tokens", 1),)), 5.0),
)
RUNTIMES = ("cpu-local", "cpu-local-openvino")


@dataclass(frozen=True)
class Outcome:
    """What one setting gave: errors as fractions, and how many budgets were kept."""

    fit: LatencyFit
    plain: np.ndarray
    line: np.ndarray
    left_out: np.ndarray
    chosen: np.ndarray
    kept: int
    budgets: int
    seconds: float


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="run the settings whose runtime and name contain this text")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    rows, bars = [], []
    kept = budgets = 0
    with tempfile.TemporaryDirectory() as folder:
        paths = {name: getattr(models, name)(Path(folder) / f"{name}.onnx") for name in ("resnet18", "transformer")}
        for runtime in RUNTIMES:
            for setting in SETTINGS:
                label = f"{runtime}: {setting.name}"
                if options.only not in label:
                    continue
                outcome = run(load_graph(paths[setting.model]), runtime, setting.point, options.seed)
                rows.append([label, *_cells(outcome)])
                bars += _bars(label, setting, outcome)
                kept, budgets = kept + outcome.kept, budgets + outcome.budgets
                print(f"{label}: {outcome.seconds:.0f} s, {len(outcome.fit.runs)} runs", file=sys.stderr)
    if not rows:
        parser.error(f"no setting contains {options.only!r}")
    header = [
        "setting",
        "fp32 ms",
        "plain sum",
        "a x sum + b",
        "fit",
        "fit max",
        "chosen",
        "chosen max",
        "budgets kept",
    ]
    print("Error of predicted latency in %: leave-one-out mean, and on allocations the solver chose.")
    print_table(header, rows)
    bars.append(at_least("chosen inside the measured budget", PERCENT * kept / budgets, "%", 95.0))
    return finish("latency_prediction", bars)


def run(graph: Graph, runtime: str, point: OperatingPoint, seed: int) -> Outcome:
    """Measure, fit, choose under budgets, build and time what was chosen."""
    began = time.monotonic()
    profile = load_profile(runtime)
    backend = backend_for(profile)
    fit = measure_model(graph, profile, backend, point, seed=seed).fit
    shapes = operating_shapes(graph, point)
    inputs = random_inputs(graph, shapes, seed)
    build = builder(graph, noise_candidates(graph, profile, required_rows(graph, shapes, profile), inputs), profile)
    layers = set(fit.terms.layers)
    groups = [group for group in group_layers(graph) if layers.issuperset(group.layers)]
    # The fit's own guided runs draw from other generators; nothing chosen here was seen by it.
    problem = drawn_problem(groups, fit, random.Random(f"benchmark {seed}"))
    fastest_us, _ = reachable_range(problem, LATENCY)
    limits = [fastest_us + part * (fit.predict({}) - fastest_us) for part in BUDGETS]
    plans = {(limit, share): solve_within(problem, groups, share * limit) for limit in limits for share in BELOW}
    wanted = {frozenset(plan.items()): plan for plan in plans.values() if plan is not None}
    assemblies = [CalibrationAssembly(f"chosen-{index}", plan) for index, plan in enumerate(wanted.values())]
    timer = NetworkTimer(build, inputs, backend, profile, point, shares=fit.terms.class_shares)
    every = timer.measure(assemblies, fit.runs)
    timed = every[len(fit.runs) :]
    timed += [run for run in fit.runs if frozenset(run.precisions.items()) in wanted]
    measured = {frozenset(run.precisions.items()): run.median_us for run in timed}
    kept = sum(
        any(measured[frozenset(plan.items())] <= limit for share in BELOW if (plan := plans[limit, share]) is not None)
        for limit in limits
    )
    return Outcome(
        fit=fit,
        plain=np.array([sum(fit.terms.row_sums_us(r.precisions).values()) / r.median_us - 1 for r in fit.runs]),
        line=_straight_line_errors(fit),
        left_out=leave_one_out_errors(fit.terms, fit.runs),
        chosen=np.array([fit.predict(r.precisions) / r.median_us - 1 for r in timed]),
        kept=kept,
        budgets=len(limits),
        seconds=time.monotonic() - began,
    )


def _straight_line_errors(fit: LatencyFit) -> np.ndarray:
    """Leave-one-out errors of a x (sum of rows) + b by relative least squares."""
    sums = np.array([sum(fit.terms.row_sums_us(run.precisions).values()) for run in fit.runs])
    return np.array([_line(sums, fit.runs, index) / run.median_us - 1 for index, run in enumerate(fit.runs)])


def _line(sums: np.ndarray, runs: Sequence[EndToEndRun], without: int) -> float:
    times = np.array([run.median_us for run in runs])
    rest = np.arange(len(runs)) != without
    design = np.stack([sums, np.ones_like(sums)], axis=1)
    solved = np.linalg.lstsq(design[rest] / times[rest, None], np.ones(rest.sum()), rcond=None)[0]
    return float(design[without] @ solved)


def _cells(outcome: Outcome) -> list[object]:
    full = next(run.median_us for run in outcome.fit.runs if not run.precisions) / 1000
    return [
        full,
        *(float(PERCENT * np.abs(errors).mean()) for errors in (outcome.plain, outcome.line, outcome.left_out)),
        float(PERCENT * np.abs(outcome.left_out).max()),
        float(PERCENT * np.abs(outcome.chosen).mean()),
        float(PERCENT * np.abs(outcome.chosen).max()),
        f"{outcome.kept} of {outcome.budgets}",
    ]


def _bars(label: str, setting: Setting, outcome: Outcome) -> list[Bar]:
    return [
        at_most(f"{label}: {what} {name}", float(PERCENT * reduce(np.abs(errors))), "%", goal)
        for what, errors in (("left out", outcome.left_out), ("chosen", outcome.chosen))
        for name, reduce, goal in (("mean", np.mean, setting.mean_goal), ("max", np.max, setting.max_goal))
    ]


if __name__ == "__main__":
    sys.exit(main())
