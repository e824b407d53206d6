"""Outbox: announces queued stages to the broker, and again when nobody took them."""

from __future__ import annotations

import logging
from typing import Protocol

from celery import Celery
from sqlalchemy import or_, select, update

from service.lifecycle import StageState
from service.queue.celery_settings import RUN_STAGE
from service.store.database import Database, database_now
from service.store.models import StageRow

log = logging.getLogger(__name__)
BATCH = 100


class Sender(Protocol):
    """Puts one stage's message on a queue; raises when the broker is away."""

    def __call__(self, stage_id: str, queue: str) -> None: ...


def celery_sender(app: Celery) -> Sender:
    """A sender that enqueues the worker's task by its name."""

    def send(stage_id: str, queue: str) -> None:
        app.send_task(RUN_STAGE, args=[stage_id], queue=queue)

    return send


def publish_due(database: Database, send: Sender, *, resend_s: float) -> int:
    """Send a message for every queued stage that is due and was not announced lately; returns how many.

    Marked and committed first, sent after: a crash or a dead broker in between costs one `resend_s`, never a stage.
    """
    due = (
        select(StageRow.id)
        .where(
            StageRow.state == StageState.QUEUED.value,
            StageRow.not_before <= database_now(),
            or_(StageRow.published_at.is_(None), StageRow.published_at < database_now() - resend_s),
        )
        .order_by(StageRow.not_before)
        .limit(BATCH)
        .with_for_update(skip_locked=True)
    )
    with database.write() as session:
        marked = session.execute(
            update(StageRow)
            .where(StageRow.id.in_(due))
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
