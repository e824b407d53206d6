"""Fixtures: see `tests.service.stack`."""

from dataclasses import replace

import pytest

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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Generated tests carry their operation in the name alone; processes that share the work tell tests apart by id."""
    for item in items:
        parameters = item.name.partition("[")[2].removesuffix("]")
        if parameters and "[" not in item.nodeid:
            item._id = replace(item.id, params=parameters)  # type: ignore[attr-defined]
