"""Keys as rows: made, found, ended; scopes and what they allow. On SQLite and on PostgreSQL."""

from __future__ import annotations

import re

import pytest
from sqlalchemy import update

from service.keys.keys import UseNotes, create_key, find_key, list_keys, note_use, revoke_key
from service.keys.logins import csrf_token, find_login, log_in, log_out
from service.keys.scopes import ADMIN, NOUNS, SCOPES, UnknownScope, allows, parse_scopes
from service.store.database import Database
from service.store.models import ApiKeyRow, LoginRow


def made(database: Database, **changes: object) -> tuple[str, str]:
    """Prefix and text of a new key."""
    with database.write() as session:
        row, text = create_key(session, **{"name": "ci", "scopes": ["studies:write"], **changes})  # type: ignore[arg-type]
        return row.id, text


def is_known(database: Database, text: str) -> bool:
    with database.read() as session:
        return find_key(session, text) is not None


def test_a_key_is_found_by_its_text_alone(database: Database) -> None:
    prefix, text = made(database)
    assert re.fullmatch(r"bw_[0-9a-z]{10}_[0-9a-z]{40}", text)
    assert is_known(database, text)
    other = made(database)[1]
    swapped = f"bw_{prefix}_{other.rpartition('_')[2]}"
    for wrong in (swapped, text[:-1], f"{text}x", text.upper(), "", "bw__", text.replace("bw_", "sk_")):
        assert not is_known(database, wrong), wrong
    with database.read() as session:
        row = session.get_one(ApiKeyRow, prefix)
        assert text.rpartition("_")[2] not in str(vars(row)), "the secret itself is not stored"


def test_an_ended_key_is_not_found(database: Database) -> None:
    prefix, text = made(database)
    with database.write() as session:
        assert revoke_key(session, prefix)
        assert not revoke_key(session, "nobody")
    assert not is_known(database, text)
    with database.write() as session:
        first = session.get_one(ApiKeyRow, prefix).revoked_at
        assert revoke_key(session, prefix)
        session.expire_all()
        assert session.get_one(ApiKeyRow, prefix).revoked_at == first, "the first time counts"
    assert not is_known(database, made(database, lifetime_s=-1.0)[1])
    assert is_known(database, made(database, lifetime_s=60.0)[1])


def test_use_is_noted_once_a_minute(database: Database) -> None:
    prefix, _ = made(database)
    with database.write() as session:
        assert note_use(session, prefix)
        assert not note_use(session, prefix)
        session.execute(update(ApiKeyRow).values(last_used_at=ApiKeyRow.last_used_at - 61))
        assert note_use(session, prefix)
    notes = UseNotes()
    assert [notes.is_due("a"), notes.is_due("a"), notes.is_due("b")] == [True, False, True]


def test_keys_are_listed_oldest_first(database: Database) -> None:
    prefixes = [made(database, name=f"key {i}")[0] for i in range(3)]
    with database.read() as session:
        assert [row.id for row in list_keys(session)] == prefixes


@pytest.mark.parametrize("name", ["", "x" * 101, "a\nb"])
def test_names_are_printable(database: Database, name: str) -> None:
    with pytest.raises(ValueError, match="printable"):
        made(database, name=name)


def test_a_login_lives_as_long_as_its_key(database: Database) -> None:
    prefix, text = made(database)
    with database.write() as session:
        key = find_key(session, text)
        assert key is not None
        token, gone = log_in(session, key, 60.0), log_in(session, key, 60.0)
        late = log_in(session, key, -1.0)
    with database.write() as session:
        log_out(session, gone)
        assert find_login(session, gone) is None
        assert find_login(session, late) is None
        assert find_login(session, token) is not None
        assert session.get(LoginRow, token) is None, "the token itself is not stored"
        revoke_key(session, prefix)
    with database.read() as session:
        assert find_login(session, token) is None
    assert csrf_token(token) not in (token, csrf_token(gone))


def test_scopes() -> None:
    assert parse_scopes(["read"]) == tuple(f"{noun}:read" for noun in NOUNS)
    assert parse_scopes(["studies:write", "models:read", "studies:write"]) == ("models:read", "studies:write")
    for wrong in (["studies"], ["studies:delete"], ["keys:read"], [], ["Read"]):
        with pytest.raises(UnknownScope):
            parse_scopes(wrong)
    for scope in SCOPES:
        for noun in NOUNS:
            for deed in ("read", "write"):
                expected = scope in (ADMIN, f"{noun}:{deed}", f"{noun}:write")
                assert allows([scope], noun, deed) is expected  # type: ignore[arg-type]
