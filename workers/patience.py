"""Patience: a database that is away is waited for, because a result in hand is worth more than the wait."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from sqlalchemy.exc import SQLAlchemyError

from service.store.database import is_outage

log = logging.getLogger(__name__)
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 5.0
T = TypeVar("T")


def patiently(
    call: Callable[[], T],
    *,
    limit_s: float,
    give_up: Callable[[], bool] = lambda: False,
    pause: Callable[[float], object] = time.sleep,
) -> T:
    """The answer of `call`, asked again while the database is away, full or locked.

    Raises the last outage after `limit_s` or once `give_up` says so, and any other error at once. `call` must be
    safe to repeat: a commit whose answer was lost may have happened.
    """
    deadline = time.monotonic() + limit_s
    pause_s = FIRST_PAUSE_S
    while True:
        try:
            return call()
        except SQLAlchemyError as error:
            if not is_outage(error) or give_up() or time.monotonic() >= deadline:
                raise
            log.warning("waiting for the database: %s", _first_line(error))
        pause(pause_s)
        pause_s = min(2 * pause_s, LONGEST_PAUSE_S)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:300]
