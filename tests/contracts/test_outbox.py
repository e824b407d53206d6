"""What the outbox sends again and what it leaves alone, on SQLite and on PostgreSQL."""

from __future__ import annotations

import socket
import time

import pytest
from sqlalchemy.exc import OperationalError

from service.queue.outbox import publish_behind_answer, publish_due
from service.store.database import Database
from tests.contracts.test_stage_claims import new_study
from tests.service.stack import SentMessages


def test_messages_that_still_wait_are_not_sent_again(database: Database, messages: SentMessages) -> None:
    new_study(database)
    assert publish_due(database, messages, resend_s=0.0) == 1
    messages.waiting = 1
    time.sleep(0.02)
    assert publish_due(database, messages, resend_s=0.0) == 0, "they would pile up for as long as no worker is free"
    messages.waiting = 0
    assert publish_due(database, messages, resend_s=0.0) == 1, "the queue is empty: the message was lost"


def test_a_broker_that_cannot_be_asked_gets_nothing(database: Database, messages: SentMessages) -> None:
    new_study(database)
    messages.broken = True
    assert publish_due(database, messages, resend_s=0.0) == 0
    assert publish_due(database, messages, resend_s=0.0) == 0
    messages.broken = False
    assert publish_due(database, messages, resend_s=0.0) == 1


def test_a_database_that_is_away_behind_an_answer_is_no_error_of_the_request() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    away = Database(f"postgresql+psycopg://nobody@127.0.0.1:{port}/none")
    with pytest.raises(OperationalError):
        publish_due(away, SentMessages(), resend_s=1.0)
    publish_behind_answer(away, SentMessages(), resend_s=1.0)
    away.close()
