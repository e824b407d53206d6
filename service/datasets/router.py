"""`/v1/datasets`: upload and look up datasets. The bytes are stored, never parsed here."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from starlette.concurrency import run_in_threadpool

from service.dependencies import Parts, ReadSession, TheParts
from service.errors import not_found
from service.formats import dataset_format
from service.ids import new_id
from service.paging import DEFAULT_LIMIT, MAX_LIMIT, page_of, page_query
from service.store.models import DatasetRow
from service.store.studies import now
from service.times import iso
from service.uploads import UploadedFile, fields_of, received_files

router = APIRouter(prefix="/v1/datasets", tags=["datasets"])
UPLOAD_FORM: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {"file": {"type": "string", "format": "binary"}},
                }
            }
        },
    }
}


class DatasetView(BaseModel):
    """An uploaded dataset: immutable, known by its sha256."""

    id: str
    name: str
    format: str
    sha256: str
    size_bytes: int
    created_at: str | None


class DatasetPage(BaseModel):
    items: list[DatasetView]
    next_cursor: str | None


@router.post("", status_code=201, responses={200: {"model": DatasetView}}, openapi_extra=UPLOAD_FORM)
async def upload_dataset(request: Request, response: Response, parts: TheParts) -> DatasetView:
    """Upload a `.npz` or `.safetensors` file (`file`); 200 when it is known already."""
    async with received_files(request, parts.settings.upload_folder) as files:
        main, _ = fields_of(files, one="file")
        kind = dataset_format(main.head, main.size_bytes)
        view, created = await run_in_threadpool(_store, parts, main, kind)
    response.status_code = 201 if created else 200
    response.headers["Location"] = f"/v1/datasets/{view.id}"
    return view


@router.get("")
def list_datasets(
    session: ReadSession, cursor: str | None = None, limit: Annotated[int, Query(ge=1, le=MAX_LIMIT)] = DEFAULT_LIMIT
) -> DatasetPage:
    """Datasets, newest first."""
    rows = list(session.scalars(page_query(select(DatasetRow), DatasetRow, cursor, limit)))
    rows, next_cursor = page_of(rows, limit)
    return DatasetPage(items=[dataset_view(row) for row in rows], next_cursor=next_cursor)


@router.get("/{dataset_id}")
def get_dataset(dataset_id: str, session: ReadSession) -> DatasetView:
    """One dataset."""
    row = session.get(DatasetRow, dataset_id)
    if row is None:
        raise not_found("dataset", dataset_id)
    return dataset_view(row)


def dataset_view(row: DatasetRow) -> DatasetView:
    return DatasetView(
        id=row.id,
        name=row.name,
        format=row.format,
        sha256=row.sha256,
        size_bytes=row.size_bytes,
        created_at=iso(row.created_at),
    )


def _store(parts: Parts, main: UploadedFile, kind: str) -> tuple[DatasetView, bool]:
    parts.blobs.adopt(main.path, sha256=main.sha256)
    known = select(DatasetRow).where(DatasetRow.sha256 == main.sha256)
    try:
        with parts.database.write() as session:
            row = session.scalars(known).one_or_none()
            if row is not None:
                return dataset_view(row), False
            row = DatasetRow(
                id=new_id("dataset"),
                sha256=main.sha256,
                name=main.name,
                format=kind,
                size_bytes=main.size_bytes,
                created_at=now(session),
            )
            session.add(row)
    except IntegrityError:  # the same bytes were uploaded twice at once
        with parts.database.read() as session:
            return dataset_view(session.scalars(known).one()), False
    return dataset_view(row), True
