"""Latency tables as rows: append-only versions per profile, and the table a device knows now.

A latency belongs to a device, its runtime and the session options, together the *identity*. Every version carries the
identity it was measured under; what counts now are the versions whose identity is the profile's. A driver or runtime
update therefore sets older rows aside without losing them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from sqlalchemy import func, insert, select
from sqlalchemy.orm import Session

from kernels.latency_table import SCHEMA_VERSION, LatencyTable
from service.canonical import content_key
from service.ids import new_id
from service.store.models import HardwareProfileRow, LatencyRowRow, LatencyTableRow
from service.store.studies import now

DEVICE_FIELDS = ("kind", "name", "cores", "isa", "driver")
"""What tells devices apart; memory and cache sizes vary between two starts of one machine."""
OVERHEAD = "overhead"
INSERT_BATCH = 1000


class ForeignTable(Exception):
    """The table was measured elsewhere: `code` says what differs, `theirs` and `ours` the two values."""

    def __init__(self, code: str, theirs: object, ours: object) -> None:
        super().__init__(f"{code}: {theirs!r} is not {ours!r}")
        self.code, self.theirs, self.ours = code, theirs, ours


def identity_key(profile: Mapping[str, Any]) -> str:
    """The hash of what a latency on this profile belongs to."""
    return content_key(
        {
            "device": device_identity(profile.get("device", {})),
            "runtime": profile.get("runtime"),
            "runtime_version": profile.get("runtime_version"),
            "session_options": profile.get("session_options", {}),
        }
    )


def device_identity(device: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a device document that tell devices apart."""
    return {name: device.get(name, [] if name == "isa" else "") for name in DEVICE_FIELDS}


def append_table(
    session: Session, profile: HardwareProfileRow, table: LatencyTable, *, source: str, study_id: str | None = None
) -> tuple[LatencyTableRow | None, bool]:
    """Add what the profile does not know yet as its next version; returns the newest version and whether it is new.

    None when neither the table nor the profile has a row. Two writers of one profile come one after the other. Raises
    `ForeignTable` (`table_device_mismatch`, `table_runtime_mismatch`) for a table of another device or runtime.
    """
    _check_identity(profile.profile, table)
    session.execute(select(HardwareProfileRow.slug).where(HardwareProfileRow.slug == profile.slug).with_for_update())
    identity = identity_key(profile.profile)
    document = table.to_json()
    known = {_row_key(row) for row in _stored_rows(session, profile.slug, identity)}
    fresh = [
        (kind, row)
        for kind, rows in ((None, document["rows"]), (OVERHEAD, document.get("overheads", [])))
        for row in rows
        if _row_key(row) not in known
    ]
    newest = session.scalar(select(func.max(LatencyTableRow.version)).where(LatencyTableRow.hardware == profile.slug))
    if not fresh:
        return newest_version(session, profile), False
    used = {row["run"] for _, row in fresh}
    runs = {name: run for name, run in document["runs"].items() if name in used}
    entered = LatencyTableRow(
        id=new_id("table"),
        hardware=profile.slug,
        version=(newest or 0) + 1,
        identity_key=identity,
        content_sha256=content_key({"identity": identity, "runs": runs, "rows": [row for _, row in fresh]}),
        device=document["device"],
        runtime=table.runtime,
        runtime_version=table.runtime_version,
        runs=runs,
        row_count=len(fresh),
        source=source,
        study_id=study_id,
        created_at=now(session),
    )
    session.add(entered)
    session.flush()
    rows = [_columns(entered.id, position, kind, row) for position, (kind, row) in enumerate(fresh)]
    for start in range(0, len(rows), INSERT_BATCH):
        session.execute(insert(LatencyRowRow), rows[start : start + INSERT_BATCH])
    return entered, True


def newest_version(session: Session, profile: HardwareProfileRow) -> LatencyTableRow | None:
    """The newest version that counts for the profile as it is now."""
    query = select(LatencyTableRow).where(
        LatencyTableRow.hardware == profile.slug, LatencyTableRow.identity_key == identity_key(profile.profile)
    )
    return session.scalars(query.order_by(LatencyTableRow.version.desc()).limit(1)).first()


def known_table(session: Session, profile: HardwareProfileRow) -> dict[str, Any] | None:
    """All rows that count now, as a latency table's JSON; None when there are none."""
    identity = identity_key(profile.profile)
    query = select(LatencyTableRow).where(
        LatencyTableRow.hardware == profile.slug, LatencyTableRow.identity_key == identity
    )
    versions = list(session.scalars(query.order_by(LatencyTableRow.version)))
    return table_document(session, versions) if versions else None


def table_document(session: Session, versions: list[LatencyTableRow]) -> dict[str, Any]:
    """Versions of one identity as one latency table's JSON, later rows after earlier ones."""
    newest = versions[-1]
    query = (
        select(LatencyRowRow.op_kind, LatencyRowRow.document)
        .join(LatencyTableRow, LatencyTableRow.id == LatencyRowRow.table_id)
        .where(LatencyTableRow.id.in_([version.id for version in versions]))
        .order_by(LatencyTableRow.version, LatencyRowRow.position)
    )
    rows = session.execute(query).all()
    return {
        "schema_version": SCHEMA_VERSION,
        "profile": newest.hardware,
        "device": newest.device,
        "runtime": newest.runtime,
        "runtime_version": newest.runtime_version,
        "version": newest.version,
        "runs": {name: run for version in versions for name, run in version.runs.items()},
        "rows": [row.document for row in rows if row.op_kind != OVERHEAD],
        "overheads": [row.document for row in rows if row.op_kind == OVERHEAD],
    }


def _check_identity(profile: Mapping[str, Any], table: LatencyTable) -> None:
    theirs, ours = device_identity(table.device.to_json()), device_identity(profile.get("device", {}))
    for name in DEVICE_FIELDS:
        if theirs[name] != ours[name]:
            raise ForeignTable("table_device_mismatch", {name: theirs[name]}, {name: ours[name]})
    runtime = (profile.get("runtime"), profile.get("runtime_version"))
    if (table.runtime, table.runtime_version) != runtime:
        raise ForeignTable("table_runtime_mismatch", (table.runtime, table.runtime_version), runtime)


def _stored_rows(session: Session, slug: str, identity: str) -> Iterable[dict[str, Any]]:
    query = select(LatencyRowRow.document).join(LatencyTableRow, LatencyTableRow.id == LatencyRowRow.table_id)
    return session.scalars(query.where(LatencyTableRow.hardware == slug, LatencyTableRow.identity_key == identity))


def _row_key(row: Mapping[str, Any]) -> tuple[object, ...]:
    """Two rows with this in common are the same measurement."""
    return tuple(row.get(name) for name in ("signature", "precision", "threads", "cache", "run", "median_us"))


def _columns(table_id: str, position: int, kind: str | None, row: dict[str, Any]) -> dict[str, Any]:
    return {
        "table_id": table_id,
        "position": position,
        "op_kind": kind or str(row["signature"]).partition("_")[0],
        "signature": row["signature"],
        "precision": row["precision"],
        "threads": row["threads"],
        "status": row["status"],
        "scope": row["scope"],
        "median_us": row["median_us"],
        "document": row,
    }
