"""Submission: a checked request becomes a study, once per Idempotency-Key."""

from __future__ import annotations

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from service.canonical import content_key
from service.errors import FieldError, Problem, gone
from service.settings import Settings
from service.store.database import database_now
from service.store.models import DatasetRow, HardwareProfileRow, IdempotencyKeyRow, ModelRow
from service.store.stages import create_study
from service.store.studies import now
from service.store.uploads import usable
from service.studies.plan import plan_study
from service.studies.schemas import StudyRequest


def submit_study(session: Session, settings: Settings, request: StudyRequest, key: str | None) -> tuple[str, bool]:
    """The study's id and whether it is new. Raises `Problem` for unknown names and for a key used otherwise."""
    body_hash = content_key(request.model_dump(mode="json"))
    if key is not None and (known := _replay(session, settings, key, body_hash)) is not None:
        return known, False
    _check_names(session, request)
    study = create_study(
        session,
        name=request.name or _default_name(session, request),
        spec=request.spec(),
        stages=plan_study(request.spec()),
        max_attempts=settings.max_attempts,
    )
    if key is not None:
        session.add(IdempotencyKeyRow(key=key, body_hash=body_hash, resource_id=study.id, created_at=now(session)))
        session.flush()
    return study.id, True


def replayed_study(session: Session, settings: Settings, request: StudyRequest, key: str) -> str:
    """The study another request with the same key has just made; for the loser of a race."""
    known = _replay(session, settings, key, content_key(request.model_dump(mode="json")))
    if known is None:
        raise Problem(
            409, "state_conflict", "another request with this key failed", hint="send it again", retry_after_s=1
        )
    return known


def _replay(session: Session, settings: Settings, key: str, body_hash: str) -> str | None:
    old = IdempotencyKeyRow.created_at < database_now() - settings.idempotency_s
    session.execute(delete(IdempotencyKeyRow).where(IdempotencyKeyRow.key == key, old))
    row = session.get(IdempotencyKeyRow, key)
    if row is None:
        return None
    if row.body_hash != body_hash:
        raise Problem(
            422,
            "idempotency_key_reused",
            "this Idempotency-Key was sent before with another body",
            hint="use a new key for a new study",
        )
    return row.resource_id


def _check_names(session: Session, request: StudyRequest) -> None:
    if usable(session, ModelRow, request.model) is None:
        if session.get(ModelRow, request.model) is not None:
            raise gone("model", request.model)
        raise _unknown("model_unknown", "/model", f"there is no model {request.model!r}", "upload it: POST /v1/models")
    if request.dataset is not None and usable(session, DatasetRow, request.dataset) is None:
        if session.get(DatasetRow, request.dataset) is not None:
            raise gone("dataset", request.dataset)
        text = f"there is no dataset {request.dataset!r}"
        raise _unknown("dataset_unknown", "/dataset", text, "upload it: POST /v1/datasets")
    known = set(session.scalars(select(HardwareProfileRow.slug)))
    for position, target in enumerate(request.targets):
        if target.hardware not in known:
            listed = ", ".join(sorted(known)) or "none yet; a worker announces its hardware when it starts"
            raise _unknown(
                "hardware_unknown",
                f"/targets/{position}/hardware",
                f"no worker has announced the hardware profile {target.hardware!r}",
                f"known profiles: {listed}",
            )


def _default_name(session: Session, request: StudyRequest) -> str:
    model = session.get_one(ModelRow, request.model)
    return f"{model.name} on {', '.join(target.hardware for target in request.targets)}"[:200]


def _unknown(code: str, pointer: str, detail: str, hint: str) -> Problem:
    return Problem(404, code, detail, hint=hint, errors=[FieldError(pointer=pointer, message=detail)])
