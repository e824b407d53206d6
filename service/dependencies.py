"""What request handlers are given: the application's parts, and a write transaction that ends before the answer."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, cast

from fastapi import Depends, Request
from sqlalchemy.orm import Session

from service.blobs import Blobs
from service.errors import Problem
from service.keys.keys import UseNotes
from service.queue.outbox import Sender
from service.settings import Settings
from service.store.database import Database

# What only a full reading can judge: escapes of characters, and numbers that may be no finite double.
_SUSPECT = re.compile(rb"\\u(0000|[dD][89a-fA-F])|[:,\[\s]-?(NaN|Infinity|[0-9][0-9.]*[eE]\+?[0-9]{3}|[0-9]{309})")
_HALF_PAIR = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Parts:
    """The long-lived objects of one API process."""

    settings: Settings
    database: Database
    blobs: Blobs
    send: Sender
    key_uses: UseNotes = field(default_factory=UseNotes)


def parts_of(request: Request) -> Parts:
    return cast("Parts", request.app.state.parts)


def _write(request: Request) -> Iterator[Session]:
    with parts_of(request).database.write() as session:
        yield session


def _read(request: Request) -> Iterator[Session]:
    with parts_of(request).database.read() as session:
        yield session


async def check_json_text(request: Request) -> None:
    """Refuse JSON that no database column can hold: NUL characters, lone surrogates, NaN and endless numbers."""
    if "json" not in request.headers.get("content-type", ""):
        return
    body = await request.body()
    if _SUSPECT.search(body) is None:
        return
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return  # the handler's own reading refuses it
    if (why := next(filter(None, map(_unstorable, _scalars(document))), None)) is not None:
        raise Problem(
            422, "invalid_request", f"the body holds {why}", hint="send text that can be stored and finite numbers"
        )


def _unstorable(value: object) -> str | None:
    match value:
        case str() if "\0" in value or _HALF_PAIR.search(value):
            return "a NUL character or half a surrogate pair"
        case float() if not math.isfinite(value):
            return "NaN or a number beyond what a double can hold"
    return None


def _scalars(document: object) -> Iterator[object]:
    """Everything in a JSON document that holds nothing itself, keys included."""
    waiting = [document]
    while waiting:
        match waiting.pop():
            case list() as items:
                waiting.extend(items)
            case dict() as fields:
                waiting.extend(fields.keys())
                waiting.extend(fields.values())
            case value:
                yield value


# scope="function" ends the transaction before the response starts. The default would commit after the body was
# sent: the client could read its 201, ask again and get 404, and a failed commit would go unseen.
WriteSession = Annotated[Session, Depends(_write, scope="function")]
ReadSession = Annotated[Session, Depends(_read, scope="function")]
TheParts = Annotated[Parts, Depends(parts_of)]
