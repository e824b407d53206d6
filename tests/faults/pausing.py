"""`bitwright-server` with points where it stops on request, so that a test can kill it exactly there.

    python -m tests.faults.pausing worker|api|reaper

In the folder `FAULT_FOLDER`, a file `arm.<point>` makes the next process that comes by rename it to
`at.<point>` and wait there for `go.<point>`; the file then holds its process id.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sqlalchemy import event
from sqlalchemy.orm import Session, object_session

import workers.claims as claims
from service.store.models import EventRow
from workers import server_cli


def pause(point: str) -> None:
    folder = Path(os.environ["FAULT_FOLDER"])
    armed, here = folder / f"arm.{point}", folder / f"at.{point}"
    try:
        os.rename(armed, folder / f"coming.{point}")
    except FileNotFoundError:
        return
    (folder / f"coming.{point}").write_text(str(os.getpid()))
    os.rename(folder / f"coming.{point}", here)
    while not (folder / f"go.{point}").exists():
        time.sleep(0.01)


def _around(function: Callable[..., Any], before: str | None = None, after: str | None = None) -> Callable[..., Any]:
    def wrapped(*arguments: Any, **named: Any) -> Any:
        if before:
            pause(before)
        result = function(*arguments, **named)
        if after:
            pause(after)
        return result

    return wrapped


@event.listens_for(EventRow, "after_insert")
def _note_finished_stage(mapper: object, connection: object, row: EventRow) -> None:
    session = object_session(row)
    if session is not None and row.kind == "stage_succeeded":
        session.info["finishes_a_stage"] = True


@event.listens_for(Session, "before_commit")
def _in_transaction(session: Session) -> None:
    """Pauses when all of a finished stage is written and nothing of it committed."""
    if session.info.pop("finishes_a_stage", False):
        pause("inside_commit")


def install(role: str) -> None:
    claims.claim = _around(claims.claim, before="before_claim")
    claims.succeed = _around(claims.succeed, before="before_commit", after="after_commit")
    if role == "worker":  # the reaper wakes followers in every round
        claims.wake_followers = _around(claims.wake_followers, before="before_wake")  # type: ignore[attr-defined]
    if role == "api":
        import service.studies.router as studies

        studies._seen = _around(studies._seen, before="before_answer")


if __name__ == "__main__":
    install(sys.argv[1])
    server_cli.app()
