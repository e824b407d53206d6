"""Logs: one line per event, text for people or JSON for collectors, with the ids of what it belongs to."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType

from pythonjsonlogger.json import JsonFormatter

from service.settings import Settings

_ids: ContextVar[MappingProxyType[str, str]] = ContextVar("log_ids", default=MappingProxyType({}))
_HANDLER = "bitwright"
# Libraries that report each of their steps at INFO.
_QUIET = ("alembic", "celery.worker.strategy", "celery.app.trace", "uvicorn.access")


@contextmanager
def log_ids(**ids: str) -> Iterator[None]:
    """Everything logged inside the block, also by threads it hands work to, carries these ids."""
    token = _ids.set(MappingProxyType({**_ids.get(), **ids}))
    try:
        yield
    finally:
        _ids.reset(token)


class _WithIds(logging.Filter):
    """Puts the ids of the context, and the name of the process, on every record."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def filter(self, record: logging.LogRecord) -> bool:
        record.process_name = self._process
        ids = _ids.get()
        for name, value in ids.items():
            if not hasattr(record, name):
                setattr(record, name, value)
        record.ids = "".join(f" {name}={value}" for name, value in ids.items())
        return True


class _Text(logging.Formatter):
    """`2026-01-31T12:00:00Z INFO api service.gateway: message study_id=…`, times in UTC."""

    converter = staticmethod(time.gmtime)

    def __init__(self) -> None:
        super().__init__(
            "%(asctime)s %(levelname)s %(process_name)s %(name)s: %(message)s%(ids)s", "%Y-%m-%dT%H:%M:%SZ"
        )


def _json() -> logging.Formatter:
    return JsonFormatter(
        ("levelname", "process_name", "name", "message"),
        rename_fields={"levelname": "level", "process_name": "process", "name": "logger"},
        reserved_attrs=[*logging.makeLogRecord({}).__dict__, "message", "asctime", "ids"],
        timestamp="time",
    )


def configure_logging(settings: Settings, process: str) -> None:
    """Log to standard error as the settings ask; `process` is api, worker, reaper, up or another command.

    Calling it again replaces what the last call installed, and nothing else.
    """
    handler = logging.StreamHandler()
    handler.set_name(_HANDLER)
    handler.setFormatter(_json() if settings.log_format == "json" else _Text())
    handler.addFilter(_WithIds(process))
    root = logging.getLogger()
    for old in [one for one in root.handlers if one.get_name() == _HANDLER]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(settings.log_level)
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
