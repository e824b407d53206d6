"""A load generator small enough not to be what is measured: raw sockets, requests made once, answers barely read."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass
class Load:
    """What came back in one round: `seconds` per answer, statuses, and the bytes of one answer with its head."""

    wall_s: float = 0.0
    seconds: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    answer_bytes: int = 0

    @property
    def per_second(self) -> float:
        return len(self.seconds) / self.wall_s

    def percentile_ms(self, share: float) -> float:
        ordered = sorted(self.seconds)
        return 1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))]


class _Connection(asyncio.Protocol):
    """One keep-alive connection that sends its requests in turn, each when the last one is answered."""

    def __init__(self, requests: Sequence[bytes], load: Load, deadline: float) -> None:
        self._requests = requests
        self._load = load
        self._deadline = deadline
        self._next = 0
        self._sent_at = 0.0
        self._unread = b""
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._send()

    def _send(self) -> None:
        self._sent_at = time.perf_counter()
        self._transport.write(self._requests[self._next])
        self._next = (self._next + 1) % len(self._requests)

    def data_received(self, data: bytes) -> None:
        self._unread += data
        end = self._unread.find(b"\r\n\r\n")
        if end < 0:
            return
        head = self._unread[:end].lower()
        status = int(head[9:12])
        at = head.find(b"content-length:")
        length = 0 if at < 0 or status == 304 else int(head[at + 15 :].split(b"\r\n", 1)[0])
        if len(self._unread) < end + 4 + length:
            return
        self._load.seconds.append(time.perf_counter() - self._sent_at)
        self._load.statuses[status] += 1
        self._load.answer_bytes = end + 4 + length
        self._unread = self._unread[end + 4 + length :]
        if time.perf_counter() >= self._deadline:
            self._transport.close()
        else:
            self._send()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.over.done():
            self.over.set_result(None)


def request_bytes(port: int, path: str, **headers: str) -> bytes:
    """A GET as it goes over the wire."""
    lines = [f"GET {path} HTTP/1.1", f"Host: 127.0.0.1:{port}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def put_load(port: int, requests: Sequence[Sequence[bytes]], seconds: float) -> Load:
    """Send each list of requests round and round over a connection of its own, all for that long."""

    async def run() -> Load:
        load = Load()
        begun = time.perf_counter()
        loop = asyncio.get_running_loop()
        connections = [
            (await loop.create_connection(lambda own=own: _Connection(own, load, begun + seconds), "127.0.0.1", port))[
                1
            ]
            for own in requests
        ]
        await asyncio.gather(*(connection.over for connection in connections))
        load.wall_s = time.perf_counter() - begun
        return load

    return asyncio.run(run())
