"""Fixtures: see `tests.service.stack`."""

from tests.service.stack import (  # noqa: F401
    database,
    database_url,
    http,
    messages,
    postgresql_server,
    postgresql_url,
    settings,
    sqlite_template,
)
