"""Which candidate each layer gets: the integer linear program, its bound, the Pareto front, interactions."""

from search.allocation.allocate import reachable_range, solve
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

__all__ = [
    "Allocation",
    "AllocationProblem",
    "Boundary",
    "Choice",
    "FrontPoint",
    "Group",
    "Infeasible",
    "Quadratic",
    "reachable_range",
    "solve",
]
