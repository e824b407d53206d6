"""Hardware profiles as rows: announced by a worker, shipped with the program, or described by a user.

One slug has one source. A worker's announcement wins over the other two, because it was found on the device itself.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import exists, select
from sqlalchemy.orm import Session

from kernels.profiles import shipped_names, shipped_profile
from service.canonical import content_key
from service.store.models import HardwareProfileRow, LatencyTableRow, StudyTargetRow
from service.store.studies import now

WORKER, SHIPPED, USER = "worker", "shipped", "user"


class ProfileTaken(Exception):
    """The slug belongs to somebody else's profile; `source` says whose."""

    def __init__(self, slug: str, source: str) -> None:
        super().__init__(f"{slug} is a {source} profile")
        self.source = source


class ProfileInUse(Exception):
    """Studies or latency tables name the profile."""


def enter_shipped_profiles(session: Session) -> int:
    """Enter the profiles this version ships, and their newer documents; returns how many changed."""
    changed = 0
    for slug in shipped_names():
        document = shipped_profile(slug).to_json()
        row = session.get(HardwareProfileRow, slug)
        if row is not None and (row.source != SHIPPED or row.profile_key == content_key(document)):
            continue
        _write(session, row, slug, document, SHIPPED)
        changed += 1
    return changed


def enter_user_profile(session: Session, document: dict[str, Any], *, replace: bool) -> tuple[HardwareProfileRow, bool]:
    """A user's profile and whether it is new. Raises `ProfileTaken` for a slug with another document or owner.

    With `replace` a user's earlier document under the slug gives way. Latency rows measured under the earlier identity
    stay and count again when it returns.
    """
    slug = document["slug"]
    row = session.scalars(
        select(HardwareProfileRow).where(HardwareProfileRow.slug == slug).with_for_update()
    ).one_or_none()
    if row is None:
        return _write(session, None, slug, document, USER), True
    if row.profile_key == content_key(document):
        return row, False
    if row.source != USER or not replace:
        raise ProfileTaken(slug, row.source)
    return _write(session, row, slug, document, USER), False


def delete_user_profile(session: Session, row: HardwareProfileRow) -> None:
    """Remove a user's profile. Raises `ProfileTaken` for another's, `ProfileInUse` when something names it."""
    if row.source != USER:
        raise ProfileTaken(row.slug, row.source)
    named = (
        exists().where(StudyTargetRow.hardware == row.slug),
        exists().where(LatencyTableRow.hardware == row.slug),
    )
    if any(session.scalar(select(one)) for one in named):
        raise ProfileInUse(row.slug)
    session.delete(row)
    session.flush()


def _write(
    session: Session, row: HardwareProfileRow | None, slug: str, document: dict[str, Any], source: str
) -> HardwareProfileRow:
    at = now(session)
    if row is None:
        row = HardwareProfileRow(slug=slug, created_at=at)
        session.add(row)
    row.profile, row.profile_key, row.source, row.announced_at = document, content_key(document), source, at
    session.flush()
    return row
