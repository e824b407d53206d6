"""A process forked while another thread uses SQLite can write to the database itself."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import text

from service.store.database import Database
from workers.forking import no_fork_while_open

# In a process of its own: a fork copies whatever threads the tests have.
FORKING = """
import contextlib, os, sys, threading
from sqlalchemy import text
import service.store.database as store
from workers.forking import no_fork_while_open

store.SQLITE_BUSY_MS = 1000
url, guarded = sys.argv[1], sys.argv[2] == "guarded"
mine = store.Database(url)
inside, forked = threading.Event(), threading.Event()

def write():
    with no_fork_while_open(mine) if guarded else contextlib.nullcontext(), mine.write() as session:
        session.execute(text("INSERT INTO t VALUES (1)"))
        inside.set()
        forked.wait(0.2 if guarded else 60)  # a fork that waits for this block comes only after it

thread = threading.Thread(target=write)
thread.start()
inside.wait()
pid = os.fork()
if pid == 0:
    try:
        with store.Database(url).write() as session:
            session.execute(text("INSERT INTO t VALUES (2)"))
        os._exit(0)
    except Exception as error:
        print(error)
        sys.stdout.flush()
        os._exit(1)
forked.set()
status = os.waitpid(pid, 0)[1]
thread.join()
sys.exit(os.waitstatus_to_exitcode(status))
"""


@pytest.mark.parametrize(("how", "status"), [("guarded", 0), ("bare", 1)])
def test_a_forked_process_inherits_no_lock(tmp_path: Path, how: str, status: int) -> None:
    url = f"sqlite:///{tmp_path / 'a.sqlite3'}"
    database = Database(url)
    with database.write() as session:
        session.execute(text("CREATE TABLE t (a)"))
    database.close()
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", FORKING, url, how], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (status, ""), done.stdout
    assert ("database is locked" in done.stdout) is (how == "bare"), "what the guard is for"


def test_sqlite_is_closed_after_the_block(tmp_path: Path) -> None:
    path = tmp_path / "a.sqlite3"
    database = Database(f"sqlite:///{path}")
    with no_fork_while_open(database), database.write() as session:
        session.execute(text("CREATE TABLE t (a)"))
        assert open_files(path)
    assert open_files(path) == []


def test_other_databases_keep_their_connections(postgresql_server: str) -> None:
    database = Database(postgresql_server)
    with no_fork_while_open(database), database.read() as session:
        first = session.scalar(text("SELECT pg_backend_pid()"))
        with no_fork_while_open(database):
            pass  # a lock would have been waited for here
    with database.read() as session:
        assert session.scalar(text("SELECT pg_backend_pid()")) == first
    database.close()


def open_files(path: Path) -> list[str]:
    return [str(fd) for fd in Path("/proc/self/fd").iterdir() if fd.is_symlink() and str(fd.resolve()) == str(path)]
