"""Stage folder: inputs laid out for a child before it starts, and what it left, taken back with suspicion."""

from __future__ import annotations

import json
import mimetypes
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import select

from service.blobs import Blobs
from service.canonical import content_key
from service.lifecycle import StageState
from service.store.database import Database
from service.store.models import DatasetRow, HardwareProfileRow, ModelRow, StageEdgeRow, StageRow
from service.studies.plan import StageKind, kind_named, stage_spec
from service.version import VERSION
from workers.claims import Claim, OutputFile

CONTRACT_VERSION = 1
MAX_OUTPUTS = 2000
MAX_RESULT_BYTES = 16 << 20


class BadResult(Exception):
    """What the child left cannot be accepted; `code` says why."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class InputDeleted(Exception):
    """A user deleted the dataset of a study that had not ended."""


@dataclass(frozen=True)
class StageInputs:
    """Everything a stage reads: what it is told and the files by name (sha256 each)."""

    kind: StageKind
    spec: dict[str, Any]
    files: dict[str, str]
    key: str


def read_inputs(database: Database, held: Claim, stages: str) -> StageInputs:
    """The inputs of a claimed stage with the key that names them.

    The key holds what the stage can depend on: its kind and spec, the content of its files, the code that runs,
    and for a stage on a device the announced profile of that device.
    """
    kind = kind_named(held.kind)
    spec = stage_spec(held.spec, kind, held.target)
    with database.read() as session:
        model = session.get_one(ModelRow, spec["model"])
        files = {entry["name"]: entry["sha256"] for entry in model.files}
        if spec["dataset"] is not None:
            dataset = session.get_one(DatasetRow, spec["dataset"])
            if dataset.deleted_at is not None:
                raise InputDeleted(f"the dataset {dataset.id} was deleted while the study needed it")
            files[f"dataset.{dataset.format}"] = dataset.sha256
        edges = session.execute(
            select(StageEdgeRow.before_id, StageEdgeRow.after_id)
            .join(StageRow, StageRow.id == StageEdgeRow.after_id)
            .where(StageRow.study_id == held.study_id)
        ).all()
        earlier = _ancestors(held.stage_id, [(edge.before_id, edge.after_id) for edge in edges])
        rows = session.execute(
            select(StageRow.kind, StageRow.outputs)
            .where(StageRow.id.in_(earlier), StageRow.state == StageState.SUCCEEDED.value)
            .order_by(StageRow.position)
        ).all()
        device = None
        if kind.on_device and held.target is not None:
            profile = session.get(HardwareProfileRow, spec["targets"][held.target]["hardware"])
            device = profile.profile_key if profile else None
    for row in rows:
        for output in row.outputs or []:
            if files.setdefault(output["name"], output["sha256"]) != output["sha256"]:
                raise BadResult("output_conflict", f"two inputs of the stage are called {output['name']!r}")
    told = {name: value for name, value in spec.items() if name not in ("model", "dataset")}
    key = content_key(
        {
            "contract": CONTRACT_VERSION,
            "version": VERSION,
            "stages": stages,
            "kind": kind.name,
            "spec": told,
            "files": files,
            "device": device,
        }
    )
    return StageInputs(kind, spec, files, key)


def _ancestors(stage_id: str, edges: list[tuple[str, str]]) -> set[str]:
    found: set[str] = set()
    frontier = {stage_id}
    while frontier:
        frontier = {before for before, after in edges if after in frontier} - found
        found |= frontier
    return found


def lay_out(folder: Path, inputs: StageInputs, blobs: Blobs) -> None:
    """Write `stage.json` and private copies of the input files."""
    (folder / "files").mkdir(parents=True)
    for name, sha256 in inputs.files.items():
        blobs.copy_to(sha256, folder / "files" / name)
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
