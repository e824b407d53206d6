"""Fault matrix: both stacks with all their processes, killed, stopped and starved at every point of a stage.

Every accepted study must end well, nothing may be committed twice, and nothing that was committed may be computed
again. The stage functions are tiny; everything around them is real.

    python -m benchmarks.faults [--only WORDS] [--stack sqlite|postgresql]
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict

from benchmarks.bars import Bar, at_most, finish, print_table
from tests.faults.cases import Case, Outcome, matrix, orphans, run_case
from tests.faults.running_stack import STACKS


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="cases whose name holds these words")
    parser.add_argument("--stack", choices=STACKS, help="one stack only")
    options = parser.parse_args()
    cases = [case for case in matrix() if options.only in case.name and options.stack in (None, case.stack)]
    outcomes: list[Outcome] = []
    left: list[str] = []
    for name in dict.fromkeys(case.stack for case in cases):
        of_stack, orphaned = run_stack(name, [case for case in cases if case.stack == name])
        outcomes += of_stack
        left += orphaned
    print_outcomes(outcomes)
    return finish("faults", bars(outcomes, left))


def run_stack(name: str, cases: list[Case]) -> tuple[list[Outcome], list[str]]:
    """The outcomes of these cases on one stack, and the processes that were left in the end."""
    stack = STACKS[name]()
    outcomes = []
    try:
        stack.start()
        for case in cases:
            outcome = run_case(stack, case)
            wrong = [*outcome.duplicated, *outcome.computed_again, outcome.problem]
            print(case.name, outcome.state, f"{outcome.seconds:.1f} s", *wrong, file=sys.stderr)
            outcomes.append(outcome)
        for role in ("worker", "reaper", "api"):
            stack.end(role)
        return outcomes, orphans(stack)
    finally:
        stack.close()


def print_outcomes(outcomes: list[Outcome]) -> None:
    rows: dict[tuple[str, str], list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        rows[outcome.case.stack, outcome.case.fault].append(outcome)
    print_table(
        ("stack", "fault", "points", "ended", "lost", "duplicated", "computed again", "seconds"),
        [
            (
                stack,
                fault,
                len(found),
                sum(not one.lost for one in found),
                sum(one.lost for one in found),
                sum(len(one.duplicated) for one in found),
                sum(len(one.computed_again) for one in found),
                sum(one.seconds for one in found) / len(found),
            )
            for (stack, fault), found in rows.items()
        ],
    )
    for outcome in outcomes:
        if not outcome.holds:
            again = [*outcome.duplicated, *outcome.computed_again]
            print(f"does not hold: {outcome.case.name}: {outcome.state} {again} {outcome.problem}")


def bars(outcomes: list[Outcome], left: list[str]) -> list[Bar]:
    return [
        Bar("cases", len(outcomes), "cases", "> 0", bool(outcomes)),
        at_most("lost", sum(one.lost for one in outcomes), "studies", 0),
        at_most("duplicated", sum(len(one.duplicated) for one in outcomes), "outputs", 0),
        at_most("computed_again", sum(len(one.computed_again) for one in outcomes), "stages", 0),
        at_most("other_problems", sum(bool(one.problem) for one in outcomes), "cases", 0),
        at_most("orphans", len(left), "processes", 0),
    ]


if __name__ == "__main__":
    sys.exit(main())
