"""The Redis broker goes on taking messages after it lost Redis in the middle of a task."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from kombu import Connection
from redis.exceptions import RedisError

from service.queue.celery_settings import make_celery
from service.settings import Settings
from tests.faults.servers import RedisServer


@pytest.fixture
def server() -> Iterator[RedisServer]:
    found = RedisServer()
    found.start()
    yield found
    found.stop()


@pytest.mark.parametrize("answer", ["ack", "reject"])
def test_a_failed_acknowledgement_frees_its_place(server: RedisServer, answer: str) -> None:
    make_celery(Settings(broker_url=server.url()))
    with Connection(server.url()) as connection:
        channel: Any = connection.channel()
        channel.basic_qos(0, 1, False)
        queue = connection.SimpleQueue("q", channel=channel)
        queue.put({"stage": 1})
        message = queue.get(timeout=5)
        assert not channel.qos.can_consume()
        server.kill()
        with pytest.raises(RedisError):
            getattr(message, answer)()
        assert channel.qos.can_consume()
