"""Keys: made once, shown once, stored as a hash. A key reads `bw_<prefix>_<secret>`; the prefix is its public name."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import threading
import time
from collections.abc import Iterable

from sqlalchemy import ColumnElement, or_, select, update
from sqlalchemy.orm import Session

from service.ids import ALPHABET
from service.keys.scopes import parse_scopes
from service.store.database import database_now
from service.store.models import ApiKeyRow
from service.store.studies import now, rows_changed

PREFIX_LENGTH = 10
SECRET_LENGTH = 40
MAX_NAME = 100
LAST_USED_STEP_S = 60.0
_KEY = re.compile(rf"bw_([{ALPHABET}]{{{PREFIX_LENGTH}}})_([{ALPHABET}]{{{SECRET_LENGTH}}})")


def create_key(
    session: Session, *, name: str, scopes: Iterable[str], lifetime_s: float | None = None
) -> tuple[ApiKeyRow, str]:
    """A new key and its text, which nobody can read again. Raises `UnknownScope`, and `ValueError` for a bad name."""
    if not name or len(name) > MAX_NAME or not name.isprintable():
        raise ValueError(f"a key's name has 1 to {MAX_NAME} printable characters")
    at = now(session)
    prefix, secret = _random(PREFIX_LENGTH), _random(SECRET_LENGTH)
    row = ApiKeyRow(
        id=prefix,
        name=name,
        secret_sha256=_sha256(secret),
        scopes=list(parse_scopes(scopes)),
        created_at=at,
        expires_at=None if lifetime_s is None else at + lifetime_s,
    )
    session.add(row)
    session.flush()
    return row, f"bw_{prefix}_{secret}"


def list_keys(session: Session) -> list[ApiKeyRow]:
    """All keys ever made, oldest first."""
    return list(session.scalars(select(ApiKeyRow).order_by(ApiKeyRow.created_at, ApiKeyRow.id)))


def revoke_key(session: Session, prefix: str) -> bool:
    """End a key now; False when no key has this prefix. Revoking twice keeps the first time."""
    if session.get(ApiKeyRow, prefix) is None:
        return False
    ending = update(ApiKeyRow).where(ApiKeyRow.id == prefix, ApiKeyRow.revoked_at.is_(None))
    session.execute(ending.values(revoked_at=database_now()))
    return True


def find_key(session: Session, text: str) -> ApiKeyRow | None:
    """The key this text is, if it is one that may be used now."""
    match = _KEY.fullmatch(text)
    if match is None:
        return None
    prefix, secret = match.groups()
    row = session.scalars(select(ApiKeyRow).where(ApiKeyRow.id == prefix, is_usable())).one_or_none()
    if row is None or not hmac.compare_digest(row.secret_sha256, _sha256(secret)):
        return None
    return row


def is_usable() -> ColumnElement[bool]:
    """SQL: the key is neither revoked nor expired."""
    return ApiKeyRow.revoked_at.is_(None) & or_(ApiKeyRow.expires_at.is_(None), ApiKeyRow.expires_at > database_now())


def note_use(session: Session, prefix: str) -> bool:
    """Remember that a key was used, to the minute; True when that was written."""
    stale = or_(ApiKeyRow.last_used_at.is_(None), ApiKeyRow.last_used_at < database_now() - LAST_USED_STEP_S)
    noting = update(ApiKeyRow).where(ApiKeyRow.id == prefix, stale).values(last_used_at=database_now())
    return rows_changed(session.execute(noting)) == 1


class UseNotes:
    """When this process last wrote down the use of each key, so that a busy key costs one write a minute."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._noted: dict[str, float] = {}

    def is_due(self, prefix: str) -> bool:
        """True at most once a minute for each key."""
        at = time.monotonic()
        with self._lock:
            if at - self._noted.get(prefix, -LAST_USED_STEP_S) < LAST_USED_STEP_S:
                return False
            self._noted[prefix] = at
            return True


def _random(length: int) -> str:
    return "".join(secrets.choice(ALPHABET) for _ in range(length))


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
