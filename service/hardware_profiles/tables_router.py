"""`/v1/hardware-profiles/{slug}/latency-tables`: append-only versions, and the table that counts now."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Response
from fastapi.responses import JSONResponse
from sqlalchemy import select

from kernels.errors import KernelsError
from kernels.latency_table import SCHEMA_VERSION, LatencyTable
from kernels.op_shape import parse_op_shape
from kernels.precision import Precision
from service.dependencies import ReadSession, WriteSession
from service.errors import FieldError, Problem, not_found
from service.hardware_profiles.router import profile_row
from service.hardware_profiles.schemas import LatencyTablePage, LatencyTableView, TableBody, table_view
from service.hardware_profiles.tables import ForeignTable, append_table, identity_key, known_table, table_document
from service.paging import Cursor, Limit, page_of, page_query
from service.store.models import LatencyTableRow

router = APIRouter(prefix="/v1/hardware-profiles/{slug}", tags=["hardware"])
MAX_ERRORS = 20
Version = Annotated[int, Path(ge=1, lt=1 << 63)]


@router.post("/latency-tables", status_code=201, responses={200: {"model": LatencyTableView}})
def post_latency_table(slug: str, body: TableBody, response: Response, session: WriteSession) -> LatencyTableView:
    """Add a table measured on this very device, e.g. one without a network. 200 when it says nothing new."""
    profile = profile_row(session, slug)
    _check(body)
    table = LatencyTable.from_json(body.model_dump(mode="json"))
    try:
        row, created = append_table(session, profile, table, source="upload")
    except ForeignTable as foreign:
        raise Problem(
            409,
            foreign.code,
            f"the table is of {foreign.theirs!r}, the profile {slug} of {foreign.ours!r}",
            hint="upload it to the profile of the device it was measured on; after an update describe the profile anew",
        ) from None
    assert row is not None, "a table has at least one row"
    response.status_code = 201 if created else 200
    response.headers["Location"] = f"/v1/hardware-profiles/{slug}/latency-tables/{row.version}"
    return table_view(row, identity_key(profile.profile))


@router.get("/latency-tables")
def list_latency_tables(slug: str, session: ReadSession, cursor: Cursor = None, limit: Limit = 50) -> LatencyTablePage:
    """The versions of a profile's table, newest first, with their provenance."""
    profile = profile_row(session, slug)
    query = select(LatencyTableRow).where(LatencyTableRow.hardware == slug)
    rows, next_cursor = page_of(list(session.scalars(page_query(query, LatencyTableRow, cursor, limit))), limit)
    identity = identity_key(profile.profile)
    return LatencyTablePage(items=[table_view(row, identity) for row in rows], next_cursor=next_cursor)


@router.get("/latency-tables/{version}")
def get_latency_table(slug: str, version: Version, session: ReadSession) -> dict[str, Any]:
    """The rows one version added, as a latency table's JSON."""
    profile_row(session, slug)
    query = select(LatencyTableRow).where(LatencyTableRow.hardware == slug, LatencyTableRow.version == version)
    row = session.scalars(query).one_or_none()
    if row is None:
        raise not_found("latency table", f"{slug} version {version}")
    return table_document(session, [row])


@router.get("/latency-table")
def get_current_table(slug: str, session: ReadSession) -> JSONResponse:
    """Every row that counts for the profile now, as one latency table's JSON: what `measure` starts from."""
    table = known_table(session, profile_row(session, slug))
    if table is None:
        raise not_found("latency table of the hardware profile", slug)
    return JSONResponse(table)


def _check(body: TableBody) -> None:
    """Raises `Problem` for another schema version, and for rows that contradict themselves."""
    if body.schema_version != SCHEMA_VERSION:
        raise Problem(
            422,
            "table_schema_unsupported",
            f"the table has schema version {body.schema_version}, this server reads {SCHEMA_VERSION}",
            hint="measure again with the server's version of bitwright",
        )
    errors: list[FieldError] = []
    for position, row in enumerate(body.rows):
        try:
            parse_op_shape(row.signature)
            Precision(row.precision)
        except KernelsError as error:
            errors.append(FieldError(pointer=f"/rows/{position}", message=str(error)))
        if not row.ci_low_us <= row.median_us <= row.ci_high_us:
            errors.append(FieldError(pointer=f"/rows/{position}/median_us", message="lies outside its own interval"))
    for name, rows in (("rows", body.rows), ("overheads", body.overheads)):
        for position, row in enumerate(rows):
            if row.run not in body.runs:
                errors.append(FieldError(pointer=f"/{name}/{position}/run", message=f"runs has no {row.run[:100]!r}"))
    if errors:
        raise Problem(
            422,
            "invalid_request",
            f"{len(errors)} row(s) are wrong",
            hint="upload the file as the measuring program wrote it",
            errors=errors[:MAX_ERRORS],
        )
