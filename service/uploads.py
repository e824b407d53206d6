"""Uploads: multipart bodies written to disk, hashed and measured while they arrive; nothing of them is parsed."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, BinaryIO
from uuid import uuid4

import anyio
from pydantic import StringConstraints
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request

from service.errors import FieldError, Problem

log = logging.getLogger(__name__)
MAX_PARTS = 64
BATCH_BYTES = 1 << 20
MAX_NAME = 200
HEAD_BYTES = 16
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
_UNSAFE = re.compile(r"[\x00-\x1f\x7f-\x9f]")


@dataclass
class UploadedFile:
    """One file of a multipart body, complete on disk at `path`; `head` are its first bytes."""

    field_name: str
    name: str
    path: Path
    sha256: str = ""
    size_bytes: int = 0
    head: bytes = b""


@dataclass
class _Sink:
    """Callbacks of the parser: part headers in, files out. Form fields without a file name are refused."""

    folder: Path
    files: list[UploadedFile] = field(default_factory=list)
    _headers: dict[bytes, bytes] = field(default_factory=dict)
    _header_name: bytes = b""
    _header_value: bytes = b""
    _file: BinaryIO | None = None
    _hash: Any = None
    ended: bool = False

    def callbacks(self) -> Any:
        names = (
            "part_begin",
            "part_data",
            "part_end",
            "header_field",
            "header_value",
            "header_end",
            "headers_finished",
            "end",
        )
        return {f"on_{name}": getattr(self, name) for name in names}

    def part_begin(self) -> None:
        self._headers = {}
        if len(self.files) >= MAX_PARTS:
            raise _bad_multipart(f"more than {MAX_PARTS} files")

    def header_field(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def header_end(self) -> None:
        self._headers[self._header_name.lower()] = self._header_value
        self._header_name = self._header_value = b""

    def headers_finished(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        name = options.get(b"filename")
        if name is None:
            field_name = options.get(b"name", b"").decode("utf-8", "replace")[:50]
            raise Problem(
                422,
                "invalid_request",
                f"the form's field {field_name!r} is text, not a file",
                hint="send files only, e.g. curl -F file=@model.onnx",
                errors=[FieldError(pointer=f"/{field_name}", message="not a file")],
            )
        upload = UploadedFile(
            options.get(b"name", b"").decode("utf-8", "replace"),
            safe_name(name.decode("utf-8", "replace")),
            self.folder / uuid4().hex,
        )
        self.files.append(upload)
        self._hash = hashlib.sha256()
        self._file = open(upload.path, "xb")

    def part_data(self, data: bytes, start: int, end: int) -> None:
        assert self._file is not None
        piece = data[start:end]
        upload = self.files[-1]
        self._file.write(piece)
        self._hash.update(piece)
        upload.size_bytes += len(piece)
        if len(upload.head) < HEAD_BYTES:
            upload.head = (upload.head + piece)[:HEAD_BYTES]

    def part_end(self) -> None:
        self.files[-1].sha256 = self._hash.hexdigest()
        self.close()

    def end(self) -> None:
        self.ended = True

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def safe_name(name: str) -> str:
    """A file name without folders or control characters, at most 200 characters; never empty or hidden."""
    base = _UNSAFE.sub("", name).replace("\\", "/").rpartition("/")[2].strip().lstrip(".")
    return base[-MAX_NAME:] or "unnamed"


@asynccontextmanager
async def received_files(request: Request, folder: Path, *, idle_s: float) -> AsyncIterator[list[UploadedFile]]:
    """The files of a multipart request. Whatever the block does not take away is deleted behind it.

    Files the block appends to the list are deleted too. Hashing and writing happen beside the event loop. Raises
    `Problem`: `multipart_expected`, `malformed_multipart` for a body that ends early or a client that goes away,
    `upload_stalled` for one that sends nothing for `idle_s` seconds.
    """
    content_type, options = parse_options_header(request.headers.get("content-type", ""))
    boundary = options.get(b"boundary")
    if content_type != b"multipart/form-data" or not boundary:
        raise Problem(
            415,
            "multipart_expected",
            f"content type {request.headers.get('content-type', '')[:100]!r} is not multipart/form-data",
            hint="send the file as the multipart field 'file', e.g. curl -F file=@model.onnx",
        )
    folder.mkdir(parents=True, exist_ok=True)
    sink = _Sink(folder)
    try:
        try:
            parser = MultipartParser(boundary, callbacks=sink.callbacks())
            async for batch in _batches(request, idle_s):
                await run_in_threadpool(parser.write, batch)
            parser.finalize()
        except FormParserError as error:
            raise _bad_multipart(str(error)) from error
        except ClientDisconnect:
            log.info("a client went away in the middle of its upload")
            raise _bad_multipart("the client went away") from None
        if not sink.ended:
            raise _bad_multipart("the body ends before its last boundary")
        yield sink.files
    finally:
        sink.close()
        for upload in sink.files:
            upload.path.unlink(missing_ok=True)


async def _batches(request: Request, idle_s: float) -> AsyncIterator[bytes]:
    """The body in pieces of about a mebibyte, so that few of them have to change threads."""
    stream = request.stream()
    waiting = bytearray()
    try:
        while True:
            with anyio.fail_after(idle_s):
                chunk = await anext(stream, None)
            waiting += chunk or b""
            if waiting and (chunk is None or len(waiting) >= BATCH_BYTES):
                yield bytes(waiting)
                waiting.clear()
            if chunk is None:
                return
    except TimeoutError:
        raise Problem(
            408, "upload_stalled", f"the upload sent nothing for {idle_s:g} s", hint="send it again", retry_after_s=1
        ) from None


def fields_of(
    files: list[UploadedFile], *, one: str, many: str | None = None
) -> tuple[UploadedFile, list[UploadedFile]]:
    """The single required file and the repeatable ones; other fields, or none at all, are refused."""
    main = [upload for upload in files if upload.field_name == one]
    rest = [upload for upload in files if many is not None and upload.field_name == many]
    if len(main) != 1 or len(main) + len(rest) != len(files):
        wanted = f"exactly one file in the field {one!r}" + (f" and any number in {many!r}" if many else "")
        raise Problem(
            422,
            "invalid_request",
            f"the form has the fields {[upload.field_name[:50] for upload in files]}",
            hint=f"send {wanted}",
            errors=[FieldError(pointer=f"/{one}", message=wanted)],
        )
    return main[0], rest


def upload_form(fields: dict[str, Any], *, one_of: tuple[str, ...]) -> dict[str, Any]:
    """The OpenAPI description of a multipart body of which one of these fields is required."""
    schema = {
        "type": "object",
        "properties": fields,
        "additionalProperties": False,
        "oneOf": [{"required": [name]} for name in one_of],
    }
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}


def _bad_multipart(why: str) -> Problem:
    return Problem(400, "malformed_multipart", f"the multipart body cannot be read: {why}", hint="send it again whole")
