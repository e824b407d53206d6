"""What an operator can mend is told in one sentence, not as a traceback, and ends with status 2."""

from __future__ import annotations

import errno
import fcntl
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer
from alembic.util import CommandError
from pydantic import ValidationError
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from typer.core import TyperGroup

from service.store.database import is_outage

HOLDER_FILE = "up.lock"
_OF_THE_FOLDER = frozenset(
    {errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOENT, errno.ENOTDIR, errno.ENOSPC}
)


class OperatorError(Exception):
    """The command cannot begin; the message says what to change."""


class ServerCommands(TyperGroup):
    """The commands of `bitwright-server`."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except Exception as error:
            if (sentence := told(error)) is None:
                raise
            typer.echo(sentence, err=True)
            raise typer.Exit(2) from error


def told(error: Exception) -> str | None:
    """What an operator did that led here; None for faults of ours."""
    match error:
        case OperatorError():
            return str(error)
        case ValidationError() if error.title == "Settings":
            wrong = (f"BITWRIGHT_{one['loc'][0]}".upper() + f": {one['msg']}" for one in error.errors())
            return "; ".join(wrong)
        case ArgumentError() | ModuleNotFoundError():
            return f"BITWRIGHT_DATABASE_URL: {error}; give sqlite:///file or postgresql+psycopg://user@host/name"
        case CommandError():
            return f"the database is not one this version knows ({error}); start the version that migrated it last"
        case SQLAlchemyError() if is_outage(error):
            return f"the database does not answer: {str(getattr(error, 'orig', error)).partition(chr(10))[0]}"
        case OSError() if error.filename is not None and error.errno in _OF_THE_FOLDER:
            return f"{error.filename}: {error.strerror}"
    return None


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Holds the folder for this process until the block or the process ends, however it ends.

    Raises `OperatorError` when another process holds it: two reapers and two brokers on one folder would be in each
    other's way.
    """
    with (folder / HOLDER_FILE).open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OperatorError(
                f"`bitwright-server up` already runs on {folder}: end that one, or give another --data-folder "
                "(more workers: bitwright-server worker)"
            ) from error
        yield


def refuse_taken_port(host: str, port: int) -> None:
    """Raises `OperatorError` when another program listens there: its answers would be taken for ours."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        for family, kind, protocol, _, address in found[:1]:
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
    except OSError as error:
        raise OperatorError(
            f"cannot listen on {host}:{port}: {error.strerror}; end what listens there, or give another --port"
        ) from error
