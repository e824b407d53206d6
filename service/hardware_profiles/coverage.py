"""Coverage: how much of a profile has been timed, and when."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from service.hardware_profiles.schemas import Coverage, CoverageCell, TableSummary
from service.hardware_profiles.tables import OVERHEAD, identity_key
from service.store.models import HardwareProfileRow, LatencyRowRow, LatencyTableRow
from service.store.studies import now
from service.times import iso


def summaries(session: Session, profiles: Sequence[HardwareProfileRow]) -> dict[str, TableSummary]:
    """By slug, what each profile's current rows amount to; profiles without rows are left out."""
    found = (
        select(
            LatencyTableRow.hardware,
            LatencyTableRow.identity_key,
            LatencyRowRow.status,
            func.count().label("rows"),
            func.count(LatencyTableRow.id.distinct()).label("versions"),
            func.max(LatencyTableRow.version).label("version"),
            func.min(LatencyTableRow.created_at).label("oldest"),
            func.max(LatencyTableRow.created_at).label("newest"),
        )
        .join(LatencyRowRow, LatencyRowRow.table_id == LatencyTableRow.id)
        .where(LatencyRowRow.op_kind != OVERHEAD)
        .group_by(LatencyTableRow.hardware, LatencyTableRow.identity_key, LatencyRowRow.status)
    )
    if len(profiles) == 1:
        found = found.where(LatencyTableRow.hardware == profiles[0].slug)
    identities = {profile.slug: identity_key(profile.profile) for profile in profiles}
    by_slug: dict[str, list[tuple[str, int, int, int, float, float]]] = {}
    for slug, identity, status, rows, versions, version, oldest, newest in session.execute(found):
        if identities.get(slug) == identity:
            by_slug.setdefault(slug, []).append((status, rows, versions, version, oldest, newest))
    at = now(session)
    return {
        slug: TableSummary(
            version=max(group[3] for group in groups),
            versions=max(group[2] for group in groups),
            rows=sum(group[1] for group in groups),
            rows_by_status={group[0]: group[1] for group in sorted(groups)},
            oldest_at=iso(min(group[4] for group in groups)),
            newest_at=iso(max(group[5] for group in groups)),
            age_s=round(max(0.0, at - max(group[5] for group in groups)), 1),
        )
        for slug, groups in by_slug.items()
    }


def coverage(session: Session, profile: HardwareProfileRow) -> Coverage:
    """What counts now, by op kind, precision, threads, status and scope."""
    keys = (
        LatencyRowRow.op_kind,
        LatencyRowRow.precision,
        LatencyRowRow.threads,
        LatencyRowRow.status,
        LatencyRowRow.scope,
    )
    query = (
        select(
            *keys,
            func.count().label("rows"),
            func.count(LatencyRowRow.signature.distinct()).label("op_shapes"),
            func.max(LatencyTableRow.created_at).label("newest"),
        )
        .join(LatencyTableRow, LatencyTableRow.id == LatencyRowRow.table_id)
        .where(
            LatencyTableRow.hardware == profile.slug,
            LatencyTableRow.identity_key == identity_key(profile.profile),
            LatencyRowRow.op_kind != OVERHEAD,
        )
        .group_by(*keys)
        .order_by(*keys)
    )
    cells = [
        CoverageCell(
            op=row.op_kind,
            precision=row.precision,
            threads=row.threads,
            status=row.status,
            scope=row.scope,
            rows=row.rows,
            op_shapes=row.op_shapes,
            newest_at=iso(row.newest),
        )
        for row in session.execute(query)
    ]
    timed = {(cell.op, cell.precision) for cell in cells}
    offered = {(pair["op"], pair["precision"]) for pair in profile.profile.get("support", [])}
    unmeasured = [f"{op} {precision}" for op, precision in sorted(offered - timed)]
    return Coverage(hardware=profile.slug, cells=cells, unmeasured=unmeasured)
