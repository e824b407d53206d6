"""What request handlers are given: the application's parts, and a write transaction that ends before the answer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, cast

from fastapi import Depends, Request
from sqlalchemy.orm import Session

from service.blobs import Blobs
from service.queue.outbox import Sender
from service.settings import Settings
from service.store.database import Database


@dataclass(frozen=True)
class Parts:
    """The long-lived objects of one API process."""

    settings: Settings
    database: Database
    blobs: Blobs
    send: Sender


def parts_of(request: Request) -> Parts:
    return cast("Parts", request.app.state.parts)


def _write(request: Request) -> Iterator[Session]:
    with parts_of(request).database.write() as session:
        yield session


def _read(request: Request) -> Iterator[Session]:
    with parts_of(request).database.read() as session:
        yield session


# scope="function" ends the transaction before the response starts. The default would commit after the body was
# sent: the client could read its 201, ask again and get 404, and a failed commit would go unseen.
WriteSession = Annotated[Session, Depends(_write, scope="function")]
ReadSession = Annotated[Session, Depends(_read, scope="function")]
TheParts = Annotated[Parts, Depends(parts_of)]
