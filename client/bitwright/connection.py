"""Connection: requests to one server, tried again with growing, jittered pauses when that is safe and may help."""

from __future__ import annotations

import random
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import httpx
from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_attempt, stop_after_delay
from tenacity.wait import wait_exponential

from bitwright.errors import ApiError, ServerUnreachable, api_error

RETRIES = 5
FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 15.0
LONGEST_ASKED_PAUSE_S = 60.0
Result = TypeVar("Result")
_BRIEF = frozenset({429, 502, 503, 504})
_grows = wait_exponential(multiplier=FIRST_PAUSE_S, max=LONGEST_PAUSE_S)


class _TryAgain(Exception):
    """What happened may be over soon; `error` is what the caller gets if it is not."""

    def __init__(self, error: ApiError | ServerUnreachable, pause_s: float | None = None) -> None:
        super().__init__(str(error))
        self.error = error
        self.pause_s = pause_s


def _pause(state: RetryCallState) -> float:
    """As long as the server asked for, else half to all of a growing span, so that clients do not come back as one."""
    failed = state.outcome.exception() if state.outcome else None
    asked_s = failed.pause_s if isinstance(failed, _TryAgain) else None
    if asked_s is not None:
        return min(asked_s, LONGEST_ASKED_PAUSE_S)
    return _grows(state) * random.uniform(0.5, 1.0)


class Connection:
    """One server. Every request is safe to repeat: GETs change nothing, POSTs carry an `Idempotency-Key`."""

    def __init__(self, url: str, *, key: str | None, timeout_s: float, retries: int) -> None:
        self.url = url
        self.retries = retries
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._http = httpx.Client(base_url=url, timeout=timeout_s, headers=headers)

    def close(self) -> None:
        self._http.close()

    def get(self, address: str, *, patience_s: float | None = None, **arguments: Any) -> httpx.Response:
        """The answer, or the error it is. `patience_s` bounds the tries by time instead of by number."""
        return self.again(lambda: self._request("GET", address, **arguments), patience_s=patience_s)

    def post(self, address: str, **arguments: Any) -> httpx.Response:
        """Send something under one idempotency key, however often it takes."""
        headers = {"Idempotency-Key": secrets.token_hex(16), **arguments.pop("headers", {})}
        return self.again(lambda: self._request("POST", address, headers=headers, **arguments))

    def again(self, attempt: Callable[[], Result], *, patience_s: float | None = None) -> Result:
        """What `attempt` returns, tried again while its requests fail in a way that passes."""
        stop = stop_after_attempt(self.retries + 1) if patience_s is None else stop_after_delay(patience_s)
        tries = Retrying(stop=stop, wait=_pause, retry=retry_if_exception_type(_TryAgain), reraise=True)
        try:
            return tries(attempt)
        except _TryAgain as failed:
            raise failed.error from None

    @contextmanager
    def stream(self, address: str, *, headers: Mapping[str, str] | None = None) -> Iterator[httpx.Response]:
        """The answer of a GET with its body still to come; for use inside `again`."""
        with self._transport_errors(), self._http.stream("GET", address, headers=headers) as response:
            if response.status_code >= 400:
                response.read()
                _refuse(response)
            yield response

    def _request(self, method: str, address: str, **arguments: Any) -> httpx.Response:
        make_files = arguments.pop("make_files", None)
        with self._transport_errors():
            if make_files is None:
                response = self._http.request(method, address, **arguments)
            else:
                with make_files() as files:  # opened anew for every try
                    response = self._http.request(method, address, files=files, **arguments)
        if response.status_code >= 400:
            _refuse(response)
        return response

    @contextmanager
    def _transport_errors(self) -> Iterator[None]:
        try:
            yield
        except httpx.TransportError as error:
            raise _TryAgain(
                ServerUnreachable(
                    f"{self.url} does not answer: {error or type(error).__name__} (start it with: bitwright-server up)"
                )
            ) from None


def retry_after_s(response: httpx.Response) -> float | None:
    """The pause a server asks for, in seconds; None when it does not say. (Dates are for caches, we send numbers.)"""
    text = response.headers.get("retry-after", "")
    return float(text) if text.isdigit() else None


def _refuse(response: httpx.Response) -> None:
    try:
        problem = response.json()
    except ValueError:
        problem = {}
    error = api_error(response.status_code, problem if isinstance(problem, dict) else {})
    if response.status_code in _BRIEF:
        raise _TryAgain(error, retry_after_s(response))
    raise error
