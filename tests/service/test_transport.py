"""The broker in a folder: whole messages or none, each taken once, and no way to end a worker with a bad file."""

from __future__ import annotations

import threading
from pathlib import Path
from queue import Empty
from typing import Any

import pytest
from kombu import Connection

from service.queue.celery_settings import make_celery
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


def test_purging_empties_one_queue(folder: Path) -> None:
    one = channel(folder)
    one._put("a", {"body": 1})
    one._put("b", {"body": 2})
    assert one._purge("a") == 1
    assert (one._size("a"), one._size("b")) == (0, 1)


def test_events_of_celery_itself_leave_no_files(folder: Path) -> None:
    one = channel(folder)
    assert one._lookup("celeryev", "worker.heartbeat") == []
    assert one._lookup("check", "check") == ["check"]
    assert one._lookup("", "check") == ["check"]
