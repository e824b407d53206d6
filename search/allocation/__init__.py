"""Which candidate each layer gets: the integer linear program, its bound, the Pareto front, interactions."""

from search.allocation.allocate import reachable_range, solve
from search.allocation.front import best_within, pareto_front, whole_front
from search.allocation.problem import (
    Allocation,
    AllocationProblem,
    Boundary,
    Choice,
    FrontPoint,
    Group,
    Infeasible,
    Quadratic,
)
from search.allocation.stored import problem_from_json, problem_to_json

__all__ = [
    "Allocation",
    "AllocationProblem",
    "Boundary",
    "Choice",
    "FrontPoint",
    "Group",
    "Infeasible",
    "Quadratic",
    "best_within",
    "pareto_front",
    "problem_from_json",
    "problem_to_json",
    "reachable_range",
    "solve",
    "whole_front",
]
