"""Heartbeat: renews a claim from a thread while its supervisor is busy moving files, which may outlast a lease."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType

from workers.claims import Beat


class Heartbeat(threading.Thread):
    """Beats from `with` to its end, or until the answer is not to go on; `answer` is the last one."""

    def __init__(self, beat: Callable[[], Beat], every_s: float) -> None:
        super().__init__(name="heartbeat", daemon=True)
        self._beat = beat
        self._every_s = every_s
        self._end = threading.Event()
        self._error: Exception | None = None
        self.answer = Beat.GO_ON

    def run(self) -> None:
        while not self._end.wait(self._every_s):
            try:
                self.answer = self._beat()
            except Exception as error:
                self._error = error
                return
            if self.answer is not Beat.GO_ON:
                return

    def __enter__(self) -> Heartbeat:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        self.join()
        if error is None and self._error is not None:
            raise self._error
