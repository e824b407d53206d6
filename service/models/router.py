"""`/v1/models`: upload and look up models. The bytes are stored, never parsed here."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from starlette.concurrency import run_in_threadpool

from service.canonical import content_key
from service.dependencies import Parts, ReadSession, TheParts
from service.errors import not_found
from service.formats import check_external_data_names, check_model_format
from service.ids import new_id
from service.models.schemas import ModelPage, ModelView, model_view
from service.paging import DEFAULT_LIMIT, MAX_LIMIT, page_of, page_query
from service.store.models import ModelRow
from service.store.studies import now
from service.uploads import UploadedFile, fields_of, received_files

router = APIRouter(prefix="/v1/models", tags=["models"])
UPLOAD_FORM: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {
                        "file": {"type": "string", "format": "binary"},
                        "external_data": {"type": "array", "items": {"type": "string", "format": "binary"}},
                    },
                }
            }
        },
    }
}


@router.post("", status_code=201, responses={200: {"model": ModelView}}, openapi_extra=UPLOAD_FORM)
async def upload_model(request: Request, response: Response, parts: TheParts) -> ModelView:
    """Upload an ONNX file (`file`) with its external data files (`external_data`); 200 when it is known already."""
    async with received_files(request, parts.settings.upload_folder) as files:
        main, external = fields_of(files, one="file", many="external_data")
        check_model_format(main.head, main.size_bytes)
        check_external_data_names([upload.name for upload in external])
        view, created = await run_in_threadpool(_store, parts, main, external)
    response.status_code = 201 if created else 200
    response.headers["Location"] = f"/v1/models/{view.id}"
    return view


@router.get("")
def list_models(
    session: ReadSession, cursor: str | None = None, limit: Annotated[int, Query(ge=1, le=MAX_LIMIT)] = DEFAULT_LIMIT
) -> ModelPage:
    """Models, newest first."""
    rows = list(session.scalars(page_query(select(ModelRow), ModelRow, cursor, limit)))
    rows, next_cursor = page_of(rows, limit)
    return ModelPage(items=[model_view(row) for row in rows], next_cursor=next_cursor)


@router.get("/{model_id}")
def get_model(model_id: str, session: ReadSession) -> ModelView:
    """One model."""
    row = session.get(ModelRow, model_id)
    if row is None:
        raise not_found("model", model_id)
    return model_view(row)


def _store(parts: Parts, main: UploadedFile, external: list[UploadedFile]) -> tuple[ModelView, bool]:
    files = [
        {"name": name, "sha256": upload.sha256, "size_bytes": upload.size_bytes}
        for name, upload in [("model.onnx", main), *((upload.name, upload) for upload in external)]
    ]
    sha256 = main.sha256 if not external else content_key(sorted([file["name"], file["sha256"]] for file in files))
    for upload in (main, *external):
        parts.blobs.adopt(upload.path, sha256=upload.sha256)
    known = select(ModelRow).where(ModelRow.sha256 == sha256)
    try:
        with parts.database.write() as session:
            row = session.scalars(known).one_or_none()
            if row is not None:
                return model_view(row), False
            row = ModelRow(
                id=new_id("model"),
                sha256=sha256,
                name=main.name,
                size_bytes=main.size_bytes + sum(upload.size_bytes for upload in external),
                files=files,
                created_at=now(session),
            )
            session.add(row)
    except IntegrityError:  # the same bytes were uploaded twice at once
        with parts.database.read() as session:
            return model_view(session.scalars(known).one()), False
    return model_view(row), True
