"""A server that misbehaves as told, for what a live API does not do on purpose."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Answer = tuple[int, dict[str, str], bytes]


@dataclass
class FaultyServer:
    """`answer` gets each request's number, method, path and headers. A body may be cut by a longer Content-Length."""

    answer: Callable[[int, str, str, dict[str, str]], Answer]
    url: str = ""
    requests: list[tuple[str, str, dict[str, str], bytes]] = field(default_factory=list)


@contextmanager
def faulty(answer: Callable[[int, str, str, dict[str, str]], Answer]) -> Iterator[FaultyServer]:
    """Run such a server until the block ends."""
    made = FaultyServer(answer)
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _serve(self) -> None:
            headers = {name.lower(): value for name, value in self.headers.items()}
            body = self._body(headers)
            with lock:
                number = len(made.requests)
                made.requests.append((self.command, self.path, headers, body))
            status, told, content = made.answer(number, self.command, self.path, headers)
            self.send_response(status)
            for name, value in {"Content-Length": str(len(content)), "Connection": "close", **told}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)
            self.close_connection = True

        def _body(self, headers: dict[str, str]) -> bytes:
            if "content-length" in headers:
                return self.rfile.read(int(headers["content-length"]))
            pieces = b""
            if headers.get("transfer-encoding") == "chunked":
                while size := int(self.rfile.readline(), 16):
                    pieces += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
            return pieces

        do_GET = do_POST = _serve

        def log_message(self, *_: object) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield made
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
