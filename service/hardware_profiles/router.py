"""`/v1/hardware-profiles`: the hardware that workers announced, that is shipped, or that users described."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Path, Response
from sqlalchemy import select
from sqlalchemy.orm import Session

from kernels.errors import KernelsError
from kernels.hardware_profile import HardwareProfile
from service.dependencies import ReadSession, TheParts, WriteSession
from service.errors import FieldError, Problem, not_found
from service.hardware_profiles.coverage import coverage, summaries
from service.hardware_profiles.profiles import (
    WORKER,
    ProfileInUse,
    ProfileTaken,
    delete_user_profile,
    enter_user_profile,
)
from service.hardware_profiles.schemas import Coverage, HardwareProfileList, HardwareProfileView, ProfileBody
from service.store.fleet import live_queues
from service.store.models import HardwareProfileRow
from service.times import iso

router = APIRouter(prefix="/v1/hardware-profiles", tags=["hardware"])


@router.get("")
def list_profiles(session: ReadSession, parts: TheParts) -> HardwareProfileList:
    """All profiles by slug."""
    rows = list(session.scalars(select(HardwareProfileRow).order_by(HardwareProfileRow.slug)))
    return HardwareProfileList(items=_views(session, parts.settings.worker_silent_s, rows))


@router.post("", status_code=201, responses={200: {"model": HardwareProfileView}})
def post_profile(body: ProfileBody, response: Response, session: WriteSession, parts: TheParts) -> HardwareProfileView:
    """Describe hardware no worker runs on, for tables measured there. 200 when it is known with this very document."""
    row, created = _enter(session, body, replace=False)
    response.status_code = 201 if created else 200
    response.headers["Location"] = f"/v1/hardware-profiles/{row.slug}"
    return _view(session, parts.settings.worker_silent_s, row)


@router.get("/{slug}")
def get_profile(slug: str, session: ReadSession, parts: TheParts) -> HardwareProfileView:
    """One profile."""
    return _view(session, parts.settings.worker_silent_s, profile_row(session, slug))


@router.put("/{slug}", responses={201: {"model": HardwareProfileView}})
def put_profile(
    slug: Annotated[str, Path()], body: ProfileBody, response: Response, session: WriteSession, parts: TheParts
) -> HardwareProfileView:
    """Describe hardware, or describe it anew, as after a driver update; rows of the earlier driver count no more."""
    if body.slug != slug:
        raise _wrong("/slug", f"the address says {slug[:100]!r}, the body {body.slug!r}")
    row, created = _enter(session, body, replace=True)
    response.status_code = 201 if created else 200
    return _view(session, parts.settings.worker_silent_s, row)


@router.delete("/{slug}", status_code=204)
def delete_profile(slug: str, session: WriteSession) -> None:
    """Delete a profile that a user described and nothing names yet."""
    row = profile_row(session, slug)
    try:
        delete_user_profile(session, row)
    except ProfileTaken as taken:
        raise _taken(slug, taken) from None
    except ProfileInUse:
        raise Problem(
            409, "in_use", f"studies or latency tables name the profile {slug}", hint="describe it anew: PUT"
        ) from None


@router.get("/{slug}/coverage")
def get_coverage(slug: str, session: ReadSession) -> Coverage:
    """What has been timed on it: rows by op kind and precision, and what it could run that nobody timed."""
    return coverage(session, profile_row(session, slug))


def profile_row(session: Session, slug: str) -> HardwareProfileRow:
    """The profile of a slug; raises `Problem` 404."""
    row = session.get(HardwareProfileRow, slug)
    if row is None:
        raise not_found("hardware profile", slug)
    return row


def _enter(session: Session, body: ProfileBody, *, replace: bool) -> tuple[HardwareProfileRow, bool]:
    try:
        document = HardwareProfile.from_json(body.model_dump(mode="json")).to_json()
    except KernelsError as error:
        raise _wrong("/support", str(error)) from None
    try:
        return enter_user_profile(session, document, replace=replace)
    except ProfileTaken as taken:
        raise _taken(body.slug, taken) from None


def _views(session: Session, silent_s: float, rows: Sequence[HardwareProfileRow]) -> list[HardwareProfileView]:
    live, tables = live_queues(session, silent_s), summaries(session, rows)
    return [
        HardwareProfileView(
            slug=row.slug,
            live=f"measure.{row.slug}" in live,
            source=row.source,
            announced_at=iso(row.announced_at) if row.source == WORKER else None,
            table=tables.get(row.slug),
            profile=row.profile,
        )
        for row in rows
    ]


def _view(session: Session, silent_s: float, row: HardwareProfileRow) -> HardwareProfileView:
    (view,) = _views(session, silent_s, [row])
    return view


def _taken(slug: str, taken: ProfileTaken) -> Problem:
    return Problem(
        409,
        "profile_exists",
        f"{slug[:100]!r} is a profile already, with another document ({taken.source})",
        hint="choose another slug; a profile of your own is described anew by PUT",
    )


def _wrong(pointer: str, message: str) -> Problem:
    return Problem(
        422,
        "invalid_request",
        "1 field(s) are wrong",
        hint="each entry of errors",
        errors=[FieldError(pointer=pointer, message=message)],
    )
