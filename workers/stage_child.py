"""Stage child: the sandboxed process that does one stage. The only file of the workers that imports search.

    python -m workers.stage_child STAGE_DIR --pipe FD [--stages module:attribute]

`STAGE_DIR` holds `stage.json` {kind, spec} and `files/`, the folder the stage works in. Progress leaves as JSON
lines on the pipe, the result as `result.json`: {outputs, summary} or {error}; what it prints is its log, whose end
the study shows. It knows no database, broker or store.
"""

from __future__ import annotations

import argparse
import importlib
import io
import json
import logging
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

PROGRESS_EVERY_S = 0.2
LOG_EVERY_S, LOG_SAME_EVERY_S = 1.0, 10.0
MAX_MESSAGE = 500
DEFAULT_STAGES = "search.stages:STAGES"

log = logging.getLogger("stage")
StageFunction = Callable[[dict[str, Any], Path, Callable[[int, int, str, str], None]], dict[str, Any]]


def load_stage(reference: str | None, kind: str) -> StageFunction:
    """The function of a kind: from search's own stages, or from a mapping that `module:attribute` names.

    An entry is a function, or itself `module:function`, so that a light stage imports none of the heavy ones.
    """
    if reference is None or reference == DEFAULT_STAGES:
        from search.stages import STAGES

        found: Any = STAGES[kind]
    else:
        found = _named(reference)[kind]
    stage: StageFunction = _named(found) if isinstance(found, str) else found
    return stage


def _named(reference: str) -> Any:
    module, _, attribute = reference.partition(":")
    return getattr(importlib.import_module(module), attribute)


class ProgressPipe:
    """Writes progress lines, at most one in `PROGRESS_EVERY_S` seconds except for the last of a count.

    The log gets a line when something else begins, at most one in `LOG_EVERY_S`, and else in `LOG_SAME_EVERY_S`.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._last_at = -PROGRESS_EVERY_S
        self._logged_at = -LOG_SAME_EVERY_S
        self._logged: tuple[str, str] | None = None

    def __call__(self, done: int, total: int, unit: str, message: str = "") -> None:
        at = time.monotonic()
        if done < total and at - self._last_at < PROGRESS_EVERY_S:
            return
        self._last_at = at
        line = {"done": int(done), "total": int(total), "unit": str(unit)[:50], "message": str(message)[:MAX_MESSAGE]}
        os.write(self._fd, json.dumps(line).encode() + b"\n")
        what = str(line["unit"]), str(line["message"])
        if at - self._logged_at >= (LOG_SAME_EVERY_S if what == self._logged else LOG_EVERY_S):
            self._logged_at, self._logged = at, what
            log.info("%s%d of %d %s", f"{what[1]}: " if what[1] else "", done, total, what[0])


def run_stage(folder: Path, stages: str | None, progress: Callable[[int, int, str, str], None]) -> dict[str, Any]:
    """The result document of the stage in `folder`; errors become `{"error": …}`."""
    stage = json.loads((folder / "stage.json").read_text())
    begun = time.monotonic()
    log.info("%s begins", stage["kind"])
    try:
        function = load_stage(stages, stage["kind"])
        result = function(stage["spec"], folder / "files", progress)
        outputs = [str(name) for name in result["outputs"]]
        log.info(
            "%s is done after %.1f s: %s", stage["kind"], time.monotonic() - begun, ", ".join(outputs) or "no files"
        )
        return {"outputs": outputs, "summary": result["summary"]}
    except Exception as error:
        log.error("%s failed after %.1f s", stage["kind"], time.monotonic() - begun)
        traceback.print_exc()
        return {"error": _described(error)}


def log_to_stderr() -> None:
    """Everything logged in this process, and what it prints, as lines of one file, in the order they came."""
    handler = logging.StreamHandler(sys.stderr)
    formatter = logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s", "%H:%M:%SZ")
    formatter.converter = time.gmtime
    handler.setFormatter(formatter)
    logging.getLogger().addHandler(handler)
    for own in (log.name, "search", "kernels"):
        logging.getLogger(own).setLevel(logging.INFO)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)


def _described(error: Exception) -> dict[str, str]:
    code = getattr(error, "code", None)
    if isinstance(code, str) and hasattr(error, "message"):
        hint = str(getattr(error, "hint", ""))
        return {"category": "user", "code": code, "message": str(error.message), "hint": hint}
    kind = "out_of_memory" if isinstance(error, MemoryError) else "stage_error"
    message = f"{type(error).__name__}: {error}"[:2000]
    return {
        "category": "infrastructure",
        "code": kind,
        "message": message,
        "hint": "the log of this stage has the trace",
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m workers.stage_child", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pipe", type=int, required=True)
    parser.add_argument("--stages")
    options = parser.parse_args(arguments)
    log_to_stderr()
    result = run_stage(options.folder, options.stages, ProgressPipe(options.pipe))
    part = options.folder / "result.json.part"
    part.write_text(json.dumps(result))
    part.rename(options.folder / "result.json")
    return 0


if __name__ == "__main__":
    sys.exit(main())
