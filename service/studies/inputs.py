"""Inputs of a stage: what it is told, the files it reads, and the key that names all its output depends on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from kernels.precision import FLOAT_BITS
from service.canonical import content_key
from service.hardware_profiles.tables import known_table
from service.lifecycle import StageState
from service.store.models import (
    DatasetRow,
    EvaluationRow,
    HardwareProfileRow,
    ModelRow,
    SavedPartRow,
    StageEdgeRow,
    StageRow,
    StudyRow,
)
from service.studies.plan import EVALUATIONS, StageKind, kind_named, stage_spec
from service.version import VERSION

CONTRACT_VERSION = 3


class InputDeleted(Exception):
    """A user deleted the dataset of a study that had not ended."""


class InputConflict(Exception):
    """Two stages wrote different files of one name, and a third reads both."""


@dataclass(frozen=True)
class StageInputs:
    """Everything a stage reads.

    `files` by name (sha256 each) and `spec` make the `key`. `aids` change nothing of the output: parts saved under
    `saved_key` before (sha256 each). `documents` are written out as JSON: hardware profiles, latency rows known.
    """

    kind: StageKind
    spec: dict[str, Any]
    files: dict[str, str]
    documents: dict[str, Any]
    aids: dict[str, str]
    key: str
    saved_key: str | None


def stage_inputs(session: Session, study: StudyRow, stage: StageRow) -> StageInputs:
    """The inputs of a stage whose predecessors have succeeded. Raises `InputDeleted` and `InputConflict`."""
    kind = kind_named(stage.kind)
    shard = (stage.shard, _shard_count(session, stage)) if kind.shards is not None else None
    spec = stage_spec(study.spec, kind, stage.target, shard)
    if kind.awaits == EVALUATIONS:
        spec["evaluations"] = _evaluations(session, stage)
    own = _own_files(session, spec)
    files = {**own, **_earlier_files(session, stage), **spec.pop("files", {})}
    profiles = _profiles(session, spec)
    told = {name: value for name, value in spec.items() if name not in ("model", "dataset", "targets")}
    seen = {"version": VERSION, "contract": CONTRACT_VERSION, "files": files, **_key_targets(kind, spec, profiles)}
    saved_key = None
    documents = {f"hardware_{slug}.json": row.profile for slug, row in profiles.items()}
    if kind.saves is not None:
        saved_key = _saved_key(kind, spec, own, profiles)
    if kind.saves == "measure" and (known := _known_rows(session, profiles)) is not None:
        documents["known_latency_table_0.json"] = known
    return StageInputs(
        kind=kind,
        spec=spec,
        files=files,
        documents=documents,
        aids={} if saved_key is None else saved_parts(session, saved_key),
        key=content_key({**seen, "kind": kind.name, "spec": told}),
        saved_key=saved_key,
    )


def saved_parts(session: Session, saved_key: str) -> dict[str, str]:
    """Parts saved so far, name to sha256."""
    rows = session.execute(
        select(SavedPartRow.name, SavedPartRow.sha256).where(SavedPartRow.saved_key == saved_key)
    ).all()
    return {row.name: row.sha256 for row in rows}


def _own_files(session: Session, spec: Mapping[str, Any]) -> dict[str, str]:
    """The model and the dataset."""
    model = session.get_one(ModelRow, spec["model"])
    files = {entry["name"]: entry["sha256"] for entry in model.files}
    if spec["dataset"] is not None:
        dataset = session.get_one(DatasetRow, spec["dataset"])
        if dataset.deleted_at is not None:
            raise InputDeleted(f"the dataset {dataset.id} was deleted while the study needed it")
        files[f"dataset.{dataset.format}"] = dataset.sha256
    return files


def _earlier_files(session: Session, stage: StageRow) -> dict[str, str]:
    """What the stages before this one wrote."""
    edges = session.execute(
        select(StageEdgeRow.before_id, StageEdgeRow.after_id)
        .join(StageRow, StageRow.id == StageEdgeRow.after_id)
        .where(StageRow.study_id == stage.study_id)
    ).all()
    earlier = _ancestors(stage.id, [(edge.before_id, edge.after_id) for edge in edges])
    outputs = session.scalars(
        select(StageRow.outputs)
        .where(StageRow.id.in_(earlier), StageRow.state == StageState.SUCCEEDED.value)
        .order_by(StageRow.position)
    )
    files: dict[str, str] = {}
    for output in (output for wrote in outputs for output in wrote or []):
        if files.setdefault(output["name"], output["sha256"]) != output["sha256"]:
            raise InputConflict(f"two inputs of the stage are called {output['name']!r}")
    return files


def _ancestors(stage_id: str, edges: list[tuple[str, str]]) -> set[str]:
    found: set[str] = set()
    frontier = {stage_id}
    while frontier:
        frontier = {before for before, after in edges if after in frontier} - found
        found |= frontier
    return found


def _profiles(session: Session, spec: Mapping[str, Any]) -> dict[str, HardwareProfileRow]:
    slugs = {target["hardware"] for target in spec["targets"]}
    rows = session.scalars(select(HardwareProfileRow).where(HardwareProfileRow.slug.in_(slugs)))
    return {row.slug: row for row in rows}


def _key_targets(
    kind: StageKind, spec: Mapping[str, Any], profiles: Mapping[str, HardwareProfileRow]
) -> dict[str, Any]:
    """The targets as the output depends on them: by what their devices are, not by what they are called."""
    keyed = []
    for target in spec["targets"]:
        entry = {name: value for name, value in target.items() if name != "hardware"}
        row = profiles.get(target["hardware"])
        if kind.device == "recipes":
            entry["recipes"] = recipes_key(row.profile if row else {"slug": target["hardware"]})
        elif kind.device == "profile":
            entry |= {"hardware": target["hardware"], "profile": row.profile_key if row else None}
        keyed.append(entry)
    distinct = {content_key(entry): entry for entry in keyed}
    return {"targets": [distinct[key] for key in sorted(distinct)]}


def recipes_key(profile: Mapping[str, Any]) -> str:
    """The hash of what a profile runs and with which numerics: profiles that agree on it share every scan.

    Float formats have no recipe and are scanned by nobody: a device that has fp8 shares with one that has not.
    """
    if "recipes" not in profile:
        return content_key(profile.get("slug"))
    runs = [
        [entry.get("op"), entry.get("precision")]
        for entry in profile.get("support", [])
        if entry.get("precision") not in FLOAT_BITS
    ]
    return content_key({"runs": sorted(runs, key=content_key), "recipes": sorted(profile["recipes"], key=content_key)})


def _saved_key(
    kind: StageKind, spec: Mapping[str, Any], own: Mapping[str, str], profiles: Mapping[str, HardwareProfileRow]
) -> str:
    """Work with this in common may use one another's parts; the parts themselves say what exactly they were made of."""
    about: dict[str, Any] = {"saves": kind.saves, "version": VERSION, "files": own, "seed": spec.get("seed")}
    if kind.device == "profile":
        about["devices"] = sorted(row.profile_key for row in profiles.values())
    return content_key(about)


def _known_rows(session: Session, profiles: Mapping[str, HardwareProfileRow]) -> dict[str, Any] | None:
    (row,) = profiles.values() or (None,)
    return None if row is None else known_table(session, row)


def _shard_count(session: Session, stage: StageRow) -> int:
    query = select(StageRow.id).where(StageRow.study_id == stage.study_id, StageRow.kind == stage.kind)
    return len(session.scalars(query).all())


def _evaluations(session: Session, stage: StageRow) -> list[dict[str, Any]]:
    query = select(EvaluationRow).where(EvaluationRow.study_id == stage.study_id, EvaluationRow.target == stage.target)
    rows = session.scalars(query.order_by(EvaluationRow.finalist))
    return [{"finalist": row.finalist, "metrics": row.metrics} for row in rows]
