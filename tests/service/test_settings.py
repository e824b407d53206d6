"""Settings: frozen, carried whole to a child process, and read in one place."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from service.settings import Settings

ROOT = Path(__file__).parents[2]


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        Settings().port = 1  # type: ignore[misc]


def test_a_child_process_gets_equal_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = Settings(data_folder=tmp_path, port=1234, hardware=("a", "b"), stages="x:Y", lease_s=3.5)
    for name, value in told.as_environment().items():
        monkeypatch.setenv(name, value)
    assert Settings() == told


def test_defaults_lie_in_the_data_folder(tmp_path: Path) -> None:
    settings = Settings(data_folder=tmp_path)
    assert settings.resolved_database_url == f"sqlite:///{tmp_path}/bitwright.sqlite3"
    assert settings.resolved_blob_url == f"{tmp_path}/blobs"
    assert settings.resolved_broker_url.startswith("filesystem://")


def test_every_setting_says_what_it_is() -> None:
    assert all(field.description for field in Settings.model_fields.values())


def test_no_other_file_of_the_service_reads_the_environment() -> None:
    readers = [
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "service").rglob("*.py")
        if re.search(r"os\.(environ|getenv)", path.read_text())
    ]
    assert readers == []
