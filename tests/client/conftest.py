"""Fixtures: a live API on SQLite, see `tests.service.stack`."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

import bitwright
from service.settings import Settings
from service.store.database import Database
from tests.service.stack import (
    SentMessages,
    announce_tiny_worker,
    messages,
    quick_settings,
    serving,
    sqlite_template,
)

__all__ = ["messages", "sqlite_template"]


@pytest.fixture
def settings(sqlite_template: Path, tmp_path: Path) -> Settings:
    shutil.copy(sqlite_template, tmp_path / "db.sqlite3")
    return quick_settings(tmp_path / "data", f"sqlite:///{tmp_path / 'db.sqlite3'}")


@pytest.fixture
def database(settings: Settings) -> Iterator[Database]:
    found = Database(settings.resolved_database_url)
    yield found
    found.close()


@pytest.fixture
def http(settings: Settings, messages: SentMessages) -> Iterator[httpx.Client]:
    announce_tiny_worker(settings)
    with serving(settings, messages) as client:
        yield client


@pytest.fixture
def client(http: httpx.Client) -> Iterator[bitwright.Client]:
    with bitwright.Client(str(http.base_url)) as made:
        yield made


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    path = tmp_path / "net.onnx"
    path.write_bytes(b"\x08\x0a" + b"tiny" * 8)
    return path
