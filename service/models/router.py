"""`/v1/models`: upload, look up and delete models. The bytes are stored, never parsed here."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from sqlalchemy import select
from starlette.concurrency import run_in_threadpool

from service.archives import unpack
from service.canonical import content_key
from service.dependencies import Parts, ReadSession, TheParts, WriteSession
from service.errors import Problem, gone, in_use, not_found
from service.formats import check_external_data_names, check_model_format
from service.ids import new_id
from service.models.layers import LayerList, checked_graph, read_layers
from service.models.schemas import ModelPage, ModelView, model_view
from service.paging import Cursor, Limit, page_of, page_query
from service.settings import Settings
from service.store.models import ModelRow
from service.store.uploads import InUse, delete, enter
from service.uploads import Sha256, UploadedFile, fields_of, received_files, upload_form

router = APIRouter(prefix="/v1/models", tags=["models"])
UPLOAD_FORM: dict[str, Any] = upload_form(
    {
        "file": {"type": "string", "format": "binary", "description": "the ONNX file"},
        "external_data": {"type": "array", "items": {"type": "string", "format": "binary"}},
        "archive": {"type": "string", "format": "binary", "description": "instead: a zip of the two"},
    },
    one_of=("file", "archive"),
)


@router.post("", status_code=201, responses={200: {"model": ModelView}}, openapi_extra=UPLOAD_FORM)
async def upload_model(request: Request, response: Response, parts: TheParts) -> ModelView:
    """Upload an ONNX file (`file`) with its external data files (`external_data`), or one zip of them (`archive`).

    200 when these bytes are known already.
    """
    settings = parts.settings
    async with received_files(request, settings.upload_folder, idle_s=settings.upload_idle_s) as files:
        main, external = await run_in_threadpool(_files_of_model, settings, files)
        check_model_format(main.head, main.size_bytes)
        check_external_data_names([upload.name for upload in external])
        row, created = await run_in_threadpool(_store, parts, main, external)
    response.status_code = 201 if created else 200
    response.headers["Location"] = f"/v1/models/{row.id}"
    return model_view(row)


@router.get("")
def list_models(
    session: ReadSession, sha256: Annotated[Sha256 | None, Query()] = None, cursor: Cursor = None, limit: Limit = 50
) -> ModelPage:
    """Models, newest first; `sha256` tells whether a file need be sent at all."""
    query = select(ModelRow).where(ModelRow.deleted_at.is_(None))
    if sha256 is not None:
        query = query.where(ModelRow.sha256 == sha256)
    rows, next_cursor = page_of(list(session.scalars(page_query(query, ModelRow, cursor, limit))), limit)
    return ModelPage(items=[model_view(row) for row in rows], next_cursor=next_cursor)


@router.get("/{model_id}")
def get_model(model_id: str, session: ReadSession) -> ModelView:
    """One model."""
    return model_view(_model(session, model_id))


@router.get("/{model_id}/layers")
def list_layers(model_id: str, session: ReadSession, parts: TheParts) -> LayerList:
    """The layers of a model, once a study has checked it: the file is parsed in a sandbox only."""
    _model(session, model_id)
    found = checked_graph(session, model_id)
    if found is None:
        raise Problem(
            409,
            "not_checked",
            f"no study has checked the model {model_id} yet",
            hint="start a study of it; its first stage finds the layers",
        )
    return read_layers(parts.blobs, model_id, *found)


@router.delete("/{model_id}", status_code=204)
def delete_model(model_id: str, session: WriteSession) -> None:
    """Delete a model that no unfinished study needs. Finished studies keep what they found."""
    try:
        if not delete(session, ModelRow, model_id):
            _model(session, model_id)
    except InUse as found:
        raise in_use("model", model_id, found.studies) from None


def _model(session: ReadSession, model_id: str) -> ModelRow:
    row = session.get(ModelRow, model_id)
    if row is None:
        raise not_found("model", model_id)
    if row.deleted_at is not None:
        raise gone("model", model_id)
    return row


def _files_of_model(settings: Settings, files: list[UploadedFile]) -> tuple[UploadedFile, list[UploadedFile]]:
    if [upload.field_name for upload in files] != ["archive"]:
        return fields_of(files, one="file", many="external_data")
    return unpack(
        files[0],
        settings.upload_folder,
        limit_bytes=settings.upload_limit_bytes,
        ratio_limit=settings.archive_ratio_limit,
        keep=files.append,
    )


def _store(parts: Parts, main: UploadedFile, external: list[UploadedFile]) -> tuple[ModelRow, bool]:
    files = [
        {"name": name, "sha256": upload.sha256, "size_bytes": upload.size_bytes}
        for name, upload in [("model.onnx", main), *((upload.name, upload) for upload in external)]
    ]
    sha256 = main.sha256 if not external else content_key(sorted([file["name"], file["sha256"]] for file in files))
    for upload in (main, *external):
        parts.blobs.adopt(upload.path, sha256=upload.sha256)
    size_bytes = main.size_bytes + sum(upload.size_bytes for upload in external)
    row = ModelRow(id=new_id("model"), sha256=sha256, name=main.name, size_bytes=size_bytes, files=files)
    return enter(parts.database, row)
