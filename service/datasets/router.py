"""`/v1/datasets`: upload, look up and delete datasets. The bytes are stored, never parsed here."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel
from sqlalchemy import select
from starlette.concurrency import run_in_threadpool

from service.dependencies import Parts, ReadSession, TheParts, WriteSession
from service.errors import gone, in_use, not_found
from service.formats import dataset_format
from service.ids import new_id
from service.paging import Cursor, Limit, page_of, page_query
from service.store.models import DatasetRow
from service.store.uploads import InUse, delete, enter
from service.times import iso
from service.uploads import Sha256, UploadedFile, fields_of, received_files, upload_form

router = APIRouter(prefix="/v1/datasets", tags=["datasets"])
UPLOAD_FORM: dict[str, Any] = upload_form(
    {"file": {"type": "string", "format": "binary", "description": "a .npz or .safetensors file"}}, one_of=("file",)
)
DAY_S = 86400.0
MAX_DAYS = 36500


class DatasetView(BaseModel):
    """An uploaded dataset: immutable, known by its sha256. After `expires_at` it goes when no study needs it."""

    id: str
    name: str
    format: str
    sha256: str
    size_bytes: int
    created_at: str | None
    expires_at: str | None


class DatasetPage(BaseModel):
    items: list[DatasetView]
    next_cursor: str | None


@router.post("", status_code=201, responses={200: {"model": DatasetView}}, openapi_extra=UPLOAD_FORM)
async def upload_dataset(
    request: Request,
    response: Response,
    parts: TheParts,
    days: Annotated[float | None, Query(gt=0, le=MAX_DAYS, description="How long it is kept")] = None,
) -> DatasetView:
    """Upload a `.npz` or `.safetensors` file (`file`); 200 when it is known already."""
    settings = parts.settings
    lifetime_s = days * DAY_S if days is not None else settings.dataset_lifetime_s or None
    async with received_files(request, settings.upload_folder, idle_s=settings.upload_idle_s) as files:
        main, _ = fields_of(files, one="file")
        kind = dataset_format(main.head, main.size_bytes)
        row, created = await run_in_threadpool(_store, parts, main, kind, lifetime_s)
    response.status_code = 201 if created else 200
    response.headers["Location"] = f"/v1/datasets/{row.id}"
    return dataset_view(row)


@router.get("")
def list_datasets(
    session: ReadSession, sha256: Annotated[Sha256 | None, Query()] = None, cursor: Cursor = None, limit: Limit = 50
) -> DatasetPage:
    """Datasets, newest first; `sha256` tells whether a file need be sent at all."""
    query = select(DatasetRow).where(DatasetRow.deleted_at.is_(None))
    if sha256 is not None:
        query = query.where(DatasetRow.sha256 == sha256)
    rows, next_cursor = page_of(list(session.scalars(page_query(query, DatasetRow, cursor, limit))), limit)
    return DatasetPage(items=[dataset_view(row) for row in rows], next_cursor=next_cursor)


@router.get("/{dataset_id}")
def get_dataset(dataset_id: str, session: ReadSession) -> DatasetView:
    """One dataset."""
    return dataset_view(_dataset(session, dataset_id))


@router.delete("/{dataset_id}", status_code=204)
def delete_dataset(dataset_id: str, session: WriteSession, force: bool = False) -> None:
    """Delete a dataset that no unfinished study needs; with `force` such studies fail with `dataset_deleted`."""
    try:
        if not delete(session, DatasetRow, dataset_id, force=force):
            _dataset(session, dataset_id)
    except InUse as found:
        raise in_use("dataset", dataset_id, found.studies) from None


def dataset_view(row: DatasetRow) -> DatasetView:
    return DatasetView(
        id=row.id,
        name=row.name,
        format=row.format,
        sha256=row.sha256,
        size_bytes=row.size_bytes,
        created_at=iso(row.created_at),
        expires_at=iso(row.expires_at),
    )


def _dataset(session: ReadSession, dataset_id: str) -> DatasetRow:
    row = session.get(DatasetRow, dataset_id)
    if row is None:
        raise not_found("dataset", dataset_id)
    if row.deleted_at is not None:
        raise gone("dataset", dataset_id)
    return row


def _store(parts: Parts, main: UploadedFile, kind: str, lifetime_s: float | None) -> tuple[DatasetRow, bool]:
    parts.blobs.adopt(main.path, sha256=main.sha256)
    row = DatasetRow(id=new_id("dataset"), sha256=main.sha256, name=main.name, format=kind, size_bytes=main.size_bytes)
    return enter(parts.database, row, lifetime_s=lifetime_s)
