"""Child log: the end of what a stage's child printed, fit to be shown to the study's owner.

Bounded in bytes and lines, without terminal codes and without this machine's folders: the code's and the stage's own
become relative, of every other path the last part is left. Names that only look like paths, as exporters write them
(`/layer1/conv1/Conv`), stay: a path begins with a folder that lies at this machine's root.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import IO

from workers.claims import StageLog

TAIL_BYTES = 8192
TAIL_LINES = 100
LINE_CHARACTERS = 400
# What a terminal is told: colours, cursor, titles. One alternation without nested repeats, so it takes linear time.
_TERMINAL = re.compile(r"\x1b(?:\[[0-9;?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\-_])")


class ChildLog:
    """The log file of one child, written by it and read here at every beat.

    The child shares the file's position, so reading never moves it.
    """

    def __init__(self, file: IO[bytes], folder: Path, code_folder: Path) -> None:
        self._file = file
        self._folders = {str(folder / "files"): ".", str(folder): ".", str(code_folder): ""}
        self._seen: tuple[int, int] | None = None

    @property
    def size_bytes(self) -> int:
        return os.fstat(self._file.fileno()).st_size

    def raw_tail(self) -> str:
        """The end as it was printed, for the worker's own log."""
        return self._end()[0].decode("utf-8", "replace")

    def news(self, attempt: int) -> StageLog | None:
        """The end as it can be shown; None when nothing was printed since the last call."""
        status = os.fstat(self._file.fileno())
        mark = status.st_size, status.st_mtime_ns
        if mark == self._seen:
            return None
        self._seen = mark
        return self.now(attempt)

    def now(self, attempt: int) -> StageLog | None:
        """The end as it can be shown; None when nothing was printed."""
        tail, is_cut = self._end()
        lines, shortened = shown_lines(tail, self._folders)
        return StageLog(attempt, "\n".join(lines), is_cut or shortened) if lines else None

    def _end(self) -> tuple[bytes, bool]:
        size = self.size_bytes
        tail = os.pread(self._file.fileno(), TAIL_BYTES, max(0, size - TAIL_BYTES))
        if size > TAIL_BYTES:
            tail = tail.partition(b"\n")[2] or tail
        return tail, size > TAIL_BYTES


def shown_lines(tail: bytes, folders: Mapping[str, str]) -> tuple[list[str], bool]:
    """The printed bytes as at most `TAIL_LINES` lines to show, and whether lines were left out.

    `folders` maps folders to what is written for them. Of a line that a progress bar wrote again and again the last
    state is left.
    """
    text = _TERMINAL.sub("", tail.decode("utf-8", "replace").replace("\r\n", "\n"))
    lines = [_shown_line(line.rstrip("\r").rpartition("\r")[2], folders) for line in text.split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    return lines[-TAIL_LINES:], len(lines) > TAIL_LINES


def _shown_line(line: str, folders: Mapping[str, str]) -> str:
    line = "".join(one for one in line if one == "\t" or one.isprintable()).expandtabs(4).rstrip()
    for folder, instead in folders.items():
        line = line.replace(folder + os.sep, instead + os.sep if instead else "").replace(folder, instead or ".")
    line = _machine_path().sub(lambda found: f"…/{found.group(1)}", line)
    return line if len(line) <= LINE_CHARACTERS else line[: LINE_CHARACTERS - 1] + "…"


@lru_cache
def _machine_path() -> re.Pattern[str]:
    """An absolute path below a folder of this machine's root; the group is its last part."""
    roots = [entry.name for entry in os.scandir("/") if entry.is_dir()]
    first = "|".join(re.escape(root) for root in sorted(roots, key=len, reverse=True))
    return re.compile(rf"(?<![\w.…/])/+(?:{first})/(?:[^\s/:;,\"'<>()]+/)*([^\s/:;,\"'<>()]*)")
