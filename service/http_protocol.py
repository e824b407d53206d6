"""HTTP: uvicorn's protocol with one answer of ours, to bytes that are no request, and no WebSockets."""

from __future__ import annotations

import secrets
from http import HTTPStatus

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from service.errors import MEDIA_TYPE, Problem, problem_of


class HttpProtocol(H11Protocol):
    """One connection. What h11 cannot read never reaches the application, and is a problem document all the same."""

    def send_400_response(self, msg: str) -> None:
        problem = Problem(
            HTTPStatus.BAD_REQUEST,
            "malformed_http",
            "the request's line, headers or framing cannot be read as HTTP/1.1",
            hint="use an HTTP client; one Host, one Content-Length, no header over 64 kB",
        )
        request_id = secrets.token_hex(8)
        body = problem_of(problem, instance="", request_id=request_id).model_dump_json().encode()
        headers = [
            (b"content-type", MEDIA_TYPE.encode()),
            (b"content-length", str(len(body)).encode()),
            (b"x-request-id", request_id.encode()),
            (b"connection", b"close"),
        ]
        self.logger.warning("request %s is not HTTP: %s", request_id, msg)
        start = h11.Response(status_code=400, headers=headers, reason=b"Bad Request")
        for event in (start, h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
