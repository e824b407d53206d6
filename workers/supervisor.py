"""Supervisor: claims a stage, lets a sandboxed child do it, beats meanwhile, and hands in what came out.

One thread and one select loop: it reads the child's progress, renews the lease, and ends the child when the
study is cancelled, the lease is lost, the wall time is over or the pipe is flooded.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy.exc import SQLAlchemyError

from service.blobs import BlobMissing, Blobs, BlobStoreAway
from service.logs import log_ids
from service.settings import Settings
from service.store.database import Database, is_outage
from service.store.fleet import serving_version
from service.store.stages import forget_outputs, study_outputs
from service.studies.inputs import InputDeleted, StageInputs
from service.version import VERSION
from workers import claims
from workers.child_log import ChildLog
from workers.claims import Beat, Claim, StageLog
from workers.heartbeat import Heartbeat
from workers.measured_rows import rows_to_append
from workers.patience import patiently
from workers.sandbox import Limits, child_environment, kill_child, start_child
from workers.saved_parts import SavedParts
from workers.stage_folder import SAVED, BadResult, lay_out, read_inputs, read_result, take_outputs

log = logging.getLogger(__name__)
CODE_FOLDER = Path(__file__).resolve().parents[1]
MAX_LINE_BYTES = 4096
MAX_PIPE_BYTES = 64 << 20
LOCK_NAME = ".lock"
LOG_NAME = "child.log"
MAX_LOG_BYTES = 64 << 20
NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})
SWEEP_AGE_S = 60.0
T = TypeVar("T")


class Ending(Enum):
    """Why the child is no longer running."""

    EXITED = "exited"
    STOPPED = "stopped"
    LOST = "lost"
    TIMEOUT = "timeout"
    FLOOD = "flood"
    FULL = "full"
    ENDING = "ending"


@dataclass(frozen=True)
class Ended:
    """A child's end: its exit status and the tail of what it printed."""

    why: Ending
    status: int
    log_tail: str


class Supervisor:
    """Runs stages for one worker process, one at a time. When `is_ending` says so, the stage goes back to the queue."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        blobs: Blobs,
        worker_id: str,
        is_ending: Callable[[], bool] = lambda: False,
    ) -> None:
        self._settings = settings
        self._database = database
        self._blobs = blobs
        self._worker_id = worker_id
        self._is_ending = is_ending
        self._folders = settings.data_folder.absolute() / "stages"
        sweep_folders(self._folders)

    def run(self, stage_id: str) -> bool:
        """Do the stage to an end; False when there was nothing to claim, or this worker is of another version."""
        if self._is_refused():
            return False
        held = self._patiently(
            lambda: claims.claim(self._database, stage_id, worker_id=self._worker_id, lease_s=self._settings.lease_s)
        )
        if held is None:
            return False
        with log_ids(study_id=held.study_id, stage_id=held.stage_id):
            log.info("%s: attempt %d begins", held.kind, held.attempt)
            self._do(held)
            log.info("%s: attempt %d is over", held.kind, held.attempt)
        return True

    def _do(self, held: Claim) -> None:
        """A claimed stage, from its inputs to what came out, whatever that is."""
        try:
            inputs = self._patiently(lambda: read_inputs(self._database, held))
            if not self._patiently(lambda: claims.set_input_key(self._database, held, inputs.key)):
                return
            if self._patiently(lambda: self._reuse(held, inputs)):
                return
            with self._folder() as folder:
                with Heartbeat(lambda: self._beat(held), self._settings.beat_s):
                    lay_out(folder, inputs, self._blobs)
                parts = self._parts(held, inputs, folder)
                ended = self._supervise(held, folder, parts)
                self._keep_rest(held, parts, ended)
                self._hand_in(held, inputs, folder, ended)
        except InputDeleted as error:
            hint = "upload the dataset again and start the study anew"
            deleted = {"category": "user", "code": "dataset_deleted", "message": str(error), "hint": hint}
            self._patiently(lambda: claims.fail(self._database, held, {**deleted, "stage": held.kind}))
        except BlobMissing as error:
            self._patiently(lambda: self._forget_lost(held))
            lost = _infrastructure(held, "file_lost", str(error))
            self._patiently(lambda: claims.fail(self._database, held, lost))
        except BadResult as error:
            refused = _infrastructure(held, error.code, str(error))
            self._patiently(lambda: claims.fail(self._database, held, refused))
        except Exception as error:
            log.exception("stage %s (%s) of study %s", held.stage_id, held.kind, held.study_id)
            code = "disk_full" if isinstance(error, OSError) and error.errno in NO_SPACE else "worker_error"
            self._give_back(held, code, f"{type(error).__name__}: {error}"[:2000])

    def _is_refused(self) -> bool:
        """A worker of another version would write what the server, or other workers, cannot read."""

        def read() -> str:
            with self._database.read() as session:
                return serving_version(session)

        serving = self._patiently(read)
        if serving != VERSION:
            log.warning("this worker is version %s, the server %s: it takes no stage; update it", VERSION, serving)
        return serving != VERSION

    def _patiently(self, write: Callable[[], T]) -> T:
        return patiently(write, limit_s=self._settings.outage_s, give_up=self._is_ending)

    def _give_back(self, held: Claim, code: str, message: str) -> None:
        error = _infrastructure(held, code, message)
        backoff_s = self._settings.retry_backoff_s
        self._patiently(lambda: claims.give_back(self._database, held, error, backoff_s=backoff_s))

    def _beat(self, held: Claim, progress: dict[str, Any] | None = None, printed: StageLog | None = None) -> Beat:
        """A beat; while the database is away nobody else can claim the stage either, so the child goes on."""
        lease_s = self._settings.lease_s
        try:
            return claims.beat(self._database, held, lease_s=lease_s, progress=progress, printed=printed)
        except SQLAlchemyError as error:
            if not is_outage(error):
                raise
            log.warning("stage %s could not renew its lease: %s", held.stage_id, str(error).partition("\n")[0][:300])
            return Beat.GO_ON

    def _keep(self, parts: SavedParts | None) -> bool:
        """Take new parts to the store; False when the claim is lost. A store that is away is tried at the next beat."""
        try:
            return parts is None or parts.keep()
        except (SQLAlchemyError, BlobStoreAway) as error:
            if isinstance(error, SQLAlchemyError) and not is_outage(error):
                raise
            log.warning("saved parts wait for the next beat: %s", str(error).partition("\n")[0][:300])
            return True

    def _keep_log(self, held: Claim, printed: ChildLog) -> None:
        """All of it once more at the end: a beat that found the database away has not told its part."""
        if (whole := printed.now(held.attempt)) is not None:
            lease_s = self._settings.lease_s
            self._patiently(lambda: claims.beat(self._database, held, lease_s=lease_s, printed=whole))

    @contextmanager
    def _folder(self) -> Iterator[Path]:
        folder = Path(tempfile.mkdtemp(dir=self._folders))
        with open(folder / LOCK_NAME, "wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            try:
                yield folder
            finally:
                shutil.rmtree(folder, ignore_errors=True)

    def _reuse(self, held: Claim, inputs: StageInputs) -> bool:
        twin = claims.finished_twin(self._database, inputs.key)
        if twin is None or not all(self._blobs.exists(output.sha256) for output in twin[1]):
            return False
        stage_id, outputs, summary = twin
        claims.succeed(self._database, held, outputs=outputs, summary=summary, reused_from=stage_id)
        return True

    def _forget_lost(self, held: Claim) -> None:
        """Stages of the study whose output the store has lost satisfy nothing again: a retry makes it anew."""
        with self._database.read() as session:
            known = study_outputs(session, held.study_id)
        lost = [key for key, hashes in known.items() if not all(map(self._is_whole, hashes))]
        with self._database.write() as session:
            forget_outputs(session, lost)

    def _is_whole(self, sha256: str) -> bool:
        with tempfile.TemporaryDirectory(dir=self._folders) as folder:
            try:
                self._blobs.copy_to(sha256, Path(folder) / "copy")
            except BlobMissing:
                return False
        return True

    def _parts(self, held: Claim, inputs: StageInputs, folder: Path) -> SavedParts | None:
        if inputs.saved_key is None:
            return None
        return SavedParts(self._database, self._blobs, held, inputs.saved_key, folder / "files" / SAVED)

    def _keep_rest(self, held: Claim, parts: SavedParts | None, ended: Ended) -> None:
        """What the child finished since the last beat is kept however it ended, unless the stage is another's now."""
        if parts is None or ended.why is Ending.LOST:
            return
        with Heartbeat(lambda: self._beat(held), self._settings.beat_s):
            while not parts.all_kept and self._patiently(parts.keep):
                pass

    def _supervise(self, held: Claim, folder: Path, parts: SavedParts | None) -> Ended:
        settings = self._settings
        reader, writer = os.pipe()
        argv = [sys.executable, "-P", "-m", "workers.stage_child", str(folder), "--pipe", str(writer)]
        limits = Limits(
            settings.stage_memory_bytes, int(settings.stage_wall_s * settings.stage_threads), settings.stage_file_bytes
        )
        with open(folder / LOG_NAME, "w+b") as child_log, open(reader, "rb", buffering=0) as pipe:
            try:
                child = start_child(
                    [*argv, "--stages", settings.stages],
                    folder=folder / "files",
                    environment=child_environment(settings.stage_threads, CODE_FOLDER),
                    limits=limits,
                    log=child_log,
                    pipe_fd=writer,
                    level=settings.sandbox,
                )
            finally:
                os.close(writer)
            printed = ChildLog(child_log, folder, CODE_FOLDER)
            try:
                why = self._watch(held, pipe.fileno(), child, parts, folder, printed)
            finally:
                status = kill_child(child)
            if why is not Ending.LOST:
                self._keep_log(held, printed)
            return Ended(why, status, printed.raw_tail())

    def _watch(
        self,
        held: Claim,
        pipe: int,
        child: subprocess.Popen[bytes],
        parts: SavedParts | None,
        folder: Path,
        printed: ChildLog,
    ) -> Ending:
        settings = self._settings
        deadline = time.monotonic() + settings.stage_wall_s
        next_beat = time.monotonic() + settings.beat_s
        unread = b""
        total = 0
        progress: dict[str, Any] | None = None
        while True:
            wait_s = max(0.0, min(next_beat, deadline) - time.monotonic())
            ready, _, _ = select.select([pipe], [], [], wait_s)
            if ready:
                piece = os.read(pipe, 65536)
                if not piece:  # the child closed its end: it is exiting, or it never will
                    return self._after_pipe(held, child, deadline)
                total += len(piece)
                *lines, unread = (unread + piece).split(b"\n")
                if total > MAX_PIPE_BYTES or max(map(len, [*lines, unread])) > MAX_LINE_BYTES:
                    return Ending.FLOOD
                for line in lines:
                    progress = parse_progress(line) or progress
            elif child.poll() is not None:  # something it started still holds the pipe
                return Ending.EXITED
            if self._is_ending():
                return Ending.ENDING
            if time.monotonic() >= deadline:
                return Ending.TIMEOUT
            if time.monotonic() >= next_beat:
                answer = self._beat(held, progress, printed.news(held.attempt))
                if answer is not Beat.GO_ON:
                    return Ending.STOPPED if answer is Beat.STOP else Ending.LOST
                if not self._keep(parts):
                    return Ending.LOST
                if printed.size_bytes > MAX_LOG_BYTES:
                    return Ending.FLOOD
                if used_bytes(folder) > settings.stage_disk_bytes:
                    return Ending.FULL
                progress = None
                next_beat = time.monotonic() + settings.beat_s

    def _after_pipe(self, held: Claim, child: subprocess.Popen[bytes], deadline: float) -> Ending:
        while time.monotonic() < deadline:
            try:
                child.wait(timeout=min(self._settings.beat_s, max(0.0, deadline - time.monotonic())))
                return Ending.EXITED
            except subprocess.TimeoutExpired:
                if self._is_ending():
                    return Ending.ENDING
                answer = self._beat(held)
                if answer is not Beat.GO_ON:
                    return Ending.STOPPED if answer is Beat.STOP else Ending.LOST
        return Ending.TIMEOUT

    def _hand_in(self, held: Claim, inputs: StageInputs, folder: Path, ended: Ended) -> None:
        if ended.log_tail:
            log.info("stage %s (%s) printed:\n%s", held.stage_id, held.kind, ended.log_tail)
        match ended.why:
            case Ending.LOST:
                log.warning("stage %s was given to another worker", held.stage_id)
            case Ending.ENDING:
                self._patiently(lambda: claims.put_back(self._database, held))
            case Ending.STOPPED:
                self._patiently(lambda: claims.cancel(self._database, held))
            case Ending.TIMEOUT:
                late = f"the stage ran longer than {self._settings.stage_wall_s:g} s"
                raise BadResult("stage_timeout", late)
            case Ending.FLOOD:
                raise BadResult("stage_flood", "the stage told or printed more than is allowed")
            case Ending.FULL:
                room = self._settings.stage_disk_bytes
                raise BadResult("stage_too_large", f"the stage wrote more than {room} bytes")
            case Ending.EXITED if ended.status != 0:
                last_line = ended.log_tail.strip().rpartition("\n")[2][-300:]
                message = f"the stage's process ended with status {ended.status}: {last_line}"
                self._give_back(held, "child_died", message)
            case Ending.EXITED:
                self._accept(held, inputs, folder)

    def _accept(self, held: Claim, inputs: StageInputs, folder: Path) -> None:
        result = read_result(folder)
        if (error := result.get("error")) is not None:
            self._patiently(lambda: claims.fail(self._database, held, {**error, "stage": held.kind}))
            return
        # Large files take their time: prove the claim before, keep it meanwhile, and let `succeed` prove it again.
        if self._beat(held) is Beat.LOST:
            return
        also = rows_to_append(folder / "files", result["outputs"], inputs.spec, held)
        with Heartbeat(lambda: self._beat(held), self._settings.beat_s):
            outputs = take_outputs(folder, result["outputs"], self._blobs)
        self._patiently(
            lambda: claims.succeed(self._database, held, outputs=outputs, summary=result["summary"], also=also)
        )


def sweep_folders(root: Path, *, younger_s: float = SWEEP_AGE_S) -> int:
    """Remove stage folders whose supervisor is dead, so nobody holds their lock; returns how many.

    One made less than `younger_s` seconds ago may not be locked yet and is left alone.
    """
    root.mkdir(parents=True, exist_ok=True)
    removed = 0
    for folder in root.iterdir():
        try:
            if time.time() - folder.stat().st_mtime < younger_s:
                continue
            with open(folder / LOCK_NAME, "ab") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
                removed += 1
        except OSError:  # held by a living supervisor, or removed by another sweeper just now
            continue
    return removed


def used_bytes(folder: Path) -> int:
    """What a folder takes on the disk. Files that vanish meanwhile count as nothing."""
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                total += os.lstat(os.path.join(root, name)).st_blocks * 512
    return total


def parse_progress(line: bytes) -> dict[str, Any] | None:
    """A progress line as it is stored; None for anything else the child wrote."""
    try:
        told = json.loads(line)
        done, total = int(told["done"]), int(told["total"])
        unit, message = str(told["unit"])[:50], str(told["message"])[:500]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    if not 0 <= done <= total < 1 << 53:
        return None
    return {"done": done, "total": total, "unit": _printable(unit), "message": _printable(message)}


def _printable(text: str) -> str:
    return "".join(character for character in text if character.isprintable())


def _infrastructure(held: Claim, code: str, message: str) -> dict[str, Any]:
    return {
        "category": "infrastructure",
        "code": code,
        "message": message,
        "hint": "the worker's log names the cause; submit the study again, finished stages are reused",
        "stage": held.kind,
    }
