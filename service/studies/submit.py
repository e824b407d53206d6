"""Submission: a checked request becomes a study; so do another attempt at an old one and a changed copy of it."""

from __future__ import annotations

from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from service.errors import FieldError, Problem, gone
from service.lifecycle import StudyState
from service.settings import Settings
from service.store.database import database_now
from service.store.fleet import live_queues
from service.store.models import DatasetRow, HardwareProfileRow, ModelRow, StudyRow, WorkerRow
from service.store.stages import create_study
from service.store.uploads import usable
from service.studies.plan import kind_named, plan_study, study_kinds
from service.studies.schemas import CloneRequest, StudyRequest
from service.version import VERSION

MOST_SHARDS = 16


def submit_study(
    session: Session, settings: Settings, request: StudyRequest, origin: dict[str, Any] | None = None
) -> str:
    """The new study's id. Raises `Problem` for names nobody knows."""
    check_names(session, request)
    spec = request.spec()
    stages = plan_study(
        spec,
        study_kinds(spec),
        shards=shards_now(session, settings),
        anywhere=without_device(session, settings, spec),
    )
    return create_study(
        session,
        name=request.name or _default_name(session, request),
        spec=spec,
        stages=stages,
        max_attempts=settings.max_attempts,
        origin=origin,
    ).id


def retry_study(session: Session, settings: Settings, study: StudyRow) -> str:
    """A new study with the request of one that failed or was cancelled; what that one finished or saved is taken up."""
    if study.state not in (StudyState.FAILED.value, StudyState.CANCELLED.value):
        raise Problem(
            409,
            "state_conflict",
            f"the study is {study.state}; only one that failed or was cancelled can be tried again",
            hint="clone it to ask something else",
        )
    request = StudyRequest(**study.spec, name=study.name)
    return submit_study(session, settings, request, {"retry_of": study.id})


def clone_study(session: Session, settings: Settings, study: StudyRow, changes: CloneRequest) -> str:
    """A new study with the request of another, some of its fields replaced."""
    given = changes.model_dump(mode="json", exclude_unset=True)
    request = StudyRequest(**{**study.spec, "name": f"copy of {study.name}"[:200], **given})
    return submit_study(session, settings, request, {"clone_of": study.id})


def shards_now(session: Session, settings: Settings) -> int:
    """Into how many stages a scan is cut: one for each live worker that scans, unless the settings say."""
    if settings.scan_shards:
        return min(settings.scan_shards, MOST_SHARDS)
    alive = WorkerRow.seen_at > database_now() - settings.worker_silent_s
    queues = session.scalars(select(WorkerRow.queues).where(alive, WorkerRow.version == VERSION))
    scanning = kind_named("scan").queue
    return max(1, min(MOST_SHARDS, sum(scanning in taken for taken in queues)))


def without_device(session: Session, settings: Settings, spec: dict[str, Any]) -> set[str]:
    """Hardware of a study that asks for estimates where no worker is on the device: any worker estimates it."""
    if not spec.get("options", {}).get("estimates"):
        return set()
    live = live_queues(session, settings.worker_silent_s)
    measuring = kind_named("measure").queue
    slugs = {target["hardware"] for target in spec["targets"]}
    return {slug for slug in slugs if measuring.format(hardware=slug) not in live}


def check_names(session: Session, request: StudyRequest) -> None:
    """Raises `Problem` 404: `model_unknown`, `dataset_unknown`, `hardware_unknown`."""
    if usable(session, ModelRow, request.model) is None:
        if session.get(ModelRow, request.model) is not None:
            raise gone("model", request.model)
        raise _unknown("model_unknown", "/model", f"there is no model {request.model!r}", "upload it: POST /v1/models")
    if request.dataset is not None and usable(session, DatasetRow, request.dataset) is None:
        if session.get(DatasetRow, request.dataset) is not None:
            raise gone("dataset", request.dataset)
        text = f"there is no dataset {request.dataset!r}"
        raise _unknown("dataset_unknown", "/dataset", text, "upload it: POST /v1/datasets")
    for position, target in enumerate(request.targets):
        check_hardware(session, target.hardware, f"/targets/{position}/hardware")


def check_hardware(session: Session, slug: str, pointer: str) -> None:
    if session.scalar(select(func.count()).where(HardwareProfileRow.slug == slug)):
        return
    known = session.scalars(select(HardwareProfileRow.slug).order_by(HardwareProfileRow.slug))
    listed = ", ".join(known) or "none yet; a worker announces its hardware when it starts"
    text = f"no worker has announced the hardware profile {slug!r}"
    raise _unknown("hardware_unknown", pointer, text, f"known profiles: {listed}")


def _default_name(session: Session, request: StudyRequest) -> str:
    model = session.get_one(ModelRow, request.model)
    return f"{model.name} on {', '.join(target.hardware for target in request.targets)}"[:200]


def _unknown(code: str, pointer: str, detail: str, hint: str) -> Problem:
    return Problem(404, code, detail, hint=hint, errors=[FieldError(pointer=pointer, message=detail)])
