"""The broker in a folder: whole messages or none, each taken once, and no way to end a worker with a bad file."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path
from queue import Empty
from typing import Any

import pytest
from kombu import Connection

from service.queue.celery_settings import make_celery
from service.queue.outbox import celery_sender
from service.queue.transport import sweep_leftovers
from service.settings import Settings


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    settings = Settings(data_folder=tmp_path)
    make_celery(settings)
    return settings.broker_folder


def channel(folder: Path) -> Any:
    return Connection("filesystem://localhost//", transport_options={"folder": str(folder)}).channel()


def test_a_message_goes_to_its_queue_only(folder: Path) -> None:
    one = channel(folder)
    one._put("measure.gpu", {"body": "for gpu"})
    for other in ("gpu", "measure", "measure.gpu2", "gpu.msg"):
        with pytest.raises(Empty):
            one._get(other)
    assert one._size("measure.gpu") == 1
    assert one._get("measure.gpu") == {"body": "for gpu"}
    assert list(folder.iterdir()) == []


def test_messages_keep_their_order(folder: Path) -> None:
    one = channel(folder)
    for number in range(5):
        one._put("q", {"body": number})
    assert [one._get("q")["body"] for _ in range(5)] == list(range(5))


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b'{"no": "body"}'])
def test_a_bad_file_is_laid_aside_and_the_next_message_served(folder: Path, content: bytes) -> None:
    one = channel(folder)
    (folder / "0_bad.q.msg").write_bytes(content)
    one._put("q", {"body": "good"})
    assert one._get("q") == {"body": "good"}
    with pytest.raises(Empty):
        one._get("q")
    assert [path.name for path in folder.iterdir()] == [".unreadable-0_bad.q.msg"]


def test_every_message_is_taken_once_under_contention(folder: Path) -> None:
    count, taken, errors = 300, [], []
    done = threading.Event()

    def consume() -> None:
        mine = channel(folder)
        while True:
            try:
                taken.append(mine._get("q")["body"])
            except Empty:
                if done.is_set():
                    return
            except Exception as error:
                errors.append(error)
                return

    consumers = [threading.Thread(target=consume) for _ in range(3)]
    for thread in consumers:
        thread.start()
    sender = channel(folder)
    for number in range(count):
        sender._put("q", {"body": number})
    done.set()
    for thread in consumers:
        thread.join()
    assert errors == []
    assert sorted(taken) == list(range(count))


class Loop:
    """As much of Celery's event loop as the transport asks for."""

    def call_repeatedly(self, delay_s: float, callback: Any) -> None:
        self.delay_s, self.callback = delay_s, callback


def test_the_event_loop_takes_what_waits_as_far_as_the_prefetch_allows(folder: Path) -> None:
    options = {"folder": str(folder), "polling_interval": 0.2}
    with Connection("filesystem://localhost//", transport_options=options) as connection:
        assert connection.transport.implements.asynchronous, "else an idle process killed takes the pool's lock along"
        one = connection.default_channel
        sent = [one.prepare_message(str(number)) for number in range(3)]
        taken: list[Any] = []
        one.basic_qos(0, 2, False)
        one.basic_consume("q", False, taken.append, "consumer")
        loop = Loop()
        connection.transport.register_with_event_loop(connection.connection, loop)
        assert loop.delay_s == 0.2
        loop.callback()
        assert taken == []
        for message in sent:
            one._inplace_augment_message(message, "q", "q")
            one._put("q", message)
        loop.callback()
        assert [message.body for message in taken] == [b"0", b"1"]
        taken[0].ack()
        loop.callback()
        assert [message.body for message in taken] == [b"0", b"1", b"2"]


def test_purging_empties_one_queue(folder: Path) -> None:
    one = channel(folder)
    one._put("a", {"body": 1})
    one._put("b", {"body": 2})
    assert one._purge("a") == 1
    assert (one._size("a"), one._size("b")) == (0, 1)


def test_a_removed_folder_is_empty_and_comes_back_with_the_next_message(folder: Path) -> None:
    one = channel(folder)
    folder.rmdir()
    with pytest.raises(Empty):
        one._get("q")
    assert (one._size("q"), one._purge("q")) == (0, 0)
    one._put("q", {"body": 1})
    assert one._get("q") == {"body": 1}


def test_a_message_that_does_not_fit_on_the_disk_leaves_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    one = channel(folder)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        one._put("q", {"body": 1})
    assert list(folder.iterdir()) == []


def test_leftovers_of_killed_processes_are_swept_when_old(folder: Path) -> None:
    for name in (".taken-1", ".1_a.q.msg", "1_b.q.msg"):
        (folder / name).write_bytes(b"")
        os.utime(folder / name, (0, 0))
    (folder / ".young").write_bytes(b"")
    assert sweep_leftovers(folder) == 2
    assert sorted(path.name for path in folder.iterdir()) == [".young", "1_b.q.msg"]


def test_a_sender_counts_what_waits(tmp_path: Path) -> None:
    send = celery_sender(make_celery(Settings(data_folder=tmp_path)))
    assert send.backlog("check") == 0
    send("stage_1", "check")
    send("stage_2", "scan")
    assert send.backlog("check") == 1


def test_redis_settings_wait_longer_than_any_stage(tmp_path: Path) -> None:
    settings = Settings(data_folder=tmp_path, broker_url="redis://127.0.0.1:1/0")
    conf = make_celery(settings).conf
    assert conf.broker_transport_options["visibility_timeout"] > settings.stage_wall_s
    assert conf.task_time_limit > settings.stage_wall_s
    assert (conf.task_acks_late, conf.task_reject_on_worker_lost, conf.worker_prefetch_multiplier) == (True, False, 1)
    assert conf.accept_content == ["json"]
    assert conf.broker_connection_max_retries is None, "a broker that is away is waited for"


def test_events_of_celery_itself_leave_no_files(folder: Path) -> None:
    one = channel(folder)
    assert one._lookup("celeryev", "worker.heartbeat") == []
    assert one._lookup("check", "check") == ["check"]
    assert one._lookup("", "check") == ["check"]
