"""Migrations by program: bring a database to the newest schema, whatever runs it."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from service.hardware_profiles.profiles import enter_shipped_profiles
from service.store.database import Database
from service.store.fleet import enter_version

POSTGRESQL_LOCK = 0x62770001


def _config(database: Database) -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.attributes["database"] = database
    return config


def migrate(database: Database) -> None:
    """Upgrade to the newest revision, enter the shipped hardware profiles and the version that serves from now on.

    Several processes may call it at once: the migration takes a lock.
    """
    migrate_to(database, "head")
    with database.write() as session:
        enter_shipped_profiles(session)
        enter_version(session)


def migrate_to(database: Database, revision: str) -> None:
    """Upgrade the tables to that revision and enter nothing."""
    command.upgrade(_config(database), revision)


def current_revision(database: Database) -> str | None:
    """The revision the database is at; None without tables."""
    with database.reader.connect() as connection:
        return MigrationContext.configure(connection).get_current_revision()


def known_revisions(database: Database) -> frozenset[str]:
    """The revisions this program can make."""
    scripts = ScriptDirectory.from_config(_config(database))
    return frozenset(script.revision for script in scripts.walk_revisions())


def is_current(database: Database) -> bool:
    """True when the database is at the newest revision this program knows."""
    head = ScriptDirectory.from_config(_config(database)).get_current_head()
    return current_revision(database) == head
