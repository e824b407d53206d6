"""A worker's hardware: asked in a process of its own, announced, kept alive, and gone when it ends."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import pytest
from sqlalchemy import delete

from service.store.database import Database
from service.store.fleet import live_queues, live_workers
from service.store.models import HardwareProfileRow, WorkerRow
from service.studies.plan import COMMON_QUEUES
from tests.service.stack import quick_settings
from workers.hardware import (
    Announcement,
    Presence,
    has_gpu,
    probe_profiles,
    queues_for,
    read_profile,
    wanted_hardware,
)

KERNELS = "tests.workers.tiny_kernels"


def test_profiles_of_this_machine_and_queues_for_them(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        profiles = probe_profiles(KERNELS, ("tiny-a", "absent", "tiny-b"))
    assert [profile["slug"] for profile in profiles] == ["tiny-a", "tiny-b"]
    assert "hardware absent is not announced: no such hardware: absent" in caplog.text
    assert queues_for(profiles) == [*COMMON_QUEUES, "measure.tiny-a", "measure.tiny-b"]
    assert queues_for([]) == list(COMMON_QUEUES)


def test_the_real_kernels_package_names_this_cpu() -> None:
    (profile,) = probe_profiles("kernels", ("cpu-local",))
    assert profile["slug"] == "cpu-local"
    assert profile["measurable_here"] is True


@pytest.mark.parametrize("output", [b"", b"[]", b"null", b"{}", b'{"slug": "../x"}', b'{"slug": "a b"}', b"\xff"])
def test_what_is_no_profile_is_refused(output: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        read_profile(output)


def test_a_worker_is_there_until_it_ends(sqlite_template: Path, tmp_path: Path) -> None:
    path = tmp_path / "bitwright.sqlite3"
    path.write_bytes(sqlite_template.read_bytes())
    settings = quick_settings(tmp_path / "data", f"sqlite:///{path}", worker_silent_s=0.6)
    database = Database(settings.resolved_database_url)
    announcement = Announcement.of_this_machine(["check"], [{"slug": "tiny-a"}])
    announcement.enter(database)
    presence = Presence(settings, announcement)
    presence.start()
    time.sleep(1.0)
    with database.read() as session:
        assert live_queues(session, settings.worker_silent_s) == {"check"}
        assert session.get_one(HardwareProfileRow, "tiny-a").profile == {"slug": "tiny-a"}
    with database.write() as session:
        session.execute(delete(WorkerRow))
    time.sleep(0.5)
    with database.read() as session:
        assert len(live_workers(session, settings.worker_silent_s)) == 1, "it announces itself again"
    presence.end()
    with database.read() as session:
        assert live_workers(session, settings.worker_silent_s) == []
    database.close()


def test_auto_asks_for_the_gpu_besides_what_is_configured() -> None:
    assert wanted_hardware(None, ("cpu-local",)) == ("cpu-local",)
    assert wanted_hardware("auto", ("cpu-local",)) == ("cpu-local", "cuda-local")
    assert wanted_hardware("h200, cpu-local", ("fake",)) == ("h200", "cpu-local")


def test_a_gpu_among_the_profiles_is_noticed_and_has_a_queue() -> None:
    profiles = [{"slug": "cpu-local", "device": {"kind": "cpu"}}, {"slug": "h200", "device": {"kind": "gpu"}}]
    assert has_gpu(profiles)
    assert not has_gpu(profiles[:1])
    assert "measure.h200" in queues_for(profiles)
