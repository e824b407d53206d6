"""Fleet pages: models, hardware with the coverage and age of its latency tables, workers."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from service.dashboard.pages import page
from service.dependencies import ReadSession, TheParts
from service.hardware_profiles.coverage import coverage, summaries
from service.keys.access import page_access
from service.lifecycle import StageState
from service.paging import page_of, page_query
from service.store.database import database_now
from service.store.fleet import live_queues
from service.store.models import (
    HardwareProfileRow,
    ModelRow,
    StageRow,
    StudyRow,
    WorkerRow,
)
from service.times import iso

PAGE_ROWS = 50
RECENT_FITS = 20
router = APIRouter(include_in_schema=False, dependencies=[page_access()])


@dataclass(frozen=True)
class FitError:
    """How well whole networks were predicted on a profile in its last studies, leaving each run out in turn."""

    studies: int
    mean: float
    worst: float


@router.get("/models")
def models_page(
    request: Request, session: ReadSession, cursor: Annotated[str | None, Query(max_length=200)] = None
) -> Response:
    """Models, newest first, with how often each was studied."""
    query = page_query(select(ModelRow).where(ModelRow.deleted_at.is_(None)), ModelRow, cursor, PAGE_ROWS)
    rows, next_cursor = page_of(list(session.scalars(query)), PAGE_ROWS)
    ids = [row.id for row in rows]
    counted = select(StudyRow.model_id, func.count(), func.max(StudyRow.created_at)).where(
        StudyRow.model_id.in_(ids), StudyRow.parent_id.is_(None)
    )
    studies = {model: (count, iso(last)) for model, count, last in session.execute(counted.group_by(StudyRow.model_id))}
    checked = (
        select(StudyRow.model_id, StageRow.summary)
        .join(StageRow, StageRow.study_id == StudyRow.id)
        .where(StudyRow.model_id.in_(ids), StageRow.kind == "check", StageRow.state == StageState.SUCCEEDED.value)
    )
    layers = {model: (summary or {}).get("layers") for model, summary in session.execute(checked)}
    return page(
        request,
        "models.html",
        models=[
            {
                "row": row,
                "created_at": iso(row.created_at),
                "studies": studies.get(row.id, (0, None)),
                "layers": layers.get(row.id),
            }
            for row in rows
        ],
        next_cursor=next_cursor,
    )


@router.get("/hardware")
def hardware_page(request: Request, session: ReadSession, parts: TheParts) -> Response:
    """Every profile: what it runs, what is measured of it and how long ago, how well predictions held."""
    live = live_queues(session, parts.settings.worker_silent_s)
    errors = _fit_errors(session)
    rows = list(session.scalars(select(HardwareProfileRow).order_by(HardwareProfileRow.slug)))
    tables = summaries(session, rows)
    profiles = []
    for row in rows:
        support = row.profile.get("support", [])
        table = tables.get(row.slug)
        profiles.append(
            {
                "row": row,
                "announced_at": iso(row.announced_at),
                "live": f"measure.{row.slug}" in live,
                "at_hand": f"measure.{row.slug}" in live or table is not None or row.source != "shipped",
                "device": row.profile.get("device") or {},
                "kinds": list(dict.fromkeys(one["op"] for one in support)),
                "precisions": list(dict.fromkeys(one["precision"] for one in support)),
                "kernels": {(one["op"], one["precision"]): one for one in support},
                "table": table,
                "age_s": _rounded_age(table.age_s) if table else None,
                "by_pair": _rows_by_pair(session, row) if table else {},
                "error": errors.get(row.slug),
            }
        )
    profiles.sort(key=lambda one: (not one["live"], one["table"] is None))
    return page(request, "hardware.html", profiles=profiles)


@router.get("/workers")
def workers_page(request: Request, session: ReadSession, parts: TheParts) -> Response:
    """Workers, live ones first, with the stages they hold; and queues nobody takes from."""
    silent_s = parts.settings.worker_silent_s
    held: dict[str, list[StageRow]] = defaultdict(list)
    for stage in session.scalars(select(StageRow).where(StageRow.state == StageState.RUNNING.value)):
        held[stage.worker_id or ""].append(stage)
    found = session.execute(select(WorkerRow, database_now() - WorkerRow.seen_at).order_by(WorkerRow.started_at))
    workers = [
        {
            "row": row,
            "live": silence_s < silent_s,
            "silence_s": silence_s,
            "started_at": iso(row.started_at),
        }
        for row, silence_s in found
    ]
    waiting = session.execute(
        select(StageRow.queue, func.count())
        .where(StageRow.state == StageState.QUEUED.value)
        .group_by(StageRow.queue)
        .order_by(StageRow.queue)
    ).all()
    live = live_queues(session, silent_s)
    return page(
        request,
        "workers.html",
        workers=sorted(workers, key=lambda one: not one["live"]),
        running=[stage for stages in held.values() for stage in stages],
        queues=[{"name": queue, "depth": count, "live": queue in live} for queue, count in waiting],
    )


def _rows_by_pair(session: Session, profile: HardwareProfileRow) -> dict[tuple[str, str], int]:
    rows: dict[tuple[str, str], int] = defaultdict(int)
    for cell in coverage(session, profile).cells:
        rows[cell.op, cell.precision] += cell.rows
    return rows


def _rounded_age(age_s: float) -> float:
    """In steps of a minute, so that a page polled every few seconds stays the same."""
    return max(60.0, 60.0 * round(age_s / 60))


def _fit_errors(session: Session) -> dict[str, FitError]:
    """Per profile the leave-one-out error of its last measured studies, which is what a new one can expect."""
    query = select(StageRow.summary).where(
        StageRow.kind == "measure", StageRow.state == StageState.SUCCEEDED.value, StageRow.reused_from.is_(None)
    )
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for summary in session.scalars(query.order_by(StageRow.finished_at.desc()).limit(RECENT_FITS * 10)):
        for slug, told in (summary or {}).items():
            if isinstance(told, dict) and told.get("loo_mape") is not None and len(found[slug]) < RECENT_FITS:
                found[slug].append(told)
    return {
        slug: FitError(
            len(fits), sum(one["loo_mape"] for one in fits) / len(fits), max(one.get("loo_max", 0.0) for one in fits)
        )
        for slug, fits in found.items()
        if fits
    }
