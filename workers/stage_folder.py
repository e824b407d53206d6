"""Stage folder: inputs laid out for a child before it starts, and what it left, taken back with suspicion."""

from __future__ import annotations

import json
import mimetypes
import stat
from pathlib import Path
from typing import Any

from service.blobs import BlobMissing, Blobs
from service.store.database import Database
from service.store.models import StageRow, StudyRow
from service.studies.inputs import InputConflict, StageInputs, stage_inputs
from workers.claims import Claim, OutputFile

SAVED = "saved"
MAX_OUTPUTS = 2000
MAX_RESULT_BYTES = 16 << 20


class BadResult(Exception):
    """What the child left cannot be accepted; `code` says why."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def read_inputs(database: Database, held: Claim) -> StageInputs:
    """The inputs of a claimed stage as they are now. Raises `InputDeleted` and `BadResult`."""
    with database.read() as session:
        study, stage = session.get_one(StudyRow, held.study_id), session.get_one(StageRow, held.stage_id)
        try:
            return stage_inputs(session, study, stage)
        except InputConflict as error:
            raise BadResult("output_conflict", str(error)) from None


def lay_out(folder: Path, inputs: StageInputs, blobs: Blobs) -> None:
    """Write `stage.json`, private copies of the input files, and under `saved/` what earlier attempts finished.

    A saved part that the store has lost is only computed again; any other raises `BlobMissing`.
    """
    saved = folder / "files" / SAVED
    saved.mkdir(parents=True)
    for name, sha256 in inputs.files.items():
        blobs.copy_to(sha256, folder / "files" / name)
    for name, document in inputs.documents.items():
        (folder / "files" / name).write_text(json.dumps(document))
    for name, sha256 in inputs.aids.items():
        try:
            blobs.copy_to(sha256, saved / name)
        except BlobMissing:
            (saved / name).unlink(missing_ok=True)
    (folder / "stage.json").write_text(json.dumps({"kind": inputs.kind.name, "spec": inputs.spec}))


def read_result(folder: Path) -> dict[str, Any]:
    """The child's result document. Raises `BadResult` unless it is one: the child handled a stranger's file."""
    path = folder / "result.json"
    try:
        if not stat.S_ISREG(path.lstat().st_mode) or path.stat().st_size > MAX_RESULT_BYTES:
            raise BadResult("bad_result", "result.json is not a file of acceptable size")
        result = json.loads(path.read_text())
    except FileNotFoundError:
        raise BadResult("no_result", "the stage ended without a result") from None
    except (ValueError, RecursionError) as problem:
        raise BadResult("bad_result", f"result.json is not JSON: {problem}") from None
    if not isinstance(result, dict):
        raise BadResult("bad_result", "result.json is not an object")
    error = result.get("error")
    if error is not None:
        _check_error(error)
    elif not isinstance(result.get("summary"), dict) or not _are_names(result.get("outputs")):
        raise BadResult("bad_result", "result.json lacks outputs or summary")
    return result


def _check_error(error: Any) -> None:
    texts = ("code", "message", "hint")
    if not isinstance(error, dict) or any(not isinstance(error.get(name), str) for name in texts):
        raise BadResult("bad_result", "the error in result.json is not one")
    if error.get("category") not in ("user", "infrastructure"):
        raise BadResult("bad_result", "the error in result.json has no category")


def _are_names(outputs: Any) -> bool:
    return isinstance(outputs, list) and len(outputs) <= MAX_OUTPUTS and all(isinstance(name, str) for name in outputs)


def take_outputs(folder: Path, names: list[str], blobs: Blobs) -> list[OutputFile]:
    """Move the named files into the blob store. Raises `BadResult` for anything but plain files of the folder."""
    outputs = []
    for name in dict.fromkeys(names):
        path = folder / "files" / name
        if not name or "/" in name or name in (".", "..") or not _is_plain_file(path):
            raise BadResult("bad_output", f"the stage names {name[:100]!r}, which is not a file it wrote")
        blob = blobs.adopt(path)
        media_type = mimetypes.guess_type(name)[0] or "application/octet-stream"
        outputs.append(OutputFile(name, blob.sha256, blob.size_bytes, media_type))
    return outputs


def _is_plain_file(path: Path) -> bool:
    try:
        status = path.lstat()
    except OSError:
        return False
    return stat.S_ISREG(status.st_mode) and status.st_nlink == 1
