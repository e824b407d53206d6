"""`/v1/artifacts`: the bytes of a file a study made, whole or one range of them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import IO, Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse

from service.blobs import CHUNK_BYTES, Blobs
from service.dependencies import ReadSession, TheParts
from service.errors import Problem, not_found
from service.etags import is_same
from service.store.models import ArtifactRow

router = APIRouter(prefix="/v1/artifacts", tags=["artifacts"])
_BINARY: dict[str, Any] = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
DOWNLOAD: dict[int | str, dict[str, Any]] = {
    200: {"description": "The file", "content": _BINARY},
    206: {"description": "The range asked for", "content": _BINARY},
    304: {"description": "The client has it"},
}
_RANGE = re.compile(r"bytes=(\d*)-(\d*)")
# A report is written by the sandboxed child from names in a stranger's file: it gets an origin of its own.
DOCUMENT_POLICY = (
    "sandbox allow-scripts; default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:"
)


@router.get("/{artifact_id}", responses=DOWNLOAD, response_class=StreamingResponse)
def get_artifact(request: Request, artifact_id: str, session: ReadSession, parts: TheParts) -> Response:
    """Download a file. `ETag` is its sha256; one byte range per request is understood."""
    row = session.get(ArtifactRow, artifact_id)
    if row is None:
        raise not_found("artifact", artifact_id)
    return artifact_response(request, parts.blobs, row, inline=False)


@router.head("/{artifact_id}", responses={200: {"description": "Size, type and sha256 of the file"}})
def head_artifact(request: Request, artifact_id: str, session: ReadSession, parts: TheParts) -> Response:
    """What a download would answer, without the bytes."""
    return get_artifact(request, artifact_id, session, parts)


def artifact_response(request: Request, blobs: Blobs, row: ArtifactRow, *, inline: bool) -> Response:
    """The file or the range of it that the request asks for; 304 when the client has it.

    Raises `Problem` 416 for a range outside the file.
    """
    etag = f'"{row.sha256}"'
    headers = {
        "ETag": etag,
        "Accept-Ranges": "bytes",
        "Content-Disposition": f'{"inline" if inline else "attachment"}; filename="{_quotable(row.name)}"',
        "Content-Security-Policy": DOCUMENT_POLICY,
    }
    if is_same(request.headers.get("if-none-match"), etag):
        return Response(status_code=304, headers=headers)
    asked = request.headers.get("range")
    if asked is not None and request.headers.get("if-range", etag) != etag:
        asked = None
    span = parse_range(asked, row.size_bytes)
    first, last = span or (0, row.size_bytes - 1)
    status = 200
    if span is not None:
        status = 206
        headers["Content-Range"] = f"bytes {first}-{last}/{row.size_bytes}"
    headers["Content-Length"] = str(last - first + 1)
    if request.method == "HEAD":
        return Response(status_code=status, headers=headers, media_type=row.media_type)
    pieces = _pieces(blobs.open(row.sha256), first, last - first + 1)
    return StreamingResponse(pieces, status, headers=headers, media_type=row.media_type)


def parse_range(text: str | None, size_bytes: int) -> tuple[int, int] | None:
    """First and last byte asked for; None for no range or one we may ignore (several, other units)."""
    match = _RANGE.fullmatch(text.strip()) if text else None
    if match is None or match.groups() == ("", ""):
        return None
    start, end = match.groups()
    if start:
        first, last = int(start), min(int(end), size_bytes - 1) if end else size_bytes - 1
        if end and int(end) < int(start):
            return None
    else:
        first, last = max(0, size_bytes - int(end)), size_bytes - 1
    if first > last:
        raise Problem(
            416,
            "range_not_satisfiable",
            f"the range {text!r} lies outside a file of {size_bytes} bytes",
            hint="ask for a range inside the file",
            headers={"Content-Range": f"bytes */{size_bytes}"},
        )
    return first, last


def _pieces(file: IO[bytes], first: int, count: int) -> Iterator[bytes]:
    with file:
        file.seek(first)
        while count > 0 and (piece := file.read(min(CHUNK_BYTES, count))):
            count -= len(piece)
            yield piece


def _quotable(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._ -]", "_", name)
