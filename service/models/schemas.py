"""What the API says about a model."""

from __future__ import annotations

from pydantic import BaseModel

from service.store.models import ModelRow
from service.times import iso


class FileView(BaseModel):
    name: str
    sha256: str
    size_bytes: int


class ModelView(BaseModel):
    """An uploaded model: immutable, known by its sha256."""

    id: str
    name: str
    sha256: str
    size_bytes: int
    files: list[FileView]
    created_at: str | None


class ModelPage(BaseModel):
    items: list[ModelView]
    next_cursor: str | None


def model_view(row: ModelRow) -> ModelView:
    return ModelView(
        id=row.id,
        name=row.name,
        sha256=row.sha256,
        size_bytes=row.size_bytes,
        files=[FileView(**file) for file in row.files],
        created_at=iso(row.created_at),
    )
