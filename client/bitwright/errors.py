"""Errors of the client, named by what the caller does next.

BitwrightError
├── ServerUnreachable   no answer: start the server or check the address
├── ApiError            the server refused; `code` is stable, `hint` says what to do
│   ├── InvalidRequest  what was sent is wrong: change it
│   ├── AccessDenied    no key, a wrong one, or one that may not do this
│   ├── NotFound        no such thing
│   └── Conflict        not in this state, or not yet
├── WaitTimeout         the study goes on; wait again
└── DamagedDownload     the bytes are not those the server named: download again
"""

from __future__ import annotations

from typing import Any


class BitwrightError(Exception):
    """Root of the client's errors."""


class ServerUnreachable(BitwrightError):
    """The server does not answer."""


class WaitTimeout(BitwrightError):
    """The study is not finished in the time given; it goes on."""


class DamagedDownload(BitwrightError):
    """A downloaded file does not have the hash the server named."""


class ApiError(BitwrightError):
    """The server's refusal: HTTP `status`, stable `code`, the message, and a `hint`."""

    def __init__(self, status: int, code: str, message: str, hint: str = "", request_id: str = "") -> None:
        super().__init__(f"{message} ({hint})" if hint else message)
        self.status = status
        self.code = code
        self.message = message
        self.hint = hint
        self.request_id = request_id


class InvalidRequest(ApiError):
    """400, 413, 415, 422: what was sent is wrong."""


class AccessDenied(ApiError):
    """401, 403: the key is missing, unknown, ended, or lacks the scope."""


class NotFound(ApiError):
    """404: there is no such thing."""


class Conflict(ApiError):
    """409: not possible in this state."""


_BY_STATUS = {
    400: InvalidRequest,
    401: AccessDenied,
    403: AccessDenied,
    404: NotFound,
    409: Conflict,
    413: InvalidRequest,
    415: InvalidRequest,
    422: InvalidRequest,
}


def api_error(status: int, problem: dict[str, Any]) -> ApiError:
    """The error a problem document stands for; anything else gets the code `http_<status>`."""
    message = str(problem.get("detail") or f"the server answered {status}")
    details = [f"{one.get('pointer')}: {one.get('message')}" for one in problem.get("errors", [])]
    if details:
        message = f"{message}: {'; '.join(details)}"
    kind = _BY_STATUS.get(status, ApiError)
    return kind(
        status,
        str(problem.get("code") or f"http_{status}"),
        message,
        "" if details else str(problem.get("hint") or ""),
        str(problem.get("request_id") or ""),
    )
