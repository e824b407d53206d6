"""Outbox: announces queued stages to the broker, and again when nobody took them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from celery import Celery
from kombu.exceptions import ChannelError
from sqlalchemy import ColumnElement, select, update
from sqlalchemy.exc import SQLAlchemyError

from service.lifecycle import StageState
from service.queue.celery_settings import RUN_STAGE
from service.store.database import Database, database_now, is_outage, is_statement_timeout
from service.store.models import StageRow

log = logging.getLogger(__name__)
BATCH = 100


class Sender(Protocol):
    """The broker as the outbox sees it; both raise when it is away."""

    def __call__(self, stage_id: str, queue: str) -> None:
        """Put one stage's message on a queue."""

    def backlog(self, queue: str) -> int:
        """How many messages wait in a queue."""


class CelerySender:
    """Enqueues the worker's task by its name."""

    def __init__(self, app: Celery) -> None:
        self._app = app

    def __call__(self, stage_id: str, queue: str) -> None:
        self._app.send_task(RUN_STAGE, args=[stage_id], queue=queue)

    def backlog(self, queue: str) -> int:
        with self._app.producer_or_acquire() as producer:
            try:
                return int(producer.channel.queue_declare(queue, passive=True).message_count)
            except ChannelError:  # an empty list does not exist in Redis
                return 0


def celery_sender(app: Celery) -> Sender:
    return CelerySender(app)


def publish_due(database: Database, send: Sender, *, resend_s: float) -> int:
    """Send a message for every queued stage that is due and was not announced; returns how many.

    One announced `resend_s` ago whose queue is empty has lost its message, and gets another. While messages wait in
    the queue nothing is sent again: stages that wait for hours would else pile up messages for hours.

    Marked and committed first, sent after: a crash or a dead broker in between costs one `resend_s`, never a stage.
    """
    late = StageRow.published_at < database_now() - resend_s
    with database.read() as session:
        queues = session.scalars(select(StageRow.queue).where(*_due(), late).distinct()).all()
    sent = 0
    if empty := [queue for queue in queues if _is_empty(send, queue)]:
        sent += _announce(database, send, late & StageRow.queue.in_(empty), resend_s)
    return sent + _announce(database, send, StageRow.published_at.is_(None), resend_s)


@contextmanager
def left_to_the_reaper() -> Iterator[None]:
    """For work behind an answer that was sent: a database that is away now is no error of that request."""
    try:
        yield
    except SQLAlchemyError as error:
        if not (is_outage(error) or is_statement_timeout(error)):
            raise
        log.warning("announcing is left to the reaper: %s", str(error).partition("\n")[0][:300])


def publish_behind_answer(database: Database, send: Sender, *, resend_s: float) -> None:
    """`publish_due` as a background task; what it does not get done the reaper does in its next round."""
    with left_to_the_reaper():
        publish_due(database, send, resend_s=resend_s)


def _due() -> tuple[ColumnElement[bool], ...]:
    return StageRow.state == StageState.QUEUED.value, StageRow.not_before <= database_now()


def _is_empty(send: Sender, queue: str) -> bool:
    try:
        return send.backlog(queue) == 0
    except Exception as error:
        log.warning("the broker is away: %r", error)
        return False


def _announce(database: Database, send: Sender, which: ColumnElement[bool], resend_s: float) -> int:
    chosen = select(StageRow.id).where(*_due(), which).order_by(StageRow.not_before).limit(BATCH)
    with database.write() as session:
        marked = session.execute(
            update(StageRow)
            .where(StageRow.id.in_(chosen.with_for_update(skip_locked=True)))
            .values(published_at=database_now())
            .returning(StageRow.id, StageRow.queue)
            .execution_options(synchronize_session=False)
        ).all()
    sent = 0
    for stage_id, queue in marked:
        try:
            send(stage_id, queue)
        except Exception as error:
            log.warning("broker did not take stage %s; it is sent again in %g s: %r", stage_id, resend_s, error)
            break
        sent += 1
    return sent
