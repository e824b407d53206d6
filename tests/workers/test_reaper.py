"""The reaper's rounds: what it takes, what it spares after an outage, and what it survives."""

from __future__ import annotations

import pytest
from sqlalchemy.exc import OperationalError

import workers.reaper
from service.settings import Settings
from service.store.database import Database
from tests.contracts.test_stage_claims import claimed, expire, new_study, stages_of
from tests.service.stack import SentMessages
from workers.reaper import Reaper


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_after_an_outage_the_living_renew_before_anything_is_taken(
    database: Database, settings: Settings, messages: SentMessages, monkeypatch: pytest.MonkeyPatch
) -> None:
    study_id = new_study(database)
    expire(database, claimed(database, study_id, "check").stage_id)
    clock = Clock()
    reaper = Reaper(settings, database, messages, clock)

    def away(*arguments: object, **named: object) -> int:
        raise OperationalError("SELECT 1", {}, Exception("connection refused"))

    with monkeypatch.context() as patched:
        patched.setattr(workers.reaper, "reap", away)
        assert reaper.round() == (0, 0)
    clock.now += settings.lease_s / 2
    assert reaper.round() == (0, 0)
    assert stages_of(database, study_id)["check"].state == "running"
    clock.now += settings.lease_s
    assert reaper.round() == (1, 1), "taken back, and announced at once"
    assert stages_of(database, study_id)["check"].state == "queued"


def test_a_fresh_reaper_takes_what_has_expired(database: Database, settings: Settings, messages: SentMessages) -> None:
    study_id = new_study(database)
    expire(database, claimed(database, study_id, "check").stage_id)
    assert Reaper(settings, database, messages).round() == (1, 1)


def test_a_dead_broker_does_not_keep_stages_from_being_taken(
    database: Database, settings: Settings, messages: SentMessages
) -> None:
    study_id = new_study(database)
    expire(database, claimed(database, study_id, "check").stage_id)
    messages.broken = True
    assert Reaper(settings, database, messages).round() == (1, 0)
