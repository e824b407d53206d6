"""States follow from stages, and nothing leaves a final state."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.lifecycle import (
    STAGE_TRANSITIONS,
    STUDY_TRANSITIONS,
    TERMINAL_STAGES,
    TERMINAL_STUDIES,
    IllegalTransition,
    StageState,
    StudyState,
    check_stage_transition,
    check_study_transition,
    study_state,
)

STAGES = st.lists(st.sampled_from(StageState), min_size=1, max_size=8)


def test_final_states_are_final() -> None:
    assert {state.value for state in TERMINAL_STAGES} == {"succeeded", "failed", "cancelled"}
    assert {state.value for state in TERMINAL_STUDIES} == {"succeeded", "failed", "cancelled"}
    for state in TERMINAL_STAGES:
        with pytest.raises(IllegalTransition, match=f"from {state.value} to queued"):
            check_stage_transition(state, StageState.QUEUED)
    with pytest.raises(IllegalTransition, match="from cancelled to running"):
        check_study_transition(StudyState.CANCELLED, StudyState.RUNNING)


def test_every_state_is_reachable_and_has_a_way_out() -> None:
    for table in (STAGE_TRANSITIONS, STUDY_TRANSITIONS):
        assert {new for nexts in table.values() for new in nexts} | set(list(table)[:1]) == set(table)


@given(STAGES, st.booleans())
def test_a_study_is_final_exactly_when_its_stages_are(stages: list[StageState], cancel: bool) -> None:
    state = study_state(stages, cancel_requested=cancel)
    assert (state in TERMINAL_STUDIES) == (set(stages) <= TERMINAL_STAGES)
    if set(stages) == {StageState.SUCCEEDED}:
        assert state is StudyState.SUCCEEDED
    if state is StudyState.FAILED:
        assert StageState.FAILED in stages


@given(STAGES, st.data(), st.booleans())
def test_a_legal_step_of_a_stage_is_a_legal_step_of_its_study(
    stages: list[StageState], data: st.DataObject, cancel: bool
) -> None:
    before = study_state(stages, cancel_requested=cancel)
    position = data.draw(st.integers(0, len(stages) - 1))
    nexts = sorted(STAGE_TRANSITIONS[stages[position]])
    if nexts:
        stages = [*stages[:position], data.draw(st.sampled_from(nexts)), *stages[position + 1 :]]
    check_study_transition(before, study_state(stages, cancel_requested=cancel))
