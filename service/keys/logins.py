"""Logins: a browser shows a key once and gets a cookie instead, which its scripts cannot read."""

from __future__ import annotations

import hashlib
import secrets

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from service.keys.keys import is_usable
from service.store.database import database_now
from service.store.models import ApiKeyRow, LoginRow
from service.store.studies import now

TOKEN_BYTES = 32


def log_in(session: Session, key: ApiKeyRow, lifetime_s: float) -> str:
    """A new login of this key: the token for the cookie. Ended logins are forgotten on the way."""
    session.execute(delete(LoginRow).where(LoginRow.expires_at < database_now()))
    token = secrets.token_urlsafe(TOKEN_BYTES)
    at = now(session)
    session.add(LoginRow(token_sha256=_sha256(token), key_id=key.id, created_at=at, expires_at=at + lifetime_s))
    session.flush()
    return token


def find_login(session: Session, token: str) -> ApiKeyRow | None:
    """The key behind a cookie's token, while both may be used."""
    query = (
        select(ApiKeyRow)
        .join(LoginRow, LoginRow.key_id == ApiKeyRow.id)
        .where(LoginRow.token_sha256 == _sha256(token), LoginRow.expires_at > database_now(), is_usable())
    )
    return session.scalars(query).one_or_none()


def log_out(session: Session, token: str) -> None:
    """End a login; an unknown one is ended already."""
    session.execute(delete(LoginRow).where(LoginRow.token_sha256 == _sha256(token)))


def csrf_token(token: str) -> str:
    """What a page of this login must repeat in `X-CSRF-Token`; another site can send the cookie but not know this."""
    return _sha256(f"csrf:{token}")


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
