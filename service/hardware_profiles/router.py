"""`/v1/hardware-profiles`: the hardware that workers announced."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel
from sqlalchemy import select

from service.dependencies import ReadSession, TheParts
from service.errors import not_found
from service.store.fleet import live_queues
from service.store.models import HardwareProfileRow
from service.times import iso

router = APIRouter(prefix="/v1/hardware-profiles", tags=["hardware"])


class HardwareProfileView(BaseModel):
    """A device with its runtime; `live` says whether a worker takes its stages now."""

    slug: str
    live: bool
    announced_at: str | None
    profile: dict[str, Any]


class HardwareProfileList(BaseModel):
    items: list[HardwareProfileView]


@router.get("")
def list_profiles(session: ReadSession, parts: TheParts) -> HardwareProfileList:
    """All announced profiles by slug."""
    live = live_queues(session, parts.settings.worker_silent_s)
    rows = session.scalars(select(HardwareProfileRow).order_by(HardwareProfileRow.slug))
    return HardwareProfileList(items=[_view(row, live) for row in rows])


@router.get("/{slug}")
def get_profile(slug: str, session: ReadSession, parts: TheParts) -> HardwareProfileView:
    """One profile."""
    row = session.get(HardwareProfileRow, slug)
    if row is None:
        raise not_found("hardware profile", slug)
    return _view(row, live_queues(session, parts.settings.worker_silent_s))


def _view(row: HardwareProfileRow, live: frozenset[str]) -> HardwareProfileView:
    return HardwareProfileView(
        slug=row.slug,
        live=f"measure.{row.slug}" in live,
        announced_at=iso(row.announced_at),
        profile=row.profile,
    )
