"""Celery's Redis broker with one fault mended: an acknowledgement that fails still frees the consumer's place.

kombu removes a message from Redis first and from its own list of deliveries second. When Redis is away at that
moment the second step is left out, the delivery counts as under work for ever, and a worker with a prefetch of one
never takes a message again, although it reconnects. What stays behind in Redis comes back after the visibility
timeout and finds its stage taken.
"""

from __future__ import annotations

from typing import Any

from kombu.transport import redis, virtual


class QoS(redis.QoS):
    """Deliveries of one channel."""

    def ack(self, delivery_tag: Any) -> None:
        try:
            super().ack(delivery_tag)  # type: ignore[no-untyped-call]
        finally:
            virtual.QoS.ack(self, delivery_tag)  # type: ignore[no-untyped-call]

    def reject(self, delivery_tag: Any, requeue: bool = False) -> None:
        try:
            super().reject(delivery_tag, requeue=requeue)  # type: ignore[no-untyped-call]
        finally:
            virtual.QoS.ack(self, delivery_tag)  # type: ignore[no-untyped-call]


class Channel(redis.Channel):
    """One connection's view of Redis."""

    QoS = QoS


class Transport(redis.Transport):
    """`redis://` with the channel above."""

    Channel = Channel
