"""Celery's broker in a folder, made safe: a message is there whole or not at all.

kombu's own `filesystem` transport opens the message file under its final name and then writes it; a consumer
that looks in between takes an empty file, and one such file ends the worker. Here a message is written under a
hidden name, synced and renamed, and one that cannot be read is laid aside instead of raised. Queues are plain:
a routing key is the name of its queue, so no exchange table is shared between processes.
"""

from __future__ import annotations

import json
import logging
import os
import time
import uuid
from contextlib import suppress
from pathlib import Path
from queue import Empty
from typing import Any

from kombu.transport import filesystem

log = logging.getLogger(__name__)
LEFTOVER_S = 86400.0


class Channel(filesystem.Channel):
    """One connection's view of the folder. Options: `folder`, a directory on one local disk."""

    supports_fanout = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[no-untyped-call]
        sweep_leftovers(self.folder)

    @property
    def folder(self) -> Path:
        return Path(self.transport_options["folder"])

    def get_table(self, exchange: str) -> list[Any]:
        return []

    def _queue_bind(self, exchange: str, routing_key: str, pattern: str, queue: str) -> None:
        """Nothing to keep: see `_lookup`."""

    def _delete(self, queue: str, *args: Any, **kwargs: Any) -> None:
        self._purge(queue)

    def _lookup(self, exchange: str, routing_key: str, default: str | None = None) -> list[str]:
        # Celery's own chatter (worker events) uses other exchanges; nobody reads it and its files would pile up.
        return [routing_key] if exchange in ("", routing_key) else []

    def _put(self, queue: str, payload: dict[str, Any], **kwargs: Any) -> None:  # type: ignore[override]
        name = f"{time.time_ns()}_{uuid.uuid4().hex}.{queue}.msg"
        hidden = self.folder / f".{name}"
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            with open(hidden, "wb") as file:
                file.write(json.dumps(payload).encode())
                file.flush()
                os.fsync(file.fileno())
            os.rename(hidden, self.folder / name)
        except OSError:  # a full disk leaves no half message behind
            hidden.unlink(missing_ok=True)
            raise

    def _messages(self, queue: str) -> list[str]:
        end = f".{queue}.msg"
        try:
            names = [name for name in os.listdir(self.folder) if not name.startswith(".")]
        except FileNotFoundError:  # somebody removed the folder; the next message makes it again
            return []
        return sorted(name for name in names if name.partition(".")[2] == end[1:])

    def _get(self, queue: str, timeout: float | None = None) -> dict[str, Any]:
        for name in self._messages(queue):
            taken = self.folder / f".taken-{uuid.uuid4().hex}"
            try:
                os.rename(self.folder / name, taken)
            except FileNotFoundError:
                continue  # another consumer was first
            try:
                payload = json.loads(taken.read_bytes())
                if not isinstance(payload, dict) or "body" not in payload:
                    raise ValueError("not a message")
            except ValueError as error:
                log.warning("laid an unreadable message aside: %s (%s)", name, error)
                os.rename(taken, self.folder / f".unreadable-{name}")
                continue
            os.unlink(taken)
            return payload
        raise Empty

    def _size(self, queue: str) -> int:
        return len(self._messages(queue))

    def _purge(self, queue: str) -> int:
        removed = 0
        for name in self._messages(queue):
            try:
                os.unlink(self.folder / name)
            except FileNotFoundError:
                continue
            removed += 1
        return removed


def sweep_leftovers(folder: Path, *, older_s: float = LEFTOVER_S) -> int:
    """Remove hidden files that processes killed in the middle of a message left behind; returns how many."""
    removed = 0
    for path in folder.glob(".*"):
        try:
            if time.time() - path.stat().st_mtime > older_s:
                path.unlink()
                removed += 1
        except FileNotFoundError:  # another sweeper was first
            continue
    return removed


class Transport(filesystem.Transport):
    """`filesystem://` with the channel above, for Celery's event loop, which looks into the folder by a timer.

    Without a loop Celery gives its pool one pipe for all and a lock that an idle process holds while it waits: one that
    is killed then takes the lock with it, and its successor waits for ever. With a loop each process has its own pipe.
    """

    Channel = Channel
    implements = filesystem.Transport.implements.extend(asynchronous=True)

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:
        loop.call_repeatedly(self.polling_interval, self._take_waiting)

    def _take_waiting(self) -> None:
        """Deliver what waits, as far as the consumers' prefetch allows."""
        assert self.cycle is not None
        with suppress(Empty):
            while True:
                self.cycle.get(self._deliver)  # type: ignore[no-untyped-call]
