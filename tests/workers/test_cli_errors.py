"""Mistakes of an operator end `bitwright-server` with one sentence and status 2; nothing is left running."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from sqlalchemy import text
from typer.testing import CliRunner

from service.store.database import Database
from workers.cli_errors import alone_in
from workers.server_cli import app


def refused(*arguments: str, **environment: str) -> str:
    done = CliRunner().invoke(app, arguments, env=environment)
    assert done.exit_code == 2, (done.output, done.exception)
    assert "Traceback" not in done.output
    return " ".join(done.output.split())


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert "cannot listen on 127.0.0.1" in refused("up", "--data-folder", str(tmp_path / "data"), "--port", port)
    assert not (tmp_path / "data").exists(), "refused before anything is made"


@pytest.mark.parametrize(
    ("name", "value", "named"),
    [
        ("BITWRIGHT_LEASE_S", "abc", "BITWRIGHT_LEASE_S"),
        ("BITWRIGHT_PORT", "99999999", "BITWRIGHT_PORT"),
        ("BITWRIGHT_DATABASE_URL", "foo", "BITWRIGHT_DATABASE_URL"),
        ("BITWRIGHT_DATABASE_URL", "nosuch://x/y", "BITWRIGHT_DATABASE_URL"),
    ],
    ids=["no number", "no port", "no address", "no database we know"],
)
def test_a_variable_that_is_wrong_is_named(tmp_path: Path, name: str, value: str, named: str) -> None:
    assert named in refused("migrate", "--data-folder", str(tmp_path), **{name: value})


def test_a_data_folder_that_is_a_file(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    assert "file" in refused("up", "--data-folder", str(file), "--port", "0")


def test_a_second_up_on_one_folder(tmp_path: Path) -> None:
    with alone_in(tmp_path):
        assert "already runs on" in refused("up", "--data-folder", str(tmp_path), BITWRIGHT_PORT="0")
    with alone_in(tmp_path):
        pass  # the folder is free again


def test_a_backup_into_a_folder_that_is_not_there(sqlite_template: Path, tmp_path: Path) -> None:
    (tmp_path / "bitwright.sqlite3").write_bytes(sqlite_template.read_bytes())
    told = refused("backup", str(tmp_path / "none" / "a.tar"), BITWRIGHT_DATA_FOLDER=str(tmp_path))
    assert "No such file or directory" in told


def test_a_database_of_a_newer_version_is_refused(sqlite_template: Path, tmp_path: Path) -> None:
    path = tmp_path / "bitwright.sqlite3"
    path.write_bytes(sqlite_template.read_bytes())
    database = Database(f"sqlite:///{path}")
    with database.write() as session:
        session.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    database.close()
    before = path.read_bytes()
    for command in ("migrate", "up"):
        assert "start the version that migrated it last" in refused(
            command, "--data-folder", str(tmp_path), BITWRIGHT_PORT="0"
        )
    assert path.read_bytes() == before
