"""Idempotency: a POST sent twice with one Idempotency-Key makes one thing. Keys are remembered for a day."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

from fastapi import Header, Request
from sqlalchemy import delete, text
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlalchemy.orm import Session

from service.canonical import content_key
from service.dependencies import Parts
from service.errors import Problem
from service.store.database import Database, database_now, is_lock_timeout
from service.store.models import IdempotencyKeyRow
from service.store.studies import now

IN_FLIGHT_WAIT_MS = 2000
IdempotencyKey = Annotated[str | None, Header(min_length=1, max_length=255)]


def make_once(
    request: Request, parts: Parts, key: str | None, body: Any, make: Callable[[Session], str]
) -> tuple[str, bool]:
    """The id of what `make` makes, and whether this call made it; a known key gives what was made before.

    A key belongs to its caller. Raises `Problem`: 422 `idempotency_key_reused` for a key sent with another body or to
    another address, 409 `idempotency_in_flight` while a request with the key has not ended.
    """
    if key is None:
        with parts.database.write() as session:
            return make(session), True
    caller = getattr(request.state, "caller", None)
    owned = f"{getattr(caller, 'key_id', None) or ''}:{key}"
    identity = content_key({"method": request.method, "path": request.url.path, "body": body})
    try:
        with parts.database.write() as session:
            known = _known(session, owned, identity, parts.settings.idempotency_s)
            if known is not None:
                return known, False
            # Entered first, so that a second request waits here and not somewhere inside what the first makes.
            row = IdempotencyKeyRow(key=owned, body_hash=identity, resource_id="", created_at=now(session))
            with _short_lock_wait(session, parts.database):
                session.add(row)
                session.flush()
            row.resource_id = make(session)
            return row.resource_id, True
    except IntegrityError:
        pass  # another request entered the key meanwhile
    with parts.database.write() as session:
        known = _known(session, owned, identity, parts.settings.idempotency_s)
    if known is None:
        raise _in_flight()
    return known, False


def _known(session: Session, key: str, identity: str, kept_s: float) -> str | None:
    session.execute(delete(IdempotencyKeyRow).where(IdempotencyKeyRow.created_at < database_now() - kept_s))
    row = session.get(IdempotencyKeyRow, key)
    if row is None:
        return None
    if row.body_hash != identity:
        raise Problem(
            422,
            "idempotency_key_reused",
            "this Idempotency-Key was sent before with another body",
            hint="use a new key for a new request",
        )
    return row.resource_id


@contextmanager
def _short_lock_wait(session: Session, database: Database) -> Iterator[None]:
    """PostgreSQL waits for the transaction that entered the same key, but not as long as for other locks.

    Raises `Problem` (`idempotency_in_flight`) when that has not ended by then.
    """
    if database.is_sqlite:
        yield
        return
    before = session.execute(text("SHOW lock_timeout")).scalar_one()
    session.execute(text(f"SET LOCAL lock_timeout = '{IN_FLIGHT_WAIT_MS}ms'"))
    try:
        yield
    except OperationalError as error:
        if not is_lock_timeout(error):
            raise
        raise _in_flight() from None
    session.execute(text("SELECT set_config('lock_timeout', :before, true)"), {"before": before})


def _in_flight() -> Problem:
    return Problem(
        409,
        "idempotency_in_flight",
        "another request with this Idempotency-Key has not ended",
        hint="send it again",
        retry_after_s=1,
    )
