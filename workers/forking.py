"""Forking: no pool process is forked while the worker's own threads have a SQLite database open.

SQLite keeps what it knows of a file's locks in the memory of the process. A child forked in the middle of another
thread's transaction inherits a lock that nobody will ever release, and waits for it until its patience ends; one forked
beside an open connection believes that it holds locks which the kernel gave to its parent alone.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from service.store.database import Database

_open = threading.Lock()
os.register_at_fork(before=_open.acquire, after_in_parent=_open.release, after_in_child=_open.release)


@contextmanager
def no_fork_while_open(database: Database) -> Iterator[None]:
    """A block in which a thread of a forking process may use the database. SQLite is closed again at its end.

    Forks wait for the block, so it must be short. Other databases keep nothing that a fork could copy wrongly.
    """
    if not database.is_sqlite:
        yield
        return
    with _open:
        try:
            yield
        finally:
            database.close()
