"""Problems: every error the API answers with, as RFC 9457 problem+json with a stable `code` and a `hint`."""

from __future__ import annotations

import errno
import logging
import re
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from sqlalchemy import exc as database_errors
from starlette.exceptions import HTTPException

from service.blobs import BlobMissing, BlobStoreAway
from service.store.database import is_busy, is_outage, is_statement_timeout

log = logging.getLogger(__name__)
MEDIA_TYPE = "application/problem+json"
NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
DATABASE_RETRY_S = 2.0
SQLITE_FULL = 13
POSTGRESQL_FULL = "53100"
DECLARED_STATUSES = (400, 401, 403, 404, 405, 408, 409, 410, 413, 415, 416, 422, 500, 503, 507)


class FieldError(BaseModel):
    """One wrong place in what was sent; `pointer` is a JSON pointer into the body or names a parameter."""

    pointer: str
    message: str


class ProblemDocument(BaseModel):
    """The body of every error response."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    code: str
    hint: str
    request_id: str
    retryable: bool
    retry_after_s: float | None = None
    errors: list[FieldError] = []


class Problem(HTTPException):
    """An error with its HTTP status. `code` is stable; `hint` says what the caller can do next."""

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        *,
        hint: str,
        errors: list[FieldError] | None = None,
        retry_after_s: float | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(status, detail, headers)
        self.code = code
        self.hint = hint
        self.errors = errors or []
        self.retry_after_s = retry_after_s


def not_found(noun: str, name: str) -> Problem:
    """There is no such thing, or it is not yours."""
    return Problem(404, "not_found", f"there is no {noun} {name[:100]!r}", hint="check the id; ids are case-sensitive")


def gone(noun: str, name: str) -> Problem:
    """It was here and was deleted."""
    return Problem(410, f"{noun}_deleted", f"the {noun} {name} was deleted", hint=f"upload the {noun} again")


def in_use(noun: str, name: str, studies: list[str]) -> Problem:
    """It cannot be deleted now."""
    return Problem(
        409,
        "in_use",
        f"studies that have not ended need the {noun} {name}: {', '.join(studies)}",
        hint="wait for them, or cancel them first",
    )


_PLAIN = {
    400: ("bad_request", "the request could not be read; check that the body is what the endpoint documents"),
    404: ("not_found", "no such path; /openapi.json lists all of them"),
    405: ("method_not_allowed", "the Allow header lists the methods of this path"),
}


def problem_of(problem: Problem, *, instance: str, request_id: str) -> ProblemDocument:
    return ProblemDocument(
        type=f"urn:bitwright:problem:{problem.code}",
        title=HTTPStatus(problem.status_code).phrase,
        status=problem.status_code,
        detail=problem.detail,
        instance=instance,
        code=problem.code,
        hint=problem.hint,
        request_id=request_id,
        retryable=problem.retry_after_s is not None,
        retry_after_s=problem.retry_after_s,
        errors=problem.errors,
    )


def problem_response(request: Request, problem: Problem) -> JSONResponse:
    headers = dict(problem.headers or {})
    if problem.retry_after_s is not None:
        headers["Retry-After"] = str(max(1, round(problem.retry_after_s)))
    return JSONResponse(
        problem_of(
            problem, instance=request.url.path, request_id=getattr(request.state, "request_id", "")
        ).model_dump(),
        problem.status_code,
        headers=headers,
        media_type=MEDIA_TYPE,
    )


def internal_problem() -> Problem:
    return Problem(
        500, "internal", "the server failed while answering", hint="report the request_id; the log names the cause"
    )


def storage_full() -> Problem:
    return Problem(507, "storage_full", "the server has no room for this", hint="ask its operator; nothing was stored")


def _of_database(error: Exception) -> Problem | None:
    """What a database error means to the caller; None when it is a fault of ours."""
    if isinstance(error, database_errors.DataError):
        detail = "a value cannot be stored: a NUL character, or a number out of range"
        return Problem(422, "invalid_request", detail, hint="send plain text and numbers of at most 63 bits")
    if _is_full(error):
        return storage_full()
    if is_statement_timeout(error):
        return Problem(
            503,
            "statement_timeout",
            "the database took longer for this than a request may",
            hint="ask for less: a smaller limit, fewer filters; its operator may raise BITWRIGHT_STATEMENT_LIMIT_S",
            retry_after_s=DATABASE_RETRY_S,
        )
    if is_busy(error):
        return Problem(
            503,
            "database_busy",
            "another transaction holds what this request needs",
            hint="send the request again in a moment; nothing was stored",
            retry_after_s=DATABASE_RETRY_S,
        )
    if is_outage(error):
        return Problem(
            503,
            "database_unavailable",
            "the database does not answer",
            hint="send the request again in a moment",
            retry_after_s=DATABASE_RETRY_S,
        )
    return None


def _is_full(error: Exception) -> bool:
    origin = getattr(error, "orig", None)
    return (getattr(origin, "sqlite_errorcode", 0) & 0xFF) == SQLITE_FULL or (
        getattr(origin, "sqlstate", None) == POSTGRESQL_FULL
    )


def install_error_handlers(app: FastAPI) -> None:
    """Make every error of the application a problem document."""

    @app.exception_handler(database_errors.SQLAlchemyError)
    async def database_error(request: Request, error: database_errors.SQLAlchemyError) -> JSONResponse:
        problem = _of_database(error)
        if problem is None:
            raise error
        log.warning("%s %s: %s", request.method, request.url.path, error)
        return problem_response(request, problem)

    @app.exception_handler(OSError)
    async def system_error(request: Request, error: OSError) -> JSONResponse:
        if error.errno not in NO_SPACE:
            raise error
        log.error("%s %s: %s", request.method, request.url.path, error)
        return problem_response(request, storage_full())

    @app.exception_handler(BlobStoreAway)
    async def blob_store_away(request: Request, error: BlobStoreAway) -> JSONResponse:
        log.error("%s %s: %s", request.method, request.url.path, error)
        problem = Problem(
            503,
            "blob_store_unavailable",
            "the store of files does not answer",
            hint="send the request again in a moment",
            retry_after_s=DATABASE_RETRY_S,
        )
        return problem_response(request, problem)

    @app.exception_handler(BlobMissing)
    async def blob_missing(request: Request, error: BlobMissing) -> JSONResponse:
        log.error("%s %s: %s", request.method, request.url.path, error)
        problem = Problem(
            500, "blob_missing", "the server has lost the bytes of this file", hint="restore the blob store's backup"
        )
        return problem_response(request, problem)

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> JSONResponse:
        if not isinstance(error, Problem):
            code, hint = _PLAIN.get(error.status_code, ("error", "see detail"))
            headers = dict(error.headers or {})
            if error.status_code == 405:
                headers["Allow"] = ", ".join(_methods_of(request))
            error = Problem(error.status_code, code, str(error.detail), hint=hint, headers=headers)
        return problem_response(request, error)

    @app.exception_handler(RequestValidationError)
    async def validation_error(request: Request, error: RequestValidationError) -> JSONResponse:
        found = error.errors()
        if any(one["type"] == "json_invalid" for one in found):
            return problem_response(request, malformed_json("the body is not JSON"))
        if isinstance(error.body, bytes) and error.body:
            return problem_response(request, _json_expected(request))
        errors = [FieldError(pointer=_pointer(one["loc"]), message=str(one["msg"])) for one in found]
        return problem_response(
            request,
            Problem(
                422, "invalid_request", f"{len(errors)} field(s) are wrong", hint="each entry of errors", errors=errors
            ),
        )


def malformed_json(detail: str) -> Problem:
    return Problem(400, "malformed_json", detail, hint="send one UTF-8 JSON object")


def _json_expected(request: Request) -> Problem:
    given = request.headers.get("content-type", "")[:100]
    return Problem(
        415, "media_type_unsupported", f"content type {given!r} is not JSON", hint="send Content-Type: application/json"
    )


def _methods_of(request: Request) -> list[str]:
    """All methods of the request's path; the router names only those of the first route it met."""
    paths = request.app.openapi()["paths"]
    found = {"GET"} if request.url.path == "/" else set()
    for template, operations in paths.items():
        if re.fullmatch(re.sub(r"\\\{[^/]+\\\}", "[^/]+", re.escape(template)), request.url.path):
            found |= {method.upper() for method in operations}
    return sorted(found)


def _pointer(location: tuple[Any, ...]) -> str:
    where, *path = location
    escaped = "/".join(str(part).replace("~", "~0").replace("/", "~1") for part in path)
    return f"/{escaped}" if where == "body" else f"{where}:{escaped}"


def declare_problems(openapi: dict[str, Any]) -> dict[str, Any]:
    """Add the problem responses to every operation of an OpenAPI document."""
    schemas = openapi.setdefault("components", {}).setdefault("schemas", {})
    schema = ProblemDocument.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas.update(schema.pop("$defs", {}))
    schemas["ProblemDocument"] = schema
    for gone in ("HTTPValidationError", "ValidationError"):
        schemas.pop(gone, None)
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemDocument"}}}
    openapi["components"]["responses"] = {
        f"Problem{status}": {"description": HTTPStatus(status).phrase, "content": content}
        for status in DECLARED_STATUSES
    }
    for path in openapi["paths"].values():
        for operation in path.values():
            for status in DECLARED_STATUSES:
                if status == 422 or str(status) not in operation["responses"]:
                    operation["responses"][str(status)] = {"$ref": f"#/components/responses/Problem{status}"}
    return openapi
