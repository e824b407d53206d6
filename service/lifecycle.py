"""Lifecycle: the states of studies and stages and which change into which. Pure; every writer asks here.

stage   blocked → queued → running → succeeded | failed | cancelled
           │        ↑         │ lease expired        ↑
           │        └─────────┘                      │
           └─ satisfied from the store, or its input is gone
study   queued → running → succeeded | failed | cancelled
           │         │          ↑
           └─────────┴→ cancelling
"""

from __future__ import annotations

from collections.abc import Collection
from enum import Enum


class StageState(str, Enum):
    """State of one stage; the last three are final."""

    BLOCKED = "blocked"
    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class StudyState(str, Enum):
    """State of a study; the last three are final."""

    QUEUED = "queued"
    RUNNING = "running"
    CANCELLING = "cancelling"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class IllegalTransition(Exception):
    """A writer asked for a change the lifecycle does not know: a fault of ours, never of a user."""


STAGE_TRANSITIONS: dict[StageState, frozenset[StageState]] = {
    StageState.BLOCKED: frozenset({StageState.QUEUED, StageState.SUCCEEDED, StageState.FAILED, StageState.CANCELLED}),
    StageState.QUEUED: frozenset({StageState.RUNNING, StageState.CANCELLED}),
    StageState.RUNNING: frozenset({StageState.SUCCEEDED, StageState.FAILED, StageState.CANCELLED, StageState.QUEUED}),
    StageState.SUCCEEDED: frozenset(),
    StageState.FAILED: frozenset(),
    StageState.CANCELLED: frozenset(),
}

STUDY_TRANSITIONS: dict[StudyState, frozenset[StudyState]] = {
    StudyState.QUEUED: frozenset(
        {StudyState.RUNNING, StudyState.CANCELLING, StudyState.CANCELLED, StudyState.FAILED, StudyState.SUCCEEDED}
    ),
    StudyState.RUNNING: frozenset(
        {StudyState.QUEUED, StudyState.CANCELLING, StudyState.CANCELLED, StudyState.FAILED, StudyState.SUCCEEDED}
    ),
    StudyState.CANCELLING: frozenset({StudyState.CANCELLED, StudyState.FAILED, StudyState.SUCCEEDED}),
    StudyState.SUCCEEDED: frozenset(),
    StudyState.FAILED: frozenset(),
    StudyState.CANCELLED: frozenset(),
}

TERMINAL_STAGES = frozenset(state for state, nexts in STAGE_TRANSITIONS.items() if not nexts)
TERMINAL_STUDIES = frozenset(state for state, nexts in STUDY_TRANSITIONS.items() if not nexts)


def check_stage_transition(old: StageState, new: StageState) -> None:
    """Raises `IllegalTransition` unless a stage may go from `old` to `new`."""
    if new not in STAGE_TRANSITIONS[old]:
        raise IllegalTransition(f"a stage does not go from {old.value} to {new.value}")


def check_study_transition(old: StudyState, new: StudyState) -> None:
    """Raises `IllegalTransition` unless a study may go from `old` to `new` (or stays)."""
    if new is not old and new not in STUDY_TRANSITIONS[old]:
        raise IllegalTransition(f"a study does not go from {old.value} to {new.value}")


def study_state(stages: Collection[StageState], *, cancel_requested: bool) -> StudyState:
    """The state a study has when its stages have these states.

    | stages                                    | cancel asked | study        |
    |-------------------------------------------|--------------|--------------|
    | all succeeded                             | any          | `succeeded`  |
    | all final, one failed                     | any          | `failed`     |
    | all final, none failed, one cancelled     | any          | `cancelled`  |
    | some not final                            | yes          | `cancelling` |
    | some not final, one running or succeeded  | no           | `running`    |
    | all blocked or queued                     | no           | `queued`     |
    """
    found = set(stages)
    if found <= TERMINAL_STAGES:
        if StageState.FAILED in found:
            return StudyState.FAILED
        return StudyState.CANCELLED if StageState.CANCELLED in found else StudyState.SUCCEEDED
    if cancel_requested:
        return StudyState.CANCELLING
    return StudyState.RUNNING if found - {StageState.BLOCKED, StageState.QUEUED} else StudyState.QUEUED
